//! Who is let in by an invitation: answered where the swarm's root key is.

use potluck_core::PeerId;
use potluck_grant::Caveats;
use potluck_net::Door;
use potluck_wire::{CONTACTS_MAX, FailureCode, Join, Joined};
use tracing::error;

use crate::{
    commands::swarm::{days_from, utc_now},
    failure::Failure,
    home::{Home, Identity, Invitations, Membership, Role, SwarmRoot, Terms, remember_issued},
    screen::Screen,
};

/// The door of this machine's swarm; none where this machine does not hold its root key.
pub(crate) fn door(home: &Home, screen: Screen) -> Result<Option<Door>, Failure> {
    // What is wrong with it is to be known now, not when the first newcomer comes.
    match SwarmRoot::open(home) {
        Ok(_) => {}
        Err(failure) if failure.code == "no_root" => return Ok(None),
        Err(failure) => return Err(failure),
    }
    let home = home.clone();
    Ok(Some(Door::new(move |peer, join| match let_in(&home, peer, join) {
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

fn let_in(home: &Home, peer: PeerId, join: &Join) -> Result<Result<(Joined, String), FailureCode>, Failure> {
    let now = utc_now();
    let root = SwarmRoot::open(home)?;
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
