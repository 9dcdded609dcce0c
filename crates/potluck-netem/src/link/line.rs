//! Lines that people have, by name.

use std::{fmt, str::FromStr, time::Duration};

use super::{Bursts, Profile};

/// A kind of line, each direction with its own figures. Up is away from whoever has the line, down is towards it.
///
/// The delays are those of the line and of what it is named after: a chain of two lines has both. Rates are those that packets
/// see, headers of IP included. Where a source has no figure (queues, how long jitter lasts, lengths of bursts), it is chosen,
/// and the comment does not name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Line {
    /// A cable at home or in an office.
    Lan,
    /// The same without a cable.
    Wifi,
    /// Two homes with fibre in one city.
    Metro,
    /// Two cities of one continent.
    Continent,
    /// Two sides of an ocean.
    Ocean,
    /// A home at the end of a telephone line.
    Dsl,
    /// A phone or a stick, 4G.
    Lte,
    /// A dish that looks at a geostationary satellite. (One in low orbit is more like [`Line::Lte`].)
    Satellite,
}

/// Why a name is not that of a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no line called `{0}`: it is one of lan, wifi, metro, continent, ocean, dsl, lte, satellite")]
pub struct UnknownLine(pub String);

impl Line {
    /// All of them, the quickest first.
    pub const ALL: [Self; 8] =
        [Self::Lan, Self::Wifi, Self::Metro, Self::Dsl, Self::Continent, Self::Lte, Self::Ocean, Self::Satellite];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wifi => "wifi",
            Self::Metro => "metro",
            Self::Continent => "continent",
            Self::Ocean => "ocean",
            Self::Dsl => "dsl",
            Self::Lte => "lte",
            Self::Satellite => "satellite",
        }
    }

    /// Both directions: up, then down.
    pub fn both(self) -> [Profile; 2] {
        match self {
            // 1000BASE-T; a switch and two hosts take about 0.2 ms there and back.
            Self::Lan => even(100, 1_000_000, Profile { queue_bytes: 1 << 20, ..Profile::default() }),
            // Where the access line is quick, the home's Wi-Fi is what limits: below 800 Mbit/s in each of 50 homes (Sharma et
            // al., arXiv:2311.05499). Retries make the jitter, and keep the order.
            Self::Wifi => {
                let bursts = Some(Bursts::of(0.000_5, 4.0));
                let own = Profile { jitter: micros(1_000), jitter_lasts: micros(5_000), bursts, ..Profile::default() };
                even(1_500, 250_000, Profile { queue_bytes: 512 << 10, ..own })
            }
            // Full fibre: 149 Mbit/s down on average (Ofcom, UK home broadband performance, March 2023).
            Self::Metro => {
                let own = Profile { jitter: micros(200), jitter_lasts: micros(20_000), ..Profile::default() };
                let down = Profile { queue_bytes: 512 << 10, ..own };
                [rated(own, 2_500, 50_000), rated(down, 2_500, 150_000)]
            }
            // Round trips within Europe take 3 to 28 ms, within North America 5 to 72 (Azure network round-trip latency
            // statistics, October 2019).
            Self::Continent => {
                let own =
                    Profile { jitter: micros(500), jitter_lasts: micros(50_000), loss: 0.000_1, ..Profile::default() };
                even(20_000, 100_000, Profile { queue_bytes: 1 << 20, ..own })
            }
            // London to New York is 5,570 km, 28 ms in glass; conduits are 1.3 to 2.1 times as long as the straight line (Bozkurt
            // et al., Dissecting Latency in the Internet's Fiber Infrastructure, arXiv:1811.10737).
            Self::Ocean => {
                let own = Profile {
                    jitter: micros(1_000),
                    jitter_lasts: micros(50_000),
                    loss: 0.000_2,
                    ..Profile::default()
                };
                even(40_000, 100_000, Profile { queue_bytes: 2 << 20, ..own })
            }
            // VDSL2 sold as 40 Mbit/s down and 10 up; interleaving takes the time.
            Self::Dsl => {
                let own = Profile { jitter: micros(1_000), jitter_lasts: micros(20_000), ..Profile::default() };
                let own = Profile { bursts: Some(Bursts::of(0.000_2, 5.0)), queue_bytes: 128 << 10, ..own };
                [rated(own, 8_000, 10_000), rated(Profile { queue_bytes: 256 << 10, ..own }, 8_000, 40_000)]
            }
            // 14.7 Mbit/s down, 13.6 up, 53 ms there and back on average (Ofcom, Measuring mobile broadband performance in the UK,
            // April 2015). The radio's own retries hide most losses, and its queues are deep.
            Self::Lte => {
                let own = Profile { jitter: micros(8_000), jitter_lasts: micros(40_000), ..Profile::default() };
                let own = Profile { bursts: Some(Bursts::of(0.001, 8.0)), queue_bytes: 512 << 10, ..own };
                [rated(own, 26_500, 13_600), rated(own, 26_500, 14_700)]
            }
            // At least 239.6 ms to the satellite and down again, up to 279 at the edge of its view (RFC 2488, section 2). Sold as
            // 25 Mbit/s down and 3 up.
            Self::Satellite => {
                let own = Profile { jitter: micros(5_000), jitter_lasts: micros(100_000), ..Profile::default() };
                let own = Profile { bursts: Some(Bursts::of(0.001, 10.0)), queue_bytes: 512 << 10, ..own };
                [rated(own, 275_000, 3_000), rated(Profile { queue_bytes: 1 << 20, ..own }, 275_000, 25_000)]
            }
        }
    }

    /// Away from whoever has it.
    pub fn up(self) -> Profile {
        self.both()[0]
    }

    /// Towards whoever has it.
    pub fn down(self) -> Profile {
        self.both()[1]
    }
}

impl fmt::Display for Line {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(self.name())
    }
}

impl FromStr for Line {
    type Err = UnknownLine;

    fn from_str(name: &str) -> Result<Self, UnknownLine> {
        Self::ALL.into_iter().find(|line| line.name() == name).ok_or_else(|| UnknownLine(name.into()))
    }
}

const fn micros(count: u64) -> Duration {
    Duration::from_micros(count)
}

fn rated(profile: Profile, delay_us: u64, kilobits: u64) -> Profile {
    Profile { delay: micros(delay_us), rate: Some(kilobits * 1_000), ..profile }
}

fn even(delay_us: u64, kilobits: u64, profile: Profile) -> [Profile; 2] {
    [rated(profile, delay_us, kilobits); 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for line in Line::ALL {
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        assert_eq!("Lan".parse::<Line>(), Err(UnknownLine("Lan".into())));
        assert_eq!(format!("{:>5}|", Line::Lan), "  lan|");
        assert!(Line::ALL.iter().all(|line| UnknownLine(String::new()).to_string().contains(line.name())));
    }

    #[test]
    fn each_can_be() {
        let delays = Line::ALL.map(|line| line.up().delay + line.down().delay);
        assert!(delays.is_sorted(), "{delays:?}");
        for (line, profile) in Line::ALL.iter().flat_map(|line| line.both().map(|profile| (line, profile))) {
            assert!(profile.jitter < profile.delay.max(micros(1)), "{line}");
            assert!(profile.mean_loss() < 0.01 && profile.reorder == 0.0, "{line}");
            // Waits of a full queue: enough for one sender to fill the line, and no longer than people have seen.
            let waits = profile.queue_bytes as f64 * 8.0 / profile.rate.unwrap() as f64;
            assert!((0.005..1.5).contains(&waits), "{line}: {waits} s");
        }
    }
}
