//! A gateway over a swarm that something happens to every 20 seconds: all answers come, and are what they were; and nothing grows, here or
//! there. `make prove-soak` does it for an hour.
//!
//! Needs root, `ip` and `nft`. Without them it says so and checks nothing; with `POTLUCK_SKIP_NOTHING`, as in CI, it fails.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    losses::{ANSWERS_WITHIN, FAULTS, Fault, STAGES, Swarm, pass},
    machine::{Machine, model, wait_until},
};

/// From one failure to the next; and how long it lasts.
const EVERY: Duration = Duration::from_secs(20);
const LASTS: Duration = Duration::from_secs(6);

/// Who asks at once.
const ASKING: usize = 2;

/// What may come and go: handles and threads more than there were, for what is under way; and tasks, of which a connection has several.
const HANDLES: usize = 6;
const TASKS: u64 = 24;

/// How much memory may grow in an hour: a twentieth, and some.
const GROWTH: (f64, u64) = (1.05, 8 << 20);

const PROMPTS: [&str; 4] =
    ["Tell me of the sea.", "What is a harbour?", "Name three colours.", "Why do gulls follow boats?"];

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    bytes: u64,
    handles: usize,
    threads: u64,
    /// Of its runtime.
    tasks: u64,
}

/// How often the one process that this machine keeps running has said how many tasks it has, and how many these were the last time.
fn tasks(machine: &Machine) -> (usize, u64) {
    let log = machine.log();
    let told = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["fields"]["tasks"].as_u64());
    told.fold((0, 0), |(times, _), tasks| (times + 1, tasks))
}

impl Held {
    fn by(pid: u32, machine: &Machine) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
            line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let handles = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Self { bytes: field("VmRSS:") << 10, handles, threads: field("Threads:"), tasks: tasks(machine).1 }
    }
}

/// The middle of each.
fn middle(held: &[Held]) -> Held {
    let of = |value: fn(&Held) -> u64| {
        let mut values: Vec<u64> = held.iter().map(value).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    let handles = of(|held| held.handles as u64) as usize;
    Held { bytes: of(|held| held.bytes), handles, threads: of(|held| held.threads), tasks: of(|held| held.tasks) }
}

/// The machines of those that are watched: peers that are never killed, and the gateway.
fn watched(swarm: &Swarm) -> impl Iterator<Item = &Machine> {
    swarm.lenders[..STAGES.len()].iter().map(|lender| &lender.machine).chain([&swarm.client])
}

/// Waits until each has said anew how many tasks it has.
fn all_say_their_tasks(swarm: &Swarm) {
    let before: Vec<usize> = watched(swarm).map(|machine| tasks(machine).0).collect();
    wait_until("each says its tasks", || {
        pass(Duration::from_millis(100));
        watched(swarm).zip(&before).all(|(machine, before)| tasks(machine).0 > *before)
    });
}

/// Asks the gateway, whose machine that is; the answer's text, or what came instead.
fn ask(swarm: &Swarm, port: u16, prompt: &str) -> Result<String, String> {
    let body = json!({
        "model": "any", "messages": [{ "role": "user", "content": prompt }], "temperature": 0, "max_tokens": 40,
    });
    let body = body.to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let got = swarm.star.machines()[0].inside(|| {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(ANSWERS_WITHIN))?;
        socket.write_all(request.as_bytes())?;
        let mut text = String::new();
        socket.read_to_string(&mut text).map(|_| text)
    });
    let text = got.map_err(|error| error.to_string())?;
    let answer: Option<Value> = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
    let content = answer.and_then(|answer| Some(answer["choices"][0]["message"]["content"].as_str()?.to_owned()));
    content.ok_or(text)
}

