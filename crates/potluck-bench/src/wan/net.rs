//! The network of a measurement: a client and peers, each a machine of its own on its own access link.

use std::{net::SocketAddr, time::Duration};

use potluck_netem::{
    Namespace, Nat, SideId, Wire, World,
    link::{Line, Profile},
};
use serde::{Deserialize, Serialize};

use super::figures::round;
use crate::Outcome;

/// Bytes that wait at either end of a link: what a router of such a line has.
const QUEUE_BYTES: usize = 256 << 10;

/// Bytes of the longest packet.
const PACKET_BYTES: f64 = 1_500.0;

/// The port that peers listen on.
const PORT: u16 = 7_700;

/// How two machines reach each other. The client and every peer have the same line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setting {
    /// Round trip between any two machines, in milliseconds.
    pub(crate) rtt_ms: f64,
    /// What each machine's line carries, in millions of bits a second: each way, or the slower way of a line with a
    /// name.
    pub(crate) mbit: f64,
    /// Share of packets that are lost on the way from one machine to another.
    pub(crate) loss: f64,
    /// Peers.
    pub(crate) peers: usize,
    /// Chance comes from it.
    pub(crate) seed: u64,
    /// The line that every machine has, by name; none: an even one without jitter, as the numbers above say.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "line_name")]
    pub(crate) line: Option<Line>,
}

/// A line as its name.
mod line_name {
    use potluck_netem::link::Line;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(line: &Option<Line>, to: S) -> Result<S::Ok, S::Error> {
        line.map(Line::name).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Line>, D::Error> {
        let name = Option::<String>::deserialize(from)?;
        name.map(|name| name.parse::<Line>().map_err(D::Error::custom)).transpose()
    }
}

/// What went over lines, as IP has it: headers, acknowledgements and what was sent again included.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Carried {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

impl Carried {
    /// What was added.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { bytes: self.bytes - before.bytes, packets: self.packets - before.packets }
    }
}

impl Default for Setting {
    fn default() -> Self {
        Self { rtt_ms: 50.0, mbit: 20.0, loss: 0.0, peers: 3, seed: 6, line: None }
    }
}

impl Setting {
    /// Every machine on such a line: a packet goes up one and down another.
    pub(crate) fn on(line: Line) -> Self {
        let ([up, down], named) = (line.both(), Self { line: Some(line), ..Self::default() });
        let [up_mbit, down_mbit] = named.rates();
        Self {
            // Few digits: a setting is found again by its numbers, once they were written and read.
            rtt_ms: (up.delay + down.delay).as_micros() as f64 * 2.0 / 1e3,
            mbit: up_mbit.min(down_mbit),
            loss: round(1.0 - (1.0 - up.mean_loss()) * (1.0 - down.mean_loss())),
            ..named
        }
    }

    /// In words.
    pub(crate) fn words(&self) -> String {
        let Self { rtt_ms, mbit, peers, .. } = self;
        let (loss, [up, down]) = (round(self.loss * 100.0), self.rates());
        match self.line {
            Some(line) => format!(
                "{line} lines: {rtt_ms} ms round trip, {up} Mbit/s up and {down} down, loss {loss} %, {peers} peers"
            ),
            None => format!("{rtt_ms} ms round trip, {mbit} Mbit/s each way, loss {loss} %, {peers} peers"),
        }
    }

    /// What a machine's line carries away from it and towards it, in millions of bits a second.
    fn rates(&self) -> [f64; 2] {
        let of = |profile: Profile| profile.rate.map_or(self.mbit, |rate| rate as f64 / 1e6);
        self.line.map_or([self.mbit; 2], |line| line.both().map(of))
    }

    /// One machine's line, up and down: a packet goes up the sender's and down the receiver's.
    fn both(&self) -> [Profile; 2] {
        if let Some(line) = self.line {
            return line.both();
        }
        // Of both lines together as much is lost as the setting says.
        let loss = 1.0 - (1.0 - self.loss).sqrt();
        let delay = Duration::from_secs_f64(self.rtt_ms / 4e3);
        let rate = Some((self.mbit * 1e6) as u64);
        [Profile { delay, loss, rate, queue_bytes: QUEUE_BYTES, ..Profile::default() }; 2]
    }

    /// Seconds from one machine to another, of so many bytes that are sent at once: the second line sends each packet
    /// on once it has come whole over the first, so that the quicker way adds a packet's time alone.
    pub(crate) fn one_way_s(&self, bytes: f64) -> f64 {
        let [up, down] = self.rates();
        self.rtt_ms / 2e3 + self.sending_s(bytes) + seconds(bytes.min(PACKET_BYTES), up.max(down))
    }

