//! `kill -9` of a peer's process in the middle of a session: everybody hears so, with its name, in time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod swarm;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    time::Duration,
};

use potluck_chain::{Deadlines, Hop, RemoteStage, SessionConfig, SessionError, Submission};
use potluck_core::{Logits, Rows, SessionId, SessionKey, StageSpec};
use potluck_net::{NetDeadlines, Node, Session, SessionEvent};
use potluck_sim::toy;
use potluck_wire::{Codec, PeerAddress};
use swarm::{CONTEXT, lend, node, spec};

/// What the tests' own process becomes a peer by.
const CHILD: &str = "POTLUCK_TEST_CHILD";

const OPEN: Duration = Duration::from_secs(10);

/// From a peer's death to the error that names it.
const LOSS_DEADLINE: Duration = Duration::from_secs(5);

/// A peer in a process of its own, killed when dropped.
struct Process {
    child: Child,
    address: PeerAddress,
}

impl Process {
    /// Starts this test's program again, as the peer that serves layers 2..4 of 6.
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_peer_that_is_killed", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let text =
            lines.map_while(Result::ok).find_map(|line| line.split_once("listens at ").map(|(_, at)| at.to_owned()));
        let address = PeerAddress { peer: swarm::key(11).peer_id(), addresses: vec![text.unwrap()], relay: None };
        Self { child, address }
    }

    fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does nothing but in a child: there it serves until it is killed, or its parent is gone.
#[test]
fn the_peer_that_is_killed() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _serving = runtime.block_on(async {
        let node = node(11, NetDeadlines::default()).await;
        println!("listens at {}", node.address().addresses[0]);
        std::io::stdout().flush().unwrap();
        lend(&node, spec(2, 4, 6), OPEN)
    });
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn remote(spec: StageSpec, address: &PeerAddress) -> RemoteStage {
    RemoteStage { spec, address: address.clone(), grant: vec![], speed: None }
}

/// A session over three peers with two layers each.
fn config(client: &Node, [first, middle, last]: [&PeerAddress; 3], deadlines: Deadlines) -> SessionConfig {
    let stages = [(spec(0, 2, 6), first), (spec(2, 4, 6), middle), (spec(4, 6, 6), last)];
    SessionConfig {
        key: SessionKey { client: client.id(), id: SessionId::from_bytes([1; 16]) },
        epoch: 0,
        positions: CONTEXT,
        width: toy::WIDTH,
        vocabulary: toy::VOCABULARY,
        codec: Codec::F16,
        codec_otherwise: None,
        route: stages.map(|(spec, address)| Hop::Remote(remote(spec, address))).into(),
        prefix: None,
        pad: false,
        exact: false,
        deadlines,
    }
}

/// The token that follows: the whole model's, whatever happened on the way.
async fn next_token(session: &mut Session, tokens: &mut Vec<u32>, other: &RemoteStage, stands_by: bool) -> bool {
    let mut repaired = false;
    loop {
        match session.next().await.unwrap() {
            SessionEvent::Lost { hop, error } => {
                assert!(hop == 1 && session.standby(1).is_none() && !stands_by, "{error}");
                session.replace(vec![(1, other.clone())]).await.unwrap();
            }
            SessionEvent::Repaired => repaired = true,
            SessionEvent::Promoted { hop } => assert!(hop == 1 && stands_by),
            SessionEvent::Answer(answer) => {
                let [Logits::Top { largest, .. }] = &answer.rows[..] else { panic!("{answer:?}") };
                assert_eq!(largest[0].0, toy::greedy(tokens, 6));
                tokens.push(largest[0].0);
                return repaired;
            }
            event => panic!("{event:?}"),
        }
    }
}

#[tokio::test]
async fn another_takes_a_killed_peers_place_and_the_others_keep_what_they_hold() {
    a_peer_is_killed(false).await;
}

#[tokio::test]
async fn who_stands_by_takes_a_killed_peers_place_with_nothing_to_compute_again() {
    a_peer_is_killed(true).await;
}

async fn a_peer_is_killed(stands_by: bool) {
    let mut killed = Process::start();
    let [first, other, last] = [10, 13, 12].map(|key| node(key, NetDeadlines::default()));
    let (first, other, last) = (first.await, other.await, last.await);
    let _lent = [(&first, spec(0, 2, 6)), (&other, spec(2, 4, 6)), (&last, spec(4, 6, 6))]
        .map(|(node, spec)| lend(node, spec, OPEN));
    let client = node(99, NetDeadlines::default()).await;
    let deadlines = Deadlines { grace: Some(OPEN), ..Deadlines::default() };
    let route = [&first.address(), &killed.address, &last.address()];
    let mut session = client.open(config(&client, route, deadlines), vec![]).await.unwrap();
    assert!(matches!(session.next().await.unwrap(), SessionEvent::Ready));
    let other = remote(spec(2, 4, 6), &other.address());
    let mut tokens = vec![1, 2, 3];
    session.submit(Submission::chain(0, tokens.clone(), Rows::Last, 4)).unwrap();
    assert!(!next_token(&mut session, &mut tokens, &other, stands_by).await);
    if stands_by {
        session.stand_by(1, other.clone()).await.unwrap();
        let event = session.next().await.unwrap();
        assert!(matches!(event, SessionEvent::StandsBy { hop: 1 }), "{event:?}");
        assert_eq!(session.standby(1), Some(other.address.peer));
        let twice = session.stand_by(1, other.clone()).await;
        assert!(matches!(twice, Err(SessionError::BadStep(_))), "{twice:?}");
    }
    let mut repaired = 0;
    for step in 0..12 {
        if step == 4 {
            killed.kill_9();
        }
        let start = tokens.len() as u32 - 1;
        session.submit(Submission::chain(start, vec![tokens[start as usize]], Rows::Last, 4)).unwrap();
        repaired += usize::from(next_token(&mut session, &mut tokens, &other, stands_by).await);
    }
    assert_eq!(repaired, 1);
    assert_eq!(session.route()[1].peer(), Some(other.address.peer));
    session.ask_accounts().unwrap();
    let SessionEvent::Accounts(accounts) = session.next().await.unwrap() else { panic!("the accounts were asked for") };
    let counted: Vec<_> = accounts.iter().map(|account| (account.steps, account.positions)).collect();
    // Each computed every step once; who came later, what the killed one had computed as well.
    assert_eq!(counted, [(13, 15); 3]);
}

