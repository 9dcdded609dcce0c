//! `potluck bench`: what it tells of this machine and of a route, and what it leaves behind for the planner.

use std::fs;

use serde_json::{Value, json};

use crate::machine::{Machine, model};

const FIXED: [&str; 6] = ["--context", "1024", "--threads", "1", "--tokens", "8"];

fn bench(machine: &Machine, more: &[&str]) -> Value {
    let model = model();
    let (report, code) = machine.json(&[&["bench", "--model", &model], &FIXED[..], more].concat());
    assert_eq!(code, 0, "{report}");
    report
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}

/// The parts of a step are the step: what nobody accounts for is a part, and only where peers account for more than there was is it
/// none.
fn check_parts(step: &Value) {
    let stages = step["stages"].as_array().unwrap();
    let at = |stage: &Value| ["queue_ms", "compute_ms", "handover_ms", "codec_ms"].map(|part| number(stage, part));
    let parts: f64 = stages.iter().flat_map(at).chain([number(step, "choosing_ms"), number(step, "way_ms")]).sum();
    let whole = number(step, "ms");
    let accounted = if number(step, "way_ms") > 0.0 { parts } else { parts.min(whole) };
    assert!(whole > 0.0 && (accounted - whole).abs() < whole * 1e-6, "{parts} of {whole}: {step}");
    assert!(stages.iter().all(|stage| number(stage, "compute_ms") > 0.0), "{step}");
}

/// Both are numbers, and the ratio is their quotient. How near it is to one is no matter of a test: others compute
/// here, too.
fn check_predictions(predicted: &Value) {
    for name in ["tokens_per_s", "prompt_ms", "computing_ms"] {
        let compared = &predicted[name];
        let numbers = ["predicted", "measured", "ratio"].map(|part| number(compared, part));
        assert!(numbers.iter().all(|number| number.is_finite() && *number > 0.0), "{name}: {compared}");
        let [predicted, measured, ratio] = numbers;
        assert!((ratio * predicted - measured).abs() <= 1e-9 * measured, "{name}: {compared}");
    }
    // What is computed may be predicted to be all of it: then there is nothing to compare with.
    let between = &predicted["between_ms"];
    let (expected, measured) = (number(between, "predicted"), number(between, "measured"));
    assert!(expected.is_finite() && expected >= 0.0 && measured.is_finite(), "{between}");
    match expected > 0.0 {
        true => assert!((number(between, "ratio") * expected - measured).abs() <= 1e-9 * measured.abs(), "{between}"),
        false => assert!(between["ratio"].is_null(), "{between}"),
    }
    assert!(predicted["verdict"].as_str().unwrap().contains("tokens/s predicted"), "{predicted}");
}

/// The ratios that people read are those of the numbers beside them, as far as two decimals tell.
fn check_printed_predictions(text: &str) {
    const HALF: f64 = 0.005 + 1e-9;
    let (_, table) = text.split_once("PREDICTED").unwrap();
    for name in ["tokens/s", "ms a prompt", "ms a token, computing"] {
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {table}"));
        let numbers: Vec<f64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
        let [predicted, measured, ratio] = numbers[..] else { panic!("{name}: {line}") };
        assert!(predicted > 2.0 * HALF && measured > 2.0 * HALF, "{name}: {line}");
        let (least, most) = ((measured - HALF) / (predicted + HALF), (measured + HALF) / (predicted - HALF));
        assert!((least - HALF..=most + HALF).contains(&ratio), "{name}: {line}");
    }
}

fn check_machine(measured: &Value) {
    let steps = measured["steps"].as_array().unwrap();
    let rows: Vec<_> = steps.iter().map(|step| step["rows"].as_u64().unwrap()).collect();
    assert_eq!(rows[..4], [1, 2, 4, 8], "{measured}");
    for step in steps {
        let (rows, ms) = (number(step, "rows"), number(step, "ms"));
        assert!(ms > 0.0 && (number(step, "rows_per_s") - rows * 1e3 / ms).abs() < 1e-3 * rows, "{step}");
    }
    assert_eq!(number(measured, "decode_tokens_per_s"), number(&steps[0], "rows_per_s"));
    let weights = number(measured, "read_bytes") * number(measured, "decode_tokens_per_s");
    assert!((number(measured, "weights_bytes_per_s") - weights).abs() < 1e-6 * weights);
    assert_eq!(measured["threads"], 1);
}

#[test]
fn one_engine_is_measured_and_remembered() {
    let machine = Machine::new();
    let report = bench(&machine, &["--local"]);
    check_machine(&report["machine"]);
    check_parts(&report["plain"]["step"]);
    check_parts(&report["prompt"]["step"]);
    check_predictions(&report["predicted"]);
    assert_eq!((&report["plain"]["tokens"], &report["prompt"]["tokens"]), (&json!(8), &json!(512)));
    assert_eq!(report["route"].as_array().unwrap().len(), 1);
    assert_eq!((&report["links"], &report["transfer"], &report["advice"]), (&json!([]), &json!(null), &json!(null)));
    assert_eq!(report["drafted"]["tokens"], 8, "{report}");
    machine.wait_until_empty(&[]);

    // The planner knows it now.
    let (plan, code) = machine.json(&["model", "plan", &model(), "--context", "512", "--peers", "2"]);
    assert_eq!(code, 0, "{plan}");
    assert_eq!(plan["alone"]["measured"], true, "{plan}");
    let (known, measured) =
        (number(&plan["alone"], "decode_tokens_per_s"), number(&report["machine"], "decode_tokens_per_s"));
    assert!((known - measured).abs() < 1e-3 * measured, "{known} {measured}");
}

