//! Answers that outlive what happens to their network: machines behind NATs, two relays, real engines.
//!
//! Needs root, `ip`, `nft` and `conntrack`. Without them it says so and checks nothing; with `POTLUCK_SKIP_NOTHING`, as in CI, it fails.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use potluck_netem::{Namespace, Nat, SideId, Wire, World, link::Profile};
use serde_json::Value;

use crate::machine::{Machine, Running, model, wait_until};

const PROMPT: &str = "Tell me a long story about a llama.";
/// An answer.
const SHORT: &[&str] = &["--max-tokens", "120"];

/// One that lasts until its machines have looked at their networks again, which iroh does every 20 to 26 s: 30 s, for a token takes 50 ms at least.
const LASTING: &[&str] = &["--max-tokens", "600", "--ignore-eos", "--drafts", "off"];

/// Beyond it an answer is given up that has lost its route: 3 s until that is noticed, 20 s for another, and what was outside.
const GAP_MAX: Duration = Duration::from_secs(30);

/// A swarm of two peers and a client, each behind a router of its own, whose only ways are two relays as long as UDP is blocked.
struct Swarm {
    relays: Vec<(String, Running)>,
    /// Where the first peer is.
    first_relay: String,
    peers: Vec<Running>,
    client: Machine,
    sides: [SideId; 3],
    _machines: Vec<Machine>,
    _line: Wire,
    _second_relay: Namespace,
    // The last to go: all others run in it.
    world: World,
}

impl Swarm {
    /// Ready to answer; none where there is no network. The client's line takes 25 ms, either way.
    fn new() -> Option<Self> {
        let mut world = World::or_skip()?;
        let sides = [(); 3].map(|()| world.side(Nat::PortRestricted).unwrap());
        sides.iter().for_each(|&side| world[side].block_udp(true).unwrap());
        let line = Profile { delay: Duration::from_millis(25), rate: Some(20_000_000), ..Profile::default() };
        let slow = world.slow_down(sides[2], [line, line], 1).unwrap();
        let second_relay = world.machine(251).unwrap();
        let inside = |namespace: &Namespace| Machine::inside(namespace.name().to_owned());
        let [first, second, client] = sides.map(|side| inside(world[side].host()));

        let (created, code) = first.json(&["swarm", "create"]);
        assert_eq!(code, 0, "{created}");
        let swarm = created["swarm"].as_str().unwrap();
        let at = [(inside(world.relay()), "198.18.0.250"), (inside(&second_relay), "198.18.0.251")];
        let relays: Vec<_> = at
            .iter()
            .map(|(machine, name)| {
                let mut relay = machine.start(&["relay", "--also", swarm, "--name", name, "--json"]);
                let url = relay.object()["relays"][0].as_str().unwrap().to_owned();
                first.json(&["swarm", "relays", "--add", &url]);
                (url, relay)
            })
            .collect();
        let model = model();
        let lend = |machine: &Machine, what: &[&str]| {
            let fixed = ["--bind", "0.0.0.0:7575", "--threads", "1", "--exact", "--context", "1024", "--json"];
            let mut running = machine.start(&[what, &fixed].concat());
            let said = running.object();
            assert!(said["error"].is_null(), "{said}");
            (said, running)
        };
        let (first_is, lending) = lend(&first, &["serve", "--model", &model, "--layers", "0..15"]);
        let (invited, _) = first.json(&["swarm", "invite", "--uses", "4"]);
        let line = invited["invitation"].as_str().unwrap();
        for machine in [&second, &client] {
            // The first may be on its way to its relay still.
            wait_until("the line leads through the relay", || {
                let (joined, code) = machine.json(&["swarm", "join", line]);
                if code != 0 {
                    println!("not yet: {joined}");
                }
                code == 0
            });
        }
        let (_, other) = lend(&second, &["serve", "--model", &model, "--layers", "15..30"]);
        let mut machines = vec![first, second];
        machines.extend(at.into_iter().map(|(machine, _)| machine));
        let swarm = Self {
            first_relay: first_is["relay"].as_str().unwrap().to_owned(),
            relays,
            peers: vec![lending, other],
            client,
            sides,
            _machines: machines,
            _line: slow,
            _second_relay: second_relay,
            world,
        };
        wait_until("the client finds a route", || swarm.pooled(&["--max-tokens", "4"]).is_some());
        Some(swarm)
    }

    /// The answer that is asked for so.
    fn answer(&self, asked: &[&str], more: &[&str]) -> (Value, i32) {
        let model = model();
        self.client.json(&[&Self::run(&model), asked, more].concat())
    }

    fn run(model: &str) -> [&str; 10] {
        ["run", PROMPT, "--model", model, "--temperature=0", "--context", "1024", "--exact", "--threads", "1"]
    }

    /// The swarm's answer.
    fn pooled(&self, asked: &[&str]) -> Option<Value> {
        let (answer, code) = self.answer(asked, &["--prefer", "swarm"]);
        (code == 0).then_some(answer)
    }

