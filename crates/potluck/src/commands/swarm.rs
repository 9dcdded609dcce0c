//! `potluck swarm`: who belongs together.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use potluck_core::PeerId;
use potluck_wire::PeerAddress;
use serde_json::json;

use crate::{
    failure::Failure,
    home::{Home, Identity, Invitation, Membership, Role, SwarmRoot},
    screen::Screen,
};

/// Days that a grant holds unless the owner says otherwise.
const GRANT_DAYS: u32 = 365;

#[derive(Debug, Subcommand)]
pub(crate) enum Swarm {
    /// Make a swarm, with this machine as its first member
    Create,
    /// Join with an invitation; without one, print what the owner needs to write it
    Join(Join),
    /// Invite a machine: its keys are what `potluck swarm join` prints there
    Grant(Grant),
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The line that `potluck swarm grant` printed
    invitation: Option<String>,
    /// Leave the swarm that this machine belongs to
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Grant {
    /// The machine's keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<PeerId>,
    /// Days that the grant holds
    #[arg(long, value_name = "DAYS", default_value_t = GRANT_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Where the new machine asks first: a member's key and address (repeatable) [default: this machine's contacts]
    #[arg(long, value_name = "KEY@IP:PORT", value_parser = parse_contact)]
    contact: Vec<PeerAddress>,
}

impl Swarm {
    pub(crate) fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        match self {
            Self::Create => create(home, screen),
            Self::Join(Join { invitation: Some(text), replace }) => join(home, screen, &text, replace),
            Self::Join(Join { invitation: None, .. }) => print_keys(home, screen),
            Self::Grant(command) => grant(home, screen, command),
        }
    }
}

fn create(home: &Home, screen: Screen) -> Result<(), Failure> {
    if Membership::find(home)?.is_some() {
        let hint = "use another POTLUCK_HOME for a second swarm";
        return Err(Failure::new("already_joined", "this machine belongs to a swarm already", hint));
    }
    let root = SwarmRoot::create(home)?;
    let invitation = invite(&root, &keys(home)?, GRANT_DAYS, Vec::new())?;
    let membership = Membership::join(home, &invitation, false)?;
    if screen.json {
        return screen.object(&json!({ "swarm": membership.swarm }));
    }
    screen.text(&format!("swarm {}\n", membership.swarm))?;
    screen.note("lend this machine: potluck serve --model M\ninvite another:    potluck swarm join   (typed there; it says what to type here)");
    Ok(())
}

fn join(home: &Home, screen: Screen, text: &str, replace: bool) -> Result<(), Failure> {
    let invitation: Invitation = text.parse()?;
    let mine = keys(home)?;
    if !invitation.grants.iter().any(|(holder, _)| mine.contains(holder)) {
        let hint = "the invitation must name the keys that `potluck swarm join` prints on this machine";
        return Err(Failure::new("not_for_us", "this invitation is for another machine", hint));
    }
    let membership = Membership::join(home, &invitation, replace)?;
    if screen.json {
        return screen.object(&json!({ "swarm": membership.swarm, "contacts": membership.contacts.len() }));
    }
    screen.text(&format!("joined swarm {}\n", membership.swarm))
}

fn print_keys(home: &Home, screen: Screen) -> Result<(), Failure> {
    let keys = keys(home)?;
    if screen.json {
        return screen.object(&json!({ "keys": keys.map(|key| key.to_string()) }));
    }
    screen.note("ask the swarm's owner to type:");
    screen.text(&format!("potluck swarm grant {} {}\n", keys[0], keys[1]))?;
    screen.note("and join with the line that it prints: potluck swarm join ptl1...");
    Ok(())
}

fn grant(home: &Home, screen: Screen, command: Grant) -> Result<(), Failure> {
    let root = SwarmRoot::open(home)?;
    let contacts = if command.contact.is_empty() { Membership::open(home)?.contacts } else { command.contact };
    if contacts.is_empty() {
        screen.note("nobody of this swarm has served yet, so the invitation names no one to ask: see --contact");
    }
    let invitation = invite(&root, &command.keys, command.days, contacts)?;
    if screen.json {
        return screen.object(&json!({ "invitation": invitation.to_string(), "days": command.days }));
    }
    screen.text(&format!("potluck swarm join {invitation}\n"))
}

/// The keys that this machine serves and asks with.
fn keys(home: &Home) -> Result<[PeerId; 2], Failure> {
    Ok([Identity::open(home, Role::Peer)?.key.peer_id(), Identity::open(home, Role::Client)?.key.peer_id()])
}

fn invite(root: &SwarmRoot, keys: &[PeerId], days: u32, contacts: Vec<PeerAddress>) -> Result<Invitation, Failure> {
    let expires = utc_now() + u64::from(days) * 24 * 3_600;
    let grants = keys.iter().map(|&key| Ok((key, root.admit(key, expires)?))).collect::<Result<_, Failure>>()?;
    Ok(Invitation { swarm: root.swarm().to_string(), grants, contacts })
}

/// UTC seconds by this machine's clock.
pub(crate) fn utc_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn parse_contact(text: &str) -> Result<PeerAddress, String> {
    let (key, address) = text.split_once('@').ok_or("expected KEY@IP:PORT")?;
    let peer = key.parse().map_err(|error: potluck_core::IdError| error.to_string())?;
    let address: std::net::SocketAddr = address.parse().map_err(|_| format!("`{address}` is no IP:PORT"))?;
    Ok(PeerAddress { peer, addresses: vec![address.to_string()], relay: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_is_a_key_and_an_address() {
        let key = potluck_core::SecretKey::from_bytes(&[1; 32]).peer_id();
        let contact = parse_contact(&format!("{key}@10.0.0.1:4000")).unwrap();
        assert_eq!((contact.peer, contact.addresses), (key, vec!["10.0.0.1:4000".to_owned()]));
        for text in ["", "x@10.0.0.1:1", &format!("{key}@10.0.0.1"), &key.to_string()] {
            assert!(parse_contact(text).is_err(), "{text}");
        }
    }
}
