//! Many streams at once, beside clients that misbehave: all are answered, nothing grows, nobody is held up.
//!
//! A short form runs with the others. `make prove-streams` runs two minutes of it, asserts what takes time to show (no stall, fair
//! turns), and keeps the figures in `bench/results/streams.json`.

use std::{
    fs,
    io::{BufRead, Read},
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::machine::{
    Machine, children,
    http::{ask, metric, send, status},
    model, wait_until,
};

const NAME: &str = "SmolLM2-135M-Instruct.Q4_1";
const STREAMS: usize = 16;
const IDLE: usize = 1_000;

/// Longest time until each stream has had an answer.
const WARM_DEADLINE: Duration = Duration::from_secs(60);

/// What one stream saw.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    answers: u32,
    tokens: u32,
    /// Longest time between two pieces of one answer, once its first had come.
    stall: Duration,
}

fn body(text: &str, max_tokens: u32) -> String {
    let messages = json!([{ "role": "user", "content": text }]);
    json!({ "model": NAME, "messages": messages, "max_tokens": max_tokens, "stream": true, "ignore_eos": true })
        .to_string()
}

/// One answer after the other until it is over. Each is counted.
fn stream(url: &str, number: usize, over: &AtomicBool, answers: &AtomicU32) -> Seen {
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        let text = format!("Stream {number} asks for story {}.", seen.answers);
        let mut answer = send(url, "POST", "/v1/chat/completions", &[], &body(&text, 32));
        assert_eq!(status(&mut answer), 200);
        let (mut line, mut last, mut finished, mut done) = (String::new(), None::<Instant>, false, false);
        while answer.read_line(&mut line).unwrap() > 0 {
            if line.contains("\"content\":\"") && !line.contains("\"role\"") {
                seen.stall = seen.stall.max(last.map_or(Duration::ZERO, |last| last.elapsed()));
                last = Some(Instant::now());
                seen.tokens += 1;
            }
            assert!(!line.contains("\"error\""), "{line}");
            finished |= line.contains("\"finish_reason\":\"length\"");
            done |= line.contains("[DONE]");
            line.clear();
        }
        assert!(finished && done, "an answer broke off");
        seen.answers += 1;
        answers.store(seen.answers, Ordering::Relaxed);
    }
    seen
}

/// Resident kilobytes, and handles, of a process and all below it.
fn footprint(pid: u32) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or("0 0");
    let own: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let handles = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    children(pid).into_iter().map(footprint).fold((own, handles), |sum, more| (sum.0 + more.0, sum.1 + more.1))
}

/// This process needs as many handles as it has idle connections.
fn many_handles() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn sixteen_streams_beside_the_idle_the_slow_and_the_rude() {
    let seconds = std::env::var("POTLUCK_PROVE_SECONDS").ok().map(|text| text.parse::<u64>().unwrap());
    let time = Duration::from_secs(seconds.unwrap_or(8));
    many_handles();
    let machine = Machine::new();
    let model = model();
    let fixed = ["gateway", "--model", &model, "--listen", "127.0.0.1:0", "--context", "512", "--threads", "1"];
    let mut running = machine.start(&[&fixed[..], &["--peers", "3", "--slots", "16", "--json"]].concat());
    let url = running.object()["url"].as_str().unwrap().to_owned();
    let pid = running.child.id();

    let address = url.strip_prefix("http://").unwrap();
    let idle: Vec<TcpStream> = (0..IDLE).map(|_| TcpStream::connect(address).unwrap()).collect();
    // One asks for much and reads nothing.
    let slow = send(&url, "POST", "/v1/chat/completions", &[], &body("Tell me everything.", 400));
    let over = AtomicBool::new(false);
    let answers: [AtomicU32; STREAMS] = Default::default();
    let at_start = Mutex::new((0, 0));
    let seen: Vec<Seen> = thread::scope(|scope| {
        let streams: Vec<_> = (0..STREAMS)
            .map(|n| {
                let (url, over, answers) = (&url, &over, &answers[n]);
                scope.spawn(move || stream(url, n, over, answers))
            })
            .collect();
        scope.spawn(|| {
            // One hangs up in the middle, again and again.
            while !over.load(Ordering::Relaxed) {
                let mut rude = send(&url, "POST", "/v1/chat/completions", &[], &body("Never mind.", 200));
                assert_eq!(status(&mut rude), 200);
                let mut line = String::new();
                (0..6).for_each(|_| drop(rude.read_line(&mut line)));
            }
        });
        // A cache takes memory as its positions are first written, however long that takes here.
        let warm = Instant::now() + WARM_DEADLINE;
        let all = || answers.iter().all(|answers| answers.load(Ordering::Relaxed) > 0);
        // Nothing is ever sent: this takes its time, and no processor's.
        let (_keep, clock) = mpsc::channel::<()>();
        while !all() && Instant::now() < warm {
            assert!(clock.recv_timeout(Duration::from_millis(100)).is_err());
        }
        *at_start.lock().unwrap() = footprint(pid);
        assert!(clock.recv_timeout(time).is_err());
        over.store(true, Ordering::Relaxed);
        assert!(all(), "a stream had no answer in {} s", (WARM_DEADLINE + time).as_secs());
        streams.into_iter().map(|stream| stream.join().unwrap()).collect()
    });
    let (at_start, at_end) = (*at_start.lock().unwrap(), footprint(pid));
    let (fewest, most) = (seen.iter().map(|s| s.answers).min().unwrap(), seen.iter().map(|s| s.answers).max().unwrap());
    let stall = seen.iter().map(|s| s.stall).max().unwrap();
    assert!(fewest > 0, "{seen:?}");
    let growth = at_end.0 as f64 / at_start.0 as f64;
    assert!(growth < 1.05, "memory grew from {} to {} kB", at_start.0, at_end.0);
    assert!(at_end.1 <= at_start.1 + 8, "handles: {} and then {}", at_start.1, at_end.1);
    assert_eq!(ask(&url, "GET", "/healthz", &[], "").status, 200);
    if seconds.is_some() {
        assert!(stall < Duration::from_secs(2), "a stream stood still for {stall:?}");
        assert!(most <= fewest + fewest.div_ceil(4) + 1, "turns were not fair: {fewest} to {most} answers");
        let result = json!({
            "what": "16 chat streams over 3 peers of one machine, 1 thread each, beside 1,000 idle connections, one that reads nothing and one that hangs up",
            "seconds": time.as_secs(), "answers": seen.iter().map(|s| s.answers).sum::<u32>(),
            "tokens": seen.iter().map(|s| s.tokens).sum::<u32>(), "answers_fewest": fewest, "answers_most": most,
            "stall_longest_s": stall.as_secs_f64(), "memory_growth": growth,
            "handles": [at_start.1, at_end.1], "commit": std::env::var("POTLUCK_COMMIT").unwrap_or_default(),
        });
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/results/streams.json");
        fs::write(path, format!("{result:#}\n")).unwrap();
    }

    // Whoever reads late gets its answer all the same.
    let mut slow = slow;
    assert_eq!(status(&mut slow), 200);
    let mut rest = String::new();
    slow.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("[DONE]"), "{}", &rest[rest.len().saturating_sub(300)..]);
    wait_until("no answer is under way", || metric(&url, "vllm:num_requests_running") == 0.0);
    drop(idle);
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
    machine.wait_until_empty(&[]);
}
