//! What follows from terms and from what is seen: lend, or give back, and why.

use std::{
    fmt,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{Battery, Moment, Power, Presence, Seen, Terms};

/// Other programs compute for so long before it counts: to start one is no reason.
const BUSY: Duration = Duration::from_secs(3);

/// What was too much has to be all right for so long before the machine is lent again: what goes on and off serves nobody.
const CALM: Duration = Duration::from_secs(30);

/// Degrees below the limit at which it is cool again.
const COOLER: f32 = 5.0;

/// The owner said so (`potluck pause`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Unix seconds until when; none: until told otherwise.
    pub until: Option<u64>,
}

impl Pause {
    /// Whether it holds at that time.
    pub fn holds(self, utc: u64) -> bool {
        self.until.is_none_or(|until| utc < until)
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Lend.
    Lend,
    /// Give back, or keep.
    Not(Reason),
}

/// Why a machine is not lent.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// The owner said so: until when, in Unix seconds.
    Paused(Option<u64>),
    /// It is not the hour.
    Hours,
    /// Somebody used it so long ago.
    InUse(Duration),
    /// Something fills its screen, or keeps it awake.
    Watched,
    /// Whether somebody is there, or what it runs on, cannot be known: what hinders it.
    Unseen(String),
    /// Other programs compute: per cent of all processors.
    Others(u8),
    /// It is on battery, which holds so many per cent.
    Battery(u8),
    /// Degrees Celsius.
    Hot(u8),
}

impl Reason {
    /// Its name, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Paused(_) => "paused",
            Self::Hours => "hours",
            Self::InUse(_) => "in_use",
            Self::Watched => "watched",
            Self::Unseen(_) => "unseen",
            Self::Others(_) => "others",
            Self::Battery(_) => "battery",
            Self::Hot(_) => "hot",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(None) => f.write_str("paused by its owner"),
            Self::Paused(Some(_)) => f.write_str("paused by its owner for a while"),
            Self::Hours => f.write_str("not lent at this hour"),
            Self::InUse(since) if since.as_secs() < 60 => f.write_str("somebody uses it"),
            Self::InUse(since) => write!(f, "somebody used it {} minutes ago", since.as_secs() / 60),
            Self::Watched => f.write_str("something fills its screen, or keeps it awake"),
            Self::Unseen(error) => write!(f, "what its owner asks for cannot be seen: {error}"),
            Self::Others(per_cent) => write!(f, "other programs compute: {per_cent} % of its processors"),
            Self::Battery(per_cent) => write!(f, "on battery, at {per_cent} %"),
            Self::Hot(degrees) => write!(f, "{degrees} degrees hot"),
        }
    }
}

/// Decides, again and again.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Since when others compute more than they may.
    busy: Option<Instant>,
    /// It is not lent because of others, or of heat; since when that is all right.
    was_busy: Option<Option<Instant>>,
    was_hot: Option<Option<Instant>>,
}

impl Keeper {
    /// What is to be done now, where the owner has not paused lending.
    pub fn decide(&mut self, now: Instant, terms: &Terms, seen: &Seen) -> Verdict {
        // Each is looked at every time: what they remember goes on.
        let others = self.others(now, terms, seen);
        let heat = self.heat(now, terms, seen);
        let reason = hours(terms, seen.moment)
            .or_else(|| presence(terms, &seen.presence))
            .or_else(|| power(terms, &seen.power))
            .or(heat)
            .or(others);
        reason.map_or(Verdict::Lend, Verdict::Not)
    }

    fn others(&mut self, now: Instant, terms: &Terms, seen: &Seen) -> Option<Reason> {
        let (Some(most), Some(cpu)) = (terms.others_cpu, seen.others_cpu) else {
            (self.busy, self.was_busy) = (None, None);
            return None;
        };
        let is_busy = cpu > f32::from(most);
        let since = is_busy.then(|| *self.busy.get_or_insert(now));
        self.busy = since;
        let is_too_long = since.is_some_and(|since| now.duration_since(since) >= BUSY);
        calms_down(now, &mut self.was_busy, is_too_long, !is_busy).then_some(Reason::Others(cpu.round() as u8))
    }

