//! What an owner sets.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::Hours;

/// On which terms a machine is lent. The default sets none: it is lent to whoever has a grant, at any time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Terms {
    /// Seconds without keyboard, mouse or terminal before it is lent; none: also while somebody uses it.
    pub idle_s: Option<u64>,
    /// When it is lent; none: at any time.
    pub hours: Vec<Hours>,
    /// Per cent of all its processors that other programs may use while it is lent.
    pub others_cpu: Option<u8>,
    /// Whether it is lent on battery.
    pub battery: Battery,
    /// Degrees Celsius of its hottest part while it is lent.
    pub temperature: Option<u8>,
    /// Threads that an engine computes with.
    pub cores: Option<u16>,
    /// Bytes of memory that a model may take, where layers are chosen for it.
    pub memory: Option<u64>,
    /// Per cent of the time in which an engine may compute, on the graphics card or the processors.
    // A build that knows no such limit reads terms that set none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<u8>,
    /// Bytes a second that are sent to others at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<NonZeroU32>,
}

/// Whether a machine is lent while it runs on its battery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Battery {
    /// It makes no difference.
    #[default]
    Any,
    /// As long as it holds so many per cent.
    AtLeast(u8),
    /// It is not.
    Never,
}

/// Text that says nothing about a battery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not any, never, or per cent from 1 to 100")]
pub struct BatteryError(String);

/// Terms that suit many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Nobody notices that it is lent: while nobody uses it, on mains, cool, and with half of its cores.
    Gentle,
    /// At night and at weekends, on mains.
    Evenings,
    /// At any time.
    Always,
}

impl Terms {
    /// Whether something has to be looked at for them, again and again.
    pub fn are_any(&self) -> bool {
        let Self { idle_s, hours, others_cpu, battery, temperature, cores: _, memory: _, share: _, upload: _ } = self;
        let senses = idle_s.is_some() || others_cpu.is_some() || temperature.is_some();
        senses || !hours.is_empty() || *battery != Battery::Any
    }

    /// How long nobody must have used the machine.
    pub fn idle(&self) -> Option<Duration> {
        self.idle_s.map(Duration::from_secs)
    }
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gentle, Self::Evenings, Self::Always];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gentle => "gentle",
            Self::Evenings => "evenings",
            Self::Always => "always",
        }
    }

    /// Its terms, on a machine with so many cores.
    pub fn terms(self, cores: usize) -> Terms {
        let all = Terms::default();
        match self {
            Self::Always => all,
            Self::Gentle => Terms {
                idle_s: Some(300),
                others_cpu: Some(30),
                battery: Battery::Never,
                temperature: Some(85),
                cores: Some(cores.div_ceil(2).try_into().unwrap_or(u16::MAX)),
                ..all
            },
            Self::Evenings => {
                let hours = ["18:00-08:00", "Sat,Sun"].into_iter().filter_map(|hours| hours.parse().ok());
                Terms { hours: hours.collect(), battery: Battery::Never, ..all }
            }
        }
    }
}

impl FromStr for Battery {
    type Err = BatteryError;

    fn from_str(text: &str) -> Result<Self, BatteryError> {
        match text {
            "any" => Ok(Self::Any),
            "never" => Ok(Self::Never),
            number => {
                let per_cent =
                    number.trim_end_matches('%').parse().ok().filter(|per_cent| (1..=100).contains(per_cent));
                per_cent.map(Self::AtLeast).ok_or_else(|| BatteryError(text.to_owned()))
            }
        }
    }
}

impl fmt::Display for Battery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Never => f.write_str("never"),
            Self::AtLeast(per_cent) => write!(f, "{per_cent}"),
        }
    }
}

impl TryFrom<String> for Battery {
    type Error = BatteryError;

    fn try_from(text: String) -> Result<Self, BatteryError> {
        text.parse()
    }
}

impl From<Battery> for String {
    fn from(battery: Battery) -> Self {
        battery.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_kept_as_text() {
        for preset in Preset::ALL {
            let terms = preset.terms(7);
            let text = serde_json::to_string(&terms).unwrap();
            assert_eq!(serde_json::from_str::<Terms>(&text).unwrap(), terms, "{text}");
            assert_eq!(terms.are_any(), preset != Preset::Always);
        }
        assert_eq!(Preset::Gentle.terms(7).cores, Some(4));
        assert_eq!(Preset::Evenings.terms(1).hours.len(), 2);
        // What an older build does not know it must not leave out in silence: the owner counts on it.
        assert!(serde_json::from_str::<Terms>("{\"moon\": 1}").is_err());
    }

    #[test]
    fn a_battery_is_said_in_words_or_per_cent() {
        let cases = [
            ("any", Battery::Any),
            ("never", Battery::Never),
            ("60", Battery::AtLeast(60)),
            ("5%", Battery::AtLeast(5)),
        ];
        for (text, battery) in cases {
            assert_eq!(text.parse(), Ok(battery));
            assert_eq!(battery.to_string().parse(), Ok(battery));
        }
        for text in ["", "0", "101", "-3", "some"] {
            assert!(text.parse::<Battery>().is_err(), "{text}");
        }
    }
}
