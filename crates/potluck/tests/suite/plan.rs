//! `potluck model plan`: what would be placed where, before anything is loaded.

use serde_json::{Value, json};

use crate::machine::{Machine, model};

fn layers(stages: &Value) -> Vec<Value> {
    stages.as_array().unwrap().iter().map(|stage| stage["layers"].clone()).collect()
}

#[test]
fn the_placement_of_own_peers_is_the_one_that_runs() {
    let machine = Machine::new();
    let plan = |more: &[&str]| {
        let (plan, code) = machine.json(&[&["model", "plan", &model(), "--context", "512"], more].concat());
        assert_eq!(code, 0, "{plan}");
        plan
    };
    let three = plan(&["--peers", "3"]);
    assert_eq!(layers(&three["stages"]), [json!([0, 10]), json!([10, 20]), json!([20, 30])]);
    assert_eq!(three["stages"][2]["who"], json!({ "started": 3 }));
    for stage in three["stages"].as_array().unwrap() {
        let bytes = |what: &str| stage[what].as_u64().unwrap();
        assert!(bytes("weight_bytes") > 0 && bytes("cache_bytes") > 0, "{stage}");
        assert_eq!(bytes("memory_bytes"), bytes("weight_bytes") + bytes("cache_bytes"));
        assert_eq!(stage["loaded"], false);
    }
    let rate = three["decode_tokens_per_s"].as_f64().unwrap();
    assert!(three["alternatives"][0]["decode_tokens_per_s"].as_f64().unwrap() > rate, "{three}");
    assert_eq!(three["alternatives"][0]["stages"], 1);

    let ends = ["--peers", "2", "--own-ends"];
    let planned = plan(&ends);
    let answer = machine.answer("Hello", 2, &[&["--context", "512"], &ends[..]].concat());
    assert_eq!(layers(&planned["stages"]), layers(&answer["route"]));
    assert_eq!(planned["stages"][0]["who"], "own");
    let (error, code) = machine.json(&["model", "plan", &model(), "--peers", "31"]);
    assert_eq!((error["error"]["code"].as_str(), code), (Some("usage"), 2), "as `run` says: too few layers. {error}");
}
