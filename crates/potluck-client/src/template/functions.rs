//! What templates expect of `transformers` beside Jinja itself.

use std::{error::Error as _, fmt};

use minijinja::{Environment, Error, ErrorKind, State, Value, value::Kwargs};

use super::json;

/// The variable that holds the time; its name cannot collide with a template's own.
pub(super) const NOW: &str = "potluck now";

/// Characters of a template's own words in an error.
const WORDS_MAX: usize = 300;
/// Characters of a date's format.
const FORMAT_MAX: usize = 200;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
}

/// A template's own words.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(words: String) -> Result<Value, Error> {
    let words = words.chars().take(WORDS_MAX).collect();
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(words)))
}

/// What the template said, where the error is its own.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(Raised(words)) = error.downcast_ref() {
            return Some(words.clone());
        }
        source = error.source();
    }
    None
}

fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Python's further options change nothing here: text is never escaped to ASCII, keys keep their order.
    for option in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = kwargs.get(option)?;
    }
    kwargs.assert_all_used()?;
    json::to_string(value, indent)
        .map(Value::from_safe_string)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))
}

fn strftime_now(state: &State, format: String) -> Result<String, Error> {
    let now = state.lookup(NOW).and_then(|now| i64::try_from(now).ok()).unwrap_or(0);
    if format.len() > FORMAT_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "strftime_now: the format is too long"));
    }
    let unknown = |letter| Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know %{letter}"));
    strftime(now, &format).map_err(unknown)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats UTC seconds as C's `strftime` does in the C locale; the first letter that is not known is the error.
fn strftime(now: i64, format: &str) -> Result<String, char> {
    let (days, second) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let weekday = WEEKDAYS[(days + 4).rem_euclid(7) as usize];
    let hour12 = (hour + 11) % 12 + 1;
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        let mut letter = letters.next().unwrap_or('%');
        let padded = letter != '-';
        if !padded {
            letter = letters.next().unwrap_or('-');
        }
        let two = |n: i64| if padded { format!("{n:02}") } else { n.to_string() };
        text += &match letter {
            'Y' => year.to_string(),
            'y' => two(year.rem_euclid(100)),
            'm' => two(month),
            'B' => MONTHS[month as usize - 1].to_owned(),
            'b' | 'h' => MONTHS[month as usize - 1][..3].to_owned(),
            'd' => two(day),
            'e' => format!("{day:2}"),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'H' => two(hour),
            'I' => two(hour12),
            'M' => two(minute),
            'S' => two(second),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            other => return Err(other),
        };
    }
    Ok(text)
}

/// Year, month and day of a day since 1970. Source: Hinnant, "chrono-compatible low-level date algorithms".
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime(0, "%A %d %B %Y %H:%M:%S"), Ok("Thursday 01 January 1970 00:00:00".into()));
        assert_eq!(strftime(951_827_696, "%d %b %Y, %-I:%M %p"), Ok("29 Feb 2000, 12:34 PM".into()));
        assert_eq!(strftime(1_732_406_400, "%F %T %a 100%%"), Ok("2024-11-24 00:00:00 Sun 100%".into()));
        assert_eq!(strftime(-1, "%Y-%m-%d %y"), Ok("1969-12-31 69".into()));
        assert_eq!(strftime(0, "%Q"), Err('Q'));
        assert!(strftime(i64::MAX / 2, "%Y").is_ok());
    }
}