#[tokio::test]
async fn whoever_says_that_it_goes_is_followed_and_holds_nothing_then() {
    // Whichever place it has: what feeds the other is the client, or a peer; what follows is a peer, or the client.
    for place in 0..3 {
        let specs = [spec(0, 2, 6), spec(2, 4, 6), spec(4, 6, 6)];
        let [first, middle, last, other] = [10, 11, 12, 13].map(|key| node(key, NetDeadlines::default()));
        let nodes = [first.await, middle.await, last.await];
        let other = other.await;
        let mut lent: Vec<_> = nodes.iter().zip(specs).map(|(node, spec)| lend(node, spec, OPEN)).collect();
        let _stands_by = lend(&other, specs[place], OPEN);
        let client = node(99, NetDeadlines::default()).await;
        let deadlines = Deadlines { grace: Some(OPEN), ..Deadlines::default() };
        let addresses = nodes.each_ref().map(Node::address);
        let route = [&addresses[0], &addresses[1], &addresses[2]];
        let mut session = client.open(config(&client, route, deadlines), vec![]).await.unwrap();
        assert!(matches!(session.next().await.unwrap(), SessionEvent::Ready));
        let stage = remote(specs[place], &other.address());
        let (mut tokens, mut promoted) = (vec![1, 2, 3], false);
        session.submit(Submission::chain(0, tokens.clone(), Rows::Last, 4)).unwrap();
        let mut left = lent.remove(place);
        while tokens.len() < 24 {
            if tokens.len() == 8 {
                left.drain().await;
            }
            match session.next().await.unwrap() {
                SessionEvent::Leaving { hop } => {
                    assert_eq!(hop, place);
                    session.stand_by(hop, stage.clone()).await.unwrap();
                }
                SessionEvent::StandsBy { hop } => assert_eq!(hop, place),
                SessionEvent::Promoted { hop } => {
                    assert_eq!(hop, place);
                    promoted = true;
                }
                SessionEvent::Repaired => {}
                SessionEvent::Answer(answer) => {
                    let [Logits::Top { largest, .. }] = &answer.rows[..] else { panic!("{answer:?}") };
                    assert_eq!(largest[0].0, toy::greedy(&tokens, 6));
                    tokens.push(largest[0].0);
                    let start = tokens.len() as u32 - 1;
                    session.submit(Submission::chain(start, vec![tokens[start as usize]], Rows::Last, 4)).unwrap();
                }
                event => panic!("{event:?}"),
            }
            // It goes on until the other is there, however quick the answers are.
            if tokens.len() == 24 && !promoted {
                tokens.truncate(20);
                while session.in_flight() > 0 {
                    match session.next().await.unwrap() {
                        SessionEvent::Promoted { .. } => promoted = true,
                        SessionEvent::Lost { error, .. } => panic!("{error}"),
                        _ => {}
                    }
                }
                session.submit(Submission::chain(19, vec![tokens[19]], Rows::Last, 4)).unwrap();
            }
        }
        assert!(promoted && session.route()[place].peer() == Some(other.address().peer));
        // Nobody's session is there any more: it may go.
        tokio::time::timeout(OPEN, left.finished()).await.unwrap();
    }
}

#[tokio::test]
async fn a_killed_peer_is_named_in_time_and_its_neighbours_let_go() {
    let mut killed = Process::start();
    let (first, last) = (node(10, NetDeadlines::default()).await, node(12, NetDeadlines::default()).await);
    let mut alive = [lend(&first, spec(0, 2, 6), OPEN), lend(&last, spec(4, 6, 6), OPEN)];
    let client = node(99, NetDeadlines::default()).await;
    let route = [&first.address(), &killed.address, &last.address()];
    let mut session = client.open(config(&client, route, Deadlines::default()), vec![]).await.unwrap();
    assert!(matches!(session.next().await.unwrap(), SessionEvent::Ready));
    session.submit(Submission::chain(0, vec![1, 2, 3], Rows::Last, 4)).unwrap();
    assert!(matches!(session.next().await.unwrap(), SessionEvent::Answer(_)));
    killed.kill_9();
    session.submit(Submission::chain(3, vec![4], Rows::Last, 4)).unwrap();
    let noticed = tokio::time::timeout(LOSS_DEADLINE, session.next()).await.expect("noticed in time");
    let error = noticed.unwrap_err();
    assert!(matches!(&error, SessionError::PeerLost { peer, .. } if *peer == killed.address.peer), "{error}");
    for serving in &mut alive {
        let clean = serving.status.wait_for(|status| status.sessions == 0 && status.streams == 0);
        let status = *tokio::time::timeout(LOSS_DEADLINE, clean).await.expect("let go of in time").unwrap();
        assert_eq!(status.free_caches, 8);
    }
}
