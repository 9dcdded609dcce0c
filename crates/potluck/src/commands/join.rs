//! `potluck join`: this machine becomes a member, with the one line that the swarm's owner passed on, and lends itself.

use std::io::{Read, stdin};

use clap::Args;
use potluck_core::{PeerId, SecretKey};
use potluck_grant::Gate;
use potluck_net::{
    Bind, Identity as NetIdentity, Lan, NetDeadlines, NetError, Node, NodeConfig, PublicLookup, RelayUse,
};
use potluck_wire::FailureCode;
use serde_json::json;

use crate::{
    apart::apart,
    commands::{serve::Lend, swarm::utc_now},
    failure::{Failure, OrFail},
    home::{Admission, Home, Identity, Invitation, Line, Membership, Role, usable},
    screen::Screen,
};

/// Bytes of a line that comes by stdin.
const STDIN_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The line that the swarm's owner passed on; `-` reads it from stdin, where no list of processes shows it
    #[arg(env = "POTLUCK_INVITATION", hide_env_values = true)]
    line: String,
    /// Leave the swarm that this machine belongs to
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    lend: Lend,
}

impl Join {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        join(home, screen, read_line(self.line).await?, self.replace).await?;
        self.lend.serve(home, screen, true).await
    }
}

/// The line, from stdin where it says so.
pub(crate) async fn read_line(text: String) -> Result<Line, Failure> {
    if text == "-" { apart(read_stdin).await??.parse() } else { text.parse() }
}

/// Joins with either kind of line; with an invitation, what both sides see.
pub(crate) async fn become_member(
    home: &Home,
    screen: Screen,
    line: Line,
    replace: bool,
) -> Result<(Membership, Option<String>), Failure> {
    let (admission, code) = match line {
        Line::Granted(admission) => {
            let mine = keys(home)?;
            if !admission.grants.iter().any(|(holder, _)| mine.contains(holder)) {
                let hint = "the line must name the keys that `potluck swarm join` prints on this machine";
                return Err(Failure::new("not_for_us", "this line is for another machine", hint));
            }
            (admission, None)
        }
        Line::Invited(invitation) => {
            // Before the invitation is used up.
            Membership::may_join(home, &invitation.swarm, replace)?;
            let _bar = screen.wait(format!("asking {}", invitation.inviter.addresses.join(" or ")));
            let (admission, code) = ask(home, &invitation).await?;
            (admission, Some(code))
        }
    };
    Ok((Membership::join(home, &admission, replace)?, code))
}

/// Joins, and tells.
pub(crate) async fn join(home: &Home, screen: Screen, line: Line, replace: bool) -> Result<(), Failure> {
    let (membership, code) = become_member(home, screen, line, replace).await?;
    if screen.json {
        let joined = json!({ "swarm": membership.swarm, "contacts": membership.contacts.len(), "relays": membership.relays, "code": code });
        return screen.object(&joined);
    }
    screen.text(&format!("joined swarm {}\n", membership.swarm))?;
    if let Some(code) = code {
        screen.note(format!("code {code}: the owner's machine shows the same, or somebody else came in"));
    }
    Ok(())
}

/// Shows the invitation to whoever wrote it.
async fn ask(home: &Home, invitation: &Invitation) -> Result<(Admission, String), Failure> {
    let relays = home.reach.relays_or(&usable(&invitation.relays));
    let relay = home.claim_relays(relays, Some(invitation.relay_pass()));
    let key = Identity::open(home, Role::Client)?.key;
    let discovery = home.reach.discovery.clone();
    let reach = Reaching { bind: Bind::Any, lan: home.reach.asking(), relay, discovery };
    let admission = show(&key, keys(home)?.to_vec(), invitation, reach).await?;
    Ok((admission, invitation.code(key.peer_id())))
}

/// How a newcomer reaches its inviter.
pub(crate) struct Reaching {
    pub(crate) bind: Bind,
    pub(crate) lan: Lan,
    pub(crate) relay: Option<RelayUse>,
    pub(crate) discovery: Option<PublicLookup>,
}

/// Shows the invitation with that key, for grants for all of `keys`.
pub(crate) async fn show(
    key: &SecretKey,
    keys: Vec<PeerId>,
    invitation: &Invitation,
    reach: Reaching,
) -> Result<Admission, Failure> {
    let swarm = invitation.swarm.parse().or_fail("usage", "paste all of the line")?;
    // It has no grant yet, and greets nobody.
    let identity = NetIdentity { key: key.clone(), grant: Vec::new(), gate: Gate::new(swarm) };
    let Reaching { bind, lan, relay, discovery } = reach;
    let node = Node::bind(NodeConfig { identity, bind, lan, relay, deadlines: NetDeadlines::default() }).await?;
    let node = match discovery {
        Some(at) => node.with_public_lookup(&at, false),
        None => node,
    };
    let asked = node.join(&invitation.inviter, invitation.secret, keys.clone()).await;
    node.close().await;
    let gate = node.identity().gate.clone();
    let mut joined = asked.map_err(|error| not_answered(invitation, error))?;
    if joined.contacts.iter().all(|contact| contact.peer != invitation.inviter.peer) {
        joined.contacts.insert(0, invitation.inviter.clone());
    }
    let grants = keys.into_iter().zip(joined.grants).collect();
    Ok(Admission {
        swarm: invitation.swarm.clone(),
        grants,
        contacts: joined.contacts,
        relays: invitation.relays.clone(),
        successions: gate.successions(),
    })
}

/// What a newcomer can do is something else than what a member can.
fn not_answered(invitation: &Invitation, error: NetError) -> Failure {
    if let NetError::Refused { code: FailureCode::Busy, .. } = error {
        let message = "the machine that invited you lets nobody in at the moment";
        let hint =
            "its owner sees why where `potluck serve` runs there: the swarm's root key may be locked; then try again";
        return Failure::new("door_shut", message, hint);
    }
    unreached(invitation, error.into())
}

/// Nobody can look up a peer before having joined: the hint is another one here.
fn unreached(invitation: &Invitation, failure: Failure) -> Failure {
    if failure.code != "peer_lost" {
        return failure;
    }
    let at = invitation.inviter.addresses.join(" or ");
    if invitation.expires < utc_now() {
        let hint = "by this machine's clock the invitation has expired, too: ask for another line";
        return Failure::new(failure.code, failure.message, hint);
    }
    let relayed = if invitation.inviter.relay.is_some() { ", or through its relay" } else { "" };
    let hint =
        format!("on the machine that invited you, `potluck serve` must run, and be reached by UDP at {at}{relayed}");
    Failure::new(failure.code, failure.message, hint)
}

/// The keys that this machine serves and asks with.
pub(crate) fn keys(home: &Home) -> Result<[PeerId; 2], Failure> {
    Ok([Identity::open(home, Role::Peer)?.key.peer_id(), Identity::open(home, Role::Client)?.key.peer_id()])
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = stdin().lock().take(STDIN_BYTES_MAX).read_to_string(&mut text);
    read.map(|_| text).map_err(|error| Failure::io("reading the line", &error))
}
