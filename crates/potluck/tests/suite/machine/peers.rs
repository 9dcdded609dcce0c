//! Peers of a test's own: `potluck serve` in a process each, and a client that may open several sessions over them.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::SystemTime,
};

use data_encoding::HEXLOWER;
use potluck_chain::{Answer, Deadlines, Hop, RemoteStage, SessionConfig};
use potluck_core::{LayerRange, SecretKey, SessionId, SessionKey, StageSpec, TensorType};
use potluck_engine::{EngineProgram, EngineSettings, Load, Part};
use potluck_grant::{Gate, Root};
use potluck_model::{Extent, VirtualFile, facts, slice};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, Session, SessionEvent};
use potluck_store::{Catalogue, Entry, Locations};
use potluck_wire::{Codec, PeerAddress};
use serde_json::{Value, json};

use crate::machine::{Machine, children};

/// Seconds that a grant of a test holds.
const GRANT_SECONDS: u64 = 3_600;

/// A model in the catalogue of a machine.
pub(crate) struct Model(Entry);

/// A chain of peers that serve all layers, and the swarm that they form.
pub(crate) struct Peers {
    root: Root,
    entry: Entry,
    settings: EngineSettings,
    running: Vec<(Child, ChildStdin)>,
    route: Vec<Hop>,
}

/// A program that is an engine.
pub(crate) fn engine() -> EngineProgram {
    EngineProgram { program: env!("CARGO_BIN_EXE_potluck").into(), args: vec!["engine".into()] }
}

impl Model {
    /// Adds the file to the machine's catalogue.
    pub(crate) fn add(machine: &Machine, file: &Path) -> Self {
        let catalogue = Catalogue::open(machine.path("home").join("models")).unwrap();
        let source = Locations::from_env().find(&file.to_string_lossy()).unwrap();
        Self(catalogue.add(&source, None, &mut |_| {}).unwrap().entry)
    }

    /// Its entry.
    pub(crate) fn entry(&self) -> &Entry {
        &self.0
    }

    /// The original file, as `--local` loads it.
    pub(crate) fn whole(&self, settings: &EngineSettings) -> Load {
        let file = &self.0.place.files[0];
        let layers = LayerRange::new(0, self.0.manifest.layers()).unwrap();
        let spec = StageSpec { model: self.0.id, layers, head: true, tail: true };
        let model = VirtualFile::new(vec![Extent::File { file: 0, offset: 0, len: file.size }]);
        let f16 = TensorType(1);
        let cache_bytes_per_position = facts::cache_bytes_per_position(&self.0.manifest, layers, f16, f16);
        let part = Part::Whole { spec, model, cache_bytes_per_position };
        Load { part, settings: settings.clone(), files: vec![Arc::new(file.reopen().unwrap())] }
    }

    /// Its tokenizer.
    pub(crate) fn vocabulary(&self, settings: &EngineSettings) -> Load {
        let part = Part::Vocabulary { model: slice::vocabulary_file(&self.0.manifest).unwrap() };
        Load { part, settings: settings.clone(), files: Vec::new() }
    }

    /// Starts `count` peers on `machine`, which serve all layers between them, and waits until they do.
    pub(crate) fn serve(&self, machine: &Machine, count: usize, settings: &EngineSettings) -> Peers {
        let (root, entry) = (Root::generate(), self.0.clone());
        let mut peers = Peers { root, entry, settings: settings.clone(), running: Vec::new(), route: Vec::new() };
        let layers = self.0.manifest.layers();
        for range in LayerRange::new(0, layers).unwrap().split(count).unwrap() {
            let (head, tail) = (range.start() == 0, range.end() == layers);
            peers.start(machine, StageSpec { model: self.0.id, layers: range, head, tail });
        }
        peers
    }
}

impl Peers {
    fn start(&mut self, machine: &Machine, spec: StageSpec) {
        let key = new_key();
        let grant = self.grant(&key);
        let order = json!({
            "key": HEXLOWER.encode(&key.to_bytes()),
            "swarm": self.root.public().to_string(),
            "grant": HEXLOWER.encode(&grant),
            "models": machine.path("home").join("models"),
            "model": spec.model.to_string(),
            "layers": spec.layers,
            "head": spec.head,
            "tail": spec.tail,
            "settings": self.settings,
        });
        let mut command: Command = machine.command(&["serve", "--embedded", "--json"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{order}").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let addresses = serde_json::from_value(ready["addresses"].clone()).unwrap();
        let peer = ready["id"].as_str().unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        let address = PeerAddress { peer, addresses, relay: None };
        self.running.push((child, stdin));
        self.route.push(Hop::Remote(RemoteStage { spec, address, grant, speed: None }));
    }

    fn grant(&self, key: &SecretKey) -> Vec<u8> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        self.root.grant(key.peer_id(), now + GRANT_SECONDS).unwrap().into_bytes()
    }

    /// A member that may open sessions.
    pub(crate) async fn client(&self) -> Node {
        let key = new_key();
        let identity = Identity { grant: self.grant(&key), key, gate: Gate::new(self.root.public()) };
        let deadlines = NetDeadlines::default();
        Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await.unwrap()
    }

    /// Opens a session over all of them, and waits until it is ready.
    pub(crate) async fn open(&self, node: &Node, codec: Codec) -> Session {
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        let config = SessionConfig {
            key: SessionKey { client: node.id(), id: SessionId::from_bytes(id) },
            epoch: 0,
            positions: self.settings.context,
            width: self.entry.manifest.width(),
            vocabulary: facts::vocabulary(&self.entry.manifest),
            codec,
            codec_otherwise: None,
            route: self.route.clone(),
            prefix: None,
            pad: false,
            exact: false,
            deadlines: Deadlines::default(),
        };
        let mut session = node.open(config, Vec::new()).await.unwrap();
        while !matches!(session.next().await.unwrap(), SessionEvent::Ready) {}
        session
    }

    /// Resident bytes of all peers and their engines.
    pub(crate) fn resident(&self) -> f64 {
        let peers = self.running.iter().map(|(child, _)| child.id());
        peers.flat_map(|peer| children(peer).into_iter().chain([peer])).map(resident).sum()
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for (mut child, stdin) in self.running.drain(..) {
            drop(stdin);
            let _ = child.wait();
        }
    }
}

/// The answer to the oldest step of a session that has none yet.
pub(crate) async fn answer(session: &mut Session) -> Answer {
    loop {
        if let SessionEvent::Answer(answer) = session.next().await.unwrap() {
            return answer;
        }
    }
}

fn new_key() -> SecretKey {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    SecretKey::from_bytes(&bytes)
}

fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}
