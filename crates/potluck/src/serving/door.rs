//! Who is let in by an invitation: answered where the swarm's root key is.

use potluck_core::PeerId;
use potluck_grant::{Caveats, Gate};
use potluck_net::Door;
use potluck_wire::{CONTACTS_MAX, FailureCode, Join, Joined};
use tracing::error;

use crate::{
    commands::swarm::{days_from, utc_now},
    failure::Failure,
    home::{Home, Identity, Invitations, Membership, Role, RootKept, SwarmRoot, Terms, remember_issued, tell},
    screen::Screen,
};

/// The door of this machine's swarm; none where this machine does not hold its root key. `gate`: of the node behind the door.
pub(crate) fn door(home: &Home, screen: Screen, gate: &Gate) -> Result<Option<Door>, Failure> {
    if let Some(why) = why_shut(home)? {
        screen.note(format!(
            "nobody is let in by an invitation: {why}: potluck serve --passphrase-file - asks for what opens it"
        ));
        tracing::warn!("nobody is let in by an invitation: {why}");
        return Ok(Some(Door::new(move |peer, _| {
            tracing::warn!(peer = %peer.short(), "an invitation was not answered: {why}");
            Err(FailureCode::Busy)
        })));
    }
    // What is wrong with it is to be known now, not when the first newcomer comes.
    match SwarmRoot::open(home) {
        Ok(_) => {}
        Err(failure) if failure.code == "no_root" => return Ok(None),
        Err(failure) => return Err(failure),
    }
    let (home, gate) = (home.clone(), gate.clone());
    Ok(Some(Door::new(move |peer, join| match let_in(&home, &gate, peer, join) {
        Ok(Ok((joined, code))) => {
            screen.note(format!("{} has joined by an invitation, code {code}", peer.short()));
            Ok(joined)
        }
        Ok(Err(code)) => {
            tracing::info!(peer = %peer.short(), %code, "an invitation was refused");
            Err(code)
        }
        Err(failure) => {
            error!(peer = %peer.short(), "an invitation could not be answered: {}", failure.message);
            Err(FailureCode::Busy)
        }
    })))
}

/// Why no newcomer can be let in here, though invitations may say so.
fn why_shut(home: &Home) -> Result<Option<&'static str>, Failure> {
    if home.root.is_named() {
        return Ok(None);
    }
    let now = utc_now();
    let is_waited_for = || {
        let kept = Invitations::open(home, now)?.into_all();
        Ok::<_, Failure>(kept.iter().any(|invitation| invitation.state(now) == "open"))
    };
    Ok(match RootKept::of(home)? {
        Some(kept) if kept.is_locked()? => Some("the swarm's root key is locked"),
        None if is_waited_for()? => Some("the swarm's root key is not here"),
        _ => None,
    })
}

fn let_in(
    home: &Home,
    gate: &Gate,
    peer: PeerId,
    join: &Join,
) -> Result<Result<(Joined, String), FailureCode>, Failure> {
    let now = utc_now();
    let root = SwarmRoot::open(home)?;
    if gate.root() != root.public() {
        // Rotated by another command of this machine: the newcomer is led to the root that signs.
        tell(home, gate)?;
    }
    let used = Invitations::open(home, now)?.redeem(&root.swarm().to_string(), peer, join, now)?;
    let (used, terms) = match used {
        Ok(used) => used,
        Err(code) => return Ok(Err(code)),
    };
    let Terms { days, role, tokens_per_day } = terms;
    let caveats = Caveats { role: Some(role), until: Some(days_from(now, days)), tokens_per_day, ..Caveats::default() };
    let grants: Vec<_> = join.keys.iter().map(|&key| root.admit_as(key, &caveats)).collect::<Result<_, _>>()?;
    let named: Vec<_> = join.keys.iter().copied().zip(Vec::clone(&grants)).collect();
    remember_issued(home, &named)?;
    let mut contacts = Membership::open(home)?.contacts;
    // Whoever lets a newcomer in is the one that it certainly reaches.
    let own = Identity::open(home, Role::Peer)?.key.peer_id();
    contacts.sort_by_key(|contact| contact.peer != own);
    contacts.truncate(CONTACTS_MAX);
    Ok(Ok((Joined { grants, contacts }, used.code)))
}
