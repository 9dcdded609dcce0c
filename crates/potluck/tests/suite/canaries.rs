//! Prompts, answers, hidden states and keys are where they belong and nowhere else: not on the wire, not at the relay, not in
//! logs, outputs, traces or files. Each search is tried on what it looks for, too, in the clear.
//!
//! Needs root, `ip netns` and raw sockets. Without them it says so and checks nothing; with `POTLUCK_SKIP_NOTHING` it fails.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use data_encoding::{BASE64, HEXLOWER};
use potluck_core::{CacheId, Input, LayerRange, Output, Rows, Stage as _, StageSpec, Step, TensorType, Tree};
use potluck_engine::{EngineSettings, LlamaStage, Load, Part, VocabularyClient};
use potluck_model::{facts, slice};
use potluck_store::open_stage;
use potluck_wire::Codec;
use serde_json::Value;

use crate::machine::{
    Machine, kill, model,
    netns::{ip, made},
    peers::{Model, engine},
    wait_until,
};

/// What no one but the client may have. Raw, so that its tokens are the prompt's.
const CANARY: &str = "The xylophonic marmalade of Zanzibar hums quietly at midnight beside the harbour";

/// Where the peers' stages end.
const CUTS: [u32; 4] = [0, 10, 20, 30];

/// What a child of this test records to, and what it listens at as a relay.
const RECORD: &str = "POTLUCK_TEST_RECORD";
const RELAY: &str = "POTLUCK_TEST_CANARY_RELAY";

/// Which machine is which.
const RELAY_AT: usize = 3;
const CLIENT: usize = 4;

/// Bytes of a packet, after the network card has put several together.
const PACKET_BYTES: usize = 1 << 17;

/// Bytes of each pattern: more than chance makes, and few enough to lie in one packet.
const PATTERN_BYTES: usize = 24;

/// Does nothing but in a child: there it records every packet of its machine until it is killed.
#[test]
fn the_recorder_of_another_test() {
    let Some(path) = std::env::var_os(RECORD) else { return };
    let mut file = File::create(path).unwrap();
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let (family, kind) = (rustix::net::AddressFamily::PACKET, rustix::net::SocketType::RAW);
    let socket = rustix::net::socket_with(family, kind, flags, Some(rustix::net::eth::ALL)).unwrap();
    println!("listens");
    let mut packet = vec![0u8; PACKET_BYTES];
    loop {
        let (len, _) = rustix::net::recv(&socket, &mut packet[..], rustix::net::RecvFlags::empty()).unwrap();
        file.write_all(&packet[..len]).unwrap();
    }
}

/// Does nothing but in a child: there it is a relay until it is killed.
#[test]
fn the_relay_of_another_test() {
    let Ok(at) = std::env::var(RELAY) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = iroh_relay::server::ServerConfig::default();
        config.relay = Some(iroh_relay::server::RelayConfig::new(at.parse::<std::net::SocketAddr>().unwrap()));
        let _server = iroh_relay::server::Server::spawn(config).await.unwrap();
        println!("listens");
        std::future::pending::<()>().await;
    });
}

/// Another test of this program, on one of the machines: killed when dropped.
struct Helper(Child);

