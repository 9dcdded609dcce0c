//! Rules that matter are tests: the arrows between crates, docs that keep up with the code, nothing left lying about.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The crates by layer: a crate uses lower layers only; within layer 0, the wire uses the core's words.
const LAYERS: [&[&str]; 7] = [
    &["potluck-core", "potluck-wire"],
    &["potluck-model", "potluck-chain", "potluck-grant"],
    &["potluck-peer"],
    &["potluck-net", "potluck-engine", "potluck-relay", "potluck-store", "potluck-netem", "potluck-owner"],
    &["potluck-client", "potluck-pull", "potluck-upstream", "potluck-tunnel", "potluck-sim"],
    &["potluck-gateway"],
    &["potluck", "potluck-bench", "potluck-attacks"],
];

/// Files that spell out what they must not: this one.
const EXEMPT: [&str; 1] = ["crates/potluck/tests/suite/tidy.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A crate, and what it depends on: names, and kinds where they are not the normal one.
type Package = (String, Vec<(String, Option<String>)>);

fn packages(metadata: &Value) -> Vec<Package> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let deps = package["dependencies"].as_array().unwrap().iter();
            let deps = deps.map(|dep| (text(&dep["name"]), dep["kind"].as_str().map(str::to_owned))).collect();
            (text(&package["name"]), deps)
        })
        .collect()
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|crates| crates.contains(&name))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        match name.to_str().unwrap() {
            "target" | ".git" | "work" | "corpus" | "artifacts" => {}
            _ if path.is_dir() => sources(&path, found),
            name if [".rs", ".md", ".sh", ".toml", ".py"].iter().any(|end| name.ends_with(end))
                || !name.contains('.') =>
            {
                found.push(path)
            }
            _ => {}
        }
    }
}

#[test]
fn no_program_can_switch_a_defence_off() {
    let metadata = metadata();
    let mut asked = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        // Only tools that measure or attack may offer it, and none has it unless it is asked for.
        let tools = ["potluck-core", "potluck-net", "potluck-bench"].map(Value::from);
        let offers = package["features"].to_string().contains("undefended");
        assert!(!offers || tools.contains(&package["name"]), "{}", package["name"]);
        assert!(!package["features"]["default"].to_string().contains("undefended"), "{}", package["name"]);
        for dep in package["dependencies"].as_array().unwrap() {
            if dep["features"].as_array().unwrap().iter().any(|feature| feature == "undefended") {
                asked.push((package["name"].as_str().unwrap(), dep["kind"].as_str()));
            }
        }
    }
    assert!(!asked.is_empty());
    assert!(
        asked.iter().all(|by| *by == ("potluck-attacks", Some("dev"))),
        "it is for tests, of which one crate needs it: {asked:?}"
    );
}

#[test]
fn arrows_go_down_only() {
    for (name, dependencies) in packages(&metadata()) {
        let own =
            layer(&name).unwrap_or_else(|| panic!("{name} has no layer: add it here and to docs/architecture.md"));
        for (dependency, kind) in dependencies.iter().filter(|(d, _)| d.starts_with("potluck")) {
            if kind.as_deref() == Some("dev") {
                continue;
            }
            let below = layer(dependency).unwrap_or_else(|| panic!("{dependency} has no layer"));
            let words = (name.as_str(), dependency.as_str()) == ("potluck-wire", "potluck-core");
            assert!(below < own || words, "{name} (layer {own}) must not use {dependency} (layer {below})");
        }
    }
}

#[test]
fn every_crate_says_what_it_is_and_the_map_names_it() {
    let map = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    for (name, _) in packages(&metadata()) {
        let dir = root().join("crates").join(&name).join("src");
        let entry = if dir.join("lib.rs").exists() { dir.join("lib.rs") } else { dir.join("main.rs") };
        let text = fs::read_to_string(&entry).unwrap();
        assert!(text.starts_with("//! "), "{} does not open with what it is", entry.display());
        assert!(map.contains(&format!("`{name}`")), "docs/architecture.md does not name {name}");
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let reasons = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let all = packages(&metadata());
    let direct: BTreeSet<&String> = all.iter().flat_map(|(_, deps)| deps.iter().map(|(name, _)| name)).collect();
    let missing: Vec<_> = direct
        .into_iter()
        .filter(|name| !name.starts_with("potluck") && !reasons.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "docs/dependencies.md gives no reason for {missing:?}");
}

#[test]
fn layers_without_io_stay_without_it() {
    let banned = ["std::fs", "std::net", "std::thread", "tokio", "SystemTime::now", "Instant::now"];
    for name in LAYERS[..3].iter().copied().flatten() {
        let mut files = Vec::new();
        sources(&root().join("crates").join(name).join("src"), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            // Tests come last in a file, and may do what they like.
            let code = text.split("#[cfg(test)]").next().unwrap();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                let found = banned.iter().find(|word| line.contains(*word));
                assert!(found.is_none(), "{}: {} in a layer without IO: {line}", file.display(), found.unwrap());
            }
        }
    }
}

#[test]
fn nothing_is_sent_or_read_before_a_handshake_is_done() {
    // What travels in a resumed connection's first flight has no forward secrecy and can be replayed: docs/threat-model.md.
    let mut files = Vec::new();
    ["crates", "examples"].iter().for_each(|dir| sources(&root().join(dir), &mut files));
    let early = concat!("0", "rtt");
    let network = |file: &&PathBuf| file.extension().is_some_and(|extension| extension == "rs");
    let code: Vec<_> = files.iter().filter(network).collect();
    assert!(code.len() > 100, "the sources are found");
    for file in code {
        assert!(!fs::read_to_string(file).unwrap().contains(early), "{} asks for early data", file.display());
    }
}

#[test]
fn nothing_is_left_for_later() {
    let mut files = Vec::new();
    let dirs = ["crates", "scripts", "bench", "docs", "examples"].map(|dir| root().join(dir));
    dirs.iter().filter(|dir| dir.is_dir()).for_each(|dir| sources(dir, &mut files));
    for file in files {
        let name = file.strip_prefix(root()).unwrap().to_str().unwrap();
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if EXEMPT.contains(&name) {
            continue;
        }
        for word in [
            "todo!(",
            "unimplemented!(",
            "FIXME",
            "XXX:",
            "#[ignore",
            concat!("crates", ".io"),
            concat!("pypi", ".org"),
        ] {
            assert!(!text.contains(word), "{name} contains `{word}`");
        }
        assert!(!name.contains("/tests/") || !text.contains("sleep("), "{name} sleeps: wait for the event itself");
        let stem = file.file_stem().unwrap().to_str().unwrap();
        assert!(!["util", "utils", "helper", "helpers", "common", "misc"].contains(&stem), "{name} says nothing");
    }
}