    /// What the client's own engine says.
    fn alone(&self, asked: &[&str]) -> String {
        let (answer, code) = self.answer(asked, &["--local"]);
        assert_eq!(code, 0, "{answer}");
        answer["text"].as_str().unwrap().to_owned()
    }

    /// [`streamed`] from the client by any route of the swarm's.
    fn meanwhile(&mut self, asked: &[&str], meanwhile: impl FnOnce(&mut Self)) -> (String, String, Duration) {
        let model = model();
        let args = [&Self::run(&model), asked, &["--prefer", "swarm", "--route"]].concat();
        let command = self.client.command(&args);
        streamed(command, || meanwhile(self))
    }

    fn end(self) {
        for running in self.peers {
            running.signal("TERM");
            assert_eq!(running.end().0, Some(0));
        }
    }
}

/// An answer as it streams, and its route at the end. `meanwhile` happens once its first words are there. What was said, the route, and the
/// longest time without a word.
fn streamed(mut command: Command, meanwhile: impl FnOnce()) -> (String, String, Duration) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut said, mut meanwhile) = (Vec::new(), Some(meanwhile));
    let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
    let mut stdout = child.stdout.take().unwrap();
    let mut bytes = [0; 64];
    loop {
        let count = stdout.read(&mut bytes).unwrap();
        if count == 0 {
            break;
        }
        if !said.is_empty() {
            gap = gap.max(last.elapsed());
        }
        said.extend_from_slice(&bytes[..count]);
        if said.len() > 40
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile();
        }
        last = Instant::now();
    }
    let output = child.wait_with_output().unwrap();
    let route = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{route}");
    assert!(meanwhile.is_none(), "nothing has happened to it");
    (String::from_utf8(said).unwrap().trim_end_matches('\n').to_owned(), route, gap)
}

fn ms(gap: Duration) -> Value {
    u64::try_from(gap.as_millis()).unwrap().into()
}

/// Says what was measured, and writes it down where `make prove-roaming` asks for it.
fn proven(what: &str, unit: &str, value: &Value) {
    println!("{what}: {unit} {value}");
    let Some(path) = std::env::var_os("POTLUCK_PROVE_ROAMING") else { return };
    let known = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
    let mut results: Value = known.unwrap_or_else(|| serde_json::json!({}));
    let setting = "two peers and a client behind routers, UDP blocked at first, two relays; the client's line takes 25 ms either way, 20 Mbit/s; 120 tokens, 600 to become direct; exact";
    results["setting"] = setting.into();
    results["commit"] = std::env::var("POTLUCK_COMMIT").unwrap_or_default().into();
    results[what] = serde_json::json!({ unit: value });
    std::fs::write(path, format!("{results:#}\n")).unwrap();
}

#[test]
fn an_answer_through_a_relay_becomes_direct_without_losing_a_token() {
    let Some(mut swarm) = Swarm::new() else { return };
    let alone = swarm.alone(SHORT);
    // As long as UDP is blocked, every hop goes through the relay, 50 ms there and back.
    let pooled = swarm.pooled(SHORT).unwrap();
    assert_eq!(pooled["text"], *alone);
    let route = pooled["route"].as_array().unwrap();
    assert!(route.iter().all(|stage| stage["path"] == "relay"), "{route:?}");
    assert!(route.iter().all(|stage| stage["rtt_ms"].as_f64().unwrap() >= 50.0), "{route:?}");
    proven("through_a_relay_50_ms_away", "tokens_per_s", &pooled["decode_tokens_per_s"]);

    // A conversation, by the same way.
    let model = model();
    let chat = ["chat", "--model", &model, "--prefer", "swarm", "--temperature", "0", "--max-tokens", "12"];
    let chat = [&chat[..], &["--context", "512", "--exact", "--threads", "1", "--json"]].concat();
    let mut talk = swarm.client.command(&chat).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    talk.stdin.take().unwrap().write_all(b"My name is Ada.\nWhat is my name?\n").unwrap();
    let output = talk.wait_with_output().unwrap();
    assert!(output.status.success());
    let turns: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(turns.len(), 2, "{turns:?}");
    assert!(turns[1]["answer"]["reused_tokens"].as_u64().unwrap() > 0, "the conversation is kept: {turns:?}");

    let lasting = swarm.alone(LASTING);
    let (said, route, gap) = swarm.meanwhile(LASTING, |swarm| {
        swarm.sides.iter().for_each(|&side| swarm.world[side].block_udp(false).unwrap());
    });
    proven("relay_to_direct_in_mid_answer", "longest_gap_ms", &ms(gap));
    assert_eq!(said, lasting.trim_end_matches('\n'), "no token is lost and none comes twice");
    assert!(route.contains("direct"), "{route}");
    swarm.end();
}