#[test]
fn a_gateway_outlives_an_hour_of_failures_and_nothing_grows() {
    let out = env::var_os("POTLUCK_PROVE_SOAK");
    let seconds = env::var("POTLUCK_PROVE_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs(if out.is_some() { seconds.unwrap_or(3_600) } else { 80 });
    // In the short form each kind comes once, one after the other.
    let every = if out.is_some() { EVERY } else { LASTS };
    let seed = 11;
    let Some(mut swarm) = Swarm::telling_tasks(seed) else { return };
    let model = model();
    let fixed = ["gateway", "--model", &model, "--prefer", "swarm", "--exact", "--context", "1024", "--threads", "1"];
    let mut gateway = swarm.client.start(&[&fixed[..], &["--alias", "any", "--slots", "2", "--json"]].concat());
    let ready = gateway.object();
    let url = ready["url"].as_str().unwrap_or_else(|| panic!("{ready}"));
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    let whole: Vec<String> = PROMPTS.iter().map(|prompt| ask(&swarm, port, prompt).unwrap()).collect();
    let elders = swarm.lenders[..STAGES.len()].iter().map(|lender| lender.serving.child.id());
    let pids: Vec<u32> = elders.chain([gateway.child.id()]).collect();
    let held = |swarm: &Swarm| -> Vec<Held> {
        pids.iter().zip(watched(swarm)).map(|(pid, machine)| Held::by(*pid, machine)).collect()
    };
    all_say_their_tasks(&swarm);
    let first = held(&swarm);

    let (ends, answers, wrong) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let ask_on = |swarm: &Swarm, mut turn: usize| {
        while !ends.load(Ordering::Relaxed) {
            let at = turn % PROMPTS.len();
            let answer = ask(swarm, port, PROMPTS[at]);
            answers.fetch_add(1, Ordering::Relaxed);
            if answer.as_ref() != Ok(&whole[at]) {
                wrong.lock().unwrap().push(format!("{}: {answer:?} instead of {:?}", PROMPTS[at], whole[at]));
            }
            turn += 1;
        }
    };
    let (mut samples, mut struck, begun) = (vec![first.clone()], Vec::new(), Instant::now());
    let mut rng = fastrand::Rng::with_seed(seed);
    while begun.elapsed() < time || struck.len() < FAULTS.len() {
        let mut fault = FAULTS[struck.len() % FAULTS.len()];
        let victim = rng.usize(..swarm.lenders.len());
        if victim < STAGES.len() && matches!(fault, Fault::Killed | Fault::Told) {
            fault = Fault::Cut;
        }
        struck.push(format!("{fault:?} {victim} at {:.1} s", begun.elapsed().as_secs_f32()));
        println!("{}", struck.last().unwrap());
        let round = Instant::now();
        let wakes = thread::scope(|scope| {
            ends.store(false, Ordering::Relaxed);
            let swarm = &swarm;
            (0..ASKING).for_each(|asking| drop(scope.spawn(move || ask_on(swarm, asking + struck_turn(begun)))));
            pass(Duration::from_secs(1));
            let wakes = swarm.strike(victim, fault);
            pass(LASTS);
            ends.store(true, Ordering::Relaxed);
            wakes
        });
        wakes.into_iter().for_each(|wakes| wakes.join().unwrap());
        swarm.mend(victim, fault);
        samples.push(held(&swarm));
        pass(every.saturating_sub(round.elapsed()));
    }
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{struck:?}\n{wrong:#?}");
    // What was under way is over: nothing is held any more.
    wait_until("handles, threads and tasks are what they were", || {
        all_say_their_tasks(&swarm);
        let now = held(&swarm);
        println!("{first:?}\n{now:?}");
        now.iter().zip(&first).all(|(now, first)| {
            now.handles <= first.handles + HANDLES
                && now.threads <= first.threads + HANDLES as u64
                && now.tasks <= first.tasks + TASKS
        })
    });
    let answers = answers.into_inner();
    println!("{answers} answers, {} failures", struck.len());
    assert!(answers >= 2 * struck.len(), "{answers} answers while {} things happened", struck.len());
    let Some(out) = out else { return };
    let quarter = samples.len() / 4;
    let of = |samples: &[Vec<Held>], at: usize| middle(&samples.iter().map(|held| held[at]).collect::<Vec<_>>());
    let told = |held: Held| json!({ "bytes": held.bytes, "handles": held.handles, "threads": held.threads, "tasks": held.tasks });
    let mut grown = Vec::new();
    let names = ["peer of the first stage", "peer of the second", "peer of the third", "gateway"];
    let rows: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(at, name)| {
            let (then, last) = (of(&samples[quarter..2 * quarter], at), of(&samples[3 * quarter..], at));
            if last.bytes as f64 > then.bytes as f64 * GROWTH.0 + GROWTH.1 as f64 {
                grown.push(*name);
            }
            json!({ "of": name, "second_quarter": told(then), "last_quarter": told(last) })
        })
        .collect();
    let report = json!({
        "command": "make prove-soak", "commit": env::var("POTLUCK_COMMIT").unwrap_or_default(), "seed": seed,
        "setting": "three stages, two peers for each and a gateway, each in a network namespace; two clients ask all the time",
        "seconds": begun.elapsed().as_secs(), "failures": struck, "answers": answers, "wrong_or_lost": 0, "held": rows,
    });
    fs::write(Path::new(&out), format!("{report:#}\n")).unwrap();
    assert!(grown.is_empty(), "memory grew: {grown:?}");
}

/// Each round begins with other prompts.
fn struck_turn(begun: Instant) -> usize {
    begun.elapsed().as_secs() as usize
}
