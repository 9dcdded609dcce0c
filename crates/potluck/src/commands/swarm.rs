//! `potluck swarm`: who belongs together.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use potluck_core::{PeerId, Revocation, Revoked};
use potluck_grant::{ApiKey, Caveats};
use potluck_net::RelayAt;
use potluck_wire::{ADDRESSES_MAX, PeerAddress};
use serde_json::json;
use sysinfo::Networks;

use crate::{
    args::RootArgs,
    commands::{
        authority::{self, Explain, Limits, Revoke, Standing},
        join,
        join::keys,
        root::RootKey,
        serve::PORT,
    },
    failure::{Failure, OrFail},
    home::{
        Admission, GRANT_DAYS, Home, Identity, Invitation, Invitations, Line, Membership, Role, SwarmRoot, Terms,
        change_trusted, new_key, remember_issued, trusted,
    },
    screen::{Screen, table},
};

/// Days that a grant may hold.
const DAYS_MAX: i64 = 3_650;

/// Hours that an invitation holds unless the owner says otherwise.
const INVITATION_HOURS: u32 = 24;

#[derive(Debug, Subcommand)]
pub(crate) enum Swarm {
    /// Make a swarm, with this machine as its first member, and invite another to it
    Create(Invite),
    /// Print the line that brings another machine in: potluck join LINE
    Invite(Invite),
    /// The invitations that were written here, and who came in by them
    Invitations(List),
    /// Join with a line, and lend nothing; without one, print what the owner needs to let this machine in
    Join(Join),
    /// Let a machine in by its keys, which `potluck swarm join` prints there
    Grant(GrantByRoot),
    /// Hand this machine's grant on to other keys, narrower if you like: nobody else is asked
    Attenuate(Grant),
    /// Take back a key, or a grant and all that was handed on from it
    Revoke(Revoke),
    /// The root key that all of the swarm's authority rests on: lock it by a passphrase, move it away, or replace it
    Root(RootKey),
    /// Whose machines `--only trusted` may use: a list that stays on this machine
    Trust(Trust),
    /// Whom this machine has let in
    Members,
    /// This machine's keys, and what they may
    Whoami,
    /// Why a key may do something, or may not
    Explain(Explain),
    /// The relays that help this machine, or one more, or one less
    Relays(Relays),
    /// Belong to the swarm no longer
    Leave(Leave),
}

#[derive(Debug, Args)]
pub(crate) struct Invite {
    /// How many machines the invitation is for
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    uses: u16,
    /// Hours that the invitation holds
    #[arg(long, value_name = "HOURS", default_value_t = INVITATION_HOURS,
        value_parser = clap::value_parser!(u32).range(1..=8_760))]
    hours: u32,
    /// Days that a machine which comes in by it is a member
    #[arg(long, value_name = "DAYS", default_value_t = GRANT_DAYS, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    days: u32,
    /// What such a machine may: owner, operator, member, guest or auditor
    #[arg(long, value_name = "ROLE", default_value_t = Standing::Member)]
    role: Standing,
    /// Tokens that each peer, and each gateway, computes for such a machine in a day (UTC)
    #[arg(long, value_name = "N")]
    tokens_per_day: Option<u64>,
    /// Where this machine is reached (repeatable) [default: where it served last, or its own addresses, port 7575]
    #[arg(long, value_name = "IP:PORT")]
    address: Vec<std::net::SocketAddr>,
    /// Draw the line as a QR code, too
    #[arg(long)]
    qr: bool,
    #[command(flatten)]
    root: RootArgs,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Take one back: it lets nobody in any more
    #[arg(long, value_name = "ID")]
    revoke: Option<String>,
    #[command(flatten)]
    root: RootArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The line that `potluck swarm invite` or `potluck swarm grant` printed
    line: Option<String>,
    /// Leave the swarm that this machine belongs to
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Grant {
    /// The machine's keys
    #[arg(required_unless_present = "api_key", value_name = "KEY")]
    keys: Vec<PeerId>,
    /// For a program that speaks HTTP: print an API key, which every gateway of the swarm takes
    #[arg(long, conflicts_with_all = ["keys", "contact"])]
    api_key: bool,
    /// Days that the grant holds
    #[arg(long, value_name = "DAYS", default_value_t = GRANT_DAYS, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    days: u32,
    /// Where the new machine asks first: a member's key and address (repeatable) [default: this machine's contacts]
    #[arg(long, value_name = "KEY@IP:PORT", value_parser = parse_contact)]
    contact: Vec<PeerAddress>,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Debug, Args)]
