//! Models that a peer lends by an upstream: requests go in, answers come out piece by piece, and whoever is gone stops both.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says where")]

mod swarm;

use std::time::Duration;

use potluck_core::Endpoint;
use potluck_grant::{Gate, Root};
use potluck_net::{Asked, Bind, Identity, Lan, Lending, NetDeadlines, NetError, Node, NodeConfig, Reply, Serving};
use potluck_wire::{Failure, FailureCode, Head, Upstream, UpstreamModel};
use swarm::{FAR, grant_of, key, lend, node, root, spec};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A peer that lends by an upstream, which the test plays.
struct Lender {
    node: Node,
    _serving: Serving,
    offered: watch::Sender<Upstream>,
    asks: mpsc::Receiver<Asked>,
}

impl Lender {
    async fn start(n: u8) -> Self {
        let node = node(n, NetDeadlines::default()).await;
        let models = vec![UpstreamModel { name: "m".into(), context: Some(512) }];
        let (offered, watched) = watch::channel(Upstream { models, ..Upstream::default() });
        let (sender, asks) = mpsc::channel(1);
        node.lend(Lending { offered: watched, asks: sender, places: 8 });
        let serving = lend(&node, spec(0, 2, 2), Duration::from_secs(5));
        Self { node, _serving: serving, offered, asks }
    }

    async fn asked(&mut self) -> Asked {
        timeout(PATIENCE, self.asks.recv()).await.unwrap().unwrap()
    }
}

async fn member(n: u8) -> Node {
    node(n, NetDeadlines::default()).await
}

fn head(status: u16) -> Result<Reply, Failure> {
    Ok(Reply::Head(Head { status, content_type: "text/event-stream".into(), retry_after: None }))
}

fn piece(text: &'static str) -> Result<Reply, Failure> {
    Ok(Reply::Body(text.as_bytes().into()))
}