#[test]
fn an_answer_outlives_its_relay_and_its_network() {
    let Some(mut swarm) = Swarm::new() else { return };
    let alone = swarm.alone(SHORT);
    // The relay that the first peer is at, which the client's steps go by.
    let pooled = swarm.pooled(&["--max-tokens", "8"]).unwrap();
    assert!(pooled["route"].as_array().unwrap().iter().all(|stage| stage["path"] == "relay"), "{pooled}");
    let (said, route, gap) = swarm.meanwhile(SHORT, |swarm| {
        let at = swarm.relays.iter().position(|(url, _)| *url == swarm.first_relay).unwrap();
        let (_, relay) = swarm.relays.remove(at);
        relay.signal("KILL");
    });
    println!("{route}");
    proven("relay_killed_in_mid_answer", "longest_gap_ms", &ms(gap));
    assert_eq!(said, alone, "no token is lost and none comes twice");
    assert!(gap < GAP_MAX, "{gap:?}");

    // The client's address changes under way, as when it goes from one network to another; and its cable is pulled for a while.
    let (said, _, gap) = swarm.meanwhile(SHORT, |swarm| swarm.world.change_address(swarm.sides[2]).unwrap());
    proven("another_address_in_mid_answer", "longest_gap_ms", &ms(gap));
    assert_eq!(said, alone);
    let (said, route, gap) = swarm.meanwhile(SHORT, |swarm| {
        let side = &swarm.world[swarm.sides[2]];
        side.cut(true).unwrap();
        let pulled = Instant::now();
        wait_until("every deadline for a silent path is over", || pulled.elapsed() > Duration::from_secs(6));
        side.cut(false).unwrap();
    });
    proven("no_network_for_6_s_in_mid_answer", "longest_gap_ms", &ms(gap));
    assert_eq!(said, alone);
    // Its connections are given up after 3 s, and its peers have kept what they hold.
    assert!(route.contains("the connection was lost; the answer goes on"), "{route}");
    assert!(!route.contains("went on over another"), "{route}");
    assert!(gap < GAP_MAX, "{gap:?}");
    swarm.end();
}

#[test]
fn an_answer_goes_on_at_another_peer() {
    let [owner, first, spare, client] = [(); 4].map(|()| Machine::new());
    let (created, code) = owner.json(&["swarm", "create"]);
    assert_eq!(code, 0, "{created}");
    let model = model();
    let lend = |machine: &Machine, more: &[&str]| {
        let fixed = ["--bind", "127.0.0.1:0", "--threads", "1", "--exact", "--context", "512", "--json"];
        let mut running = machine.start(&[&["serve", "--model", &model][..], more, &fixed].concat());
        running.object();
        running
    };
    // It knows who is there, and cannot answer alone.
    let known = lend(&owner, &["--layers", "0..15"]);
    let (invited, code) = owner.json(&["swarm", "invite", "--uses", "4"]);
    assert_eq!(code, 0, "{invited}");
    let line = invited["invitation"].as_str().unwrap().to_owned();
    for machine in [&first, &spare, &client] {
        assert_eq!(machine.json(&["swarm", "join", &line]).1, 0);
    }
    let peers = |wanted: usize| {
        wait_until("the peers are known", || {
            let (peers, _) = owner.json(&["peers"]);
            peers["peers"].as_array().is_some_and(|peers| peers.len() >= wanted)
        });
    };
    let serving = lend(&first, &[]);
    peers(2);
    let args = ["--model", &model, "--temperature", "0", "--context", "512", "--exact", "--threads", "1"];
    let run = [&["run", PROMPT, "--max-tokens", "400", "--ignore-eos"][..], &args].concat();
    let (alone, code) = client.json(&[&run[..], &["--local"]].concat());
    assert_eq!(code, 0, "{alone}");
    let command = client.command(&[&run[..], &["--prefer", "swarm", "--route"]].concat());
    let mut other = None;
    let (said, route, gap) = streamed(command, || {
        // The one that it is at goes, and another comes, in another cut: none takes its place, and two do together.
        serving.signal("KILL");
        other = Some(lend(&spare, &["--layers", "15..30"]));
    });
    assert_eq!(said, alone["text"].as_str().unwrap().trim_end(), "{route}");
    assert!(route.contains("went on over another"), "{route}");
    proven("peer_killed_in_mid_answer_while_another_starts", "longest_gap_ms", &ms(gap));
    // The one that has let the client in goes, too: by now it knows others.
    let spared = other.take().unwrap();
    spared.signal("TERM");
    assert_eq!(spared.end().0, Some(0));
    let other = lend(&spare, &[]);
    let (again, code) = client.json(&[&run[..], &["--prefer", "swarm"]].concat());
    assert_eq!((code, &again["text"]), (0, &alone["text"]), "{again}");
    known.signal("KILL");
    let (again, code) = client.json(&[&run[..], &["--prefer", "swarm"]].concat());
    assert_eq!((code, &again["text"]), (0, &alone["text"]), "{again}");
    drop((known, other));
}
