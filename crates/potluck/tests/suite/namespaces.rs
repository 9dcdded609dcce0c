//! Machines that are machines to each other: each in a network namespace of its own, on a switch that the test made.
//!
//! Needs root and `ip netns`. Without them it says so and checks nothing; with `POTLUCK_SKIP_NOTHING`, as in CI, it fails.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use crate::machine::{
    Machine, Running, model,
    netns::{ip, made},
    wait_until,
};

/// Where mDNS sends to.
const MULTICAST: &str = "224.0.0.0/4";

/// Machines on one switch.
struct Network {
    name: String,
    machines: Vec<Machine>,
}

impl Network {
    /// So many machines, at 10.77.0.1 and on; none where this one may not make namespaces.
    fn new(machines: usize) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pl{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        if !made(&format!("{name}s")) {
            return None;
        }
        let mut network = Self { name, machines: Vec::new() };
        let switch = format!("{}s", network.name);
        assert!(ip(&format!("-n {switch} link add br0 type bridge")));
        assert!(ip(&format!("-n {switch} link set br0 up")));
        for number in 1..=machines {
            let namespace = network.namespace(number - 1);
            assert!(ip(&format!("netns add {namespace}")));
            assert!(ip(&format!("-n {namespace} link set lo up")));
            assert!(ip(&format!("-n {switch} link add p{number} type veth peer name eth0 netns {namespace}")));
            assert!(ip(&format!("-n {switch} link set p{number} master br0 up")));
            assert!(ip(&format!("-n {namespace} addr add 10.77.0.{number}/24 dev eth0")));
            assert!(ip(&format!("-n {namespace} link set eth0 up")));
            // These machines have no way out, which multicast would go by.
            assert!(ip(&format!("-n {namespace} route add {MULTICAST} dev eth0")));
            network.machines.push(Machine::inside(namespace));
        }
        Some(network)
    }

    /// These machines reach each other no longer, but whoever is not among them.
    fn part(&self, machines: &[usize]) {
        let switch = format!("{}s", self.name);
        for machine in machines {
            assert!(ip(&format!("-n {switch} link set p{} type bridge_slave isolated on", machine + 1)));
        }
    }

    /// A machine gets another address, as from a router that gives out others now.
    fn move_to(&self, machine: usize, address: &str) {
        let namespace = self.namespace(machine);
        assert!(ip(&format!("-n {namespace} addr flush dev eth0 scope global")));
        assert!(ip(&format!("-n {namespace} addr add {address}/24 dev eth0")));
        // It went with the last address.
        assert!(ip(&format!("-n {namespace} route replace {MULTICAST} dev eth0")));
    }

    fn namespace(&self, machine: usize) -> String {
        format!("{}m{machine}", self.name)
    }