    /// Seconds that so many bytes hold a line up, the slower way.
    pub(crate) fn sending_s(&self, bytes: f64) -> f64 {
        let [up, down] = self.rates();
        seconds(bytes, up.min(down))
    }
}

fn seconds(bytes: f64, mbit: f64) -> f64 {
    bytes * 8.0 / (mbit * 1e6)
}

/// The machines. All is gone when dropped.
#[derive(Debug)]
pub(crate) struct Net {
    world: World,
    client: SideId,
    peers: Vec<SideId>,
    wires: Vec<Wire>,
}

impl Net {
    /// Makes the machines; their lines are fast until [`slow_down`](Self::slow_down).
    pub(crate) fn new(peers: usize) -> Outcome<Self> {
        let mut world = World::new().map_err(|error| {
            format!("{error}: the bench over a wide-area network needs root, `ip`, `nft` and /dev/net/tun")
        })?;
        let client = world.side(Nat::Open)?;
        let peers = (0..peers).map(|_| world.side(Nat::Open)).collect::<Result<_, _>>()?;
        Ok(Self { world, client, peers, wires: Vec::new() })
    }

    /// Gives every machine its line. Once.
    pub(crate) fn slow_down(&mut self, setting: &Setting) -> Outcome<()> {
        for (number, &side) in std::iter::once(&self.client).chain(&self.peers).enumerate() {
            let seed = setting.seed.wrapping_mul(1_000).wrapping_add(number as u64);
            self.wires.push(self.world.slow_down(side, setting.both(), seed)?);
        }
        Ok(())
    }

    /// The client's machine.
    pub(crate) fn client(&self) -> &Namespace {
        self.world[self.client].host()
    }

    /// A peer's machine.
    pub(crate) fn peer(&self, at: usize) -> &Namespace {
        self.world[self.peers[at]].host()
    }

    /// Where a peer listens. `service` tells several of one machine apart.
    pub(crate) fn address(&self, at: usize, service: u16) -> SocketAddr {
        // The client's side is the first: a side's number is in its hosts' addresses.
        SocketAddr::from(([198, 19, at as u8 + 2, 2], PORT + service))
    }

    /// What all machines together have sent over their lines so far.
    pub(crate) fn carried(&self) -> Carried {
        let stats = || self.wires.iter().map(|wire| wire.stats()[0]);
        Carried {
            bytes: stats().map(|line| line.delivered_bytes).sum(),
            packets: stats().map(|line| line.delivered).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lines_make_the_setting() {
        let setting = Setting { rtt_ms: 50.0, mbit: 20.0, loss: 0.01, ..Setting::default() };
        let [line, down] = setting.both();
        assert_eq!(line, down);
        assert_eq!(line.delay, Duration::from_micros(12_500));
        assert!((1.0 - (1.0 - line.loss).powi(2) - 0.01).abs() < 1e-12);
        // 1,250 bytes take half a millisecond on each line, and of more only the last packet waits for the second.
        assert!((setting.one_way_s(1_250.0) - 0.026).abs() < 1e-12);
        assert!((setting.one_way_s(25_000.0) - (0.025 + 0.010 + 0.0006)).abs() < 1e-12);
        assert_eq!(setting.words(), "50 ms round trip, 20 Mbit/s each way, loss 1 %, 3 peers");
    }

    #[test]
    fn a_line_with_a_name_is_as_slow_as_its_slower_way() {
        let setting = Setting::on(Line::Dsl);
        assert_eq!(setting.both(), Line::Dsl.both());
        // 12,500 bytes take 10 ms up, and their last packet 0.3 ms down.
        assert!((setting.one_way_s(12_500.0) - (0.016 + 0.010 + 0.000_3)).abs() < 1e-12);
        assert_eq!(setting.words(), "dsl lines: 32 ms round trip, 10 Mbit/s up and 40 down, loss 0.04 %, 3 peers");
    }

    #[test]
    fn a_setting_of_before_has_no_line() {
        let before = r#"{"rtt_ms":50.0,"mbit":20.0,"loss":0.0,"peers":3,"seed":6}"#;
        assert_eq!(serde_json::from_str::<Setting>(before).unwrap(), Setting::default());
        assert_eq!(serde_json::to_string(&Setting::default()).unwrap(), before);
        for line in Line::ALL {
            let text = serde_json::to_string(&Setting::on(line)).unwrap();
            assert_eq!(serde_json::from_str::<Setting>(&text).unwrap(), Setting::on(line), "{text}");
        }
        assert!(serde_json::from_str::<Setting>(&before.replace('}', r#","line":"wire"}"#)).is_err());
    }
}