#[tokio::test]
async fn an_answer_comes_as_it_is_made_and_a_request_of_megabytes_arrives() {
    let (mut lender, client) = (Lender::start(1).await, member(2).await);
    let at = lender.node.address();
    let body: Vec<u8> = (0..5u32 << 20).map(|n| (n % 251) as u8).collect();
    let asking = client.ask_upstream(&at, Endpoint::Embeddings, &body, true);
    let serving = async {
        let asked = lender.asked().await;
        asked.reply.send(head(200)).await.unwrap();
        asked
    };
    let (answer, asked) = tokio::join!(asking, serving);
    let mut answer = answer.unwrap();
    assert_eq!((asked.endpoint, asked.body.len()), (Endpoint::Embeddings, body.len()));
    assert!(asked.body == body, "the same bytes");
    assert_eq!((answer.head.status, &*answer.head.content_type), (200, "text/event-stream"));
    // Each piece is here before the next one is made.
    for text in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        asked.reply.send(piece(text)).await.unwrap();
        let came = timeout(PATIENCE, answer.body.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(came, text.as_bytes());
    }
    asked.reply.send(Ok(Reply::End)).await.unwrap();
    assert_eq!(timeout(PATIENCE, answer.body.next()).await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn how_busy_it_is_and_what_is_wrong_is_said_when_asked() {
    let (mut lender, client) = (Lender::start(1).await, member(2).await);
    let at = lender.node.address();
    let own = async || client.upstreams(&at).await.unwrap().own.unwrap();
    let idle = own().await;
    assert_eq!((&*idle.models[0].name, idle.running, idle.trouble), ("m", 0, None));
    let asking = client.ask_upstream(&at, Endpoint::Completions, b"{}", false);
    let busy = async {
        let asked = lender.asked().await;
        let busy = own().await;
        asked.reply.send(Err(Failure::new(FailureCode::EngineLost, "it fell over"))).await.unwrap();
        busy.running
    };
    let (failed, running) = tokio::join!(asking, busy);
    assert_eq!((running, idle.places), (1, 8));
    let failed = failed.unwrap_err();
    let NetError::Failed { failure, .. } = &failed else { panic!("{failed}") };
    assert_eq!((failure.code, &*failure.detail), (FailureCode::EngineLost, "it fell over"));
    lender.offered.send_replace(Upstream { trouble: Some("it is away".into()), ..Upstream::default() });
    let ill = own().await;
    assert_eq!((ill.models.len(), ill.trouble.as_deref()), (0, Some("it is away")));
    assert!(client.upstreams(&member(3).await.address()).await.is_err(), "a node that does not serve");
}

#[tokio::test]
async fn who_is_gone_is_worked_for_no_more() {
    let (mut lender, client) = (Lender::start(1).await, member(2).await);
    let at = lender.node.address();
    // Before the answer begins.
    let asked = tokio::select! {
        answer = client.ask_upstream(&at, Endpoint::ChatCompletions, b"{}", false) => panic!("{answer:?}"),
        asked = lender.asked() => asked,
    };
    timeout(PATIENCE, asked.reply.closed()).await.expect("it is told that nobody waits");
    // In the middle of it.
    let (answer, asked) = tokio::join!(client.ask_upstream(&at, Endpoint::ChatCompletions, b"{}", false), async {
        let asked = lender.asked().await;
        asked.reply.send(head(200)).await.unwrap();
        asked
    });
    drop(answer.unwrap());
    timeout(PATIENCE, asked.reply.closed()).await.expect("and here, too");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_whole_one() {
    let (mut lender, client) = (Lender::start(1).await, member(2).await);
    let at = lender.node.address();
    for failure in [None, Some(Failure::new(FailureCode::Deadline, "silent"))] {
        let (answer, asked) = tokio::join!(client.ask_upstream(&at, Endpoint::ChatCompletions, b"{}", false), async {
            let asked = lender.asked().await;
            asked.reply.send(head(200)).await.unwrap();
            asked.reply.send(piece("half")).await.unwrap();
            asked
        });
        let mut answer = answer.unwrap();
        assert_eq!(answer.body.next().await.unwrap().unwrap(), &b"half"[..]);
        let expected = failure.as_ref().map_or(FailureCode::EngineLost, |failure| failure.code);
        if let Some(failure) = failure {
            asked.reply.send(Err(failure)).await.unwrap();
        }
        drop(asked);
        let broken = timeout(PATIENCE, answer.body.next()).await.unwrap().unwrap_err();
        assert!(matches!(&broken, NetError::Failed { failure, .. } if failure.code == expected), "{broken}");
    }
}

#[tokio::test]
async fn a_stranger_and_who_asks_a_peer_without_an_upstream_get_nothing() {
    let mut lender = Lender::start(1).await;
    let identity = Identity {
        grant: grant_of(&Root::from_bytes(&[8; 32]), key(9).peer_id(), FAR),
        key: key(9),
        gate: Gate::new(root().public()),
    };
    let config =
        NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines: NetDeadlines::default() };
    let stranger = Node::bind(config).await.unwrap();
    let at = lender.node.address();
    let refused = stranger.ask_upstream(&at, Endpoint::Completions, b"{}", false).await.unwrap_err();
    assert!(matches!(refused, NetError::Refused { code: FailureCode::NotAdmitted, .. }), "{refused}");
    assert!(stranger.upstreams(&at).await.is_err());
    assert!(stranger.tell_lending(&at).await.is_err());
    assert!(lender.asks.try_recv().is_err(), "nothing of it has reached the upstream");

    let plain = member(3).await;
    let _serving = lend(&plain, spec(0, 2, 2), Duration::from_secs(5));
    let client = member(2).await;
    let refused = client.ask_upstream(&plain.address(), Endpoint::Completions, &[7; 3 << 20], false).await.unwrap_err();
    assert!(
        matches!(&refused, NetError::Failed { failure, .. } if failure.code == FailureCode::NotServed),
        "also where it is not read to its end: {refused}"
    );
}

#[tokio::test]
async fn whoever_asks_one_member_learns_who_else_lends() {
    let (lender, contact, client) = (Lender::start(1).await, member(2).await, member(3).await);
    let _serving = lend(&contact, spec(0, 2, 2), Duration::from_secs(5));
    assert_eq!(client.upstreams(&contact.address()).await.unwrap(), Default::default());
    lender.node.tell_lending(&contact.address()).await.unwrap();
    let told = client.upstreams(&contact.address()).await.unwrap();
    assert_eq!(told.own, None, "the contact itself lends by none");
    let [named] = told.others.as_slice() else { panic!("{told:?}") };
    assert_eq!(named.address, lender.node.address());
    assert!(client.identity().gate.check(&named.grant, named.address.peer, 1_000).is_ok());
    assert!(client.upstreams(&named.address).await.unwrap().own.is_some());
}