    /// Bytes that have arrived at a machine, headers included.
    fn received(&self, machine: usize) -> u64 {
        let counter = "/sys/class/net/eth0/statistics/rx_bytes";
        let output =
            Command::new("ip").args(["netns", "exec", &self.namespace(machine), "cat", counter]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    /// What a machine sends is held to that rate from now on.
    fn slow_down(&self, machine: usize, rate: &str) {
        let shaped = Command::new("ip")
            .args(["netns", "exec", &self.namespace(machine), "tc", "qdisc", "add", "dev", "eth0", "root"])
            .args(["tbf", "rate", rate, "burst", "256k", "latency", "50ms"])
            .status();
        assert!(shaped.unwrap().success(), "tc qdisc add ... tbf");
    }
}

impl Network {
    /// What arrives at a machine is held to that rate from now on.
    fn narrow(&self, machine: usize, rate: &str) {
        let (switch, port) = (format!("{}s", self.name), format!("p{}", machine + 1));
        let shaped = Command::new("ip")
            .args(["netns", "exec", &switch, "tc", "qdisc", "add", "dev", &port, "root"])
            .args(["tbf", "rate", rate, "burst", "256k", "latency", "50ms"])
            .status();
        assert!(shaped.unwrap().success(), "tc qdisc add ... tbf");
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

/// What peers of these tests are started with, as machine `number` of the network.
fn lend(machine: &Machine, number: usize, what: &[&str]) -> Running {
    lend_at(machine, &format!("10.77.0.{}", number + 1), what)
}

/// The same, at this address.
fn lend_at(machine: &Machine, address: &str, what: &[&str]) -> Running {
    let bind = format!("{address}:7575");
    let fixed = ["--bind", &bind, "--threads", "1", "--exact", "--context", "512", "--json"];
    machine.start(&[what, &fixed].concat())
}

fn invitation(owner: &Machine) -> String {
    let (invited, code) = owner.json(&["swarm", "invite", "--address", "10.77.0.1:7575"]);
    assert_eq!(code, 0, "{invited}");
    invited["invitation"].as_str().unwrap().to_owned()
}

/// The answer of the swarm, as a machine asks it that cannot answer alone.
fn pooled(machine: &Machine) -> Option<Value> {
    let args = [
        "run",
        "Hello",
        "--max-tokens",
        "16",
        "--temperature",
        "0",
        "--context",
        "512",
        "--exact",
        "--prefer",
        "swarm",
    ];
    let (answer, code) = machine.json(&args);
    (code == 0).then(|| answer["tokens"].clone())
}

#[test]
fn machines_join_by_a_line_fetch_their_layers_and_outlive_each_other() {
    let Some(network) = Network::new(4) else { return };
    let [first, second, third, fourth] = &network.machines[..] else { unreachable!() };
    let alone = first.answer("Hello", 16, &["--local", "--context", "512", "--exact"])["tokens"].clone();
    first.json(&["swarm", "create"]);
    let serve_first = || {
        let mut running = lend(first, 0, &["serve", "--model", &model(), "--layers", "0..15"]);
        assert_eq!(running.object()["layers"].to_string(), "[0,15]");
        running
    };
    let serving = serve_first();

    // The second has no model: it takes the layers that nobody serves, and nothing else crosses the wire.
    let before = network.received(1);
    let mut lending = lend(second, 1, &["join", &invitation(first)]);
    assert!(lending.object()["code"].is_string());
    let ready = lending.object();
    let arrived = network.received(1) - before;
    assert_eq!(ready["layers"].to_string(), "[15,30]", "{ready}");
    let [wanted, fetched] = ["wanted_bytes", "received_bytes"].map(|key| ready["pulled"][key].as_u64().unwrap());
    assert_eq!(wanted, second.json(&["model", "list"]).0["models"][0]["held_bytes"].as_u64().unwrap());
    assert!(fetched < wanted * 105 / 100, "{fetched} of {wanted}");
    // The model's description, and the headers of packets, are in this.
    assert!(arrived < wanted * 115 / 100, "{arrived} bytes arrived for {wanted}");
    assert_eq!(pooled(second).as_ref(), Some(&alone));

    // The first starts again, and the swarm is whole again without a hand.
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0));
    assert_eq!(pooled(second), None, "half of the model is nobody's");
    let serving = serve_first();
    wait_until("the swarm answers again", || pooled(second).as_ref() == Some(&alone));

    // A third holds all of it. A fourth fetches from both, and the first stops in the middle of it.
    let mut whole = lend(third, 2, &["join", &invitation(first), "--layers", "0..30"]);
    whole.object();
    assert_eq!(whole.object()["layers"].to_string(), "[0,30]");
    [0, 1, 2].iter().for_each(|&machine| network.slow_down(machine, "40mbit"));
    let before = network.received(3);
    let mut last = lend(fourth, 3, &["join", &invitation(first), "--layers", "0..15"]);
    last.object();
    wait_until("a quarter has arrived", || network.received(3) - before > 8_000_000);
    serving.signal("STOP");
    let at_stop = network.received(3) - before;
    let ready = last.object();
    serving.signal("CONT");
    assert_eq!(ready["layers"].to_string(), "[0,15]", "{ready}");
    let [wanted, fetched] = ["wanted_bytes", "received_bytes"].map(|key| ready["pulled"][key].as_u64().unwrap());
    assert!(at_stop < wanted, "all of it had arrived when the first stopped");
    assert!(network.received(3) - before >= wanted && fetched < wanted * 105 / 100, "{fetched} of {wanted}");

    for running in [serving, lending, whole, last] {
        running.signal("TERM");
        assert_eq!(running.end().0, Some(0));
    }
    network.machines.iter().for_each(|machine| machine.wait_until_empty(&[]));
}

/// What a machine knows of where the others are.
fn contacts(machine: &Machine) -> String {
    let text = std::fs::read_to_string(machine.path("home/swarm.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["contacts"].to_string()
}

#[test]
fn machines_whose_addresses_have_all_changed_find_each_other() {
    let Some(network) = Network::new(4) else { return };
    let [first, second, client, newcomer] = &network.machines[..] else { unreachable!() };
    first.json(&["swarm", "create"]);
    let model = model();
    let half = ["serve", "--model", &model, "--layers", "0..15"];
    let mut serving = lend(first, 0, &half);
    serving.object();
    let mut lending = lend(second, 1, &["join", &invitation(first), "--layers", "15..30"]);
    lending.object();
    lending.object();
    client.json(&["swarm", "join", &invitation(first)]);
    wait_until("the client reaches both", || pooled(client).is_some());
    let (before, _) = client.json(&["peers"]);
    assert!(before["peers"].as_array().unwrap().iter().all(|peer| peer["found_by_mdns"] == false), "{before}");
    let (expected, stale) = (pooled(client), invitation(first));

    // Both stop, and come back where nobody expects them: each knows the other's old address only.
    for running in [serving, lending] {
        running.signal("TERM");
        assert_eq!(running.end().0, Some(0));
    }
    network.move_to(0, "10.77.0.101");
    network.move_to(1, "10.77.0.102");
    for machine in [second, client] {
        assert!(contacts(machine).contains("10.77.0.1:7575") && !contacts(machine).contains("10.77.0.10"));
    }
    let mut serving = lend_at(first, "10.77.0.101", &half);
    let mut lending = lend_at(second, "10.77.0.102", &["serve", "--layers", "15..30"]);
    for running in [&mut serving, &mut lending] {
        running.object();
    }

    // Whoever does not ask the network finds nobody there.
    let (alone, code) = client.json(&["peers", "--no-mdns"]);
    assert_eq!((alone["peers"].as_array().map(Vec::len), code), (Some(0), 0), "{alone}");
    let (late, _) = newcomer.json(&["swarm", "join", &stale, "--no-mdns"]);
    assert_eq!(late["error"]["code"], "peer_lost", "{late}");

    // Who asks finds them, by nothing but their keys, and remembers where they are.
    wait_until("they are found", || client.json(&["doctor"]).0.to_string().contains("found by mDNS"));
    wait_until("the swarm answers again", || pooled(client) == expected);
    assert!(contacts(client).contains("10.77.0.101:7575"), "{}", contacts(client));
    let (joined, code) = newcomer.json(&["swarm", "join", &stale]);
    assert_eq!(code, 0, "an invitation outlives an address: {joined}");
    assert!(pooled(newcomer) == expected);
    wait_until("the peers know each other's new places", || contacts(second).contains("10.77.0.101:7575"));

    for running in [serving, lending] {
        running.signal("TERM");
        assert_eq!(running.end().0, Some(0));
    }
    network.machines.iter().for_each(|machine| machine.wait_until_empty(&[]));
}

/// A peer that does not answer by mDNS is not found, whoever asks.
#[test]
fn a_peer_that_keeps_to_itself_is_not_found() {
    let Some(network) = Network::new(2) else { return };
    let [first, client] = &network.machines[..] else { unreachable!() };
    first.json(&["swarm", "create"]);
    let model = model();
    let serve = ["serve", "--model", &model, "--layers", "0..1"];
    let mut serving = lend(first, 0, &serve);
    serving.object();
    client.json(&["swarm", "join", &invitation(first)]);
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0));
    network.move_to(0, "10.77.0.101");
    let silent = |client: &Machine| client.json(&["peers"]).0["silent"].as_array().unwrap().len();
    for (quiet, unreached) in [(true, 1), (false, 0)] {
        let mut serving =
            lend_at(first, "10.77.0.101", &[&serve[..], if quiet { &["--no-mdns"] } else { &[] }].concat());
        serving.object();
        assert_eq!(silent(client), unreached, "the same question, with and without an answer");
        serving.signal("TERM");
        assert_eq!(serving.end().0, Some(0));
    }
}

#[test]
fn machines_that_cannot_reach_each_other_meet_at_a_relay() {
    let Some(network) = Network::new(3) else { return };
    let [first, second, third] = &network.machines[..] else { unreachable!() };
    network.part(&[0, 1]);
    let alone = first.answer("Hello", 16, &["--local", "--context", "512", "--exact"])["tokens"].clone();
    let (created, _) = first.json(&["swarm", "create"]);
    let swarm = created["swarm"].as_str().unwrap();
    // The relay is nobody's machine: it knows the swarm's name, and no more.
    let mut relay = third.start(&["relay", "--also", swarm, "--name", "10.77.0.3", "--json"]);
    let url = relay.object()["relays"][0].as_str().unwrap().to_owned();
    let (kept, _) = first.json(&["swarm", "relays", "--add", &url]);
    assert_eq!(kept["relays"][0], *url);
    let model = model();
    let mut serving = lend(first, 0, &["serve", "--model", &model, "--layers", "0..15"]);
    assert_eq!(serving.object()["relay"], *url);

    // Without it the line leads nowhere; with it, it is all that the newcomer needs.
    let line = invitation(first);
    let (failed, code) = second.json(&["swarm", "join", &line, "--relay", "none"]);
    assert_ne!(code, 0, "they reach each other, relay or not");
    assert!(failed["error"]["message"].as_str().unwrap().contains("--relay"), "{failed}");
    let mut lending = lend(second, 1, &["join", &line, "--model", &model, "--layers", "15..30"]);
    assert_eq!(lending.object()["relays"][0], *url, "it comes with the line");
    assert_eq!(lending.object()["layers"].to_string(), "[15,30]");
    wait_until("each finds the other's layers", || pooled(second).is_some() && pooled(first).is_some());
    assert_eq!([first, second].map(pooled), [Some(alone.clone()), Some(alone)]);
    let ways = |machine: &Machine| -> Vec<_> {
        let (peers, _) = machine.json(&["peers"]);
        peers["peers"].as_array().unwrap().iter().map(|peer| peer["path"].as_str().unwrap().to_owned()).collect()
    };
    for machine in [first, second] {
        let ways = ways(machine);
        assert_eq!(ways.iter().filter(|way| *way == "relay").count(), 1, "{ways:?}");
        let (doctor, _) = machine.json(&["doctor"]);
        let relay = doctor["findings"].as_array().unwrap().iter().find(|finding| finding["id"] == "relay").unwrap();
        assert_eq!(relay["how"], "ok", "{relay}");
    }
    for running in [serving, lending, relay] {
        running.signal("TERM");
        assert_eq!(running.end().0, Some(0));
    }
    [first, second].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

/// `make prove-pull`: how much of a link a pull from three peers fills, beside one plain HTTP transfer over the same link.
#[test]
fn a_pull_from_three_peers_fills_the_link() {
    if std::env::var_os("POTLUCK_PROVE_PULL").is_none() {
        return eprintln!("SKIPPED: a measurement, which takes its time: make prove-pull");
    }
    const MEGABITS: f64 = 100.0;
    const ROUNDS: usize = 3;
    let Some(network) = Network::new(4) else { return };
    let [first, second, third, newcomer] = &network.machines[..] else { unreachable!() };
    first.json(&["swarm", "create"]);
    let mut peers = vec![lend(first, 0, &["serve", "--model", &model(), "--layers", "0..30"])];
    peers[0].object();
    for (number, machine) in [(1, second), (2, third)] {
        let mut running = lend(machine, number, &["join", &invitation(first), "--layers", "0..30"]);
        running.object();
        running.object();
        peers.push(running);
    }
    newcomer.json(&["swarm", "join", &invitation(first)]);
    wait_until("three peers are known", || {
        newcomer.json(&["peers"]).0["peers"].as_array().is_some_and(|peers| peers.len() == 3)
    });
    network.narrow(3, &format!("{MEGABITS}mbit"));
    let folder = std::path::Path::new(&model()).parent().unwrap().display().to_string();
    let name = first.json(&["model", "list"]).0["models"][0]["name"].as_str().unwrap().to_owned();
    let serve =
        ["netns", "exec", &network.namespace(0), "python3", "-m", "http.server", "8000", "--directory", &folder];
    let mut server = Command::new("ip").args(serve).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let url = format!("http://10.77.0.1:8000/{}", std::path::Path::new(&model()).file_name().unwrap().display());
    let curl = |args: &[&str]| {
        let inside = ["netns", "exec", &network.namespace(3), "curl", "-sf", "-o", "/dev/null"];
        Command::new("ip").args(inside).args(args).arg(&url).status().unwrap().success()
    };
    wait_until("the web server answers", || curl(&["-I"]));
    let (mut pulls, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = std::time::Instant::now();
        let (pulled, code) = newcomer.json(&["model", "pull", &name]);
        let seconds = begun.elapsed().as_secs_f64();
        assert_eq!(code, 0, "{pulled}");
        pulls.push(pulled["wanted_bytes"].as_f64().unwrap() * 8e-6 / seconds / MEGABITS);
        assert_eq!(newcomer.json(&["model", "rm", &name]).1, 0);
        let begun = std::time::Instant::now();
        assert!(curl(&[]));
        let bytes = std::fs::metadata(model()).unwrap().len() as f64;
        plain.push(bytes * 8e-6 / begun.elapsed().as_secs_f64() / MEGABITS);
    }
    server.kill().unwrap();
    server.wait().unwrap();
    let median = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let result = serde_json::json!({
        "what": "share of a 100 Mbit/s link (tbf, network namespaces of one machine) that a pull of 96.6 MB from three peers fills, the command's start included; and one curl of the same file",
        "pull": pulls, "curl": plain, "pull_of_link": median(&pulls), "curl_of_link": median(&plain),
        "commit": std::env::var("POTLUCK_COMMIT").unwrap_or_default(),
    });
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/results/pull.json");
    std::fs::write(path, format!("{result:#}\n")).unwrap();
    println!("{result:#}");
    peers.iter().for_each(|peer| peer.signal("TERM"));
    peers.into_iter().for_each(|peer| assert_eq!(peer.end().0, Some(0)));
}
