//! Whoever carries the packets: reads all that passes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use potluck_chain::Submission;
use potluck_core::Rows;
use potluck_net::{NetDeadlines, SessionEvent};
use potluck_wire::{Codec, PeerAddress};
use tokio::{net::UdpSocket, task::JoinSet};

use crate::{
    attacker::{Victim, session_over},
    swarm::node,
};

/// A prompt that nothing else looks like.
const PROMPT: [u32; 12] = [61, 3, 59, 7, 53, 11, 47, 13, 43, 17, 41, 19];

/// Passes packets on between whoever dials it and the peer behind it, and keeps them all.
async fn carrier(to: SocketAddr, seen: Arc<Mutex<Vec<u8>>>) -> (SocketAddr, JoinSet<()>) {
    let (front, back) = (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    back.connect(to).await.unwrap();
    let at = front.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut there, mut here, mut client) = ([0; 2_048], [0; 2_048], None);
        loop {
            tokio::select! {
                Ok((len, from)) = front.recv_from(&mut there) => {
                    client = Some(from);
                    seen.lock().unwrap().extend_from_slice(&there[..len]);
                    let _ = back.send(&there[..len]).await;
                }
                Ok(len) = back.recv(&mut here) => {
                    seen.lock().unwrap().extend_from_slice(&here[..len]);
                    if let Some(client) = client {
                        let _ = front.send_to(&here[..len], client).await;
                    }
                }
                else => return,
            }
        }
    });
    (at, tasks)
}

pub(crate) async fn reads_a_prompt_on_its_way() -> bool {
    let victim = Victim::start().await;
    let address = victim.node.address();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (at, _carrying) = carrier(address.addresses[0].parse().unwrap(), seen.clone()).await;
    let address = PeerAddress { addresses: vec![at.to_string()], ..address };
    let client = node(30, NetDeadlines::default()).await;
    let mut session = client.open(session_over(&client, address), Vec::new()).await.unwrap();
    assert!(matches!(session.next().await, Ok(SessionEvent::Ready)));
    session.submit(Submission::chain(0, PROMPT.to_vec(), Rows::Last, 4)).unwrap();
    assert!(matches!(session.next().await, Ok(SessionEvent::Answer(_))));
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 1_000, "all of it went this way");
    let canary = Codec::encode_tokens(&PROMPT);
    seen.windows(canary.len()).any(|bytes| bytes == canary)
}
