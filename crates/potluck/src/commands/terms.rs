//! `potluck terms|pause|resume`: on which terms this machine is lent, and what is lent to whom.

use std::{
    num::NonZeroU32,
    thread::available_parallelism,
    time::{Duration, Instant, UNIX_EPOCH},
};

use clap::{Args, ValueEnum};
use potluck_engine::SHARES;
use potluck_owner::{Battery, Hours, Pause, Preset, Terms};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    args::parse_bytes,
    commands::swarm::utc_now,
    failure::Failure,
    home::{Home, Lending, Lent},
    screen::{Screen, size},
};

/// Longest that a command waits for the process that lends to do as it was told: it has the models, and the sessions.
const DONE_WITHIN: Duration = Duration::from_secs(3);

/// Longest pause that ends by itself.
const PAUSE_MAX: Duration = Duration::from_secs(366 * 86_400);

/// Bytes a second of what is sent to others: as slow as a long step and the parts of a model beside it are waited for.
const UPLOAD: std::ops::RangeInclusive<f64> = 625e3..=1.25e9;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Without options: what is lent, to whom, and on which terms. Those that are given change, the others stay
#[derive(Debug, Args)]
pub(crate) struct TermsCommand {
    /// Begin with terms that suit many
    #[arg(long, value_enum)]
    preset: Option<PresetArg>,
    /// Lend while nobody has touched keyboard, mouse or a terminal for so long, such as 5m; no: also while somebody does
    #[arg(long, value_name = "TIME|no", value_parser = parse_idle)]
    idle: Option<Limit<u64>>,
    /// When to lend, such as 22-7 or "Mon-Fri 18:30-08:00" (repeatable); any: at any time
    #[arg(long, value_name = "HOURS|any", value_parser = parse_hours)]
    hours: Vec<Limit<Hours>>,
    /// Per cent of the processors that other programs may use while it is lent; no: it makes no difference
    #[arg(long, value_name = "PERCENT|no", value_parser = parse_percent)]
    others_cpu: Option<Limit<u8>>,
    /// Whether to lend on battery: any, never, or from so many per cent on
    #[arg(long, value_name = "any|never|PERCENT")]
    battery: Option<Battery>,
    /// Degrees Celsius of the hottest part while it is lent; no: it makes no difference
    #[arg(long, value_name = "DEGREES|no", value_parser = parse_degrees)]
    temperature: Option<Limit<u8>>,
    /// Threads that an engine computes with, from the next start on; no: as potluck serve says
    #[arg(long, value_name = "N|no", value_parser = parse_cores)]
    cores: Option<Limit<u16>>,
    /// Per cent of the time in which an engine may compute, on the graphics card or the processors, from the next start on; no: all of it
    #[arg(long, value_name = "PERCENT|no", value_parser = parse_share)]
    share: Option<Limit<u8>>,
    /// What is sent to others at most, such as 20Mbit a second, from the next start on; no: whatever the line takes
    #[arg(long, value_name = "RATE|no", value_parser = parse_upload)]
    upload: Option<Limit<NonZeroU32>>,
    /// Memory for a model whose layers are chosen, from the next start on; no: most of what is free
    #[arg(long, value_name = "BYTES|no", value_parser = parse_memory)]
    memory: Option<Limit<u64>>,
}

/// Take this machine back: what is lent is handed over to others, and its memory is free within a second
#[derive(Debug, Args)]
pub(crate) struct PauseCommand {
    /// For how long, such as 2h [default: until potluck resume]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    time: Option<Duration>,
}