    fn heat(&mut self, now: Instant, terms: &Terms, seen: &Seen) -> Option<Reason> {
        let (Some(most), Some(degrees)) = (terms.temperature, seen.temperature) else {
            self.was_hot = None;
            return None;
        };
        let most = f32::from(most);
        let (is_hot, is_cool) = (degrees > most, degrees <= most - COOLER);
        calms_down(now, &mut self.was_hot, is_hot, is_cool).then_some(Reason::Hot(degrees.round() as u8))
    }
}

/// Whether something that was too much once has not been all right for long enough yet.
fn calms_down(now: Instant, was: &mut Option<Option<Instant>>, is_too_much: bool, is_right: bool) -> bool {
    if is_too_much {
        *was = Some(None);
    }
    let Some(since) = was else { return false };
    *since = if is_right { Some(since.unwrap_or(now)) } else { None };
    if since.is_some_and(|since| now.duration_since(since) >= CALM) {
        *was = None;
    }
    was.is_some()
}

fn hours(terms: &Terms, moment: Moment) -> Option<Reason> {
    let is_one = terms.hours.is_empty() || terms.hours.iter().any(|hours| hours.contain(moment));
    (!is_one).then_some(Reason::Hours)
}

fn presence(terms: &Terms, presence: &Presence) -> Option<Reason> {
    let idle = terms.idle()?;
    match presence {
        Presence::Nobody => None,
        Presence::Somebody { since_input } => (*since_input < idle).then_some(Reason::InUse(*since_input)),
        Presence::Watches { since_input } if *since_input < idle => Some(Reason::InUse(*since_input)),
        Presence::Watches { .. } => Some(Reason::Watched),
        Presence::Unseen(error) => Some(Reason::Unseen(error.clone())),
    }
}

