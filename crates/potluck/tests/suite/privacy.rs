//! What stays on the client's machine, and whose machines may hold the rest: in a swarm, in front of a gateway, and in one command.

use std::thread;

use serde_json::{Value, json};

use crate::machine::{Machine, Running, children, http::ask, model, wait_until};

/// So little that the small model does not fit, but for a few layers of each end.
const MEMORY: &str = "85MB";

/// An owner that lends these layers, and a client of its swarm that knows it.
fn swarm(layers: &str) -> (Machine, Running, Machine, String) {
    let (owner, client) = (Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let fixed = ["--bind", "127.0.0.1:0", "--threads", "1", "--exact", "--context", "512", "--json"];
    let mut serving = owner.start(&[&["serve", "--model", &model(), "--layers", layers], &fixed[..]].concat());
    let peer = serving.object()["id"].as_str().unwrap().to_owned();
    let line = owner.json(&["swarm", "invite"]).0["invitation"].as_str().unwrap().to_owned();
    assert_eq!(client.json(&["swarm", "join", &line]).1, 0);
    (owner, serving, client, peer)
}

fn run(client: &Machine, more: &[&str]) -> (Value, i32) {
    let model = model();
    let fixed = ["run", "Hello", "--model", &model, "--max-tokens", "16", "--temperature", "0", "--threads", "1"];
    client.json(&[&fixed[..], &["--context", "512", "--exact"], more].concat())
}

/// Each stage's layers, and what whoever runs it sees.
fn route(answer: &Value) -> Vec<(String, String)> {
    let stages = answer["route"].as_array().unwrap_or_else(|| panic!("{answer}"));
    stages.iter().map(|stage| (stage["layers"].to_string(), stage["sees"].as_str().unwrap().to_owned())).collect()
}

fn stages(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(layers, sees)| ((*layers).to_owned(), (*sees).to_owned())).collect()
}

#[test]
fn hidden_layers_stay_here_and_the_answer_is_the_same() {
    let (owner, serving, client, _) = swarm("2..28");
    let (alone, _) = run(&client, &["--local"]);
    let ends = stages(&[("[0,2]", "own"), ("[2,28]", "hidden_states"), ("[28,30]", "own")]);
    // Where the ends fit, they stay: nobody has to ask for it.
    for more in [&["--memory", MEMORY][..], &["--memory", MEMORY, "--hide-layers", "2", "--pad"]] {
        let (answer, code) = run(&client, more);
        assert_eq!((route(&answer), code), (ends.clone(), 0), "{answer}");
        assert_eq!(answer["tokens"], alone["tokens"], "{more:?}");
    }
    let (refused, code) = run(&client, &["--memory", MEMORY, "--hide-layers", "3"]);
    assert_eq!((refused["error"]["code"].as_str(), code), (Some("no_route"), 1), "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("the first and the last 3 layers") && message.contains("no peers fill the middle"),
        "{message}"
    );
    let (refused, _) = run(&client, &["--memory", "60MB", "--hide-layers", "2"]);
    assert!(refused["error"]["message"].as_str().unwrap().contains("it gives 0.06 GB"), "{refused}");
    assert!(refused["error"]["hint"].as_str().unwrap().contains("--memory"), "{refused}");
    let (refused, code) = run(&client, &["--prefer", "swarm", "--hide-layers", "2"]);
    assert_eq!((refused["error"]["code"].as_str(), code), (Some("usage"), 2), "{refused}");

    // A gateway's sessions share two engines, and what they are asked at once is answered as if it were asked alone.
    let fixed =
        ["gateway", "--listen", "127.0.0.1:0", "--model", &model(), "--context", "512", "--exact", "--slots", "2"];
    let more = ["--threads", "1", "--hide-layers", "2", "--memory", "90MB", "--json"];
    let mut gateway = client.start(&[&fixed[..], &more].concat());
    let ready = gateway.object();
    assert_eq!(ready["peers"], json!([]), "it started none: {ready}");
    let (url, name) = (ready["url"].as_str().unwrap().to_owned(), ready["model"].clone());
    let engines = || children(gateway.child.id()).len();
    assert_eq!(engines(), 3, "both ends and the vocabulary");
    let chat = |say: &str| {
        let body = json!({ "model": name, "max_tokens": 12, "temperature": 0, "messages": [{ "role": "user", "content": say }] });
        let (url, body) = (url.clone(), body.to_string());
        thread::spawn(move || ask(&url, "POST", "/v1/chat/completions", &[], &body).json())
    };
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().map(str::to_owned);
    let alone = ["Hello", "Count to nine."].map(|say| text(&chat(say).join().unwrap()));
    let both = ["Hello", "Count to nine."].map(chat).map(|answer| text(&answer.join().unwrap()));
    assert!(alone.iter().all(|text| text.as_ref().is_some_and(|text| !text.is_empty())), "{alone:?}");
    assert_eq!(both, alone);
    assert_eq!(engines(), 3);
    for running in [gateway, serving] {
        running.signal("TERM");
        assert_eq!(running.end().0, Some(0));
    }
    [&owner, &client].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

#[test]
fn layers_go_to_those_on_the_list_alone() {
    let (owner, serving, client, peer) = swarm("0..30");
    let only = ["--memory", "1MB", "--only", "trusted"];
    let refused = || {
        let (refused, code) = run(&client, &only);
        assert_eq!((refused["error"]["code"].as_str(), code), (Some("no_route"), 1), "{refused}");
        let hint = refused["error"]["hint"].as_str().unwrap();
        assert!(hint.contains("potluck swarm trust"), "{refused}");
    };
    wait_until("the offer is known", || run(&client, &only[..2]).1 == 0);
    refused();
    assert_eq!(client.json(&["swarm", "trust", &peer]).0, json!({ "trusted": [&peer] }));
    let (answer, code) = run(&client, &only);
    assert_eq!((route(&answer), code), (stages(&[("[0,30]", "everything")]), 0), "{answer}");
    let (plan, _) = client.json(&["model", "plan", &model(), "--context", "512", "--only", "trusted"]);
    assert_eq!(plan["stages"][0]["sees"], "own", "one's own machine is trusted: {plan}");
    assert_eq!(client.json(&["swarm", "trust", "--remove", &peer]).0, json!({ "trusted": [] }));
    refused();
    assert_eq!(client.json(&["swarm", "trust", "--remove", &peer]).1, 2, "it is not on the list");
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0));
    [&owner, &client].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

#[test]
fn a_commands_own_peers_get_what_is_left() {
    let machine = Machine::new();
    let tokens = |more: &[&str]| machine.answer("Hello", 12, &[&["--exact", "--context", "512"], more].concat());
    let alone = tokens(&["--local"])["tokens"].clone();
    let answer = tokens(&["--peers", "2", "--hide-layers", "3", "--pad"]);
    assert_eq!(answer["tokens"], alone);
    let layers: Vec<_> = route(&answer).into_iter().map(|(layers, _)| layers).collect();
    assert_eq!(layers, ["[0,3]", "[3,15]", "[15,27]", "[27,30]"]);
    let (refused, code) = run(&machine, &["--peers", "1", "--hide-layers", "15"]);
    assert_eq!((refused["error"]["code"].as_str(), code), (Some("usage"), 2), "{refused}");
    assert!(refused["error"]["hint"].as_str().unwrap().contains("--local"), "{refused}");
}