/// Lend this machine again
#[derive(Debug, Args)]
pub(crate) struct ResumeCommand {}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PresetArg {
    /// Nobody notices it: idle for 5 minutes, others compute little, on mains, cool, half of the cores
    Gentle,
    /// From 18 to 8 and at weekends, on mains
    Evenings,
    /// At any time
    Always,
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit<T>(Option<T>);

fn limit<T>(text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Limit<T>, String> {
    if text == "no" { Ok(Limit(None)) } else { parse(text).map(|limit| Limit(Some(limit))) }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=PAUSE_MAX).contains(&time) {
        Ok(time)
    } else {
        Err("a second at least, a year at most".into())
    }
}

fn parse_idle(text: &str) -> Result<Limit<u64>, String> {
    limit(text, |text| {
        let seconds = humantime::parse_duration(text).map_err(|error| error.to_string())?.as_secs();
        // Typing at a terminal is noted in steps of eight seconds.
        if seconds >= 30 { Ok(seconds) } else { Err("30 seconds at least, such as 5m".into()) }
    })
}

fn parse_hours(text: &str) -> Result<Limit<Hours>, String> {
    if text == "any" { Ok(Limit(None)) } else { limit(text, |text| text.parse().map_err(|error| format!("{error}"))) }
}

fn parse_percent(text: &str) -> Result<Limit<u8>, String> {
    limit(text, |text| ranged(text.trim_end_matches('%'), 0..=100))
}

fn parse_degrees(text: &str) -> Result<Limit<u8>, String> {
    limit(text, |text| ranged(text, 30..=120))
}

fn parse_cores(text: &str) -> Result<Limit<u16>, String> {
    limit(text, |text| ranged(text, 1..=512))
}

fn parse_share(text: &str) -> Result<Limit<u8>, String> {
    limit(text, |text| ranged(text.trim_end_matches('%'), SHARES))
}

/// Bytes a second.
fn parse_upload(text: &str) -> Result<Limit<NonZeroU32>, String> {
    limit(text, |text| {
        let units = [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)];
        let lower = text.to_ascii_lowercase();
        let of = |(unit, bits): (&str, f64)| Some(lower.strip_suffix(unit)?.trim().parse::<f64>().ok()? * bits / 8.0);
        let bytes = units.into_iter().find_map(of).filter(|bytes| UPLOAD.contains(bytes));
        let whole = bytes.and_then(|bytes| NonZeroU32::new(bytes as u32));
        whole.ok_or_else(|| format!("`{text}` is no rate from 5Mbit to 10Gbit"))
    })
}

fn parse_memory(text: &str) -> Result<Limit<u64>, String> {
    limit(text, parse_bytes)
}

fn ranged<T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy>(
    text: &str,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("`{text}` is not a number from {} to {}", range.start(), range.end()))
}

impl TermsCommand {
    pub(crate) fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let before = home.terms()?;
        let terms = self.change(before.clone());
        if terms != before {
            home.set_terms(&terms)?;
        }
        show(home, screen, &terms)
    }

    fn change(self, before: Terms) -> Terms {
        let preset = self.preset.map(|preset| match preset {
            PresetArg::Gentle => Preset::Gentle,
            PresetArg::Evenings => Preset::Evenings,
            PresetArg::Always => Preset::Always,
        });
        let cores = || available_parallelism().map_or(1, usize::from);
        let mut terms = preset.map_or(before, |preset| preset.terms(cores()));
        let set = |limit: Option<Limit<u8>>, to: &mut Option<u8>| *to = limit.map_or(*to, |Limit(limit)| limit);
        set(self.others_cpu, &mut terms.others_cpu);
        set(self.temperature, &mut terms.temperature);
        terms.idle_s = self.idle.map_or(terms.idle_s, |Limit(limit)| limit);
        terms.cores = self.cores.map_or(terms.cores, |Limit(limit)| limit);
        set(self.share, &mut terms.share);
        terms.upload = self.upload.map_or(terms.upload, |Limit(limit)| limit);
        terms.memory = self.memory.map_or(terms.memory, |Limit(limit)| limit);
        terms.battery = self.battery.unwrap_or(terms.battery);
        if !self.hours.is_empty() {
            terms.hours = self.hours.into_iter().filter_map(|Limit(hours)| hours).collect();
        }
        terms
    }
}