pub(crate) struct GrantByRoot {
    #[command(flatten)]
    grant: Grant,
    #[command(flatten)]
    root: RootArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Relays {
    /// A relay, as `potluck relay` prints it; what serves here takes it up when it starts again (repeatable)
    #[arg(long, value_name = "URL", value_parser = RelayAt::parse)]
    add: Vec<RelayAt>,
    /// One that helps no longer (repeatable)
    #[arg(long, value_name = "URL", value_parser = RelayAt::parse)]
    remove: Vec<RelayAt>,
}

#[derive(Debug, Args)]
pub(crate) struct Trust {
    /// Keys to put on it, as `potluck peers` shows them
    #[arg(value_name = "KEY")]
    keys: Vec<PeerId>,
    /// Take a key off it (repeatable)
    #[arg(long, value_name = "KEY")]
    remove: Vec<PeerId>,
    /// Show it, which it does anyway
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// Remove the root key that is here, too, of this swarm or an earlier one: nobody is let into that one ever after
    #[arg(long)]
    end: bool,
}

/// Whether this machine's grant lets it serve.
fn may_lend(home: &Home) -> Result<bool, Failure> {
    let (membership, [peer, _]) = (Membership::open(home)?, join::keys(home)?);
    let grant = membership.grant(peer)?;
    Ok(membership.gate(home)?.check_lender(&grant, peer, utc_now()).is_ok())
}

impl Swarm {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        match self {
            Self::Create(command) => create(home, screen, &command),
            Self::Invite(command) => invite(&command.root.of(home), screen, &command),
            Self::Invitations(command) => invitations(&command.root.of(home), screen, command).await,
            Self::Join(Join { line: Some(line), replace }) => {
                join::join(home, screen, join::read_line(line).await?, replace).await?;
                screen.note("use the swarm:     potluck chat");
                if may_lend(home)? {
                    screen.note("lend this machine: potluck serve --auto");
                }
                Ok(())
            }
            Self::Join(Join { line: None, .. }) => print_keys(home, screen),
            Self::Grant(command) => grant(&command.root.of(home), screen, command.grant),
            Self::Attenuate(command) => attenuate(home, screen, command),
            Self::Revoke(command) => command.run(home, screen).await,
            Self::Root(command) => command.run(home, screen).await,
            Self::Trust(command) => trust(home, screen, &command),
            Self::Members => authority::members(home, screen),
            Self::Whoami => authority::whoami(home, screen),
            Self::Explain(command) => command.run(home, screen),
            Self::Relays(command) => relays(home, screen, command),
            Self::Leave(command) => leave(home, screen, &command),
        }
    }
}

fn trust(home: &Home, screen: Screen, command: &Trust) -> Result<(), Failure> {
    let list = match command.keys.is_empty() && command.remove.is_empty() {
        true => trusted(home)?,
        false => change_trusted(home, &command.keys, &command.remove)?,
    };
    let keys: Vec<String> = list.iter().map(ToString::to_string).collect();
    if screen.json {
        return screen.object(&json!({ "trusted": keys }));
    }
    if keys.is_empty() {
        screen.note("the list is empty: --only trusted keeps everything on this machine");
    }
    screen.text(&keys.iter().map(|key| format!("{key}\n")).collect::<String>())
}

impl Invite {
    fn terms(&self) -> Terms {
        Terms { days: self.days, role: self.role, tokens_per_day: self.tokens_per_day }
    }
}

