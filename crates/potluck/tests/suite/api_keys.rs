//! API keys that are grants: a gateway takes those of its swarm, as far as each goes.

use serde_json::{Value, json};

use crate::machine::{Machine, http::ask, model, wait_until};

/// The model's name in the catalogue.
const NAME: &str = "SmolLM2-135M-Instruct.Q4_1";

/// Asks for a few tokens with that key: the status, and what is wrong.
fn asked(url: &str, key: Option<&str>, tokens: u32) -> (u16, Value) {
    let body = json!({
        "model": NAME,
        "messages": [{ "role": "user", "content": "Count to twenty." }],
        "temperature": 0,
        "max_tokens": tokens,
    });
    let bearer = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    let answer = ask(url, "POST", "/v1/chat/completions", &headers, &body.to_string());
    (answer.status, answer.json()["error"]["code"].clone())
}

#[test]
fn a_key_that_the_swarm_granted_goes_as_far_as_its_grant() {
    let machine = Machine::new();
    machine.json(&["swarm", "create"]);
    let model = model();
    let (added, code) = machine.json(&["model", "add", &model]);
    assert_eq!(code, 0, "{added}");
    let granted = |more: &[&str]| {
        let (granted, code) = machine.json(&[&["swarm", "grant", "--api-key"], more].concat());
        assert_eq!(code, 0, "{granted}");
        let [key, holder] = ["api_key", "key"].map(|name| granted[name].as_str().unwrap().to_owned());
        (key, holder)
    };
    let (any, holder) = granted(&[]);
    let (this, _) = granted(&["--only-model", NAME]);
    let (other, _) = granted(&["--only-model", &"7".repeat(64)]);
    let (looks, _) = granted(&["--role", "auditor"]);
    let (few, _) = granted(&["--tokens-per-day", "70"]);
    let (elsewhere, _) = {
        let stranger = Machine::new();
        stranger.json(&["swarm", "create"]);
        let (granted, _) = stranger.json(&["swarm", "grant", "--api-key"]);
        (granted["api_key"].as_str().unwrap().to_owned(), ())
    };

    // At an address that others reach, whoever shows no key is refused.
    let gateway =
        ["gateway", "--model", &model, "--local", "--listen", "0.0.0.0:0", "--threads", "1", "--context", "512"];
    let start = || {
        let mut running = machine.start(&[&gateway[..], &["--json"]].concat());
        let url = running.object()["url"].as_str().unwrap().replace("0.0.0.0", "127.0.0.1");
        (running, url)
    };
    let (running, url) = start();
    let refused = |code: &str| (401, json!(code));
    assert_eq!(asked(&url, None, 4), refused("invalid_api_key"));
    assert_eq!(asked(&url, Some("sk-ptl-AAAA"), 4), refused("invalid_api_key"));
    assert_eq!(asked(&url, Some(&elsewhere), 4), refused("invalid_api_key"), "another swarm's");
    for key in [&any, &this] {
        assert_eq!(asked(&url, Some(key), 4), (200, Value::Null));
    }
    for key in [&other, &looks] {
        assert_eq!(asked(&url, Some(key), 4), (403, json!("permission_denied")));
    }

    // Nor does it change what is on this machine.
    let (bearer, body) = (format!("Bearer {any}"), json!({ "model": NAME }).to_string());
    let deleted = ask(&url, "DELETE", "/api/delete", &[("authorization", &bearer)], &body);
    assert_eq!(deleted.status, 403, "{}", deleted.body);

    // The prompt has some 35 tokens.
    assert_eq!(asked(&url, Some(&few), 4).0, 200);
    assert_eq!(
        asked(&url, Some(&few), 200),
        (429, json!("insufficient_quota")),
        "in the midst of its answer, at the latest"
    );
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
    let (running, url) = start();
    assert_eq!(asked(&url, Some(&few), 4), (429, json!("insufficient_quota")), "a restart gives nothing back");
    assert_eq!(asked(&url, Some(&any), 4).0, 200);

    // Taken back by another command of this machine, while the gateway runs.
    let (revoked, code) = machine.json(&["swarm", "revoke", &holder]);
    assert_eq!(code, 0, "{revoked}");
    wait_until("it is refused", || asked(&url, Some(&any), 4) == refused("invalid_api_key"));
    assert_eq!(asked(&url, Some(&this), 4).0, 200);
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
}