impl PauseCommand {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let until = self.time.map(|time| utc_now() + time.as_secs());
        let was_lent = home.lending()?.is_some_and(|lending| lending.lends.is_some());
        let begun = Instant::now();
        home.set_pause(Some(Pause { until }))?;
        // What was about to be loaded is given up as well.
        let is_paused = |lending: &Lending| {
            lending.lends.is_none() && lending.reason.as_ref().is_none_or(|(code, _)| code != "loading")
        };
        let lending = settled(home, is_paused).await?;
        let gave_back_ms = was_lent.then(|| begun.elapsed().as_millis() as u64);
        if lending.is_some_and(|lending| !is_paused(&lending)) {
            let message = format!("what is lent was not given back within {} s", DONE_WITHIN.as_secs());
            return Err(Failure::new("busy", message, "potluck terms says what goes on; end potluck serve to be sure"));
        }
        if screen.json {
            return screen.object(&json!({ "paused": true, "until": until, "gave_back_ms": gave_back_ms }));
        }
        let until = until.map_or("until potluck resume".to_owned(), |until| format!("until {}", time_of(until)));
        screen.text(&match gave_back_ms {
            Some(ms) => format!("paused {until}: all that was lent is given back, in {:.1} s\n", ms as f64 / 1e3),
            None => format!("paused {until}: nothing was lent\n"),
        })
    }
}

impl ResumeCommand {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        home.set_pause(None)?;
        let is_heard = |lending: &Lending| lending.reason.as_ref().is_none_or(|(code, _)| code != "paused");
        let lending = settled(home, is_heard).await?;
        if screen.json {
            return screen.object(&json!({ "paused": false, "lending": lending.as_ref().map(row) }));
        }
        screen.text(&format!("not paused any more\n{}", told(lending.as_ref())))
    }
}

/// What is lent once it is as it should be, or some time later; none: no process lends.
async fn settled(home: &Home, is_so: impl Fn(&Lending) -> bool) -> Result<Option<Lending>, Failure> {
    let begun = Instant::now();
    loop {
        let lending = home.lending()?;
        if lending.as_ref().is_none_or(&is_so) || begun.elapsed() > DONE_WITHIN {
            return Ok(lending);
        }
        sleep(LOOK_EVERY).await;
    }
}

fn show(home: &Home, screen: Screen, terms: &Terms) -> Result<(), Failure> {
    let (lending, pause) = (home.lending()?, home.pause()?.filter(|pause| pause.holds(utc_now())));
    if screen.json {
        let paused = pause.map(|pause| json!({ "until": pause.until }));
        return screen.object(&json!({ "lending": lending.as_ref().map(row), "paused": paused, "terms": terms }));
    }
    let mut text = told(lending.as_ref());
    if lending.is_none() && pause.is_some() {
        text += "lending is paused: potluck resume\n";
    }
    let lines = spelled(terms);
    text += if lines.is_empty() { "terms: none, it is lent at any time\n" } else { "terms:\n" };
    lines.into_iter().for_each(|(name, value)| text += &format!("  {name:15} {value}\n"));
    screen.text(&text)
}

/// What is lent, and to whom, in words.
fn told(lending: Option<&Lending>) -> String {
    let Some(Lending { lends, reason, sessions, .. }) = lending else {
        return "nothing is lent: potluck serve, or potluck join\n".into();
    };
    let Some(Lent { model, layers, bytes }) = lends else {
        let why = reason.as_ref().map_or("there is nothing to lend", |(_, why)| why);
        return format!("nothing is lent: {why}\n");
    };
    let layers = layers.map_or(String::new(), |[start, end]| format!("layers {start}..{end} of "));
    let all: usize = sessions.iter().map(|(_, count)| count).sum();
    let used = bytes.map_or(String::new(), |bytes| format!(", {}; {all} sessions", size(bytes)));
    let mut text = format!("lent: {layers}{model}{used}\n");
    sessions.iter().for_each(|(peer, count)| text += &format!("  {count} of {peer}\n"));
    text
}

fn row(Lending { lends, reason, sessions, gave_back_ms }: &Lending) -> Value {
    let sessions: Vec<_> = sessions.iter().map(|(peer, count)| json!({ "peer": peer, "sessions": count })).collect();
    let reason = reason.as_ref().map(|(code, message)| json!({ "code": code, "message": message }));
    json!({ "lends": lends, "reason": reason, "sessions": sessions, "gave_back_ms": gave_back_ms })
}

