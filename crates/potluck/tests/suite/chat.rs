//! A conversation on a pipe: turns, commands, and an answer that is stopped.

use std::{io::Write, process::ChildStdin, process::Stdio};

use potluck_core::MetaValue;
use potluck_model::gguf;
use serde_json::Value;

use crate::machine::{Machine, Running, cpu_ticks, model};

fn chat(machine: &Machine, more: &[&str]) -> (Running, ChildStdin) {
    let model = model();
    let args = ["chat", "--model", &model, "--temperature", "0", "--threads", "1", "--json"];
    let mut running = machine.start_with(&[&args, more].concat(), Stdio::piped());
    let stdin = running.child.stdin.take().unwrap();
    (running, stdin)
}

fn ask(chat: &mut Running, stdin: &mut ChildStdin, lines: &str) -> Value {
    writeln!(stdin, "{lines}").unwrap();
    chat.object()
}

#[test]
fn turns_build_on_each_other_and_are_kept() {
    let machine = Machine::new();
    let file = machine.path("talk.json").display().to_string();
    let (mut first, mut stdin) = chat(&machine, &["--peers", "2", "--max-tokens", "12", "--exact"]);
    let hello = ask(&mut first, &mut stdin, "My name is Ada.");
    assert_eq!(hello["answer"]["reused_tokens"], 0);
    assert_eq!(hello["route"].as_array().unwrap().len(), 2);
    let again = ask(&mut first, &mut stdin, "\"\"\"What is\nmy name?\"\"\"");
    let held = hello["answer"]["prompt_tokens"].as_u64().unwrap();
    assert!(again["answer"]["reused_tokens"].as_u64().unwrap() >= held, "the caches hold the first turn: {again}");
    writeln!(stdin, "/save {file}").unwrap();
    let refused = ask(&mut first, &mut stdin, "/frobnicate");
    assert_eq!(refused["error"]["code"], "bad_request");
    writeln!(stdin, "/quit").unwrap();
    assert_eq!(first.end().0, Some(0));
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let said: Vec<_> = saved.as_array().unwrap().iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(said, ["user", "assistant", "user", "assistant"]);
    assert_eq!(saved[2]["content"], "What is\nmy name?");

    let (mut second, mut stdin) = chat(&machine, &["--local", "--max-tokens", "4"]);
    writeln!(stdin, "/load {file}").unwrap();
    let on = ask(&mut second, &mut stdin, "Thank you.");
    assert!(on["answer"]["prompt_tokens"].as_u64().unwrap() > again["answer"]["prompt_tokens"].as_u64().unwrap());
    drop(stdin);
    assert_eq!(second.end().0, Some(0), "the end of the input is the end");
    machine.wait_until_empty(&[]);
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let machine = Machine::new();
    let (mut chat, mut stdin) = chat(&machine, &["--peers", "2"]);
    ask(&mut chat, &mut stdin, "/set max_tokens 4\nHello");
    writeln!(stdin, "/set max_tokens none\nTell me a very long story about a fox.").unwrap();
    // Between answers it would end the program: the engines' clocks tell that one is under way.
    let ticks = || machine.processes().into_iter().map(cpu_ticks).sum::<u64>();
    let before = ticks();
    crate::machine::wait_until("the answer is under way", || ticks() > before + 20);
    chat.signal("INT");
    let stopped = chat.object();
    assert_eq!(stopped["answer"]["finish_reason"], "cancel", "{stopped}");
    let next = ask(&mut chat, &mut stdin, "/set max_tokens 4\nGo on.");
    assert!(next["answer"]["text"].is_string(), "{next}");
    drop(stdin);
    assert_eq!(chat.end().0, Some(0));
    machine.wait_until_empty(&[]);
}

/// The small model with another chat template: a file of its own.
fn with_template(machine: &Machine, template: &str) -> String {
    let bytes = std::fs::read(model()).unwrap();
    let header = gguf::parse(&bytes).unwrap();
    let mut metadata = header.metadata.clone();
    metadata.retain(|(key, _)| key != "tokenizer.chat_template");
    metadata.push(("tokenizer.chat_template".into(), MetaValue::String(template.into())));
    let spec = |t: &gguf::TensorInfo| gguf::TensorSpec { name: t.name.clone(), kind: t.kind, shape: t.shape.clone() };
    let mut file = gguf::write(&metadata, &header.tensors.iter().map(spec).collect::<Vec<_>>()).unwrap();
    for tensor in &header.tensors {
        let at = (header.data_offset + tensor.offset) as usize;
        file.extend(&bytes[at..at + tensor.bytes as usize]);
        file.resize(file.len().next_multiple_of(gguf::ALIGNMENT_DEFAULT as usize), 0);
    }
    let path = machine.path("other.gguf");
    std::fs::write(&path, file).unwrap();
    path.display().to_string()
}

#[test]
fn a_template_that_does_not_end_ends_the_program() {
    let machine = Machine::new();
    // Lists of lists of lists, twice: comparing them visits each of 2^60 ends, and costs no fuel.
    let lists = "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}\
                 {% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}";
    let model = with_template(&machine, lists);
    let args = ["chat", "--model", &model, "--local", "--context", "512", "--threads", "1", "--json"];
    let mut running = machine.start_with(&args, Stdio::piped());
    let mut stdin = running.child.stdin.take().unwrap();
    let error = ask(&mut running, &mut stdin, "Hello");
    assert_eq!(error["error"]["code"], "template_timeout", "{error}");
    assert!(error["error"]["hint"].as_str().unwrap().contains("--raw"));
    assert_eq!(running.end().0, Some(1), "its thread ends with the process, and with nothing less");
    machine.wait_until_empty(&[]);
}
