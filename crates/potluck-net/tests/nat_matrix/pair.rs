//! Two peers, each behind a NAT of its own, and a relay between them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::Stdio,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use potluck_netem::{Namespace, Nat, Running, SideId, World};
use serde_json::{Value, json};

use crate::child::{Role, VARIABLE, is_direct};

/// Longest wait for what a child must say.
const PATIENCE: Duration = Duration::from_secs(90);

/// The keys of whoever is dialled, and who dials.
const HOST: u8 = 1;
const GUEST: u8 = 2;

/// A child process, and what it says.
pub(crate) struct Child {
    name: String,
    running: Running,
    said: Receiver<Value>,
}

impl Child {
    fn start(at: &Namespace, name: &str, role: &Role) -> Self {
        let mut command = at.command(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child", "--nocapture"])
            .env(VARIABLE, serde_json::to_string(role).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut running = Namespace::start(&mut command).unwrap();
        let stdout = running.0.stdout.take().unwrap();
        let (sender, said) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // What runs tests has its own words, which may stand before ours.
                let object = line.find('{').and_then(|start| serde_json::from_str(&line[start..]).ok());
                if object.is_some_and(|object: Value| sender.send(object).is_err()) {
                    return;
                }
            }
        });
        Self { name: name.into(), running, said }
    }

    /// What it says next, of those events; none if it has not by then.
    pub(crate) fn says(&self, events: &[&str], within: Duration) -> Option<Value> {
        let begun = Instant::now();
        loop {
            match self.said.recv_timeout(within.saturating_sub(begun.elapsed())) {
                Ok(said) if events.contains(&said["event"].as_str().unwrap()) => return Some(said),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("{} has ended, without {events:?}", self.name),
            }
        }
    }

    fn must_say(&self, event: &str) -> Value {
        self.says(&[event], PATIENCE).unwrap_or_else(|| panic!("{} never said {event}", self.name))
    }

    /// The first time from now on that its path is that, in milliseconds since it dialled.
    fn path(&self, direct: bool, within: Duration) -> Option<Value> {
        let begun = Instant::now();
        loop {
            let said = self.says(&["path"], within.saturating_sub(begun.elapsed()))?;
            if is_direct(&said["path"]) == direct {
                return Some(said);
            }
        }
    }

    fn order(&mut self, what: &str) {
        writeln!(self.running.0.stdin.as_mut().unwrap(), "{what}").unwrap();
    }

    /// Asks the host something; how that went, once it has been answered.
    pub(crate) fn asks(&mut self, what: &str) -> Value {
        self.order(what);
        let said = self.must_say(what);
        assert!(said["more"]["answered"].is_u64(), "{}: nobody answers: {said}", self.name);
        said
    }
}

/// Who starts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    Host,
    Guest,
}

/// Two peers that are connected, and all that is between them.
pub(crate) struct Pair {
    // Processes end before their network does.
    pub(crate) guest: Child,
    _host: Child,
    _relay: Child,
    pub(crate) world: World,
    pub(crate) guest_side: SideId,
    pub(crate) host_side: SideId,
    /// What the guest said when it was connected.
    pub(crate) connected: Value,
}

impl Pair {
    /// A guest behind the first NAT, which has dialled a host behind the second by its relay. None where there is no network.
    pub(crate) fn connect(guest: Nat, host: Nat, first: First) -> Option<Self> {
        Self::connect_over(guest, host, first, |_, _| ()).map(|(pair, ())| pair)
    }

    /// The same, after something was done to the network: to the world, and the guest's side of it.
    pub(crate) fn connect_over<T>(
        guest: Nat,
        host: Nat,
        first: First,
        prepare: impl FnOnce(&mut World, SideId) -> T,
    ) -> Option<(Self, T)> {
        let mut world = World::or_skip()?;
        let [guest_side, host_side] = [guest, host].map(|nat| world.side(nat).unwrap());
        let prepared = prepare(&mut world, guest_side);
        let folder = tempfile::tempdir().unwrap();
        let relay = Child::start(world.relay(), "the relay", &Role::Relay { folder: folder.path().to_owned() });
        let url = relay.must_say("ready")["url"].as_str().unwrap().to_owned();
        let dialled = || {
            let role = Role::Host { key: HOST, relay: url.clone() };
            Child::start(world[host_side].host(), &format!("the host behind {host}"), &role)
        };
        let dials = || {
            let role = Role::Guest { key: GUEST, relay: url.clone(), host: HOST };
            Child::start(world[guest_side].host(), &format!("the guest behind {guest}"), &role)
        };
        let (guest, host) = match first {
            First::Host => {
                let host = dialled();
                host.must_say("ready");
                (dials(), host)
            }
            First::Guest => (dials(), dialled()),
        };
        let connected = guest.must_say("connected");
        Some((Self { guest, _host: host, _relay: relay, world, guest_side, host_side, connected }, prepared))
    }

    /// Waits until the path is direct, or relayed; what the guest said then.
    pub(crate) fn becomes(&self, direct: bool, within: Duration) -> Option<Value> {
        self.guest.path(direct, within)
    }

    /// How it is connected, after so long at most if it is not direct before; and since when, in milliseconds.
    pub(crate) fn settles(&self, within: Duration) -> (bool, Value) {
        if is_direct(&self.connected["path"]) {
            return (true, self.connected.clone());
        }
        match self.becomes(true, within) {
            Some(direct) => (true, direct),
            None => (false, json!({ "path": self.connected["path"], "ms": null })),
        }
    }
}
