//! Machines around a router, each on a line of its own: what a chain of peers has between its neighbours.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    Namespace, NetemError,
    carrier::{Carrier, device},
    link::{Hub, LineStats, Profile},
    world::{or_skip, unused_name},
};

/// Machines that one star can have: their number is in their addresses.
const MACHINES_MAX: usize = 254;

/// Where the address of the receiver is in a packet of IPv4.
const DESTINATION: std::ops::Range<usize> = 16..20;

/// Machines, each with its line to one router that takes no time. All of it is gone when dropped.
///
/// A packet from one machine to another passes two lines, the sender's upwards and the receiver's downwards: their delays add,
/// and each has its rate and its queue, which all traffic of that machine shares. The router knows the machines' addresses in
/// IPv4, and nothing else.
#[derive(Debug)]
pub struct Star {
    /// Before the namespaces: their devices go with it.
    carrier: Carrier,
    lines: Vec<[Profile; 2]>,
    machines: Vec<Namespace>,
}

impl Star {
    /// A machine for each line, given as its directions up (away from the machine) and down. The seed decides about all.
    ///
    /// # Errors
    /// `Unavailable` where this process may not; the others where the kernel refuses a part of it.
    ///
    /// # Panics
    /// Beyond 254 machines: their addresses have no room for more.
    pub fn new(lines: &[[Profile; 2]], seed: u64) -> Result<Self, NetemError> {
        assert!(lines.len() <= MACHINES_MAX, "a star has {MACHINES_MAX} machines at most");
        let name = unused_name();
        let (mut machines, mut devices) = (Vec::new(), Vec::new());
        for n in 1..=lines.len() {
            let made = Namespace::new(format!("{name}-m{n}"), false);
            let machine = made.map_err(|error| match machines.len() {
                0 => NetemError::Unavailable(error.to_string()),
                _ => error,
            })?;
            devices.push(device(&machine, "wire")?);
            machine.ip(&format!("addr add 10.99.{n}.2/32 dev wire\nlink set wire up\nroute add default dev wire\n"))?;
            machines.push(machine);
        }
        let carrier = Carrier::new(devices, Hub::new(lines, seed), |_, packet| machine_of(packet))?;
        Ok(Self { carrier, lines: lines.to_vec(), machines })
    }

    /// The same; none where this process may not, which is said. With `POTLUCK_SKIP_NOTHING`, as in CI, that fails.
    ///
    /// # Panics
    /// Where the kernel refuses a part of it: a test has nothing else to do about it.
    pub fn or_skip(lines: &[[Profile; 2]], seed: u64) -> Option<Self> {
        or_skip(Self::new(lines, seed))
    }

    /// The machines, in the order of their lines.
    pub fn machines(&self) -> &[Namespace] {
        &self.machines
    }

    /// The address of a machine, by its place in that order: 10.99.1.2 for the first, 10.99.2.2 for the second.
    ///
    /// # Panics
    /// As the methods below, where there is no such machine.
    pub fn address(&self, machine: usize) -> Ipv4Addr {
        assert!(machine < self.machines.len(), "a star of {} has no machine {machine}", self.machines.len());
        Ipv4Addr::new(10, 99, machine as u8 + 1, 2)
    }

    /// From now on nothing that a machine sends leaves it, nothing that it is sent reaches it, or both; or all passes again.
    ///
    /// # Errors
    /// `Refused` by `nft`, `Unavailable` where there is none.
    pub fn cut(&self, machine: usize, [up, down]: [bool; 2]) -> Result<(), NetemError> {
        let chains = [("output", up), ("input", down)].into_iter().filter(|(_, cut)| *cut);
        let chains = chains.map(|(hook, _)| {
            format!("add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy drop; }}\n")
        });
        // Whether there were rules before or not, there are none of them afterwards.
        let anew = "add table inet cut\ndelete table inet cut\nadd table inet cut\n";
        self.machines[machine].nft(&chains.fold(anew.to_owned(), |rules, chain| rules + &chain))
    }

    /// Time that a packet takes from one machine to another, without jitter, waits and its own length.
    pub fn one_way(&self, from: usize, to: usize) -> Duration {
        if from == to { Duration::ZERO } else { self.lines[from][0].delay + self.lines[to][1].delay }
    }

    /// Time from one machine to another and back, without jitter, waits and the packets' own length.
    pub fn round_trip(&self, from: usize, to: usize) -> Duration {
        self.one_way(from, to) + self.one_way(to, from)
    }

    /// Bits a second from one machine to another, where nothing else is sent. None: as many as there are.
    pub fn rate(&self, from: usize, to: usize) -> Option<u64> {
        let rates = if from == to { [None; 2] } else { [self.lines[from][0].rate, self.lines[to][1].rate] };
        rates.into_iter().flatten().min()
    }

    /// What became of packets on the line of each machine: up, and down.
    pub fn stats(&self) -> Vec<[LineStats; 2]> {
        self.carrier.stats().lines()
    }

    /// Processor time that all lines have taken so far, as [`Wire::cpu_time`](crate::Wire::cpu_time).
    pub fn cpu_time(&self) -> Duration {
        self.carrier.cpu_time()
    }
}

/// The machine that a packet is for, which need not be there.
fn machine_of(packet: &[u8]) -> Option<usize> {
    match *packet.get(DESTINATION)? {
        [10, 99, number, 2] if packet[0] >> 4 == 4 => usize::from(number).checked_sub(1),
        _ => None,
    }
}