fn spelled(terms: &Terms) -> Vec<(&'static str, String)> {
    let Terms { idle_s, hours, others_cpu, battery, temperature, cores, memory, share, upload } = terms;
    let idle = idle_s.map(|seconds| humantime::format_duration(Duration::from_secs(seconds)).to_string());
    let hours: Vec<String> = hours.iter().map(Hours::to_string).collect();
    let battery = match battery {
        Battery::Any => None,
        Battery::Never => Some("never".into()),
        Battery::AtLeast(per_cent) => Some(format!("{per_cent} % at least")),
    };
    let lines = [
        ("idle for", idle),
        ("hours", Some(hours.join("; ")).filter(|hours| !hours.is_empty())),
        ("other programs", others_cpu.map(|per_cent| format!("{per_cent} % of the processors at most"))),
        ("on battery", battery),
        ("temperature", temperature.map(|degrees| format!("{degrees} degrees at most"))),
        ("cores", cores.map(|cores| cores.to_string())),
        ("share", share.map(|per_cent| format!("computes {per_cent} % of the time at most"))),
        ("upload", upload.map(|bytes| format!("{} Mbit/s at most", f64::from(bytes.get()) * 8.0 / 1e6))),
        ("memory", memory.map(size)),
    ];
    lines.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn time_of(utc: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(utc)).to_string()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        terms: TermsCommand,
    }

    fn changed(before: &Terms, args: &[&str]) -> Terms {
        Line::try_parse_from(["terms"].iter().chain(args)).unwrap().terms.change(before.clone())
    }

    #[test]
    fn what_is_given_changes_and_the_rest_stays() {
        let none = Terms::default();
        assert_eq!(changed(&none, &[]), none);
        let terms = changed(&none, &["--idle", "5m", "--hours", "22-7", "--hours", "Sat,Sun", "--memory", "8GB"]);
        assert_eq!((terms.idle_s, terms.hours.len(), terms.memory), (Some(300), 2, Some(8_000_000_000)));
        let terms = changed(&terms, &["--others-cpu", "30%", "--battery", "60", "--idle", "no"]);
        assert_eq!((terms.idle_s, terms.others_cpu, terms.hours.len()), (None, Some(30), 2));
        assert_eq!(changed(&terms, &["--hours", "any"]).hours, []);
        let gentle = changed(&terms, &["--preset", "gentle", "--temperature", "70", "--cores", "1"]);
        assert_eq!((gentle.temperature, gentle.cores, gentle.hours.len()), (Some(70), Some(1), 0));
        assert_eq!(changed(&gentle, &["--preset", "always"]), none);
        let slow = changed(&none, &["--share", "50%", "--upload", "7.5Mbit"]);
        assert_eq!((slow.share, slow.upload), (Some(50), NonZeroU32::new(937_500)));
        assert_eq!(changed(&slow, &["--share", "no", "--upload", "no"]), none);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let lines = [
            ["--idle", "29s"],
            ["--idle", "soon"],
            ["--hours", "25-3"],
            ["--others-cpu", "101"],
            ["--battery", "0"],
            ["--temperature", "5"],
            ["--cores", "0"],
            ["--memory", "some"],
            ["--share", "19"],
            ["--upload", "4900kbit"],
            ["--upload", "20"],
            ["--upload", "NaNMbit"],
            ["--upload", "11Gbit"],
        ];
        for [name, value] in lines {
            assert!(Line::try_parse_from(["terms", name, value]).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn people_read_what_is_lent_and_why_it_is_not() {
        assert!(told(None).starts_with("nothing is lent"));
        let reason = Some(("in_use".into(), "somebody uses it".into()));
        assert_eq!(told(Some(&Lending { reason, ..Lending::default() })), "nothing is lent: somebody uses it\n");
        let lends = Some(Lent { model: "small".into(), layers: Some([0, 10]), bytes: Some(2_000_000) });
        let sessions = vec![("k51".to_owned(), 2)];
        let lending = Lending { lends, sessions, ..Lending::default() };
        assert_eq!(told(Some(&lending)), "lent: layers 0..10 of small, 2.0 MB; 2 sessions\n  2 of k51\n");
    }
}
