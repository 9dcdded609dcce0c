//! A small internet: one switch that routes, machines on it, and sides behind routers.

use std::{
    ops::Index,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    Namespace, Nat, NetemError, Side, Wire,
    link::Profile,
    namespace::sweep,
    side::{SIDES_MAX, names, plug},
};

/// The name that every machine of a world knows its relay by.
pub const RELAY_HOST: &str = "relay.test";

/// The relay's addresses. They are public ones to look at, as all here but those behind a NAT: of networks set aside for tests.
pub const RELAY_V4: &str = "198.18.0.250";
/// The same in IPv6.
pub const RELAY_V6: &str = "2001:db8::250";

/// Where it is on the switch.
const RELAY_OCTET: u8 = 250;

/// How the names of namespaces begin, followed by the process.
const PREFIX: &str = "netem";

/// A side of a [`World`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SideId(usize);

/// An internet without a way out. All of it is gone when dropped.
#[derive(Debug)]
pub struct World {
    name: String,
    switch: Namespace,
    relay: Namespace,
    sides: Vec<Side>,
}

impl World {
    /// A switch, and a machine for a relay on it.
    ///
    /// # Errors
    /// `Unavailable` where this process may not; the others where the kernel refuses a part of it.
    pub fn new() -> Result<Self, NetemError> {
        let name = unused_name();
        let made = Namespace::new(format!("{name}-ix"), true);
        let switch = made.map_err(|error| NetemError::Unavailable(error.to_string()))?;
        for (what, value) in [
            ("ipv4/ip_forward", 1),
            ("ipv6/conf/all/forwarding", 1),
            // Who is told of a shorter way takes it, past the rules.
            ("ipv4/conf/all/send_redirects", 0),
            ("ipv4/conf/default/send_redirects", 0),
        ] {
            switch.set(what, value)?;
        }
        switch.ip("link add br0 type bridge mcast_snooping 0\naddr add 198.18.0.254/24 dev br0\n\
             addr add 2001:db8::254/64 dev br0 nodad\nlink set br0 up\n")?;
        let relay = machine(&name, &switch, RELAY_OCTET)?;
        Ok(Self { name, switch, relay, sides: Vec::new() })
    }

    /// The same; none where this process may not, which is said. With `POTLUCK_SKIP_NOTHING`, as in CI, that fails.
    ///
    /// # Panics
    /// Where the kernel refuses a part of it: a test has nothing else to do about it.
    pub fn or_skip() -> Option<Self> {
        or_skip(Self::new())
    }

    /// The machine of the relay, at [`RELAY_V4`] and [`RELAY_V6`].
    pub fn relay(&self) -> &Namespace {
        &self.relay
    }

    /// Another machine with public addresses: 198.18.0.`octet` and 2001:db8::`octet`.
    ///
    /// # Errors
    /// `Refused` by the kernel, where the address is taken.
    pub fn machine(&self, octet: u8) -> Result<Namespace, NetemError> {
        machine(&self.name, &self.switch, octet)
    }

    /// A new side behind such a NAT, with one host.
    ///
    /// # Errors
    /// Where the kernel refuses a part of it.
    ///
    /// # Panics
    /// Beyond 99 sides: their addresses have no room for more.
    pub fn side(&mut self, nat: Nat) -> Result<SideId, NetemError> {
        assert!(self.sides.len() < SIDES_MAX, "a world has {SIDES_MAX} sides at most");
        let side = Side::new(&self.name, &self.switch, self.sides.len() + 1, nat)?;
        self.sides.push(side);
        Ok(SideId(self.sides.len() - 1))
    }

    /// One more host behind the same router.
    ///
    /// # Errors
    /// Where the kernel refuses a part of it.
    pub fn host(&mut self, side: SideId) -> Result<usize, NetemError> {
        let (world, side) = (self.name.clone(), &mut self.sides[side.0]);
        side.add_host(&world)?;
        Ok(side.hosts().len() - 1)
    }

    /// The line between the side's first host and its router becomes such a one: there is towards the router. For as long as
    /// the wire lives, and only once; the host has no other afterwards.
    ///
    /// # Errors
    /// Where the kernel refuses a part of it.
    pub fn slow_down(&self, side: SideId, both: [Profile; 2], seed: u64) -> Result<Wire, NetemError> {
        self[side].slow_down(both, seed)
    }

    /// The side's outside address becomes another, as from a provider that gives out others now: its router forgets everything.
    ///
    /// # Errors
    /// Where the kernel refuses a part of it.
    ///
    /// # Panics
    /// Where the side has no NAT: its hosts' own addresses would have to change.
    pub fn change_address(&mut self, side: SideId) -> Result<(), NetemError> {
        self.sides[side.0].change_address()
    }
}

impl Index<SideId> for World {
    type Output = Side;

    fn index(&self, side: SideId) -> &Side {
        &self.sides[side.0]
    }
}

/// How the names of namespaces begin that belong together. What a process that is gone has left is removed first.
pub(crate) fn unused_name() -> String {
    static SWEPT: Once = Once::new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    SWEPT.call_once(|| sweep(PREFIX));
    format!("{PREFIX}{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// What was made; none where this process may not, which is said, unless nothing may be skipped.
pub(crate) fn or_skip<T>(made: Result<T, NetemError>) -> Option<T> {
    match made {
        Ok(made) => Some(made),
        Err(NetemError::Unavailable(reason)) if std::env::var_os("POTLUCK_SKIP_NOTHING").is_none() => {
            eprintln!("SKIPPED: this needs root, `ip`, `nft` and `conntrack`: {reason}");
            None
        }
        Err(error) => panic!("no network, and nothing may be skipped: {error}"),
    }
}

/// A machine with addresses of the internet itself.
fn machine(world: &str, switch: &Namespace, octet: u8) -> Result<Namespace, NetemError> {
    let machine = Namespace::new(format!("{world}-m{octet}"), true)?;
    plug(switch, &format!("m{octet}"), &machine, "eth0")?;
    machine.ip(&format!(
        "addr add 198.18.0.{octet}/24 dev eth0\naddr add 2001:db8::{octet}/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 198.18.0.254\nroute add default via 2001:db8::254\n"
    ))?;
    names(&machine)?;
    Ok(machine)
}
