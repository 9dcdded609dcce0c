//! `--draft-model`, through the program: the answer is the one without it, and a model that cannot draft is refused.

use std::fs;

use serde_json::Value;

use crate::machine::{Machine, NEAR_TIE, model, web::tiny_model};

/// Tokens of each answer.
const TOKENS: u32 = 64;

fn tokens(answer: &Value) -> Vec<u64> {
    answer["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect()
}

fn count(answer: &Value, what: &str) -> u64 {
    answer["drafts"][what].as_u64().unwrap_or_else(|| panic!("no {what} of drafts in {answer}"))
}

/// Whether both say the same. Where they part, the other's token has to be as good as the plain answer's own: from
/// there on each answers another text. Nothing is equal bit for bit here, for what is exact (`--exact`) drafts nothing.
fn check_same(plain: &Value, drafted: &Value) {
    let (own, others) = (tokens(plain), tokens(drafted));
    assert_eq!((own.len(), others.len()), (TOKENS as usize, TOKENS as usize));
    let Some(at) = (0..own.len()).find(|&at| own[at] != others[at]) else {
        assert_eq!(plain["text"], drafted["text"]);
        return;
    };
    let entry = &plain["logprobs"][at];
    let likeliest = entry["top"].as_array().unwrap();
    let logprob = |token: u64| likeliest.iter().find(|pair| pair[0] == token).and_then(|pair| pair[1].as_f64());
    let margin = logprob(own[at]).zip(logprob(others[at])).map(|(own, other)| own - other);
    assert!(margin.is_some_and(|margin| margin <= NEAR_TIE), "token {at}, {} instead: {entry}", others[at]);
}

#[test]
fn a_draft_model_changes_how_long_an_answer_takes_and_nothing_else() {
    let (machine, draft) = (Machine::new(), model());
    for prompt in ["List five animals.", "Write a short story about a cat and a ship."] {
        let fixed = ["--peers", "2", "--ignore-eos", "--logprobs", "5", "--drafts"];
        let plain = machine.answer(prompt, TOKENS, &[&fixed[..], &["off"]].concat());
        let steps = (count(&plain, "steps"), count(&plain, "drafted"), count(&plain, "forwards"));
        assert_eq!(steps, (u64::from(TOKENS) - 1, 0, 0), "a step for each token after the first: {plain}");
        let drafted = machine.answer(prompt, TOKENS, &[&fixed[..], &["model", "--draft-model", &draft]].concat());
        let [forwards, guesses, right] = ["forwards", "drafted", "accepted"].map(|what| count(&drafted, what));
        assert!(forwards > 0 && guesses >= right && right > 0, "the draft model ran, and guessed right: {drafted}");
        check_same(&plain, &drafted);
    }
    machine.wait_until_empty(&[]);
}

#[test]
fn a_draft_model_of_another_vocabulary_is_refused_and_nothing_that_was_started_stays() {
    let (machine, model) = (Machine::new(), model());
    let other = machine.path("other.gguf");
    fs::write(&other, tiny_model(1)).unwrap();
    let other = other.to_str().unwrap();
    let ask = ["run", "--model", &model, "--threads", "1", "--max-tokens", "4", "--draft-model", other, "Hello"];
    for way in [&["--local"][..], &["--peers", "2"]] {
        let (refused, code) = machine.json(&[&ask[..], way].concat());
        let error = &refused["error"];
        assert_eq!((error["code"].as_str(), code), (Some("other_vocabulary"), 1), "{refused}");
        assert!(error["message"].as_str().unwrap().contains(other), "it says which: {refused}");
        assert!(error["message"].as_str().unwrap().contains("tokenizer.ggml."), "and where they differ: {refused}");
        assert!(error["hint"].as_str().unwrap().contains("of the same family"), "{refused}");
        machine.wait_until_empty(&[]);
    }
    // Where nothing is drafted with it, it is not even looked at.
    let (answered, code) = machine.json(&[&ask[..], &["--local", "--drafts", "off"]].concat());
    assert_eq!((code, answered["drafts"]["forwards"].as_u64()), (0, Some(0)), "{answered}");
}