fn create(home: &Home, screen: Screen, command: &Invite) -> Result<(), Failure> {
    if Membership::find(home)?.is_some() {
        let hint = "use another POTLUCK_HOME for a second swarm";
        return Err(Failure::new("already_joined", "this machine belongs to a swarm already", hint));
    }
    let root = SwarmRoot::create(home)?;
    let owner =
        Caveats { role: Some(Standing::Owner), until: Some(days_from(utc_now(), GRANT_DAYS)), ..Caveats::default() };
    let grants =
        keys(home)?.into_iter().map(|key| Ok((key, root.admit_as(key, &owner)?))).collect::<Result<_, Failure>>()?;
    let (swarm, successions) = (root.swarm().to_string(), Vec::new());
    let admission = Admission { swarm, grants, contacts: Vec::new(), relays: Vec::new(), successions };
    let membership = Membership::join(home, &admission, false)?;
    let line = write(home, &root, &membership, command)?;
    if screen.json {
        return screen.object(&json!({ "swarm": membership.swarm, "invitation": line.to_string() }));
    }
    screen.text(&format!("swarm {}\n", membership.swarm))?;
    screen.note("lend this machine, and answer whoever joins: potluck serve --model M\ninvite another:");
    show(screen, &line, command)
}

fn invite(home: &Home, screen: Screen, command: &Invite) -> Result<(), Failure> {
    let line = write(home, &SwarmRoot::open(home)?, &Membership::open(home)?, command)?;
    if screen.json {
        let (uses, hours, days) = (command.uses, command.hours, command.days);
        return screen.object(&json!({ "invitation": line.to_string(), "uses": uses, "hours": hours, "days": days }));
    }
    show(screen, &line, command)
}

fn relays(home: &Home, screen: Screen, command: Relays) -> Result<(), Failure> {
    let mut membership = Membership::open(home)?;
    for relay in &command.remove {
        if !membership.forget_relay(relay) {
            let message = format!("{} is none of this machine's relays", relay.url());
            return Err(Failure::new("relay_unknown", message, "potluck swarm relays"));
        }
    }
    command.add.iter().for_each(|relay| membership.keep_relay(relay));
    if !(command.add.is_empty() && command.remove.is_empty()) {
        membership.save(home)?;
    }
    let relays = membership.relays(home);
    if screen.json {
        return screen.object(&json!({ "relays": relays }));
    }
    if relays.is_empty() {
        screen.note("no relay: potluck relay runs one; potluck swarm relays --add URL");
        return Ok(());
    }
    screen.text(&(relays.join("\n") + "\n"))
}

fn leave(home: &Home, screen: Screen, command: &Leave) -> Result<(), Failure> {
    // What serves there now goes on until it is ended: not behind its back.
    let _lock = Identity::open(home, Role::Peer)?.lock(home)?;
    let swarm = Membership::leave(home, command.end)?;
    if screen.json {
        return screen.object(&json!({ "left": swarm }));
    }
    let swarm = swarm
        .map_or("removed the root key of a swarm that was made here".into(), |swarm| format!("left swarm {swarm}"));
    screen.text(&(swarm + "\n"))?;
    screen.note("this machine's keys and models stay; what they were granted ends by itself");
    Ok(())
}

/// A new invitation. It names this machine, which has to serve when the newcomer asks.
fn write(home: &Home, root: &SwarmRoot, membership: &Membership, command: &Invite) -> Result<Line, Failure> {
    let peer = Identity::open(home, Role::Peer)?.key.peer_id();
    let before = membership.contacts.iter().find(|contact| contact.peer == peer);
    let relays = membership.relays(home);
    // Where it is found is known once it has served; before that, any of them.
    let relay =
        before.and_then(|known| known.relay.clone()).filter(|at| relays.contains(at)).or(relays.first().cloned());
    let inviter = match before {
        _ if !command.address.is_empty() => {
            let addresses = command.address.iter().take(ADDRESSES_MAX).map(ToString::to_string).collect();
            PeerAddress { peer, addresses, relay }
        }
        Some(known) => PeerAddress { relay, ..known.clone() },
        None => PeerAddress { peer, addresses: own_addresses(), relay },
    };
    let now = utc_now();
    let expires = now + u64::from(command.hours) * 3_600;
    let secret = Invitations::open(home, now)?.write(expires, command.uses, command.terms())?;
    Ok(Line::Invited(Invitation::new(root, inviter, secret, expires, relays)))
}

