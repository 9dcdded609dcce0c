//! The gateway as its clients meet it: the official ones, unmodified, and some that misbehave.

use std::{
    io::{BufRead, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};

use crate::machine::{
    Machine, NEAR_TIE, Running, children,
    http::{ask, head, metric, send, status},
    kill, model, wait_until,
    web::{Web, tiny_model},
};

/// The model's name in the catalogue.
const NAME: &str = "SmolLM2-135M-Instruct.Q4_1";

/// Bytes that no request may have.
const TOO_LONG: usize = (20 << 20) + 1;

struct Gateway {
    machine: Machine,
    running: Running,
    url: String,
}

impl Gateway {
    fn start(more: &[&str]) -> Self {
        let machine = Machine::new();
        let model = model();
        let fixed = ["gateway", "--model", &model, "--listen", "127.0.0.1:0", "--threads", "1"];
        let context: &[&str] = if more.contains(&"--context") { &[] } else { &["--context", "1024"] };
        let mut running = machine.start(&[&fixed, context, more, &["--json"]].concat());
        let ready = running.object();
        let url = ready["url"].as_str().unwrap_or_else(|| panic!("{ready}")).to_owned();
        assert_eq!(ready["model"], NAME);
        Self { machine, running, url }
    }

    fn chat(&self, messages: &Value, more: &Value) -> Value {
        let mut body = json!({ "model": NAME, "messages": messages, "temperature": 0, "max_tokens": 24 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = ask(&self.url, "POST", "/v1/chat/completions", &[], &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    fn waits_until_idle(&self) {
        wait_until("no answer is under way", || metric(&self.url, "vllm:num_requests_running") == 0.0);
    }

    fn ends(self) {
        self.running.signal("TERM");
        assert_eq!(self.running.end().0, Some(0));
        self.machine.wait_until_empty(&[]);
    }
}

fn clients() -> PathBuf {
    let path = std::env::var_os("POTLUCK_TEST_CLIENTS").map(PathBuf::from);
    let path = path.unwrap_or_else(|| std::env::home_dir().unwrap().join(".cache/potluck/clients"));
    assert!(path.join("versions").is_file(), "no clients at {}: make clients", path.display());
    path
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

#[test]
fn official_clients_work_as_they_are() {
    // Exact: a text that is streamed is the one that comes whole, whatever was asked before.
    let gateway = Gateway::start(&["--peers", "2", "--exact"]);
    let web = Web::start();
    let image = web.put_image("tiny", tiny_model(1));
    let (clients, scripts) = (clients(), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk"));
    for script in [
        "openai_client.py",
        "openai_recorded.py",
        "anthropic_client.py",
        "ollama_client.py",
        "langchain_client.py",
        "openai_client.mjs",
    ] {
        let mut command = Command::new(if script.ends_with(".py") { "python3" } else { "node" });
        command.arg(scripts.join(script)).env("PYTHONPATH", clients.join("python"));
        command.env("POTLUCK_TEST_IMAGE", &image);
        if script.ends_with(".mjs") {
            command.arg(&clients);
        }
        let output = command.args([&gateway.url, NAME]).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{script}: {}{}", said(&output.stdout), said(&output.stderr));
        assert_eq!(said(&output.stdout).trim(), "ok", "{script}");
    }
    gateway.ends();
}

#[test]
fn a_second_turn_evaluates_what_is_new() {
    let gateway = Gateway::start(&["--slots", "2"]);
    let long = format!("Here is a list: {}. How many are there?", "an apple, a pear, ".repeat(60));
    let first = gateway.chat(&user(&long), &json!({}));
    let (prompt, answer) =
        (first["usage"]["prompt_tokens"].as_u64().unwrap(), first["usage"]["completion_tokens"].as_u64().unwrap());
    assert!(prompt > 300, "{first}");
    // Others come between, with prompts of their own: there is a slot for them.
    for text in ["What is 2+2?", "Say hello.", "Say it again."] {
        gateway.chat(&user(text), &json!({}));
    }
    let said = first["choices"][0]["message"]["content"].clone();
    let second = json!([user(&long)[0], { "role": "assistant", "content": said }, user("Thank you.")[0]]);
    let second = gateway.chat(&second, &json!({}));
    let (cached, all) = (
        second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(),
        second["usage"]["prompt_tokens"].as_u64().unwrap(),
    );
    // The template writes the answer again: its last token, and the end of the turn, may be tokens of another kind.
    assert!(cached + 2 >= prompt + answer - 1, "{cached} of {all} cached, after {prompt} and {answer}");
    gateway.ends();
}

#[test]
fn conversations_that_begin_alike_share_that_and_keep_their_own() {
    // Stages at peers alone, and with both ends in the gateway's own engines.
    for ends in [&[][..], &["--hide-layers", "1"]] {
        let gateway = Gateway::start(&[&["--peers", "2", "--slots", "2"], ends].concat());
        let rules = format!("You count things. {}", "A pear is a fruit, an oak is a tree. ".repeat(12));
        let (rules, count) =
            (json!({ "role": "system", "content": rules }), user("Count from one to a hundred.")[0].clone());
        let used = |answer: &Value, what: &str| answer["usage"].pointer(what).and_then(Value::as_u64).unwrap();
        let cached = |answer: &Value| used(answer, "/prompt_tokens_details/cached_tokens");
        let first = gateway.chat(&json!([rules, count]), &json!({ "max_tokens": 60 }));
        let held = used(&first, "/prompt_tokens") + used(&first, "/completion_tokens");
        // Another begins with the same rules: nobody evaluates them again, and the first stays where it is.
        let second = gateway.chat(&json!([rules, user("Name a colour.")[0]]), &json!({}));
        assert!(cached(&second) > 120, "{second}");
        let said = json!({ "role": "assistant", "content": first["choices"][0]["message"]["content"] });
        let third = gateway.chat(&json!([rules, count, said, user("Go on.")[0]]), &json!({}));
        assert!(cached(&third) + 3 >= held, "{} of {held}: {third}", cached(&third));
        gateway.ends();
    }
}

#[test]
fn what_one_key_has_asked_another_does_not_find() {
    let machine = Machine::new();
    let keys = machine.path("keys");
    std::fs::write(&keys, "the-first-key-of-two\nthe-second-key-of-two\n").unwrap();
    let rules = "A pear is a fruit, an oak is a tree. ".repeat(12);
    // With one slot each takes what the other has left; with two each has its own.
    for slots in ["1", "2"] {
        let gateway = Gateway::start(&["--slots", slots, "--api-key-file", keys.to_str().unwrap()]);
        let cached = |key: &str, question: &str| {
            let body = json!({ "model": NAME, "messages": user(&format!("{rules} {question}")), "max_tokens": 8 });
            let bearer = format!("Bearer {key}");
            let headers = [("authorization", bearer.as_str())];
            let said = ask(&gateway.url, "POST", "/v1/chat/completions", &headers, &body.to_string()).json();
            said["usage"].pointer("/prompt_tokens_details/cached_tokens").and_then(Value::as_u64).unwrap()
        };
        assert_eq!(cached("the-first-key-of-two", "What is a pear?"), 0);
        assert_eq!(cached("the-second-key-of-two", "What is an oak?"), 0, "it would tell what the first has asked");
        assert!(cached("the-second-key-of-two", "What is a tree?") > 120);
        assert_eq!(cached("the-first-key-of-two", "What is a tree?") > 120, slots == "2", "{slots} slots");
        gateway.ends();
    }
}

/// Positions of a prefill step in the test of second turns.
const CHUNK: u64 = 256;

#[test]
fn a_second_turn_after_a_thousand_tokens_is_computed_once_at_every_stage() {
    let more = ["--peers", "3", "--slots", "2", "--context", "2048", "--chunk", "256"];
    let gateway = Gateway::start(&more);
    let long = format!("Here is a list: {}. How many are there?", "an apple, a pear, ".repeat(180));
    let first = gateway.chat(&user(&long), &json!({ "trace": true }));
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(&first) >= 1_000, "{first}");
    let computed = |answer: &Value| -> Vec<u64> {
        let stages = answer["potluck"]["trace"]["prefill"]["stages"].as_array().unwrap_or_else(|| panic!("{answer}"));
        stages.iter().map(|stage| stage["positions"].as_u64().unwrap()).collect()
    };
    assert_eq!(computed(&first), [tokens(&first); 3], "every stage computes the whole of a first prompt, once");
    // Another conversation comes between.
    gateway.chat(&user("What is 2+2?"), &json!({}));
    let said = first["choices"][0]["message"]["content"].clone();
    let messages = json!([user(&long)[0], { "role": "assistant", "content": said }, user("Thank you.")[0]]);
    let second = gateway.chat(&messages, &json!({ "trace": true }));
    let new = tokens(&second) - tokens(&first) - first["usage"]["completion_tokens"].as_u64().unwrap();
    for positions in computed(&second) {
        assert!(positions <= new + CHUNK, "{positions} positions were computed for a message of {new}");
    }
    // What a peer says fits what the client saw: it computed for no longer than the answer took. All of them together
    // may: with drafts in flight they work at once.
    let decode = &second["potluck"]["trace"]["decode"];
    for stage in decode["stages"].as_array().unwrap() {
        let busy = stage["compute_us"].as_u64().unwrap();
        assert!(busy > 0 && busy as f64 / 1e6 <= decode["seconds"].as_f64().unwrap(), "{decode}");
    }
    gateway.ends();
}

#[test]
fn who_hangs_up_is_not_computed_for() {
    let gateway = Gateway::start(&["--slots", "1"]);
    let body = |text: &str, stream: bool| {
        json!({ "model": NAME, "messages": user(text), "max_tokens": 900, "stream": stream, "ignore_eos": true })
            .to_string()
    };
    let path = "/v1/chat/completions";
    // In the middle of a stream.
    let mut stream = send(&gateway.url, "POST", path, &[], &body("Count to a thousand.", true));
    assert_eq!(status(&mut stream), 200);
    let mut line = String::new();
    while !line.contains("content") {
        line.clear();
        stream.read_line(&mut line).unwrap();
    }
    // One more waits for the only slot, and leaves before it gets it.
    let waiting = send(&gateway.url, "POST", path, &[], &body("Count to two thousand.", false));
    wait_until("the second one waits", || metric(&gateway.url, "vllm:num_requests_waiting") == 1.0);
    drop(waiting);
    drop(stream);
    gateway.waits_until_idle();
    // Without a stream, while the whole answer is awaited.
    let whole = send(&gateway.url, "POST", path, &[], &body("Count to three thousand.", false));
    wait_until("it is under way", || metric(&gateway.url, "vllm:num_requests_running") == 1.0);
    drop(whole);
    gateway.waits_until_idle();
    // In prefill.
    let prefill = send(&gateway.url, "POST", path, &[], &body(&"word ".repeat(900), true));
    wait_until("it is under way", || metric(&gateway.url, "vllm:num_requests_running") == 1.0);
    drop(prefill);
    gateway.waits_until_idle();
    let generated = metric(&gateway.url, "vllm:generation_tokens_total");
    assert!(generated < 900.0, "{generated} tokens for nobody");
    assert!(gateway.chat(&user("What is 2+2?"), &json!({}))["choices"][0]["message"]["content"].is_string());
    gateway.ends();
}

#[test]
fn an_answer_outlives_an_engine_and_metrics_tell_of_it_and_of_the_way_to_each_peer() {
    let gateway = Gateway::start(&["--peers", "2", "--exact"]);
    let ask = json!({ "max_tokens": 64, "ignore_eos": true });
    let alone = gateway.chat(&user("Tell me of a llama."), &ask);
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    let body = json!({
        "model": NAME, "messages": user("Tell me of a llama."), "temperature": 0, "max_tokens": 64,
        "ignore_eos": true, "stream": true,
    });
    let mut stream = send(&gateway.url, "POST", "/v1/chat/completions", &[], &body.to_string());
    assert_eq!(status(&mut stream), 200);
    let (mut said, mut lost) = (String::new(), false);
    for line in stream.lines().map(Result::unwrap).take_while(|line| !line.contains("[DONE]")) {
        let Some(chunk) = line.strip_prefix("data: ") else { continue };
        let chunk: Value = serde_json::from_str(chunk).unwrap();
        said += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        if said.len() > 20 && !std::mem::replace(&mut lost, true) {
            let peers: Vec<u32> = children(gateway.running.child.id());
            let engines: Vec<u32> = peers.into_iter().flat_map(children).collect();
            kill(engines[0], "KILL");
        }
    }
    assert_eq!(text(&alone), said.as_str());
    assert_eq!(metric(&gateway.url, "potluck_peers_replaced_total"), 1.0);
    assert_eq!(metric(&gateway.url, "potluck_routes_lost_total"), 0.0);
    let metrics = crate::machine::http::ask(&gateway.url, "GET", "/metrics", &[], "").body;
    let of_loopback = |name: &str| {
        let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name}{{path=\"loopback\"}} ")));
        value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse::<f64>().unwrap()
    };
    assert_eq!(of_loopback("potluck_path_peers"), 2.0);
    let rtt = of_loopback("potluck_path_rtt_seconds");
    assert!(rtt > 0.0 && rtt < 1.0, "{rtt}");
    assert!(of_loopback("potluck_path_loss_ratio") <= 1.0);
    gateway.ends();
}

#[test]
fn what_use_prints_runs_as_it_is() {
    let gateway = Gateway::start(&["--peers", "1"]);
    let clients = clients();
    for tool in ["python", "langchain", "js", "curl"] {
        let printed = gateway.machine.run(&["use", tool, "--url", &gateway.url, "--model", NAME]);
        let mut command = match tool {
            "js" => Command::new("node"),
            "curl" => Command::new("sh"),
            _ => Command::new("python3"),
        };
        if tool == "js" {
            command.arg("--input-type=module");
        }
        let mut running = command
            .current_dir(clients.join("node"))
            .env("PYTHONPATH", clients.join("python"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        running.stdin.take().unwrap().write_all(&printed.stdout).unwrap();
        let output = running.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.trim().len() > 10, "{tool}: {said}");
    }
    let home = gateway.machine.path("user");
    let write = |expected: Option<i32>| {
        let mut command = gateway.machine.command(&["use", "claude-code", "--model", NAME, "--write", "--json"]);
        let output = command.env("HOME", &home).output().unwrap();
        assert_eq!(output.status.code(), expected, "{}", String::from_utf8_lossy(&output.stdout));
    };
    write(Some(0));
    let file = home.join(".claude/settings.json");
    let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(written["env"]["ANTHROPIC_MODEL"], NAME);
    std::fs::write(&file, "mine").unwrap();
    write(Some(1));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine", "a file that is there is the user's");
    gateway.ends();
}

#[test]
fn ollama_s_client_in_go_sends_both_names_and_nulls() {
    let gateway = Gateway::start(&["--peers", "1", "--chunk", "32"]);
    let post = |path: &str, body: Value| ask(&gateway.url, "POST", path, &[], &body.to_string());
    let shown = post("/api/show", json!({ "model": NAME, "name": "", "verbose": false }));
    assert_eq!(shown.status, 200, "{}", shown.body);
    assert_eq!(post("/api/show", json!({ "name": NAME })).status, 200);
    let body = json!({ "model": NAME, "messages": user("Hi"), "options": null, "tools": null, "format": null, "stream": false });
    let answer = post("/api/chat", body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let body = json!({ "model": NAME, "prompt": "Hi", "options": null, "images": null, "stream": false });
    assert_eq!(post("/api/generate", body).status, 200);
    // Longer than a step here, and one caller's share of the queue twice over.
    let texts: Vec<_> = (0..130).map(|n| format!("{n}: {}", "word ".repeat(n % 60))).collect();
    let many = post("/api/embed", json!({ "model": NAME, "input": texts }));
    assert_eq!(many.status, 200, "{}", many.body);
    assert_eq!(many.json()["embeddings"].as_array().unwrap().len(), 130);
    let document = ask(&gateway.url, "GET", "/openapi.json", &[], "");
    assert!(document.json()["paths"]["/v1/embeddings"]["post"].is_object(), "{}", document.body);
    gateway.ends();
}

#[test]
fn models_come_and_go_at_a_client_s_wish() {
    let gateway = Gateway::start(&["--peers", "1"]);
    let (url, web) = (&gateway.url, Web::start());
    let model = tiny_model(1);
    let image = web.put_image("tiny", model.clone());
    let body = |name: &str, stream: bool| json!({ "model": name, "stream": stream }).to_string();
    let page = [("origin", "http://evil.example")];
    assert_eq!(ask(url, "POST", "/api/pull", &page, &body(&image, true)).status, 403);
    assert_eq!(ask(url, "DELETE", "/api/delete", &page, &body(NAME, true)).status, 403);
    assert!(web.starts("").is_empty(), "nobody asked for it");

    // Two ask for the same one, which stops in its middle; both hang up.
    web.hold(true);
    let follow = || {
        let mut stream = send(url, "POST", "/api/pull", &[], &body(&image, true));
        assert_eq!(status(&mut stream), 200);
        let (mut line, mut completed) = (String::new(), 0);
        while completed < 1_000_000 {
            line.clear();
            stream.read_line(&mut line).unwrap();
            assert!(!line.is_empty() && !line.contains("error"), "{line}");
            // Between lines are the lengths of chunks.
            let step: Value = serde_json::from_str(&line).unwrap_or_default();
            completed = step["completed"].as_u64().unwrap_or(0);
        }
        stream
    };
    let (first, second) = (follow(), follow());
    assert_eq!(web.starts("manifests").len(), 1, "the second one follows the first");
    assert!(gateway.chat(&user("Hi"), &json!({}))["choices"][0].is_object(), "answers are made meanwhile");
    let blobs = gateway.machine.path("ollama/blobs");
    let coming = || std::fs::read_dir(&blobs).unwrap().flatten().map(|file| file.path());
    let lock = coming().find(|path| {
        path.to_string_lossy().ends_with(".incomplete.lock")
            && std::fs::metadata(path.with_extension("")).is_ok_and(|partial| partial.len() > 1_000_000)
    });
    let lock = std::fs::File::open(lock.unwrap()).unwrap();
    drop(first);
    assert!(lock.try_lock().is_err(), "somebody follows it still");
    drop(second);
    wait_until("the pull has ended", || lock.try_lock().is_ok());
    lock.unlock().unwrap();
    web.hold(false);
    let whole = ask(url, "POST", "/api/pull", &[], &body(&image, false));
    assert_eq!((whole.status, whole.body.as_str()), (200, r#"{"status":"success"}"#));
    let starts = web.starts("blobs");
    assert!(starts.iter().any(|&start| start > 1_000_000), "it went on where it was: {starts:?}");

    // From an address: what lies in our folder goes with it.
    let address = web.put("small.gguf", tiny_model(2));
    let lines = ask(url, "POST", "/api/pull", &[], &body(&address, true)).body;
    let lines = lines.lines().filter(|line| line.starts_with('{'));
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], json!({ "status": "pulling manifest" }));
    assert_eq!(lines[lines.len() - 1], json!({ "status": "success" }));
    let names = |machine: &Machine| machine.json(&["model", "list"]).0["models"].to_string();
    assert!(names(&gateway.machine).contains("\"name\":\"small\""));
    let deleted = ask(url, "DELETE", "/api/delete", &[], &body("small:latest", true));
    assert_eq!((deleted.status, deleted.body.as_str()), (200, ""));
    assert!(!names(&gateway.machine).contains("\"name\":\"small\""));
    assert_eq!(std::fs::read_dir(gateway.machine.path("home/downloads")).unwrap().count(), 0);
    let absent = ask(url, "DELETE", "/api/delete", &[], &body("small", true));
    assert_eq!((absent.status, absent.json()), (404, json!({ "error": "model 'small' not found" })));
    assert_eq!(ask(url, "DELETE", "/api/delete", &[], &body(NAME, true)).status, 409);

    // A pull does not keep the gateway from ending.
    web.hold(true);
    let other = web.put("other.gguf", tiny_model(3));
    let mut stream = send(url, "POST", "/api/pull", &[], &body(&other, true));
    assert_eq!(status(&mut stream), 200);
    gateway.running.signal("TERM");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("shutting down"), "{rest}");
    assert_eq!(gateway.running.end().0, Some(0));
    gateway.machine.wait_until_empty(&[]);
}

#[test]
fn a_conversation_that_is_too_long_loses_its_oldest_turns_where_that_was_asked_for() {
    let gateway = Gateway::start(&["--peers", "1"]);
    let turn = |n: usize| {
        [
            json!({ "role": "user", "content": format!("{n}: {}", "word ".repeat(200)) }),
            json!({ "role": "assistant", "content": "Yes." }),
        ]
    };
    let system = json!({ "role": "system", "content": "Be brief." });
    let last = json!({ "role": "user", "content": "What is 2+2?" });
    let long: Vec<Value> = [system.clone()].into_iter().chain((0..8).flat_map(turn)).chain([last.clone()]).collect();
    let post = |gateway: &Gateway, path: &str, more: Value| {
        let mut body = json!({ "model": NAME, "messages": long, "input": long, "max_tokens": 8, "stream": false });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut stream = send(&gateway.url, "POST", path, &[], &body.to_string());
        let (status, headers) = head(&mut stream);
        let dropped = headers.lines().find_map(|line| line.strip_prefix("x-potluck-dropped-messages: "));
        let mut body = String::new();
        stream.read_to_string(&mut body).unwrap();
        (status, dropped.map(|count| count.trim().parse::<usize>().unwrap()), body)
    };
    let chat = "/v1/chat/completions";
    let (code, dropped, body) = post(&gateway, chat, json!({}));
    assert!(code == 400 && dropped.is_none() && body.contains("context_length_exceeded"), "{body}");
    assert_eq!(post(&gateway, "/v1/responses", json!({ "truncation": "disabled" })).0, 400);
    assert_eq!(post(&gateway, "/v1/responses", json!({ "truncation": "perhaps" })).0, 400);
    assert_eq!(post(&gateway, "/api/chat", json!({ "truncate": false })).0, 400);
    for (path, more) in [("/v1/responses", json!({ "truncation": "auto" })), ("/api/chat", json!({}))] {
        let (code, dropped, body) = post(&gateway, path, more);
        assert_eq!(code, 200, "{path}: {body}");
        // Of eight turns of two hundred words some four fit beside the answer.
        assert!(dropped.is_some_and(|count| (6..=12).contains(&count) && count % 2 == 0), "{path}: {dropped:?}");
    }
    gateway.ends();

    let gateway = Gateway::start(&["--peers", "1", "--overflow", "truncate"]);
    let (code, dropped, body) = post(&gateway, chat, json!({ "stream": true }));
    assert!(code == 200 && dropped.is_some() && body.contains("[DONE]"), "{body}");
    // The answer is that of what is left.
    let (_, dropped, body) = post(&gateway, chat, json!({ "temperature": 0 }));
    let left: Vec<Value> = [system].iter().chain(&long[dropped.unwrap() + 1..]).cloned().collect();
    let (_, none, same) = post(&gateway, chat, json!({ "temperature": 0, "messages": left }));
    let said = |body: &str| serde_json::from_str::<Value>(body).unwrap()["choices"][0]["message"]["content"].clone();
    assert_eq!((none, said(&same)), (None, said(&body)));
    let alone = json!({ "messages": [{ "role": "user", "content": "word ".repeat(2_000) }] });
    assert_eq!(post(&gateway, chat, alone).0, 400, "what was said last stays");
    let text = json!({ "prompt": format!("{} Once upon a time", "word ".repeat(2_000)) });
    assert_eq!(post(&gateway, "/v1/completions", text).0, 200, "of a text the beginning is cut");
    // As much room is left as the answer wants, under either name; and what the model has not seen is not echoed.
    let words = "word ".repeat(2_000);
    let text = json!({ "prompt": words, "max_completion_tokens": 40, "ignore_eos": true, "echo": true });
    let (code, _, body) = post(&gateway, "/v1/completions", text);
    let answer: Value = serde_json::from_str(&body).unwrap();
    let usage = (answer["usage"]["prompt_tokens"].as_u64(), answer["usage"]["completion_tokens"].as_u64());
    assert_eq!((code, usage), (200, (Some(1_024 - 40), Some(40))), "{body}");
    let echoed = answer["choices"][0]["text"].as_str().unwrap().matches("word").count();
    assert!((900..1_100).contains(&echoed), "{echoed} words come back of {} that were asked", words.len() / 5);
    gateway.ends();
}

#[test]
fn sixteen_at_once_are_all_answered_and_a_stream_outlives_the_signal() {
    let gateway = Gateway::start(&["--peers", "2", "--slots", "4"]);
    thread::scope(|scope| {
        let asks = (0..16).map(|n| {
            let gateway = &gateway;
            scope.spawn(move || gateway.chat(&user(&format!("Say the number {n}.")), &json!({})))
        });
        for answer in asks.collect::<Vec<_>>() {
            let answer = answer.join().unwrap();
            assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() > 0, "{answer}");
        }
    });
    let body = json!({ "model": NAME, "messages": user("Count to fifty."), "max_tokens": 120, "stream": true, "ignore_eos": true });
    let mut stream = send(&gateway.url, "POST", "/v1/chat/completions", &[], &body.to_string());
    assert_eq!(status(&mut stream), 200);
    gateway.running.signal("TERM");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(gateway.running.end().0, Some(0));
    gateway.machine.wait_until_empty(&[]);
}

/// Whether both answers say the same, up to a near-tie as the first one saw it: from there on each answers another
/// text.
fn check_same(answer: &Value, other: &Value) {
    let said = |answer: &Value| answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let (own, others) = (said(answer), said(other));
    let Some((own, other)) = own.iter().zip(&others).find(|(own, other)| own["token"] != other["token"]) else {
        return assert_eq!(own.len(), others.len());
    };
    let likeliest = own["top_logprobs"].as_array().unwrap();
    let as_seen = likeliest.iter().find(|entry| entry["token"] == other["token"]).map(|entry| &entry["logprob"]);
    let margin = own["logprob"].as_f64().zip(as_seen.and_then(Value::as_f64)).map(|(own, other)| own - other);
    assert!(margin.is_some_and(|margin| margin <= NEAR_TIE), "{} instead: {own}", other["token"]);
}

#[test]
fn with_a_draft_model_two_at_once_are_answered_as_one_after_the_other() {
    let more = json!({ "max_tokens": 40, "ignore_eos": true, "logprobs": true, "top_logprobs": 5 });
    let asked = ["Tell me a long story about a llama.", "Count from one to one hundred."].map(user);
    let fixed = ["--peers", "2", "--slots", "2", "--drafts"];
    let plain = Gateway::start(&[&fixed[..], &["off"]].concat());
    let expected = asked.each_ref().map(|messages| plain.chat(messages, &more));
    plain.ends();

    let gateway = Gateway::start(&[&fixed[..], &["model", "--draft-model", &model()]].concat());
    // Peers have engines of their own below them.
    let pid = gateway.running.child.id();
    let engines = children(pid).into_iter().filter(|&child| children(child).is_empty()).count();
    assert_eq!(engines, 2, "the vocabulary and the draft model");
    let alone = asked.each_ref().map(|messages| gateway.chat(messages, &more));
    let together = thread::scope(|scope| {
        let (gateway, more) = (&gateway, &more);
        let asks = asked.each_ref().map(|messages| scope.spawn(move || gateway.chat(messages, more)));
        asks.map(|answer| answer.join().unwrap())
    });
    for ((expected, alone), together) in expected.iter().zip(&alone).zip(&together) {
        assert_eq!(expected["usage"]["completion_tokens"], 40, "{expected}");
        check_same(expected, alone);
        check_same(expected, together);
    }
    gateway.ends();
}

#[test]
fn an_engine_that_dies_is_an_error_and_then_it_is_back() {
    let gateway = Gateway::start(&["--peers", "2", "--exact"]);
    let before = gateway.chat(&user("What is 2+2?"), &json!({}));
    let peer = children(gateway.running.child.id()).into_iter().find(|&pid| !children(pid).is_empty()).unwrap();
    crate::machine::kill(children(peer)[0], "KILL");
    // The session at rest is lost; until the engine is back, an error says to come again.
    let body =
        json!({ "model": NAME, "messages": user("What is 2+2?"), "temperature": 0, "max_tokens": 24 }).to_string();
    let mut refusals = Vec::new();
    wait_until("the engine is back", || {
        let answer = ask(&gateway.url, "POST", "/v1/chat/completions", &[], &body);
        let back = answer.status == 200;
        if back {
            assert_eq!(answer.json()["choices"][0]["message"], before["choices"][0]["message"]);
        } else {
            refusals.push((answer.status, answer.json()["error"]["code"].as_str().unwrap().to_owned()));
        }
        back
    });
    assert!(refusals.iter().all(|(status, code)| *status == 503 && !code.is_empty()), "{refusals:?}");
    gateway.ends();
}

#[test]
fn strangers_and_nonsense_are_refused_in_the_right_words() {
    let machine = Machine::new();
    let keys = machine.path("keys");
    std::fs::write(&keys, "a-key-of-some-length\n").unwrap();
    let gateway = Gateway::start(&["--api-key-file", keys.to_str().unwrap(), "--alias", "gpt-4o", "--no-pull"]);
    let key = ("authorization", "Bearer a-key-of-some-length");
    let error = |answer: crate::machine::http::Answer| {
        (answer.status, answer.json()["error"]["code"].as_str().unwrap_or("").to_owned())
    };
    let url = &gateway.url;
    assert_eq!(error(ask(url, "GET", "/v1/models", &[], "")), (401, "invalid_api_key".into()));
    assert_eq!(
        error(ask(url, "GET", "/v1/models", &[key, ("host", "evil.example")], "")),
        (403, "forbidden_host".into())
    );
    assert_eq!(ask(url, "GET", "/healthz", &[], "").status, 200, "whoever watches the process needs no key");
    let models = ask(url, "GET", "//v1//models", &[key], "").json();
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [NAME, "gpt-4o"]);
    assert_eq!(error(ask(url, "GET", "/v1/nothing", &[key], "")), (404, "not_found".into()));
    assert_eq!(error(ask(url, "GET", "/v1/chat/completions", &[key], "")), (405, "method_not_allowed".into()));
    let chat = |body: &str| error(ask(url, "POST", "/v1/chat/completions", &[key], body));
    assert_eq!(chat("{"), (400, "invalid_json".into()));
    assert_eq!(chat(r#"{"model":"gpt-4o","messages":[],"n":"two"}"#), (400, "invalid_value".into()));
    assert_eq!(chat(r#"{"model":"gpt-4o","messages":[]}"#), (400, "invalid_value".into()));
    assert_eq!(chat(r#"{"messages":[]}"#), (400, "invalid_value".into()));
    assert_eq!(chat(&" ".repeat(TOO_LONG)), (413, "body_too_large".into()));
    // A status of its own, also where a stream was asked for.
    let schema = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": { "type": "no such type" } } });
    let body = json!({ "model": NAME, "messages": user("Hi"), "stream": true, "response_format": schema });
    assert_eq!(chat(&body.to_string()), (400, "bad_grammar".into()));
    let anthropic = ask(url, "POST", "/v1/messages", &[("x-api-key", "wrong")], "{}").json();
    assert_eq!(anthropic["error"]["type"], "authentication_error", "{anthropic}");
    let pull = ask(url, "POST", "/api/pull", &[key], r#"{"model":"tiny"}"#);
    assert_eq!(pull.status, 403, "--no-pull: {}", pull.body);
    assert!(ask(url, "POST", "/api/chat", &[key], r#"{"model":"absent"}"#).json()["error"].is_string());
    gateway.ends();
}