#[test]
fn a_route_is_taken_apart() {
    let machine = Machine::new();
    let report = bench(&machine, &["--peers", "2"]);
    check_machine(&report["machine"]);
    check_predictions(&report["predicted"]);
    let step = &report["plain"]["step"];
    check_parts(step);
    check_parts(&report["prompt"]["step"]);
    assert_eq!(step["steps"], 7, "the first token is the prompt's");
    assert_eq!(report["prompt"]["step"]["steps"], 1, "a prompt of one step: nothing overlaps");
    let layers: Vec<_> = step["stages"].as_array().unwrap().iter().map(|stage| stage["layers"].clone()).collect();
    assert_eq!(layers, [json!([0, 15]), json!([15, 30])]);
    let (route, links) = (report["route"].as_array().unwrap(), report["links"].as_array().unwrap());
    let ways: Vec<_> = links.iter().map(|link| (link["from"].clone(), link["to"].clone())).collect();
    let (a, b, here) = (route[0]["peer"].clone(), route[1]["peer"].clone(), json!("self"));
    assert_eq!(ways, [(here.clone(), a.clone()), (a, b.clone()), (b, here)]);
    assert!(links.iter().all(|link| link["rtt_ms"].is_null() || number(link, "rtt_ms") > 0.0), "{report}");
    assert!(number(&links[0], "rtt_ms") > 0.0, "the client measures its own ways");
    // 576 values in f16, and what a frame has beside them.
    assert!((1_152.0..1_300.0).contains(&number(&links[1], "bytes_per_token")), "{}", links[1]);
    let on_links: f64 = links.iter().map(|link| number(link, "bytes_per_token")).sum();
    assert!(on_links > 1_152.0 && number(&report["plain"], "bytes_per_position") > 1_152.0);
    assert_eq!(report["alone"]["measured"], true);
    machine.wait_until_empty(&[]);
}

#[test]
fn people_read_tables_and_no_drafts_are_asked_for() {
    let machine = Machine::new();
    let model = model();
    let output = machine
        .run(&[&["bench", "--model", &model, "--peers", "1", "--own-ends", "--drafts", "off"], &FIXED[..]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in
        ["this machine alone: ", "ROWS A STEP", "route\n", "links\n", "RTT MS", "a token: ", "HANDOVER", "PREDICTED"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("guesses"), "{text}");
    check_printed_predictions(&text);
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_reason() {
    let machine = Machine::new();
    let refused = |args: &[&str]| {
        let (error, code) = machine.json(&[&["bench"], args].concat());
        (error["error"]["code"].as_str().unwrap_or_default().to_owned(), code)
    };
    assert_eq!(refused(&[]), ("no_model".into(), 1), "this machine knows none");
    assert_eq!(refused(&["--model", "nonesuch"]), ("no_model".into(), 1));
    let model = model();
    assert_eq!(refused(&["--model", &model, "--peers", "31", "--threads", "1"]), ("usage".into(), 2), "too few layers");
    assert_eq!(refused(&["--model", &model, "--local", "--peers", "2"]), ("usage".into(), 2));
    assert_eq!(refused(&["--model", &model, "--tokens", "1"]), ("usage".into(), 2), "nothing to time");
    machine.wait_until_empty(&[]);
}

#[test]
fn who_asks_for_peers_is_told_that_one_machine_is_faster() {
    let machine = Machine::new();
    // A machine that was so fast once that every hop costs more than all the arithmetic.
    let known = json!([{
        "model": "another", "at": 1, "by": "bench", "threads": 1, "gpu_layers": 0,
        "decode_us_per_byte": 1e-9, "prefill_us_per_byte": 1e-9,
    }]);
    fs::create_dir_all(machine.path("home")).unwrap();
    fs::write(machine.path("home/speed.json"), known.to_string()).unwrap();
    let model = model();
    let ask = ["run", "--model", &model, "--max-tokens", "1", "--threads", "1", "Hello"];
    let stderr = |more: &[&str]| {
        let output = machine.run(&[&ask[..], more].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let told = stderr(&["--peers", "2"]);
    assert!(told.contains("hint: this machine alone: ") && told.contains("these 2 peers: "), "{told}");
    assert!(told.contains("--local is faster"), "{told}");
    assert!(!stderr(&["--peers", "2", "--json"]).contains("hint"), "programs are told nothing on stderr");
    assert!(!stderr(&["--local"]).contains("hint"), "one machine it is");
}
