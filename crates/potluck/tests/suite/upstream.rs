//! What a machine runs already, lent to a swarm as it is: a gateway of our own is the server that is there already.

use std::io::BufRead;

use serde_json::{Value, json};

use crate::machine::{
    Machine, Running,
    http::{Answer, ask, metric, send, status},
    model,
    odd::{Odd, Says, chunks},
    wait_until,
};

/// The model's name, at the upstream and so for everybody.
const NAME: &str = "SmolLM2-135M-Instruct.Q4_1";

const CHAT: &str = "/v1/chat/completions";

/// The key of upstreams that want one.
const KEY: &str = "sk-0123456789abcdef";

/// A server that runs on a machine already, and knows of no swarm.
struct Server {
    running: Running,
    url: String,
}

impl Server {
    fn start(machine: &Machine, more: &[&str]) -> Self {
        let model = model();
        let fixed = ["gateway", "--model", &model, "--local", "--listen", "127.0.0.1:0", "--context", "1024"];
        let mut running = machine.start(&[&fixed, more, &["--threads", "1", "--json"]].concat());
        let url = running.object()["url"].as_str().unwrap().to_owned();
        Self { running, url }
    }

    /// Answers that it has given.
    fn answers(&self) -> f64 {
        let text = ask(&self.url, "GET", "/metrics", &[], "").body;
        let counts = text.lines().filter(|line| line.starts_with("vllm:request_success_total{"));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    fn is_idle(&self) -> bool {
        metric(&self.url, "vllm:num_requests_running") == 0.0
    }
}

/// Lends what runs at that address; returns once that is said.
fn lend(machine: &Machine, url: &str, more: &[&str]) -> (Running, Value) {
    let args = ["serve", "--upstream", url, "--bind", "127.0.0.1:0", "--json"];
    let mut lending = machine.start(&[&args[..], more].concat());
    let ready = lending.object();
    assert!(ready["upstream"].is_object(), "{ready}");
    (lending, ready)
}

fn invite(owner: &Machine) -> String {
    let (invited, code) = owner.json(&["swarm", "invite"]);
    assert_eq!(code, 0, "{invited}");
    invited["invitation"].as_str().unwrap().to_owned()
}

/// A gateway through the swarm, and where it is.
fn gateway(machine: &Machine, more: &[&str]) -> (Running, String, Value) {
    let args = ["gateway", "--listen", "127.0.0.1:0", "--json"];
    let mut gateway = machine.start(&[&args[..], more].concat());
    let ready = gateway.object();
    let url = ready["url"].as_str().unwrap_or_else(|| panic!("{ready}")).to_owned();
    (gateway, url, ready)
}

fn listed(url: &str) -> Vec<String> {
    let models = ask(url, "GET", "/v1/models", &[], "").json();
    models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

fn chat(text: &str, more: &Value) -> String {
    let messages = json!([{ "role": "user", "content": text }]);
    let mut body = json!({ "model": NAME, "messages": messages, "temperature": 0, "max_tokens": 8 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn code(answer: &Answer) -> String {
    answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

/// The data of server-sent events.
fn data(body: &str) -> Vec<Value> {
    let data = body.lines().filter_map(|line| line.strip_prefix("data: {"));
    data.map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap()).collect()
}

/// A model that is lent answers every API, whole and streamed, and calls tools. `text`: what it says to the question.
fn other_apis_say_the_same(url: &str, text: &str) {
    let post = |path: &str, body: &Value| {
        let answer = ask(url, "POST", path, &[], &body.to_string());
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer
    };
    let with = |body: &Value, more: Value| {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let schema = json!({ "type": "object", "properties": { "city": { "type": "string", "maxLength": 12 } }, "required": ["city"] });
    let question = json!([{ "role": "user", "content": "What is 2+2?" }]);

    let ask_it = json!({ "model": NAME, "max_tokens": 8, "temperature": 0, "messages": question });
    let whole = post("/v1/messages", &ask_it).json();
    assert_eq!(
        (&whole["content"][0]["text"], whole["content"].as_array().unwrap().len()),
        (&json!(text), 1),
        "{whole}"
    );
    assert!(whole["usage"]["input_tokens"].as_u64().unwrap() > 4 && whole["usage"]["output_tokens"] == 8, "{whole}");
    assert_eq!(whole["stop_reason"], "max_tokens");
    let events = data(&post("/v1/messages", &with(&ask_it, json!({ "stream": true }))).body);
    let said: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    let end = events.iter().find(|event| event["type"] == "message_delta").unwrap();
    assert_eq!((&*said, &end["usage"]["input_tokens"]), (text, &whole["usage"]["input_tokens"]), "{events:?}");
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    let tools = json!([{ "name": "weather", "description": "The weather", "input_schema": schema }]);
    let call = json!({ "max_tokens": 60, "tools": tools, "tool_choice": { "type": "any" } });
    let called = post("/v1/messages", &with(&ask_it, call.clone())).json();
    let block = &called["content"][0];
    assert_eq!(
        (&block["type"], &block["name"], &called["stop_reason"]),
        (&json!("tool_use"), &json!("weather"), &json!("tool_use"))
    );
    assert!(block["input"]["city"].is_string(), "{called}");
    // The result goes back by its call's name.
    let turns = json!([
        question[0], { "role": "assistant", "content": [block] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": block["id"], "content": "rain" }] },
    ]);
    let answer = post("/v1/messages", &with(&ask_it, json!({ "messages": turns, "tools": tools }))).json();
    assert!(answer["usage"]["input_tokens"].as_u64() > whole["usage"]["input_tokens"].as_u64(), "{answer}");
    let events = data(&post("/v1/messages", &with(&with(&ask_it, call), json!({ "stream": true }))).body);
    let starts: Vec<_> = events.iter().filter(|event| event["type"] == "content_block_start").collect();
    assert_eq!((starts.len(), &starts[0]["content_block"]["type"]), (1, &json!("tool_use")), "{events:?}");
    let wrong = ask(url, "POST", "/v1/messages", &[], &with(&ask_it, json!({ "temperature": 9 })).to_string());
    assert_eq!(
        (wrong.status, &wrong.json()["error"]["type"]),
        (400, &json!("invalid_request_error")),
        "{}",
        wrong.body
    );
    let counted = ask(url, "POST", "/v1/messages/count_tokens", &[], &ask_it.to_string());
    assert!(counted.status == 400 && counted.body.contains("tokens"), "{}", counted.body);

    let ask_it = json!({ "model": NAME, "max_output_tokens": 8, "temperature": 0, "input": "What is 2+2?" });
    let whole = post("/v1/responses", &ask_it).json();
    assert_eq!(whole["output"][0]["content"][0]["text"], text, "{whole}");
    let events = data(&post("/v1/responses", &with(&ask_it, json!({ "stream": true }))).body);
    let said: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    let last = &events.last().unwrap()["response"];
    assert_eq!((&*said, &last["usage"], &last["status"]), (text, &whole["usage"], &json!("incomplete")));
    let tools = json!([{ "type": "function", "name": "weather", "parameters": schema }]);
    let call = json!({ "max_output_tokens": 60, "tools": tools, "tool_choice": "required" });
    let called = post("/v1/responses", &with(&ask_it, call)).json();
    assert_eq!(
        (&called["output"][0]["type"], &called["output"][0]["name"]),
        (&json!("function_call"), &json!("weather")),
        "{called}"
    );

    let options = json!({ "temperature": 0, "num_predict": 8 });
    let ask_it = json!({ "model": NAME, "options": options, "messages": question });
    let whole = post("/api/chat", &with(&ask_it, json!({ "stream": false }))).json();
    assert_eq!(
        (&whole["message"]["content"], &whole["done_reason"], &whole["eval_count"]),
        (&json!(text), &json!("length"), &json!(8))
    );
    let lines = post("/api/chat", &ask_it).body;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!((&*said, &lines.last().unwrap()["done"]), (text, &json!(true)));
    let generate = json!({ "model": NAME, "options": options, "prompt": "What is 2+2?", "stream": false });
    assert_eq!(post("/api/generate", &generate).json()["response"], text);
    let raw = post("/api/generate", &with(&generate, json!({ "raw": true, "prompt": "1, 2, 3, 4, 5," }))).json();
    assert_eq!(raw["eval_count"], 8, "{raw}");
    let format = json!({ "format": { "type": "object", "properties": { "n": { "enum": [4] } }, "required": ["n"] }, "options": { "num_predict": 40 } });
    let formed = post("/api/generate", &with(&generate, format)).json();
    let formed: Value = serde_json::from_str(formed["response"].as_str().unwrap()).unwrap();
    assert_eq!(formed, json!({ "n": 4 }));
}

fn ends(running: Running) {
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_server_that_runs_already_answers_the_swarm() {
    let (owner, second, third) = (Machine::new(), Machine::new(), Machine::new());
    let keys = second.path("keys");
    std::fs::write(&keys, format!("{KEY}\n")).unwrap();
    let keys = keys.to_str().unwrap();
    let elsewhere = Machine::new();
    let server = Server::start(&elsewhere, &["--slots", "1", "--exact", "--api-key-file", keys]);

    // The owner serves so that newcomers are let in, and lends nothing that is well: nobody listens at port 1.
    owner.json(&["swarm", "create"]);
    let (door, ready) = lend(&owner, "http://127.0.0.1:1", &[]);
    assert_eq!(ready["upstream"]["models"], json!([]), "{ready}");
    assert!(ready["upstream"]["trouble"].as_str().unwrap().contains("does not answer"), "{ready}");
    let (refused, exit) = owner.json(&["gateway", "--listen", "127.0.0.1:0"]);
    assert_eq!((refused["error"]["code"].as_str(), exit), (Some("no_model"), 1), "{refused}");

    // One line brings in the machine and what runs there.
    let line = invite(&owner);
    let args =
        ["join", &line, "--upstream", &server.url, "--upstream-key-file", keys, "--bind", "127.0.0.1:0", "--json"];
    let mut lending = second.start(&args);
    assert!(lending.object()["code"].is_string());
    let ready = lending.object();
    assert_eq!(ready["upstream"]["models"], json!([{ "name": NAME, "context": 1_024 }]), "{ready}");
    third.json(&["swarm", "join", &invite(&owner)]);

    // Whoever knows the owner alone finds it.
    let lenders = |machine: &Machine| machine.json(&["peers"]).0["lenders"].as_array().unwrap().clone();
    let mut found = Vec::new();
    wait_until("both lenders are known", || {
        found = lenders(&third);
        found.len() == 2
    });
    let of = |id: &Value| found.iter().find(|lender| lender["peer"] == *id).unwrap().clone();
    assert_eq!(of(&ready["id"])["models"][0]["name"], NAME, "{found:?}");
    let ill = found.iter().find(|lender| lender["trouble"].is_string()).expect("and what is wrong with the other");
    assert_eq!(ill["models"], json!([]));
    let told = format!("{found:?}");
    assert!(!told.contains(KEY) && !told.contains(&server.url), "neither key nor address: {told}");
    let (doctor, _) = third.json(&["doctor"]);
    let upstreams = doctor["findings"].as_array().unwrap().iter().filter(|finding| finding["id"] == "upstream");
    let how: std::collections::BTreeSet<_> = upstreams.map(|finding| finding["how"].as_str().unwrap()).collect();
    assert_eq!(how, ["ok", "warn"].into(), "{doctor}");

    let (running, url, ready) = gateway(&third, &[]);
    assert_eq!((&ready["model"], &ready["lent"]), (&Value::Null, &json!([NAME])), "{ready}");
    assert_eq!(listed(&url), [NAME]);
    assert_eq!(ask(&url, "GET", "/api/tags", &[], "").json()["models"][0]["name"], NAME);

    // The same answer as at the server itself, whole and streamed; what it counts comes with it.
    let key = ("authorization", &*format!("Bearer {KEY}"));
    let direct = ask(&server.url, "POST", CHAT, &[key], &chat("What is 2+2?", &json!({}))).json();
    let whole = ask(&url, "POST", CHAT, &[], &chat("What is 2+2?", &json!({})));
    assert_eq!(whole.status, 200, "{}", whole.body);
    let whole = whole.json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(direct["choices"][0]["message"]["content"], text);
    assert_eq!(whole["usage"]["completion_tokens"], direct["usage"]["completion_tokens"]);
    let streamed = chat("What is 2+2?", &json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let streamed = ask(&url, "POST", CHAT, &[], &streamed);
    assert_eq!(streamed.status, 200, "{}", streamed.body);
    let events = streamed.body;
    let deltas = events.lines().filter_map(|line| line.strip_prefix("data: {")).map(|rest| format!("{{{rest}"));
    let deltas: Vec<Value> = deltas.map(|json| serde_json::from_str(&json).unwrap()).collect();
    let said: String = deltas.iter().filter_map(|d| d["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text, "{events}");
    assert!(events.contains("data: [DONE]") && deltas.iter().any(|d| d["usage"].is_object()), "{events}");
    let latest = chat("Hi", &json!({ "model": format!("{NAME}:latest") }));
    assert_eq!(ask(&url, "POST", CHAT, &[], &latest).status, 200, "as Ollama's clients say it");
    let embedded = ask(&url, "POST", "/v1/embeddings", &[], &json!({ "model": NAME, "input": "x" }).to_string());
    assert_eq!(embedded.json()["data"][0]["embedding"].as_array().unwrap().len(), 576);
    // A server's own refusal is the caller's to read.
    let wrong = ask(&url, "POST", CHAT, &[], &chat("Hi", &json!({ "temperature": 9 })));
    assert_eq!((wrong.status, &*code(&wrong)), (400, "invalid_value"), "{}", wrong.body);

    other_apis_say_the_same(&url, &text);
    let embeddings = ask(&url, "POST", "/api/embed", &[], &json!({ "model": NAME, "input": ["x", "y"] }).to_string());
    let embeddings = embeddings.json()["embeddings"].clone();
    // The same numbers, written with more digits by the one than by the other.
    let numbers = |list: &Value| -> Vec<f32> {
        list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
    };
    assert_eq!(embeddings.as_array().unwrap().len(), 2);
    assert!(numbers(&embeddings[0]) == numbers(&embedded.json()["data"][0]["embedding"]), "another embedding");

    // No other way of asking.
    assert_eq!(ask(&url, "GET", CHAT, &[], "").status, 405);
    assert_eq!(ask(&url, "POST", "/v1/models", &[], "{}").status, 405);
    assert_eq!(ask(&url, "POST", "/v1/chat/completions/../../metrics", &[], &chat("Hi", &json!({}))).status, 404);
    let missing = ask(&url, "POST", CHAT, &[], &chat("Hi", &json!({ "model": "absent" })));
    assert_eq!((missing.status, &*code(&missing)), (404, "model_not_found"));

    // A client that hangs up stops the server, two machines away.
    let long = chat("Count to a thousand.", &json!({ "stream": true, "max_tokens": 900, "ignore_eos": true }));
    let story = json!({ "model": NAME, "stream": true, "prompt": "1, 2, 3, 4, 5, 6,", "raw": true, "options": { "num_predict": 900 } });
    for (path, body, first) in [(CHAT, long, "content"), ("/api/generate", story.to_string(), "response")] {
        let mut stream = send(&url, "POST", path, &[], &body);
        assert_eq!(status(&mut stream), 200);
        let mut event = String::new();
        while !event.contains(first) {
            event.clear();
            stream.read_line(&mut event).unwrap();
        }
        let metrics = |key| ask(&server.url, "GET", "/metrics", &[key], "").body;
        assert!(metrics(key).contains("vllm:num_requests_running 1"), "the first words are here while it goes on");
        assert_eq!(metric(&url, "potluck_lent_requests_running"), 1.0);
        drop(stream);
        wait_until("the server has stopped", || metrics(key).contains("vllm:num_requests_running 0"));
        wait_until("the turn is free", || metric(&url, "potluck_lent_requests_running") == 0.0);
    }

    // The server falls over: its lender lists it no more, and says why to whoever asks.
    server.running.signal("KILL");
    let mut refused = ask(&url, "POST", CHAT, &[], &chat("Hi", &json!({})));
    wait_until("it is refused", || {
        refused = ask(&url, "POST", CHAT, &[], &chat("Hi", &json!({})));
        refused.status != 200
    });
    let reasons = ["upstream_lost", "not_lent"];
    assert!(refused.status == 503 && reasons.contains(&&*code(&refused)), "{} {}", refused.status, refused.body);
    wait_until("it is listed no more", || listed(&url).is_empty());
    drop(server);
    ends(running);
    ends(lending);
    ends(door);
    [&owner, &second, &third].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

#[test]
fn two_that_lend_the_same_share_the_work_and_one_is_enough() {
    let (owner, second) = (Machine::new(), Machine::new());
    let elsewhere = [Machine::new(), Machine::new()];
    let [one, other] = elsewhere.each_ref().map(|machine| Server::start(machine, &[]));
    owner.json(&["swarm", "create"]);
    let (first, _) = lend(&owner, &one.url, &[]);
    second.json(&["swarm", "join", &invite(&owner)]);
    let (last, _) = lend(&second, &format!("{}/v1/", other.url), &[]);
    // At a machine that lends itself, and has no model.
    let (running, url, ready) = gateway(&owner, &[]);
    assert_eq!(ready["lent"], json!([NAME]), "each model once: {ready}");
    let answered = |text: &str| {
        let answer = ask(&url, "POST", CHAT, &[], &chat(text, &json!({})));
        (answer.status, answer.body)
    };
    wait_until("both are asked", || {
        assert_eq!(answered("Hi").0, 200);
        one.answers() > 0.0 && other.answers() > 0.0
    });
    let before = (one.answers(), other.answers());
    for n in 0..6 {
        assert_eq!(answered(&format!("Say {n}.")).0, 200);
    }
    let after = (one.answers() - before.0, other.answers() - before.1);
    assert!(after.0 >= 2.0 && after.1 >= 2.0 && after.0 + after.1 == 6.0, "in turn: {after:?}");
    assert!(one.is_idle() && other.is_idle());

    // One server falls over: whoever asks does not notice.
    one.running.signal("KILL");
    for n in 0..4 {
        let (status, body) = answered(&format!("And {n}?"));
        assert_eq!(status, 200, "{body}");
    }
    // Then its lender's process, too, in the middle of nothing: nor now.
    first.signal("KILL");
    for n in 0..4 {
        let (status, body) = answered(&format!("And {n} again?"));
        assert_eq!(status, 200, "{body}");
    }
    assert_eq!(listed(&url), [NAME]);
    // And the last one: an error with a reason, and a time to come again.
    last.signal("KILL");
    drop((first, last));
    let mut refused = (0, String::new());
    wait_until("nobody is left", || {
        refused = answered("Anybody?");
        refused.0 != 200
    });
    assert!(refused.0 == 503 && refused.1.contains("code"), "{refused:?}");
    wait_until("nothing is listed", || listed(&url).is_empty());
    assert_eq!(answered("Anybody?").0, 503, "a model that was there is nobody's now, rather than unknown");
    ends(running);
}

#[test]
fn a_gateway_in_front_of_a_swarm_is_not_lent_back_to_it() {
    let (owner, elsewhere) = (Machine::new(), Machine::new());
    let server = Server::start(&elsewhere, &["--alias", "gpt-4o"]);
    owner.json(&["swarm", "create"]);
    let (lending, _) = lend(&owner, &server.url, &[]);
    // An own model beside what is lent: the own one goes before.
    let model = model();
    let (running, url, ready) =
        gateway(&owner, &["--model", &model, "--context", "512", "--threads", "1", "--slots", "1", "--alias", "small"]);
    assert_eq!((&ready["model"], &ready["lent"]), (&json!(NAME), &json!(["gpt-4o"])), "{ready}");
    assert_eq!(listed(&url), [NAME, "small", "gpt-4o"]);
    let answers = server.answers();
    assert_eq!(ask(&url, "POST", CHAT, &[], &chat("Hi", &json!({}))).status, 200);
    assert_eq!(server.answers(), answers, "its own model answers");
    assert_eq!(ask(&url, "POST", CHAT, &[], &chat("Hi", &json!({ "model": "gpt-4o" }))).status, 200);
    assert_eq!(server.answers(), answers + 1.0);
    // A member that lends this gateway lends what is its own, not what it passes on.
    let second = Machine::new();
    second.json(&["swarm", "join", &invite(&owner)]);
    let (circle, ready) = lend(&second, &url, &[]);
    let names: Vec<_> = ready["upstream"]["models"].as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, [NAME, "small"], "{ready}");
    [circle, running, lending].into_iter().for_each(ends);
}

#[test]
fn a_stranger_finds_nobody_who_lends_and_nonsense_is_refused() {
    let (owner, stranger) = (Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let (lending, _) = lend(&owner, "http://127.0.0.1:1", &[]);
    stranger.json(&["swarm", "create"]);
    let contacts = |machine: &Machine| {
        let path = machine.path("home/swarm.json");
        let text = std::fs::read_to_string(&path).unwrap();
        (path, serde_json::from_str::<Value>(&text).unwrap())
    };
    let (path, mut own) = contacts(&stranger);
    own["contacts"] = contacts(&owner).1["contacts"].clone();
    std::fs::write(&path, own.to_string()).unwrap();
    let (peers, _) = stranger.json(&["peers"]);
    assert_eq!((&peers["lenders"], peers["silent"].as_array().unwrap().len()), (&json!([]), 1), "{peers}");
    for (args, expected) in [
        (&["serve", "--upstream", "ftp://127.0.0.1"][..], "usage"),
        (&["serve", "--upstream", "http://me:secret@127.0.0.1"], "usage"),
        (&["serve", "--upstream", "http://127.0.0.1:1", "--layers", "0..4"], "usage"),
        (&["serve", "--upstream", "http://127.0.0.1:1", "--auto"], "usage"),
        (&["serve", "--upstream", "http://127.0.0.1:1", "--upstream-key-file", "/nowhere"], "io"),
    ] {
        let (refused, _) = stranger.json(args);
        assert_eq!(refused["error"]["code"], expected, "{args:?}: {refused}");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
    ends(lending);
}

/// What ends a stream as OpenAI's API has it.
const DONE: &str = "data: [DONE]\n\n";

/// A question to the model `odd` in each API that is put in OpenAI's words.
fn questions() -> [(&'static str, Value); 4] {
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    [
        ("/v1/messages", json!({ "model": "odd", "max_tokens": 8, "messages": messages })),
        ("/v1/responses", json!({ "model": "odd", "input": "Hi" })),
        ("/api/chat", json!({ "model": "odd", "messages": messages })),
        ("/api/generate", json!({ "model": "odd", "prompt": "Hi" })),
    ]
}

fn post(url: &str, path: &str, body: &Value, stream: bool) -> Answer {
    let mut body = body.clone();
    body["stream"] = stream.into();
    ask(url, "POST", path, &[], &body.to_string())
}

/// An error's text, in the shape of the API that was asked.
fn error_of(path: &str, answer: &Value) -> String {
    let text = match path {
        "/v1/messages" => {
            assert_eq!(answer["type"], "error", "{answer}");
            &answer["error"]["message"]
        }
        "/v1/responses" => &answer["error"]["message"],
        _ => &answer["error"],
    };
    text.as_str().unwrap_or_else(|| panic!("{path}: {answer}")).to_owned()
}

#[test]
fn what_a_lender_s_server_says_wrong_is_said_in_each_api_s_words() {
    let (owner, odd) = (Machine::new(), Odd::start());
    owner.json(&["swarm", "create"]);
    let (lending, _) = lend(&owner, &odd.url, &[]);
    let (running, url, ready) = gateway(&owner, &[]);
    assert_eq!(ready["lent"], json!(["odd"]), "{ready}");

    let refusal = json!({ "error": { "message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": "invalid_value" } });
    let long = json!({ "error": { "message": "too long", "type": "exceed_context_size_error", "code": 400 } });
    let late = chunks(std::slice::from_ref(&long));
    let half = json!({ "content": "half" });
    for (says, status, words, what) in [
        (Says::Refusal(400, refusal), 400, "too hot", "invalid_value"),
        (Says::Refusal(500, json!("x")), 503, "answered 500", "upstream_error"),
        (Says::Refusal(400, long), 400, "too long", "context_length_exceeded"),
        (Says::Stream(late), 400, "too long", "context_length_exceeded"),
        (Says::Stream("data: nonsense\n\n".into()), 503, "no answer that can be read", "upstream_protocol"),
        (Says::Stream(DONE.into()), 503, "broke off", "upstream_protocol"),
        (Says::Stream(String::new()), 503, "broke off", "upstream_protocol"),
        (Says::Endless, 503, "longer than", "upstream_protocol"),
    ] {
        odd.says(says);
        for (path, question) in questions() {
            for stream in [false, true] {
                let answer = post(&url, path, &question, stream);
                assert_eq!(answer.status, status, "{path} {words}: {}", answer.body);
                let text = error_of(path, &answer.json());
                assert!(text.contains(words), "{path}: {text}");
                if path == "/v1/responses" {
                    assert_eq!(code(&answer), what, "{}", answer.body);
                }
            }
        }
    }
    wait_until("the endless answers are stopped", || odd.left() == 8);

    // What has been said is not taken back: the stream says what is wrong, and ends.
    let begun = chunks(&[half]);
    for end in [String::new(), DONE.into(), chunks(&[json!({ "error": "lost" })])] {
        odd.says(Says::Stream(format!("{begun}{end}")));
        for (path, question) in questions() {
            assert_eq!(post(&url, path, &question, false).status, 503, "{path}");
            let answer = post(&url, path, &question, true);
            assert!(answer.status == 200 && answer.body.contains("half"), "{path}: {}", answer.body);
            let events = if path.starts_with("/v1/") { data(&answer.body) } else { lines(&answer.body) };
            let last = events.last().unwrap();
            let error = if path == "/v1/responses" { &last["response"] } else { last };
            assert!(!error_of(path, error).is_empty() && last["done"] != true, "{path}: {}", answer.body);
            assert!(!answer.body.contains("message_stop") && !answer.body.contains("response.completed"));
        }
    }
    ends(running);
    ends(lending);
}

fn lines(body: &str) -> Vec<Value> {
    body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_lent_model_s_calls_and_silences_reach_whoever_asked() {
    let (owner, odd) = (Machine::new(), Odd::start());
    owner.json(&["swarm", "create"]);
    let (lending, _) = lend(&owner, &odd.url, &[]);
    let (running, url, _) = gateway(&owner, &[]);
    let [messages, responses, chat, _] = questions();
    let with = |(path, mut body): (&'static str, Value), more: Value| {
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (path, body)
    };
    let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    let function = json!({ "name": "weather", "parameters": schema });

    // Two calls after a word, numbered as Ollama does; what it thinks is left out; how many tokens there were it does not say.
    let call = |id: &str, city: &str| {
        let arguments = json!({ "city": city }).to_string();
        let function = json!({ "name": "weather", "arguments": arguments });
        json!({ "tool_calls": [{ "index": 0, "id": id, "type": "function", "function": function }] })
    };
    let said = [json!({ "reasoning": "hm" }), json!({ "content": "I look." }), call("c1", "Rome"), call("c2", "Oslo")];
    odd.says(Says::Stream(chunks(&[&said[..], &[json!("tool_calls")]].concat()) + DONE));
    let tools = json!({ "tools": [{ "name": "weather", "input_schema": schema }] });
    let (path, body) = with(messages.clone(), tools.clone());
    let whole = post(&url, path, &body, false).json();
    let kinds = |blocks: &[&Value]| -> Vec<String> {
        blocks.iter().map(|block| block["type"].as_str().unwrap().to_owned()).collect()
    };
    let blocks: Vec<_> = whole["content"].as_array().unwrap().iter().collect();
    assert_eq!(
        (kinds(&blocks), &whole["stop_reason"]),
        (vec!["text".into(), "tool_use".into(), "tool_use".into()], &json!("tool_use"))
    );
    assert_eq!(
        (&blocks[0]["text"], &blocks[2]["id"], &blocks[2]["input"]),
        (&json!("I look."), &json!("c2"), &json!({ "city": "Oslo" }))
    );
    let asked = odd.asked();
    assert_eq!(asked["tools"], json!([{ "type": "function", "function": function }]), "{asked}");
    assert_eq!((&asked["max_tokens"], &asked["stream"], asked.get("temperature")), (&json!(8), &json!(true), None));
    let streamed = post(&url, path, &body, true).body;
    let events = data(&streamed);
    let starts: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "content_block_start")
        .map(|event| &event["content_block"])
        .collect();
    assert_eq!(kinds(&starts), ["text", "tool_use", "tool_use"], "{streamed}");
    let inputs: Vec<_> = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(inputs, [r#"{"city":"Rome"}"#, r#"{"city":"Oslo"}"#]);
    let (path, silent) = with((path, body), json!({ "tool_choice": { "type": "none" } }));
    odd.says(Says::Stream(chunks(&[json!({ "content": "No." }), json!("stop")])));
    let whole = post(&url, path, &silent, false).json();
    assert_eq!((&whole["content"][0]["text"], &whole["stop_reason"]), (&json!("No."), &json!("end_turn")));
    assert!(odd.asked().get("tools").is_none(), "what is not to be called is not sent: {}", odd.asked());

    odd.says(Says::Stream(chunks(&[&said[..], &[json!("tool_calls")]].concat()) + DONE));
    let (path, body) =
        with(responses, json!({ "tools": [{ "type": "function", "name": "weather", "parameters": schema }] }));
    for stream in [false, true] {
        let answer = post(&url, path, &body, stream);
        let whole = if stream { data(&answer.body).last().unwrap()["response"].clone() } else { answer.json() };
        let items: Vec<_> = whole["output"].as_array().unwrap().iter().collect();
        assert_eq!(kinds(&items), ["message", "function_call", "function_call"], "{whole}");
        assert_eq!((&items[1]["call_id"], &items[2]["arguments"]), (&json!("c1"), &json!(r#"{"city":"Oslo"}"#)));
        assert_eq!((&whole["status"], &whole["usage"]), (&json!("completed"), &Value::Null), "it was not said");
    }
    let (path, body) = with(chat.clone(), json!({ "tools": [{ "type": "function", "function": function }] }));
    for stream in [false, true] {
        let lines = lines(&post(&url, path, &body, stream).body);
        let text: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
        let calls: Vec<_> =
            lines.iter().filter_map(|line| line["message"]["tool_calls"].as_array()).flatten().collect();
        assert_eq!(
            (&*text, calls.len(), &calls[1]["function"]["arguments"]),
            ("I look.", 2, &json!({ "city": "Oslo" }))
        );
        let last = lines.last().unwrap();
        assert_eq!((&last["done"], last.get("eval_count")), (&json!(true), None), "{last}");
    }
    let shown = ask(&url, "POST", "/api/show", &[], &json!({ "model": "odd" }).to_string()).json();
    assert_eq!(shown["capabilities"], json!(["completion", "tools"]));

    // Who hangs up before the first word, or after it, streamed or not, stops the server.
    for (nth, (says, stream)) in [("", false), ("", true), ("half", false), ("half", true)].into_iter().enumerate() {
        let words = if says.is_empty() { String::new() } else { chunks(&[json!({ "content": says })]) };
        odd.says(Says::Silence(words));
        let (path, mut body) = messages.clone();
        body["stream"] = stream.into();
        let times = odd.times();
        let mut waiting = send(&url, "POST", path, &[], &body.to_string());
        wait_until("it is asked", || odd.times() > times);
        assert_eq!(metric(&url, "potluck_lent_requests_running"), 1.0);
        if stream {
            assert_eq!(status(&mut waiting), 200);
        }
        drop(waiting);
        wait_until("it is stopped", || odd.left() == nth + 1);
        wait_until("the turn is free", || metric(&url, "potluck_lent_requests_running") == 0.0);
    }
    ends(running);
    ends(lending);
}
