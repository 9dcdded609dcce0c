//! Letting connections in: as many as there are places for, greeted within their deadline, checked again for each stream.

use std::{
    future::IntoFuture as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use iroh::endpoint::{Connection, Incoming};
use potluck_core::{Defence, PeerId};
use potluck_grant::Member;
use potluck_peer::StreamId;
use potluck_wire::{FEATURE_CHECKS, FailureCode, TUNNEL_ALPN};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tracing::{debug, info};

use crate::{
    Node,
    echo::Echoes,
    greet::{admit, close, utc_now},
    node::{lift_limits, peer_id},
    places::{Place, Places},
    rates::{Origin, Rates},
    serve::Happened,
    stream::Halves,
    tunnel::attend_tunnel,
};

/// Connections that have not shown a grant yet. The next one is refused before its handshake.
const UNGREETED_MAX: usize = 64;

/// The same from one address, so that no stranger takes all places; from half of it on, an address has to be proven.
const UNGREETED_PER_ADDRESS_MAX: usize = 16;

/// The same of all addresses that may be made up: so no forger takes a place from who is at the address that it says.
const UNGREETED_UNPROVEN_MAX: usize = UNGREETED_MAX / 4;

/// The same of one key that comes by a relay, and of all such keys: whoever is at a relay makes keys as it likes.
const UNGREETED_PER_RELAYED_MAX: usize = 4;
const UNGREETED_RELAYED_MAX: usize = UNGREETED_MAX / 2;

/// Connections at once. The next one is refused before its handshake.
const CONNECTIONS_MAX: usize = 1_024;

/// Connections of one member at once. The next one is closed with `Busy`.
const MEMBER_CONNECTIONS_MAX: usize = 8;

const _: () = assert!(UNGREETED_PER_ADDRESS_MAX < UNGREETED_MAX && UNGREETED_MAX < CONNECTIONS_MAX);

/// Accepts until the endpoint closes.
pub(crate) async fn accept(node: Node, events: mpsc::Sender<Happened>, streams: Arc<AtomicU64>) {
    let (ungreeted, members) = (Places::default(), Places::default());
    let rates = Arc::new(Rates::default());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = node.endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                if connections.len() >= CONNECTIONS_MAX {
                    debug!(max = CONNECTIONS_MAX, "a connection was refused: too many");
                    incoming.refuse();
                } else if let Some((incoming, place)) = knock(incoming, &ungreeted, &rates) {
                    let met = (members.clone(), rates.clone());
                    connections.spawn(attend(node.clone(), incoming, place, met, events.clone(), streams.clone()));
                }
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Gives a connection one of the places for those that have not greeted, or turns it away.
fn knock(incoming: Incoming, ungreeted: &Places<Origin>, rates: &Rates) -> Option<(Incoming, Place<Origin>)> {
    let from = Origin::of(&incoming.remote_addr());
    let (all, here) = ungreeted.taken(&from);
    let full = match from {
        Origin::Relayed(..) => {
            here >= UNGREETED_PER_RELAYED_MAX || ungreeted.taken_where(Origin::is_relayed) >= UNGREETED_RELAYED_MAX
        }
        _ => here >= UNGREETED_PER_ADDRESS_MAX,
    };
    if (full || all >= UNGREETED_MAX) && Defence::UngreetedPlaces.stands() {
        debug!(all, here, "a connection was refused: too many have not greeted");
        incoming.refuse();
        return None;
    }
    let proven = incoming.remote_addr_validated() || from.is_proven();
    let crowded = all >= UNGREETED_UNPROVEN_MAX || here >= UNGREETED_PER_ADDRESS_MAX / 2;
    if !proven && (crowded || !rates.allow_unproven(from)) {
        // Whoever sent this may have made the address up: its owner is asked to come again.
        if let Err(error) = incoming.retry() {
            error.into_incoming().refuse();
        }
        return None;
    }
    if proven && !rates.allow(from) {
        debug!(?from, "a connection was refused: too many in too short a time");
        incoming.refuse();
        return None;
    }
    Some((incoming, ungreeted.take(from)))
}

/// One connection: handshake, greeting, and then its streams until it ends.
async fn attend(
    node: Node,
    incoming: Incoming,
    ungreeted: Place<Origin>,
    (members, rates): (Places<PeerId>, Arc<Rates>),
    events: mpsc::Sender<Happened>,
    streams: Arc<AtomicU64>,
) {
    let patience = if Defence::GreetDeadline.stands() { node.deadlines.greet } else { Duration::MAX };
    let Ok(Ok(connection)) = timeout(patience, incoming.into_future()).await else { return };
    let peer = peer_id(connection.remote_id());
    if !rates.allow_key(peer) {
        info!(peer = %peer.short(), "a connection was refused: this key makes too many");
        return close(&connection, FailureCode::Busy);
    }
    let (member, features) = match timeout(patience, admit(&connection, &node)).await {
        Ok(Ok(Some(admitted))) => admitted,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            info!(peer = %peer.short(), %error, "a connection was refused");
            return close(&connection, error.failure().code);
        }
        Err(_) => {
            info!(peer = %peer.short(), "a connection did not greet in time");
            return close(&connection, FailureCode::Deadline);
        }
    };
    drop(ungreeted);
    let (_, here) = members.taken(&peer);
    if here >= MEMBER_CONNECTIONS_MAX && Defence::MemberConnections.stands() {
        info!(peer = %peer.short(), here, "a connection was refused: this member has too many");
        return close(&connection, FailureCode::Busy);
    }
    let _place = members.take(peer);
    if connection.alpn() == TUNNEL_ALPN {
        return attend_tunnel(node, connection, member).await;
    }
    lift_limits(&connection);
    debug!(peer = %peer.short(), "let in");
    take_streams(&node, (&connection, features), &member, &events, &streams).await;
}

async fn take_streams(
    node: &Node,
    (connection, features): (&Connection, u64),
    member: &Member,
    events: &mpsc::Sender<Happened>,
    streams: &AtomicU64,
) {
    let peer = member.peer();
    let echoes = Echoes::agreed(connection, features);
    let checks = features & FEATURE_CHECKS != 0;
    let mut revoked = node.revoked.subscribe();
    // What was taken back since the greeting counts, too.
    revoked.mark_changed();
    loop {
        let halves = tokio::select! {
            biased;
            Ok(()) = revoked.changed() => None,
            halves = connection.accept_bi() => match halves {
                Ok((send, recv)) => {
                    let upload = node.upload.get().cloned();
                    Some(Halves { send, recv, echoes: echoes.clone(), checks, upload })
                },
                Err(_) => return,
            },
        };
        // A connection may outlive the grant that it was let in with. What is closed here ends every session that came by it.
        if let Err(error) = node.identity.gate.still(member, utc_now())
            && Defence::PutOut.stands()
        {
            info!(peer = %peer.short(), %error, "a member is one no longer");
            return close(connection, FailureCode::NotAdmitted);
        }
        let Some(halves) = halves else { continue };
        let stream = StreamId(streams.fetch_add(1, Ordering::Relaxed));
        if events.send(Happened::Opened { stream, from: member.clone(), halves }).await.is_err() {
            return;
        }
    }
}
