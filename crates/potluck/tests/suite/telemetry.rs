//! Traces go where OpenTelemetry's variables say, span the processes of an answer, and say nothing of what was said.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use serde_json::json;

use crate::machine::{Machine, PATIENCE, Running, http::ask, model};

/// Words that no trace may have.
const CANARY: &str = "xylophonic marmalade";

/// An address that is none: a stranger's words, which no trace has either.
const STRANGE: &str = "quagmire-of-a-path";

/// What collects traces: the bodies of what was posted to it.
fn collector() -> (String, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, bodies) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            thread::spawn(move || collect(stream, &sender));
        }
    });
    (address, bodies)
}

/// Takes what comes on a connection until it ends.
fn collect(stream: TcpStream, sender: &Sender<Vec<u8>>) -> Option<()> {
    let mut answers = stream.try_clone().ok()?;
    let mut stream = BufReader::new(stream);
    loop {
        let (mut length, mut first) = (0, String::new());
        stream.read_line(&mut first).ok().filter(|read| *read > 0)?;
        assert!(first.starts_with("POST /v1/traces "), "{first}");
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(bytes) = line.strip_prefix("content-length:") {
                length = bytes.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        sender.send(body).ok()?;
        answers.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    }
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_trace_spans_the_peers_of_an_answer_and_holds_no_word_of_it() {
    let (endpoint, bodies) = collector();
    let machine = Machine::new();
    let fixed = ["gateway", "--listen", "127.0.0.1:0", "--context", "512", "--threads", "1", "--peers", "2", "--json"];
    let model = model();
    let mut command = machine.command(&[&fixed[..], &["--model", &model]].concat());
    let mut child = command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let mut running = Running { child, stdout };
    let ready = running.object();
    let body = json!({
        "model": ready["model"], "max_tokens": 8, "trace": true,
        "messages": [{ "role": "user", "content": format!("Repeat: {CANARY}") }],
    });
    let unknown = ask(ready["url"].as_str().unwrap(), "POST", &format!("/v1/{STRANGE}"), &[], "{}");
    assert_eq!(unknown.status, 404);
    let answer = ask(ready["url"].as_str().unwrap(), "POST", "/v1/chat/completions", &[], &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.body);
    let said = answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    // What is over is sent while the session that it used is open still.
    let mut sent = Vec::new();
    for text in ["request", "answer"] {
        while !sent.iter().any(|body: &Vec<u8>| contains(body, text)) {
            sent.push(bodies.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no span says {text} before the end")));
        }
    }
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
    machine.wait_until_empty(&[]);

    let bodies: Vec<_> = sent.into_iter().chain(bodies.try_iter()).collect();
    let with = |text: &str| bodies.iter().filter(|body| contains(body, text)).count();
    for text in ["request", "answer", "gen_ai.usage.output_tokens", "potluck.queue_s", "compute_us", "service.name"] {
        assert!(with(text) > 0, "no span says {text}");
    }
    // The client's end of the session, and each peer's.
    let layers = ["0..15", "15..30"].map(&with);
    assert!(layers.iter().all(|count| *count > 0), "{layers:?}");
    assert!(with("potluck.session") >= 3, "one process each for the gateway and both peers");
    for text in [CANARY, "Repeat", STRANGE, said.trim()] {
        assert!(text.len() < 4 || with(text) == 0, "a span says what was said: {text}");
    }
}