fn power(terms: &Terms, power: &Power) -> Option<Reason> {
    let charge = match power {
        Power::Mains => return None,
        Power::Unseen(_) if terms.battery == Battery::Any => return None,
        Power::Unseen(error) => return Some(Reason::Unseen(error.clone())),
        Power::Battery(charge) => *charge,
    };
    let is_enough = match terms.battery {
        Battery::Any => true,
        Battery::AtLeast(per_cent) => charge >= per_cent,
        Battery::Never => false,
    };
    (!is_enough).then_some(Reason::Battery(charge))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Preset;

    fn seen() -> Seen {
        Seen {
            presence: Presence::Somebody { since_input: Duration::from_secs(3_600) },
            others_cpu: Some(3.0),
            power: Power::Mains,
            temperature: Some(50.0),
            moment: Moment { day: chrono::Weekday::Wed, minute: 12 * 60 },
        }
    }

    /// What is decided of that, at once.
    fn decided(terms: &Terms, seen: &Seen) -> Verdict {
        Keeper::default().decide(Instant::now(), terms, seen)
    }

    #[test]
    fn who_sets_no_terms_lends() {
        let seen = Seen {
            presence: Presence::Somebody { since_input: Duration::ZERO },
            others_cpu: Some(100.0),
            power: Power::Battery(1),
            temperature: Some(120.0),
            ..seen()
        };
        assert_eq!(decided(&Terms::default(), &seen), Verdict::Lend);
    }

    #[test]
    fn a_pause_ends_when_it_was_said_to() {
        for (until, holds) in [(999, false), (1_000, false), (1_001, true)] {
            assert_eq!(Pause { until: Some(until) }.holds(1_000), holds, "{until}");
        }
        assert!(Pause { until: None }.holds(1_000));
    }

    #[test]
    fn whoever_comes_back_has_the_machine_at_once() {
        let terms = Preset::Gentle.terms(4);
        let mut keeper = Keeper::default();
        let now = Instant::now();
        assert_eq!(keeper.decide(now, &terms, &seen()), Verdict::Lend);
        let here =
            |seconds| Seen { presence: Presence::Somebody { since_input: Duration::from_secs(seconds) }, ..seen() };
        let back = keeper.decide(now, &terms, &here(0));
        assert_eq!(back, Verdict::Not(Reason::InUse(Duration::ZERO)));
        assert!(matches!(keeper.decide(now, &terms, &here(299)), Verdict::Not(Reason::InUse(_))));
        assert_eq!(keeper.decide(now, &terms, &here(300)), Verdict::Lend);
    }

    #[test]
    fn where_nobody_can_be_seen_nobody_is_assumed_to_be_away() {
        let terms = Preset::Gentle.terms(4);
        let watches =
            |seconds| Seen { presence: Presence::Watches { since_input: Duration::from_secs(seconds) }, ..seen() };
        assert_eq!(decided(&terms, &watches(10)), Verdict::Not(Reason::InUse(Duration::from_secs(10))));
        assert_eq!(decided(&terms, &watches(3_600)), Verdict::Not(Reason::Watched));
        let blind = Seen { presence: Presence::Unseen("no display".into()), ..seen() };
        assert_eq!(decided(&terms, &blind), Verdict::Not(Reason::Unseen("no display".into())));
        // A machine without screen or terminal has nobody in front of it.
        assert_eq!(decided(&terms, &Seen { presence: Presence::Nobody, ..seen() }), Verdict::Lend);
    }

    #[test]
    fn a_battery_counts_where_it_drains() {
        let on = |charge: Option<u8>| Seen { power: charge.map_or(Power::Mains, Power::Battery), ..seen() };
        let terms = |battery| Terms { battery, ..Terms::default() };
        assert_eq!(decided(&terms(Battery::Never), &on(None)), Verdict::Lend);
        assert_eq!(decided(&terms(Battery::Never), &on(Some(99))), Verdict::Not(Reason::Battery(99)));
        assert_eq!(decided(&terms(Battery::AtLeast(60)), &on(Some(60))), Verdict::Lend);
        assert_eq!(decided(&terms(Battery::AtLeast(60)), &on(Some(59))), Verdict::Not(Reason::Battery(59)));
        // What cannot be read is not taken for mains.
        let blind = Seen { power: Power::Unseen("no".into()), ..seen() };
        assert_eq!(decided(&terms(Battery::Never), &blind), Verdict::Not(Reason::Unseen("no".into())));
        assert_eq!(decided(&terms(Battery::Any), &blind), Verdict::Lend);
    }

    #[test]
    fn it_is_lent_in_its_hours() {
        let terms = Preset::Evenings.terms(4);
        assert_eq!(decided(&terms, &seen()), Verdict::Not(Reason::Hours));
        let evening = Moment { day: chrono::Weekday::Wed, minute: 18 * 60 };
        assert_eq!(decided(&terms, &Seen { moment: evening, ..seen() }), Verdict::Lend);
    }

    /// Seconds of a run, second by second, in which it is not lent.
    fn paused(terms: &Terms, run: impl IntoIterator<Item = Seen>) -> Vec<usize> {
        let (mut keeper, start) = (Keeper::default(), Instant::now());
        let decide = |(second, seen): (usize, Seen)| {
            let now = start + Duration::from_secs(second as u64);
            (keeper.decide(now, terms, &seen) != Verdict::Lend).then_some(second)
        };
        run.into_iter().enumerate().filter_map(decide).collect()
    }

    #[test]
    fn what_others_compute_counts_after_a_while_and_until_a_while_after() {
        let terms = Preset::Gentle.terms(4);
        let run = |busy: std::ops::Range<usize>| {
            (0..80)
                .map(move |second| Seen { others_cpu: Some(if busy.contains(&second) { 70.0 } else { 5.0 }), ..seen() })
        };
        assert!(paused(&terms, run(10..13)).is_empty(), "a program starts");
        // Three seconds of it, and thirty without.
        assert_eq!(paused(&terms, run(10..20)), (13..50).collect::<Vec<_>>());
    }

    #[test]
    fn heat_counts_at_once_and_until_it_is_cooler() {
        let terms = Preset::Gentle.terms(4);
        let degrees = |second: usize| match second {
            10..12 => 86.0,
            12..20 => 83.0,
            _ => 70.0,
        };
        let run = (0..80).map(|second| Seen { temperature: Some(degrees(second)), ..seen() });
        assert_eq!(paused(&terms, run), (10..50).collect::<Vec<_>>());
    }
}
