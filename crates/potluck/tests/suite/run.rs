//! The contract of `potluck run --json`, and the promise that a chain gives the whole model's answer.

use serde_json::Value;

use crate::machine::Machine;

const PROMPTS: [&str; 3] =
    ["Explain in two sentences why the sky is blue.", "List five animals.", "def fibonacci(n):\n    \"\"\"Return"];

fn tokens(answer: &Value) -> Vec<u64> {
    answer["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect()
}

fn check_contract(answer: &Value, max_tokens: usize) {
    let tokens = tokens(answer);
    assert!(answer["text"].is_string());
    assert_eq!(answer["completion_tokens"], tokens.len());
    assert!(tokens.len() <= max_tokens);
    assert!(matches!(answer["finish_reason"].as_str(), Some("stop" | "length")), "{answer}");
    assert!(answer["prompt_tokens"].as_u64().unwrap() > 0);
    for rate in ["ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s"] {
        assert!(answer[rate].as_f64().unwrap() > 0.0, "{rate} in {answer}");
    }
    assert!(answer["bytes_per_position"].is_f64());
}

fn layers(answer: &Value) -> Vec<(u64, u64)> {
    let pair = |stage: &Value| (stage["layers"][0].as_u64().unwrap(), stage["layers"][1].as_u64().unwrap());
    answer["route"].as_array().unwrap().iter().map(pair).collect()
}

#[test]
fn local_is_one_stage_on_this_machine() {
    let machine = Machine::new();
    let answer = machine.answer(PROMPTS[0], 16, &["--local"]);
    check_contract(&answer, 16);
    assert_eq!(
        answer["route"],
        serde_json::json!([{ "peer": "self", "layers": [0, 30], "path": "self", "sees": "own", "rtt_ms": 0.0 }])
    );
    assert_eq!(answer["bytes_per_position"], 0.0);
    machine.wait_until_empty(&[]);
}

#[test]
fn three_peers_hold_all_layers_and_the_command_none() {
    let machine = Machine::new();
    let answer = machine.answer(PROMPTS[0], 16, &["--peers", "3", "--ignore-eos"]);
    check_contract(&answer, 16);
    assert_eq!(tokens(&answer).len(), 16);
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(layers(&answer), [(0, 10), (10, 20), (20, 30)]);
    let stages = answer["route"].as_array().unwrap();
    let mut ids: Vec<_> = stages.iter().map(|stage| stage["peer"].as_str().unwrap()).collect();
    assert!(ids.iter().all(|id| id.len() == 64), "{ids:?}");
    ids.dedup();
    assert_eq!(ids.len(), 3, "each peer has a key of its own");
    assert!(stages.iter().all(|stage| stage["path"] == "loopback" && stage["rtt_ms"].as_f64().unwrap() > 0.0));
    // Two hops of 576 values in f16, tokens in, logits out: a little more than the values alone.
    let bytes = answer["bytes_per_position"].as_f64().unwrap();
    assert!((2.0 * 576.0 * 2.0..2.0 * 576.0 * 2.0 + 400.0).contains(&bytes), "{bytes}");
    machine.wait_until_empty(&[]);
}

#[test]
fn any_number_of_stages_gives_the_whole_models_256_tokens() {
    let machine = Machine::new();
    for prompt in &PROMPTS[..2] {
        let ask = |more: &[&str]| {
            let fixed = ["--ignore-eos", "--raw"];
            tokens(&machine.answer(prompt, 256, &[&fixed, more].concat()))
        };
        let whole = ask(&["--local", "--exact"]);
        assert_eq!(whole.len(), 256);
        for peers in ["2", "3", "5", "10"] {
            assert_eq!(ask(&["--peers", peers, "--codec", "f32"]), whole, "{peers} stages, {prompt}");
        }
    }
}

#[test]
fn own_ends_and_a_chat_template_change_nothing_either() {
    let machine = Machine::new();
    let ask = |more: &[&str]| tokens(&machine.answer(PROMPTS[2], 96, &[&["--exact"], more].concat()));
    let whole = ask(&["--local"]);
    assert_eq!(ask(&["--peers", "3"]), whole);
    assert_eq!(ask(&["--peers", "1", "--own-ends"]), whole, "with the ends on this machine");
}

#[test]
fn own_ends_stay_here() {
    let machine = Machine::new();
    let answer = machine.answer(PROMPTS[1], 8, &["--peers", "2", "--own-ends"]);
    assert_eq!(layers(&answer), [(0, 1), (1, 15), (15, 29), (29, 30)]);
    let paths: Vec<_> =
        answer["route"].as_array().unwrap().iter().map(|stage| stage["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["self", "loopback", "loopback", "self"]);
    machine.wait_until_empty(&[]);
}

#[test]
fn sampling_is_the_clients_wherever_the_model_runs() {
    let machine = Machine::new();
    let ask = |more: &[&str]| {
        let fixed = ["--exact", "--temperature", "1.1", "--top-k", "0", "--repeat-penalty", "1.1"];
        machine.run_prompt(PROMPTS[1], &[&fixed, more].concat())["text"].clone()
    };
    assert_eq!(ask(&["--local", "--seed", "7"]), ask(&["--peers", "2", "--seed", "7"]));
    assert_ne!(ask(&["--local", "--seed", "7"]), ask(&["--local", "--seed", "8"]), "the seed matters");
}

#[test]
fn a_schema_and_a_stop_text_shape_the_answer() {
    let machine = Machine::new();
    let schema = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer"}},"required":["name","age"],"additionalProperties":false}"#;
    let answer = machine.answer("Invent a person.", 64, &["--peers", "2", "--json-schema", schema]);
    let person: Value = serde_json::from_str(answer["text"].as_str().unwrap()).unwrap();
    assert!(person["name"].is_string() && person["age"].is_i64(), "{person}");
    let counted = machine.answer("1 2 3 4 5 6 7", 32, &["--local", "--raw", "--stop", "12"]);
    assert_eq!(counted["finish_reason"], "stop");
    assert!(!counted["text"].as_str().unwrap().contains("12"), "{counted}");
}

#[test]
fn logprobs_come_with_their_alternatives() {
    let answer = Machine::new().answer("Hello", 4, &["--peers", "2", "--logprobs", "3"]);
    let logprobs = answer["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), tokens(&answer).len());
    assert!(answer["logprobs"].to_string().len() > 4 * 3 * 2, "{answer}");
}
