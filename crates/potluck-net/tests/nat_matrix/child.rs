//! One process of a matrix: a relay, a peer that is dialled, or one that dials. Told by a variable what it is, it says what
//! happens to it as lines of JSON, and ends with its stdin.

use std::{
    cell::Cell,
    io::{BufRead as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use potluck_grant::Gate;
use potluck_net::{Bind, Identity, Lan, Link, NetDeadlines, Node, NodeConfig, PathKind, RelayAt, RelayUse};
use potluck_netem::RELAY_HOST;
use potluck_relay::{Certificate, Relay, RelayConfig};
use potluck_wire::PeerAddress;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::swarm::{FAR, grant_of, key, lend, root, spec};

/// Tells a process that it is a child, and which.
pub(crate) const VARIABLE: &str = "POTLUCK_NAT_CHILD";

/// How often a guest looks at its path.
const GLANCE: Duration = Duration::from_millis(20);

/// Longest that a guest tries to connect, or to be answered again.
const PATIENCE: Duration = Duration::from_secs(40);

/// Longest wait for one answer before it is asked again.
const ANSWER: Duration = Duration::from_secs(2);

/// What a child is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// The swarm's relay, which keeps its certificate in that folder.
    Relay { folder: PathBuf },
    /// A peer with that key, which lends a toy stage.
    Host { key: u8, relay: String },
    /// A peer with that key, which dials another's.
    Guest { key: u8, relay: String, host: u8 },
}

/// Runs the role; none where this process was told none: it is a test among others.
pub(crate) fn run() -> Option<()> {
    let role = serde_json::from_str(&std::env::var(VARIABLE).ok()?).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let orders = orders();
        match role {
            Role::Relay { folder } => be_relay(&folder, orders).await,
            Role::Host { key, relay } => be_host(key, &relay, orders).await,
            Role::Guest { key, relay, host } => be_guest(key, &relay, host, orders).await,
        }
    });
    Some(())
}

/// Lines of stdin; none when it has ended.
fn orders() -> mpsc::UnboundedReceiver<String> {
    let (sender, orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    orders
}

fn say(what: &Value) {
    let mut stdout = std::io::stdout().lock();
    // Whoever is gone hears nothing, and this process is about to end.
    let _ = writeln!(stdout, "{what}");
    let _ = stdout.flush();
}

/// The swarm's own relay, at the usual ports.
async fn be_relay(folder: &Path, mut orders: mpsc::UnboundedReceiver<String>) {
    let certificate = Certificate::self_signed(folder, &[RELAY_HOST.into()]).unwrap();
    let url = RelayAt::with_certificate(&format!("https://{RELAY_HOST}"), certificate.der(), None).unwrap();
    let relay = Relay::start(RelayConfig::new(vec![Gate::new(root().public())], certificate)).await.unwrap();
    say(&json!({ "event": "ready", "url": url.to_string() }));
    while orders.recv().await.is_some() {}
    relay.stop().await.unwrap();
}

async fn node(n: u8, relay: &str) -> Node {
    let (key, gate) = (key(n), Gate::new(root().public()));
    let identity = Identity { grant: grant_of(&root(), key.peer_id(), FAR), key, gate };
    let relay = Some(RelayUse { urls: vec![relay.into()], pass: None, claim: None });
    let deadlines = NetDeadlines::default();
    Node::bind(NodeConfig { identity, bind: Bind::Any, lan: Lan::Off, relay, deadlines }).await.unwrap()
}

async fn be_host(key: u8, relay: &str, mut orders: mpsc::UnboundedReceiver<String>) {
    let node = node(key, relay).await;
    let serving = lend(&node, spec(0, 2, 2), Duration::from_secs(5));
    let online = node.relay_answers().await;
    say(&json!({ "event": "ready", "relay": format!("{online:?}"), "addresses": node.address().addresses }));
    while orders.recv().await.is_some() {}
    serving.stop().await;
}

/// Dials, says how it is connected, and whenever that changes; an order is to be answered by the host as soon as possible.
async fn be_guest(key_of: u8, relay: &str, host: u8, mut orders: mpsc::UnboundedReceiver<String>) {
    let node = node(key_of, relay).await;
    let online = node.relay_answers().await;
    let to = PeerAddress { peer: key(host).peer_id(), addresses: Vec::new(), relay: Some(relay.to_owned()) };
    let begun = Instant::now();
    let mut link = dial(&node, &to).await;
    let mut known = link.path().map(|path| path.kind);
    let lost = Cell::new(0);
    let told = |link: &Link, event: &str, begun: Instant, more: Value| {
        let path = link.path();
        let ms = begun.elapsed().as_millis() as u64;
        let rtt = path.map(|path| path.rtt.as_secs_f64() * 1e3);
        let path = path.map(|path| path.kind.to_string());
        say(&json!({ "event": event, "ms": ms, "path": path, "rtt_ms": rtt, "lost": lost.get(), "more": more }));
    };
    told(&link, "connected", begun, json!({ "relay": format!("{online:?}"), "addresses": node.address().addresses }));
    let mut glance = tokio::time::interval(GLANCE);
    loop {
        tokio::select! {
            _ = glance.tick() => {
                let kind = link.path().map(|path| path.kind);
                if link.is_closed() {
                    lost.set(lost.get() + 1);
                    told(&link, "lost", begun, Value::Null);
                    link = dial(&node, &to).await;
                    known = link.path().map(|path| path.kind);
                    told(&link, "again", begun, Value::Null);
                } else if kind.is_some() && kind != known {
                    known = kind;
                    told(&link, "path", begun, Value::Null);
                }
            }
            order = orders.recv() => {
                let Some(order) = order else { break };
                let asked = Instant::now();
                let answered = answered(&node, &to).await;
                let survived = !link.is_closed();
                link = dial(&node, &to).await;
                known = link.path().map(|path| path.kind);
                told(&link, &order, asked, json!({ "answered": answered, "survived": survived }));
            }
        }
    }
    node.close().await;
}

async fn dial(node: &Node, to: &PeerAddress) -> Link {
    let begun = Instant::now();
    loop {
        match node.connect(to).await {
            Ok(link) => return link,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "never connected: {error}"),
        }
    }
}

/// How many questions it took until the host answered one; none where it did not.
async fn answered(node: &Node, to: &PeerAddress) -> Option<u32> {
    let begun = Instant::now();
    let mut asked = 0;
    while begun.elapsed() < PATIENCE {
        asked += 1;
        if let Ok(Ok(_)) = tokio::time::timeout(ANSWER, node.offers(to)).await {
            return Some(asked);
        }
    }
    None
}

/// What a path is called in JSON.
pub(crate) fn is_direct(path: &Value) -> bool {
    path.as_str() == Some(&PathKind::Direct.to_string())
}
