//! `potluck join`: this machine becomes a member, with the one line that the swarm's owner passed on, and lends itself.

use std::io::{Read, stdin};

use clap::Args;
use potluck_grant::Gate;
use potluck_net::{Bind, Identity as NetIdentity, NetDeadlines, NetError, Node, NodeConfig};
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

/// Joins with either kind of line.
pub(crate) async fn join(home: &Home, screen: Screen, line: Line, replace: bool) -> Result<(), Failure> {
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
    let membership = Membership::join(home, &admission, replace)?;
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
    let keys = keys(home)?;
    let identity = Identity::open(home, Role::Client)?;
    let swarm = invitation.swarm.parse().or_fail("usage", "paste all of the line")?;
    // It has no grant yet, and greets nobody.
    let who = NetIdentity { key: identity.key.clone(), grant: Vec::new(), gate: Gate::new(swarm) };
    let (lan, deadlines) = (home.reach.asking(), NetDeadlines::default());
    let relays = home.reach.relays_or(&usable(&invitation.relays));
    let relay = home.claim_relays(relays, Some(invitation.relay_pass()));
    let node = Node::bind(NodeConfig { identity: who, bind: Bind::Any, lan, relay, deadlines }).await?;
    let asked = node.join(&invitation.inviter, invitation.secret, keys.to_vec()).await;
    node.close().await;
    let gate = node.identity().gate.clone();
    let mut joined = asked.map_err(|error| not_answered(invitation, error))?;
    if joined.contacts.iter().all(|contact| contact.peer != invitation.inviter.peer) {
        joined.contacts.insert(0, invitation.inviter.clone());
    }
    let grants = keys.into_iter().zip(joined.grants).collect();
    let admission = Admission {
        swarm: invitation.swarm.clone(),
        grants,
        contacts: joined.contacts,
        relays: invitation.relays.clone(),
        successions: gate.successions(),
    };
    Ok((admission, invitation.code(identity.key.peer_id())))
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
pub(crate) fn keys(home: &Home) -> Result<[potluck_core::PeerId; 2], Failure> {
    Ok([Identity::open(home, Role::Peer)?.key.peer_id(), Identity::open(home, Role::Client)?.key.peer_id()])
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = stdin().lock().take(STDIN_BYTES_MAX).read_to_string(&mut text);
    read.map(|_| text).map_err(|error| Failure::io("reading the line", &error))
}
