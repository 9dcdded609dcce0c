//! Hours of a week, as people write them: `22-7`, `Mon-Fri 18:30-08:00`, `Sat,Sun`.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Datelike as _, Local, Timelike as _, Weekday};
use serde::{Deserialize, Serialize};

/// Minutes of a day.
const DAY: u16 = 24 * 60;

const NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Hours of some days. What ends before it begins ends on the day after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hours {
    /// Monday first.
    days: [bool; 7],
    /// Minutes after midnight; the end is not among them.
    from: u16,
    to: u16,
}

/// A moment of a week, on the clock of whoever owns the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Which day.
    pub day: Weekday,
    /// Minutes after midnight.
    pub minute: u16,
}

/// Text that names no hours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no hours: say 22-7, Mon-Fri 18:30-08:00 or Sat,Sun")]
pub struct HoursError(String);

impl Moment {
    /// This one, by the machine's own clock and time zone.
    pub fn now() -> Self {
        Self::of(&Local::now())
    }

    fn of(time: &DateTime<Local>) -> Self {
        Self { day: time.weekday(), minute: (time.hour() * 60 + time.minute()) as u16 }
    }
}

impl Hours {
    /// Whether a moment is among them.
    pub fn contain(&self, moment: Moment) -> bool {
        let today = moment.day.num_days_from_monday() as usize;
        let (is_day, was_day) = (self.days[today], self.days[(today + 6) % 7]);
        let minute = moment.minute;
        match self.from < self.to {
            true => is_day && (self.from..self.to).contains(&minute),
            false => is_day && minute >= self.from || was_day && minute < self.to,
        }
    }
}

impl FromStr for Hours {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let bad = || HoursError(text.to_owned());
        let words: Vec<&str> = text.split_whitespace().collect();
        let is_time = |word: &str| word.starts_with(|first: char| first.is_ascii_digit());
        let (days, time) = match words[..] {
            [time] if is_time(time) => (None, Some(time)),
            [days] => (Some(days), None),
            [days, time] => (Some(days), Some(time)),
            _ => return Err(bad()),
        };
        let days = days.map_or(Ok([true; 7]), |days| parse_days(days).ok_or_else(bad))?;
        let (from, to) = time.map_or(Ok((0, DAY)), |time| parse_span(time).ok_or_else(bad))?;
        Ok(Self { days, from, to })
    }
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut day, last) = (parse_day(first)?, parse_day(last)?);
        days[day] = true;
        while day != last {
            day = (day + 1) % 7;
            days[day] = true;
        }
    }
    Some(days)
}

fn parse_day(text: &str) -> Option<usize> {
    text.parse::<Weekday>().ok().map(|day| day.num_days_from_monday() as usize)
}

/// A span of a day that is not empty: one that ends where it begins has no length, or a day's.
fn parse_span(text: &str) -> Option<(u16, u16)> {
    let (from, to) = text.split_once('-')?;
    let (from, to) = (parse_time(from)?, parse_time(to)?);
    (from != to && from < DAY).then_some((from, to))
}

fn parse_time(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':').unwrap_or((text, "00"));
    let is_number = |text: &str| (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(hour) || minute.len() != 2 || !is_number(minute) {
        return None;
    }
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    (minute < 60 && 60 * hour + minute <= DAY).then_some(60 * hour + minute)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != [true; 7] {
            let named = (0..7).filter(|day| self.days[*day]).map(|day| NAMES[day]);
            write!(f, "{} ", named.collect::<Vec<_>>().join(","))?;
        }
        let [from, to] = [self.from, self.to].map(|at| format!("{:02}:{:02}", at / 60, at % 60));
        write!(f, "{from}-{to}")
    }
}

impl TryFrom<String> for Hours {
    type Error = HoursError;

    fn try_from(text: String) -> Result<Self, HoursError> {
        text.parse()
    }
}

impl From<Hours> for String {
    fn from(hours: Hours) -> Self {
        hours.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: Weekday, hour: u16, minute: u16) -> Moment {
        Moment { day, minute: 60 * hour + minute }
    }

    #[test]
    fn a_night_goes_on_into_the_next_day() {
        let night: Hours = "Mon-Fri 18:30-08:00".parse().unwrap();
        assert!(night.contain(at(Weekday::Mon, 18, 30)) && night.contain(at(Weekday::Mon, 23, 59)));
        assert!(night.contain(at(Weekday::Sat, 7, 59)), "Friday's");
        for (day, hour, minute) in [(Weekday::Mon, 18, 29), (Weekday::Mon, 7, 0), (Weekday::Sat, 8, 0)] {
            assert!(!night.contain(at(day, hour, minute)), "{day} {hour}:{minute}");
        }
        let daily: Hours = "22-7".parse().unwrap();
        assert!(daily.contain(at(Weekday::Sun, 22, 0)) && daily.contain(at(Weekday::Mon, 6, 59)));
        assert!(!daily.contain(at(Weekday::Wed, 7, 0)));
    }

    #[test]
    fn days_alone_are_whole_days_and_may_go_round_the_week() {
        let weekend: Hours = "Sat,Sun".parse().unwrap();
        assert!(weekend.contain(at(Weekday::Sun, 23, 59)) && !weekend.contain(at(Weekday::Mon, 0, 0)));
        let round: Hours = "fri-mon 9-17".parse().unwrap();
        assert!(round.contain(at(Weekday::Sun, 9, 0)) && !round.contain(at(Weekday::Tue, 9, 0)));
        assert_eq!(round.to_string(), "Mon,Fri,Sat,Sun 09:00-17:00");
    }

    #[test]
    fn what_names_no_hours_is_refused() {
        for text in [
            "",
            "22",
            "7-7",
            "25-3",
            "22:5-7",
            "22:60-7",
            "24-3",
            "Mon",
            "Foo 1-2",
            "Mon 1-2 3",
            "-1-3",
            "+1-3",
            "1-2-3",
        ] {
            let parsed = text.parse::<Hours>();
            assert_eq!(parsed.is_ok(), text == "Mon", "{text}: {parsed:?}");
        }
        assert_eq!("0-24".parse::<Hours>().unwrap().to_string(), "00:00-24:00");
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(days: [bool; 7], from in 0..DAY, to in 0..=DAY) {
            let hours = Hours { days, from, to };
            if days != [false; 7] && from != to {
                proptest::prop_assert_eq!(hours.to_string().parse::<Hours>(), Ok(hours));
            }
        }
    }
}
