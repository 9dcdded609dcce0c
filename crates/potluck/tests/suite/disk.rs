//! A quota for what is fetched: what was used longest ago makes way, what is in use does not.

use serde_json::Value;

use crate::machine::{
    Machine, children, model,
    web::{TINY_BYTES, Web, tiny_model},
};

fn pull(machine: &Machine, address: &str, more: &[&str]) -> (Value, i32) {
    machine.json(&[&["model", "pull", address], more].concat())
}

fn names(machine: &Machine) -> Vec<String> {
    let models = machine.json(&["model", "list"]).0["models"].clone();
    models.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_was_used_longest_ago_makes_way_for_what_is_pulled() {
    let (machine, web) = (Machine::new(), Web::start());
    let [a, b, c] = [("a", 1), ("b", 2), ("c", 3)].map(|(name, n)| web.put(&format!("{name}.gguf"), tiny_model(n)));
    for address in [&a, &b] {
        let (pulled, code) = pull(&machine, address, &[]);
        assert_eq!(code, 0, "{pulled}");
    }
    let (listed, _) = machine.json(&["model", "list"]);
    let fetched = listed["models"][0]["fetched_bytes"].as_u64().unwrap();
    assert!(fetched > TINY_BYTES && fetched < TINY_BYTES * 11 / 10, "{listed}");
    assert_eq!((&listed["models"][0]["last_used"], &listed["models"][0]["in_use"]), (&Value::Null, &false.into()));
    // What is asked for is used: the plan is made for a model that is here.
    assert_eq!(machine.json(&["model", "plan", "a"]).1, 0);
    assert!(machine.json(&["model", "list"]).0["models"][0]["last_used"].is_u64());

    let quota = (2 * fetched + fetched / 2).to_string();
    let output = machine.run(&["model", "pull", &c, "--disk", &quota]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("removed b to make room"), "{said}");
    assert_eq!(names(&machine), ["a", "c"]);
    assert!(machine.json(&["model", "list"]).0["fetched_bytes"].as_u64().unwrap() <= quota.parse().unwrap());

    // Without room for it even then, nothing is removed and nothing is fetched.
    let (refused, code) = pull(&machine, &b, &["--disk", "1MB"]);
    assert_eq!((refused["error"]["code"].as_str(), code), (Some("disk_full"), 1), "{refused}");
    assert_eq!(names(&machine), ["a", "c"]);
    assert_eq!(web.starts("b.gguf").len(), 2);

    let (pruned, _) = machine.json(&["model", "prune", "--keep", "5MB"]);
    assert_eq!(
        pruned["removed"].as_array().unwrap().len(),
        2,
        "what broke off, and what was used longer ago: {pruned}"
    );
    let (removed, _) = machine.json(&["model", "remove", &names(&machine)[0]]);
    assert!(removed["bytes"].as_u64().unwrap() > TINY_BYTES, "{removed}");
    assert_eq!(std::fs::read_dir(machine.path("home/downloads")).unwrap().count(), 0);
    // A model that was added where it lies is only forgotten.
    machine.json(&["model", "add", &model()]);
    assert_eq!(machine.json(&["model", "rm", &model()]).0["bytes"], 0);
    assert!(std::path::Path::new(&model()).is_file());
}

#[test]
fn what_runs_is_not_removed_until_its_process_is_killed() {
    let (machine, web) = (Machine::new(), Web::start());
    let small = web.put("small.gguf", std::fs::read(model()).unwrap());
    let tiny = web.put("tiny.gguf", tiny_model(1));
    let fixed = ["gateway", "--listen", "127.0.0.1:0", "--context", "512", "--threads", "1", "--json"];
    let mut running = machine.start(&[&fixed[..], &["--model", &small]].concat());
    assert_eq!(running.object()["model"], "small");
    assert_eq!(machine.json(&["model", "list"]).0["models"][0]["in_use"], true);

    let (refused, code) = pull(&machine, &tiny, &["--disk", "90MB"]);
    assert_eq!((refused["error"]["code"].as_str(), code), (Some("disk_full"), 1), "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("in use: small"), "{refused}");
    assert_eq!(machine.json(&["model", "remove", "small"]).0["error"]["code"], "in_use");
    assert_eq!(machine.json(&["model", "prune", "--keep", "1MB"]).0["removed"].as_array().unwrap().len(), 1);

    let watched = children(running.child.id());
    running.signal("KILL");
    running.end();
    machine.wait_until_empty(&watched);
    assert_eq!(machine.json(&["model", "list"]).0["models"][0]["in_use"], false, "what died uses nothing");
    let (pulled, code) = pull(&machine, &tiny, &["--disk", "90MB"]);
    assert_eq!(code, 0, "{pulled}");
    assert_eq!(names(&machine), ["tiny"]);
}