fn show(screen: Screen, line: &Line, command: &Invite) -> Result<(), Failure> {
    let text = format!("potluck join {line}");
    if command.qr {
        let drawn = qrcode::QrCode::new(&text).or_fail("internal", "copy the line instead")?;
        screen.text(&(drawn.render::<qrcode::render::unicode::Dense1x2>().build() + "\n"))?;
    }
    screen.text(&(text + "\n"))?;
    let machines = if command.uses == 1 { "one machine".into() } else { format!("{} machines", command.uses) };
    screen.note(format!(
        "for {machines}, for {} hours; {} for {} days. Pass it on in private: it is answered while `potluck serve` runs here",
        command.hours,
        if matches!(command.role, Standing::Member | Standing::Guest) {
            format!("a {}", command.role)
        } else {
            format!("an {}", command.role)
        },
        command.days
    ));
    Ok(())
}

/// This machine's addresses, where it has not served yet.
pub(crate) fn own_addresses() -> Vec<String> {
    let networks = Networks::new_with_refreshed_list();
    let mut addresses: Vec<_> = networks
        .values()
        .flat_map(|network| network.ip_networks().iter().map(|network| network.addr))
        .filter(|ip| match ip {
            std::net::IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            std::net::IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into_iter().take(ADDRESSES_MAX).map(|ip| std::net::SocketAddr::new(ip, PORT).to_string()).collect()
}

async fn invitations(home: &Home, screen: Screen, command: List) -> Result<(), Failure> {
    let now = utc_now();
    // What opens the root key is asked for before anything is taken back, and before newcomers have to wait.
    let root = command.revoke.as_ref().map(|_| SwarmRoot::open(home)).transpose()?;
    let mut invitations = Invitations::open(home, now)?;
    if let (Some(id), Some(root)) = (command.revoke, root) {
        let pass = invitations.revoke(&id)?;
        drop(invitations);
        if let Some(pass) = pass {
            let membership = Membership::open(home)?;
            let signed = Revocation::sign(membership.id()?, Revoked::Key(pass), now, &root.key(), Vec::new());
            authority::spread(home, &membership, vec![signed]).await?;
        }
        return if screen.json {
            screen.object(&json!({ "revoked": id }))
        } else {
            screen.text(&format!("revoked {id}\n"))
        };
    }
    // A pager that does not read on must not keep newcomers waiting.
    let kept = invitations.into_all();
    if screen.json {
        let rows: Vec<_> = kept
            .iter()
            .map(|one| {
                json!({
                    "id": one.id,
                    "state": one.state(now),
                    "uses": one.uses,
                    "expires": one.expires,
                    "days": one.days,
                    "role": one.role.as_deref().unwrap_or("member"),
                    "tokens_per_day": one.tokens_per_day,
                    "used_by": one.used_by,
                })
            })
            .collect();
        return screen.object(&json!({ "invitations": rows }));
    }
    if kept.is_empty() {
        screen.note("no invitations: potluck swarm invite");
        return Ok(());
    }
    let heading = ["ID", "STATE", "USED", "HOURS LEFT", "FOR", "BY (CODE)"].map(str::to_owned).to_vec();
    let rows = kept.iter().map(|one| {
        let by = one.used_by.iter().map(|newcomer| format!("{} ({})", &newcomer.peer[..10], newcomer.code));
        vec![
            one.id.clone(),
            one.state(now).to_owned(),
            format!("{} of {}", one.used_by.len(), one.uses),
            (one.expires.saturating_sub(now) / 3_600).to_string(),
            format!("{}, {} days", one.role.as_deref().unwrap_or("member"), one.days),
            by.collect::<Vec<_>>().join(", "),
        ]
    });
    screen.text(&table(&[heading].into_iter().chain(rows).collect::<Vec<_>>()))
}

fn print_keys(home: &Home, screen: Screen) -> Result<(), Failure> {
    let keys = keys(home)?;
    if screen.json {
        return screen.object(&json!({ "keys": keys.map(|key| key.to_string()) }));
    }
    screen.note("ask the swarm's owner to type:");
    screen.text(&format!("potluck swarm grant {} {}\n", keys[0], keys[1]))?;
    screen.note("and join with the line that it prints: potluck join ptl1...");
    Ok(())
}

fn grant(home: &Home, screen: Screen, command: Grant) -> Result<(), Failure> {
    let root = SwarmRoot::open(home)?;
    let standing = if command.api_key { Standing::Guest } else { Standing::Member };
    let caveats = command.limits.caveats(home, screen, Some(standing), command.days)?;
    if command.api_key {
        return give_api_key(home, screen, &command, |key| root.admit_as(key, &caveats));
    }
    let swarm = root.swarm().to_string();
    give(home, screen, command, swarm, |key| root.admit_as(key, &caveats))
}

/// The same from what this machine itself was granted.
fn attenuate(home: &Home, screen: Screen, command: Grant) -> Result<(), Failure> {
    let membership = Membership::open(home)?;
    let identity = Identity::open(home, Role::Client)?;
    let own = membership.grant(identity.key.peer_id())?;
    let again = "join again: potluck swarm join --replace INVITATION";
    let root = membership.gate(home)?.read(&own).or_fail("no_grant", again)?.root();
    let standing = command.api_key.then_some(Standing::Guest);
    let caveats = command.limits.caveats(home, screen, standing, command.days)?;
    let hand_on = |key| {
        let handed = potluck_grant::Grant::hand_on(&own, root, &identity.key, key, &caveats);
        Ok(handed.or_fail("grant", "potluck swarm whoami says what this machine may hand on")?.into_bytes())
    };
    if command.api_key {
        return give_api_key(home, screen, &command, hand_on);
    }
    give(home, screen, command, membership.swarm, hand_on)
}

/// Prints a grant together with the secret key that it names, which is kept nowhere.
fn give_api_key(
    home: &Home,
    screen: Screen,
    command: &Grant,
    admit: impl Fn(PeerId) -> Result<Vec<u8>, Failure>,
) -> Result<(), Failure> {
    let secret = new_key()?;
    let grant = admit(secret.peer_id())?;
    remember_issued(home, &[(secret.peer_id(), grant.clone())])?;
    let (key, holder) = (ApiKey::new(&secret, grant), secret.peer_id());
    if screen.json {
        let days = command.days;
        return screen.object(&json!({ "api_key": key.to_string(), "key": holder.to_string(), "days": days }));
    }
    screen.text(&format!("{key}\n"))?;
    screen.note(format!(
        "for {} days, at every gateway of the swarm; it is shown this once. Take it back: potluck swarm revoke {holder}",
        command.days
    ));
    Ok(())
}

/// Prints the line that lets these keys in.
fn give(
    home: &Home,
    screen: Screen,
    command: Grant,
    swarm: String,
    admit: impl Fn(PeerId) -> Result<Vec<u8>, Failure>,
) -> Result<(), Failure> {
    let membership = Membership::open(home)?;
    let (relays, successions) = (membership.relays(home), membership.gate(home)?.successions());
    let mut contacts = if command.contact.is_empty() { membership.contacts } else { command.contact };
    let own = Identity::open(home, Role::Peer)?.key.peer_id();
    contacts.iter_mut().filter(|contact| contact.peer == own).for_each(|contact| {
        if contact.relay.as_ref().is_none_or(|at| !relays.contains(at)) {
            contact.relay = relays.first().cloned();
        }
    });
    if contacts.is_empty() {
        screen.note("nobody of this swarm has served yet, so the line names no one to ask: see --contact");
    }
    let grants = command.keys.iter().map(|&key| Ok((key, admit(key)?))).collect::<Result<Vec<_>, Failure>>()?;
    remember_issued(home, &grants)?;
    let line = Line::Granted(Admission { swarm, grants, contacts, relays, successions });
    if screen.json {
        return screen.object(&json!({ "invitation": line.to_string(), "days": command.days }));
    }
    screen.text(&format!("potluck join {line}\n"))
}

/// UTC seconds so many days later.
pub(crate) fn days_from(now: u64, days: u32) -> u64 {
    now + u64::from(days) * 24 * 3_600
}

/// UTC seconds by this machine's clock.
pub(crate) fn utc_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

pub(crate) fn parse_contact(text: &str) -> Result<PeerAddress, String> {
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