impl Helper {
    fn start(network: &Network, machine: usize, test: &str, setting: (&str, &str)) -> Self {
        let child = Command::new("ip")
            .args(["netns", "exec", &network.namespace(machine)])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(setting.0, setting.1)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut helper = Self(child);
        let lines = BufReader::new(helper.0.stdout.take().unwrap()).lines();
        lines.map_while(Result::ok).find(|line| line.contains("listens")).unwrap();
        helper
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Five machines on a switch, at 10.78.0.1 and on.
struct Network {
    name: String,
    machines: Vec<Machine>,
}

impl Network {
    fn new() -> Option<Self> {
        let name = format!("pc{}x", std::process::id());
        if !made(&format!("{name}s")) {
            return None;
        }
        let mut network = Self { name, machines: Vec::new() };
        let switch = format!("{}s", network.name);
        assert!(ip(&format!("-n {switch} link add br0 type bridge")) && ip(&format!("-n {switch} link set br0 up")));
        for number in 1..=5 {
            let namespace = network.namespace(number - 1);
            assert!(ip(&format!("netns add {namespace}")) && ip(&format!("-n {namespace} link set lo up")));
            assert!(ip(&format!("-n {switch} link add p{number} type veth peer name eth0 netns {namespace}")));
            assert!(ip(&format!("-n {switch} link set p{number} master br0 up")));
            assert!(ip(&format!("-n {namespace} addr add 10.78.0.{number}/24 dev eth0")));
            assert!(ip(&format!("-n {namespace} link set eth0 up")));
            network.machines.push(Machine::inside(namespace));
        }
        Some(network)
    }

    /// Whether these reach each other, or the relay alone.
    fn isolate(&self, machines: &[usize], apart: bool) {
        let state = if apart { "on" } else { "off" };
        for machine in machines {
            let port = format!("p{}", machine + 1);
            assert!(ip(&format!("-n {}s link set {port} type bridge_slave isolated {state}", self.name)));
        }
    }

    fn namespace(&self, machine: usize) -> String {
        format!("{}m{machine}", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for machine in 0..self.machines.len() {
            ip(&format!("netns del {}", self.namespace(machine)));
        }
        ip(&format!("netns del {}s", self.name));
    }
}

/// A command of a machine, which logs all that it can, and keeps temporary files where they are found.
fn loud(machine: &Machine, args: &[&str], log: &Path) -> Command {
    let temporary = machine.path("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let log = File::options().create(true).append(true).open(log).unwrap();
    let mut command = machine.command(args);
    command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full").env("TMPDIR", temporary);
    command.env("POTLUCK_NO_MDNS", "1").stderr(log);
    command
}

/// A peer that serves; killed when dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    fn start(machine: &Machine, args: &[&str], log: &Path, out: &Path) -> Self {
        let stdout = File::create(out).unwrap();
        Self(loud(machine, args, log).stdout(stdout).spawn().unwrap())
    }

    fn stop(mut self) {
        kill(self.0.id(), "TERM");
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

/// What must not be found, by name.
type Patterns = BTreeMap<String, Vec<u8>>;

/// The canary's text, its tokens as they are on the wire and as varints, and rows of hidden states in both codecs at each cut.
fn patterns(machine: &Machine) -> (Patterns, Vec<u32>) {
    let added = Model::add(machine, Path::new(&model()));
    let settings =
        EngineSettings { threads: 1, threads_batch: 1, context: 512, caches: 1, exact: true, ..Default::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tokens = runtime.block_on(async {
        let vocabulary = VocabularyClient::start(engine(), added.vocabulary(&settings)).await.unwrap();
        vocabulary.tokenize(CANARY, false, false).await.unwrap()
    });
    let mut all = Patterns::new();
    let mut add = |name: &str, bytes: &[u8]| drop(all.insert(name.into(), bytes[..PATTERN_BYTES].to_vec()));
    add("text", CANARY.as_bytes());
    add("text in base64", BASE64.encode(CANARY.as_bytes()).as_bytes());
    add("tokens", &Codec::encode_tokens(&tokens));
    add("tokens as varints", &tokens.iter().flat_map(|token| varint(*token)).collect::<Vec<u8>>());
    add("tokens as text", format!("{tokens:?}").trim_start_matches('[').as_bytes());
    let mut input = Input::Tokens(tokens.clone());
    for pair in CUTS[..3].windows(2) {
        let mut stage = stage(added.entry(), LayerRange::new(pair[0], pair[1]).unwrap(), &settings);
        stage.open(CacheId(0), 512).unwrap();
        let mut steps = [Step { cache: CacheId(0), start: 0, input, rows: Rows::Last, top: 0, tree: Tree::chain() }];
        let Output::Hidden(hidden) = stage.forward(&mut steps).pop().unwrap().unwrap() else { panic!("logits") };
        let width = hidden.0.len() / tokens.len();
        let row = &hidden.0[3 * width..4 * width];
        for codec in [Codec::F32, Codec::F16] {
            let mut bytes = Vec::new();
            codec.encode(row, width, &mut bytes).unwrap();
            // After the scale.
            add(&format!("a row after layer {} in {codec}", pair[1]), &bytes[bytes.len() - 64..]);
        }
        input = Input::Hidden(hidden);
    }
    (all, tokens)
}

fn stage(entry: &potluck_store::Entry, layers: LayerRange, settings: &EngineSettings) -> LlamaStage {
    let plan = slice::plan(&entry.manifest, layers, layers.start() == 0, false).unwrap();
    let opened = open_stage(entry, &plan).unwrap();
    let spec = StageSpec { model: entry.id, layers, head: layers.start() == 0, tail: false };
    let f16 = TensorType(1);
    let cache_bytes_per_position = facts::cache_bytes_per_position(&entry.manifest, layers, f16, f16);
    let part = Part::Stage { spec, source: opened.source, cache_bytes_per_position };
    let files = opened.files.into_iter().map(std::sync::Arc::new).collect();
    LlamaStage::load(&Load { part, settings: settings.clone(), files }, |_| {}).unwrap()
}

/// The patterns that are in there.
fn found(bytes: &[u8], patterns: &Patterns) -> Vec<String> {
    let is_in = |pattern: &[u8]| bytes.windows(pattern.len()).any(|window| window == pattern);
    patterns.iter().filter(|(_, pattern)| is_in(pattern)).map(|(name, _)| name.clone()).collect()
}

/// A number in 7 bits a byte, as messages have it.
fn varint(number: u32) -> Vec<u8> {
    let more = number >> 7;
    let low = (number & 0x7f) as u8;
    if more == 0 { vec![low] } else { [vec![low | 0x80], varint(more)].concat() }
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Sends everything that is looked for from one machine to another, in the clear.
fn plant(network: &Network, record: &Path, patterns: &Patterns) {
    let all = patterns.values().flat_map(|pattern| pattern.iter().copied().chain([0; 8])).collect::<Vec<u8>>();
    let program =
        format!("exec 3<>/dev/udp/10.78.0.{}/9; printf %s {} | base64 -d >&3", RELAY_AT + 1, BASE64.encode(&all));
    let inside = ["netns", "exec", &network.namespace(CLIENT), "bash", "-c", &program];
    wait_until("what was planted is recorded", || {
        assert!(Command::new("ip").args(inside).status().unwrap().success());
        found(&fs::read(record).unwrap(), patterns).len() == patterns.len()
    });
}

#[test]
fn nobody_in_between_has_a_canary_and_nothing_keeps_it() {
    let Some(network) = Network::new() else { return };
    let records = tempfile::tempdir().unwrap();
    let at = |name: &str| records.path().join(name);
    let relayed = [0, 1, 2, CLIENT];
    let relay_url = format!("http://10.78.0.{}:3340", RELAY_AT + 1);
    let relay_at = format!("10.78.0.{}:3340", RELAY_AT + 1);
    let _relay = Helper::start(&network, RELAY_AT, "canaries::the_relay_of_another_test", (RELAY, &relay_at));
    let (patterns, tokens) = patterns(&network.machines[CLIENT]);
    assert!(patterns.len() >= 9 && tokens.len() > 12, "{patterns:?}");
    let model = model();

    network.isolate(&relayed, true);
    let owner = &network.machines[0];
    assert_eq!(owner.json(&["swarm", "create", "--relay", &relay_url]).1, 0);
    let (mut running, mut outputs) = (Vec::new(), Vec::new());
    for peer in 0..3 {
        let machine = &network.machines[peer];
        let (log, out) = (at(&format!("peer{peer}.log")), at(&format!("peer{peer}.out")));
        let (layers, bind) = (format!("{}..{}", CUTS[peer], CUTS[peer + 1]), format!("10.78.0.{}:7575", peer + 1));
        let serve = ["--json", "--model", &model, "--layers", &layers, "--context", "512", "--exact", "--bind", &bind];
        let line = owner.json(&["swarm", "invite"]).0;
        let line = line["invitation"].as_str().unwrap_or_default().to_owned();
        let how = if peer == 0 { vec!["serve"] } else { vec!["join", &line] };
        running.push(Peer::start(machine, &[&how[..], &serve].concat(), &log, &out));
        wait_until("a peer serves", || fs::read_to_string(&out).unwrap().contains("\"layers\""));
        outputs.extend([log, out]);
    }
    let client = &network.machines[CLIENT];
    let line = owner.json(&["swarm", "invite"]).0["invitation"].as_str().unwrap().to_owned();
    assert_eq!(client.json(&["swarm", "join", &line]).1, 0);
    let ask = |name: &str, more: &[&str]| -> Value {
        let prompt = ["run", CANARY, "--raw", "--model", &model, "--max-tokens", "12", "--temperature", "0"];
        let fixed = ["--threads", "1", "--context", "512", "--exact", "--prefer", "swarm", "--trace", "--json"];
        let args = [&prompt[..], &fixed, more].concat();
        let output = loud(client, &args, &at(&format!("{name}.log"))).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    wait_until("the whole model is served", || {
        client.json(&["peers"]).0["peers"]
            .as_array()
            .is_some_and(|all| all.iter().filter(|p| p["layers"].is_array()).count() == 3)
    });

    for (name, apart, recorders) in [("relayed", true, vec![RELAY_AT, 1]), ("direct", false, vec![1, CLIENT])] {
        network.isolate(&relayed, apart);
        let record = |machine: usize| at(&format!("{name}{machine}.packets"));
        let helper = |machine: &usize| {
            let path = record(*machine).display().to_string();
            Helper::start(&network, *machine, "canaries::the_recorder_of_another_test", (RECORD, &path))
        };
        let recording: Vec<_> = recorders.iter().map(helper).collect();
        for (number, codec) in ["f32", "f16"].into_iter().enumerate() {
            let answer = ask(&format!("{name}{number}"), &["--codec", codec, "--pad"][..2 + number]);
            let paths: Vec<_> = answer["route"].as_array().unwrap_or_else(|| panic!("{answer}")).iter().collect();
            assert_eq!(paths.len(), 3, "{answer}");
            if apart {
                assert!(paths.iter().all(|stage| stage["path"] == "relay"), "{answer}");
            }
        }
        for machine in &recorders {
            let packets = fs::read(record(*machine)).unwrap();
            // A prompt's hidden states went by, twice, and nothing of them is there to be read.
            let sent = tokens.len() * 576 * 2;
            assert!(packets.len() > sent, "machine {machine} saw {} bytes of {sent}", packets.len());
            assert_eq!(found(&packets, &patterns), [""; 0], "{name}, at machine {machine}");
        }
        if name == "relayed" {
            plant(&network, &record(RELAY_AT), &patterns);
        }
        drop(recording);
    }
    running.into_iter().for_each(Peer::stop);

    // Whatever the peers wrote; and what the client did, but for its answer.
    let logs = ["relayed0", "relayed1", "direct0", "direct1"].map(|name| at(&format!("{name}.log")));
    outputs.extend(logs);
    assert!(outputs.iter().all(|path| path.exists()), "{outputs:?}");
    let trace = fs::read_to_string(&outputs[0]).unwrap();
    assert!(trace.contains("TRACE"), "the logs hold all that there is: {}", trace.len());
    let mut secrets = Patterns::new();
    for machine in &network.machines {
        for path in files(&machine.path("home")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "key"))
        {
            let bytes = fs::read(&path).unwrap();
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            let raw = HEXLOWER.decode(text.as_bytes()).unwrap_or_else(|_| bytes.clone());
            secrets.insert(format!("{} raw", path.display()), raw);
            secrets.insert(path.display().to_string(), text.into_bytes());
        }
    }
    assert!(secrets.len() >= 8, "the keys are found: {:?}", secrets.keys());
    let kept: Vec<PathBuf> = network
        .machines
        .iter()
        .flat_map(|machine| {
            let all = ["home", "tmp"].into_iter().flat_map(|folder| files(&machine.path(folder)));
            all.filter(|path| fs::metadata(path).is_ok_and(|data| data.len() < 64 << 20)).collect::<Vec<_>>()
        })
        .collect();
    assert!(kept.len() > 10, "{kept:?}");
    for path in outputs.iter().chain(&kept) {
        let bytes = fs::read(path).unwrap();
        assert_eq!(found(&bytes, &patterns), [""; 0], "{}", path.display());
        if path.extension().is_none_or(|extension| extension != "key") {
            assert_eq!(found(&bytes, &secrets), [""; 0], "{}", path.display());
        }
    }
    for name in ["relayed", "direct"] {
        let packets = fs::read(at(&format!("{name}1.packets"))).unwrap();
        assert_eq!(found(&packets, &secrets), [""; 0], "{name}");
    }
    // The controls: each search finds what it looks for where it is.
    for (all, name) in [(&patterns, "canaries"), (&secrets, "keys")] {
        let planted = at(name);
        fs::write(&planted, all.values().flatten().copied().collect::<Vec<u8>>()).unwrap();
        assert_eq!(found(&fs::read(planted).unwrap(), all).len(), all.len(), "{name}");
    }
}
