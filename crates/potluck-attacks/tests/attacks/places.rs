//! Attacks on places, time and memory: floods, silence, frames without end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use iroh::{Endpoint, EndpointAddr, EndpointId, TransportAddr, endpoint::Connection};
use potluck_wire::{ALPN, FailureCode, Frame};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    attacker::{Attacker, PATIENCE, Victim, endpoint, hello},
    swarm::{FAR, grant_of, key, root},
};

/// Several times what the victim gives to a greeting.
const LONG: Duration = Duration::from_secs(2);

async fn stays_open(connection: &Connection) -> bool {
    timeout(LONG, connection.closed()).await.is_err()
}

pub(crate) async fn says_nothing_and_stays() -> bool {
    let victim = Victim::start().await;
    stays_open(&Attacker::connect(&victim, 66).await.connection).await
}

pub(crate) async fn takes_all_places_in_silence() -> bool {
    let victim = Victim::start().await;
    let mut attempts = Vec::new();
    for n in 100..140 {
        let address = victim.node.address();
        attempts.push(tokio::spawn(async move { Attacker::try_connect(&address, n).await }));
    }
    let mut inside = Vec::new();
    for attempt in attempts {
        inside.extend(attempt.await.unwrap());
    }
    assert!(!inside.is_empty(), "some places there are");
    inside.len() == 40
}

/// The victim, as an endpoint dials it.
fn address_of(victim: &Victim) -> EndpointAddr {
    let address = victim.node.address();
    let ips = address.addresses.iter().map(|text| TransportAddr::Ip(text.parse().unwrap()));
    EndpointAddr::from_parts(EndpointId::from_bytes(address.peer.as_bytes()).unwrap(), ips)
}

async fn connect(endpoint: &Endpoint, victim: &Victim) -> Option<Connection> {
    timeout(PATIENCE, endpoint.connect(address_of(victim), ALPN)).await.expect("an answer, of either kind").ok()
}

pub(crate) async fn comes_again_and_again() -> bool {
    let victim = Arc::new(Victim::start().await);
    let (each, mut strangers, begun) = (300, JoinSet::new(), Instant::now());
    // Several keys, as strangers make them: it is the address that counts.
    for n in 100..104 {
        let victim = victim.clone();
        strangers.spawn(async move {
            let endpoint = endpoint(n, vec![]).await;
            let mut came = 0;
            for _ in 0..each {
                if let Some(connection) = connect(&endpoint, &victim).await {
                    connection.close(0_u8.into(), b"");
                    came += 1;
                }
            }
            came
        });
    }
    let came: usize = strangers.join_all().await.into_iter().sum();
    assert!(came > 100, "several machines may be behind one address");
    // 128 and 32 at once, 32 and 8 a second, and some for a clock that is read late.
    came as f64 > 200.0 + 45.0 * begun.elapsed().as_secs_f64()
}

pub(crate) async fn comes_again_and_again_with_one_key() -> bool {
    let victim = Victim::start().await;
    let endpoint = endpoint(66, vec![]).await;
    let grant = grant_of(&root(), key(66).peer_id(), FAR);
    let (mut welcomed, begun) = (0, Instant::now());
    for _ in 0..200 {
        let Some(connection) = connect(&endpoint, &victim).await else { continue };
        let Ok((send, receive)) = connection.open_bi().await else { continue };
        let mut stream = crate::attacker::Raw { send, receive, reader: potluck_wire::FrameReader::new(1 << 16) };
        let mut bytes = Vec::new();
        hello(grant.clone()).encode(&mut bytes);
        let greeted = stream.send.write_all(&bytes).await.is_ok();
        welcomed += usize::from(greeted && matches!(stream.next().await, Some(Frame::Welcome(_))));
        connection.close(0_u8.into(), b"");
    }
    // 32 at once, 8 a second.
    f64::from(welcomed as u32) > 40.0 + 12.0 * begun.elapsed().as_secs_f64()
}

pub(crate) async fn keeps_many_connections() -> bool {
    let victim = Victim::start().await;
    let mut kept = Vec::new();
    for _ in 0..12 {
        kept.extend(Attacker::with_grant(&victim, 66, grant_of(&root(), key(66).peer_id(), FAR)).await);
    }
    let mut alive = 0;
    for attacker in &kept {
        alive += usize::from(looks(attacker).await);
    }
    assert!(alive >= 4, "a member has several");
    alive == 12
}

/// Whether it is answered.
async fn looks(attacker: &Attacker) -> bool {
    let Ok((send, receive)) = attacker.connection.open_bi().await else { return false };
    let mut stream = crate::attacker::Raw { send, receive, reader: potluck_wire::FrameReader::new(1 << 16) };
    let mut bytes = Vec::new();
    Frame::ListOffers.encode(&mut bytes);
    stream.send.write_all(&bytes).await.is_ok() && matches!(stream.next().await, Some(Frame::Offers(_)))
}

pub(crate) async fn announces_a_frame_of_gigabytes() -> bool {
    let victim = Victim::start().await;
    let attacker = Attacker::member(&victim, 66).await;
    let mut stream = attacker.stream().await;
    let mut bytes = (u32::MAX - 4).to_le_bytes().to_vec();
    bytes.resize(1 << 20, 0);
    let _ = stream.send.write_all(&bytes).await;
    // Whoever takes it keeps what comes, and waits for the rest until it has waited too long.
    stream.failed().await == FailureCode::Deadline
}
