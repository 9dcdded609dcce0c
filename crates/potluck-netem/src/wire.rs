//! A wire between two namespaces: a TUN device at each end, and a link each way between them.

use std::time::Duration;

use crate::{
    Namespace, NetemError,
    carrier::{Carrier, device},
    link::{Hub, LineStats, Profile},
};

/// A wire, which is cut when dropped: the devices at its ends go with it.
#[derive(Debug)]
pub struct Wire {
    carrier: Carrier,
}

impl Wire {
    /// Lays a wire from the first namespace to the second. `names` are its names in them; it is without addresses and routes,
    /// and down.
    ///
    /// `there` is what happens to packets from the first to the second, `back` to the others; the seed decides about both.
    ///
    /// # Errors
    /// `Io` where there is no `/dev/net/tun`, or the name is taken.
    pub fn lay(
        between: [&Namespace; 2],
        names: [&str; 2],
        [there, back]: [Profile; 2],
        seed: u64,
    ) -> Result<Self, NetemError> {
        let devices = vec![device(between[0], names[0])?, device(between[1], names[1])?];
        // Two lines that meet, of which the way down takes no time.
        let hub = Hub::new(&[there, back].map(|up| [up, Profile::default()]), seed);
        Ok(Self { carrier: Carrier::new(devices, hub, |from, _| Some(1 - from))? })
    }

    /// A wire and the network of its own that it makes: `10.99.0.1` in the first namespace, `10.99.0.2` in the second.
    ///
    /// # Errors
    /// As [`lay`](Self::lay).
    pub fn between(first: &Namespace, second: &Namespace, both: [Profile; 2], seed: u64) -> Result<Self, NetemError> {
        let wire = Self::lay([first, second], ["wire", "wire"], both, seed)?;
        for (namespace, number) in [(first, 1), (second, 2)] {
            namespace.ip(&format!("addr add 10.99.0.{number}/24 dev wire\nlink set wire up\n"))?;
        }
        Ok(wire)
    }

    /// What became of packets: from the first end to the second, and back.
    pub fn stats(&self) -> [LineStats; 2] {
        let lines = self.carrier.stats().lines();
        [(0, 1), (1, 0)].map(|(from, to)| {
            let (up, down) = (lines[from][0], lines[to][1]);
            LineStats { lost: up.lost + down.lost, no_room: up.no_room + down.no_room, ..down }
        })
    }

    /// Processor time that it has taken so far: what a measurement over it has paid for it. It includes what the kernel does on
    /// behalf of whoever receives a packet, as far as the socket that it is for.
    pub fn cpu_time(&self) -> Duration {
        self.carrier.cpu_time()
    }
}
