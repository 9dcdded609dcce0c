//! What a shell and a reader of manuals get. The shell is bash, where there is one.

use std::{fs, process::Command};

use crate::machine::Machine;

fn potluck() -> Command {
    Command::new(env!("CARGO_BIN_EXE_potluck"))
}

#[test]
fn bash_completes_commands_and_options() {
    let script = potluck().args(["completions", "bash"]).output().unwrap();
    assert!(script.status.success() && script.stderr.is_empty());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("potluck.bash");
    fs::write(&path, script.stdout).unwrap();
    // As an interactive bash would ask: the words so far, and which of them is being typed.
    let complete = |words: &[&str]| {
        let last = words.len() - 1;
        let ask = r#"source "$1"; shift; COMP_CWORD=$1; shift; COMP_WORDS=("$@"); _potluck potluck "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; printf '%s\n' "${COMPREPLY[@]}""#;
        let output =
            Command::new("bash").args(["-c", ask, "bash"]).arg(&path).arg(last.to_string()).args(words).output();
        String::from_utf8(output.unwrap().stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["potluck", "jo"]), ["join"]);
    assert_eq!(complete(&["potluck", "swarm", "inv"]), ["invite", "invitations"]);
    assert_eq!(complete(&["potluck", "serve", "--lay"]), ["--layers"]);
}

#[test]
fn each_command_has_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let written = potluck().arg("man").arg(dir.path()).output().unwrap();
    assert!(written.status.success(), "{written:?}");
    let page = |name: &str| std::fs::read_to_string(dir.path().join(name));
    assert!(page("potluck.1").unwrap().contains("One private AI"));
    assert!(page("potluck-swarm-invite.1").unwrap().contains("How many machines"));
    assert!(page("potluck-engine.1").is_err(), "a hidden command has none");
}

#[test]
#[cfg(target_os = "linux")]
fn a_service_is_installed_and_taken_away() {
    use std::os::unix::fs::PermissionsExt;
    // No systemd runs here: what would be asked of it is written down.
    let machine = Machine::new();
    let (bin, config, log) = (machine.path("bin"), machine.path("config"), machine.path("asked"));
    fs::create_dir_all(&bin).unwrap();
    let script = bin.join("systemctl");
    fs::write(&script, format!("#!/bin/sh\necho \"$@\" >> {}\n", log.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let run = |args: &[&str]| {
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let output = machine.command(args).env("PATH", path).env("XDG_CONFIG_HOME", &config).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(run(&["serve", "--install", "--json"]).0, Some(1), "who belongs to no swarm has nothing to serve");
    machine.json(&["swarm", "create"]);
    let (code, said) = run(&["serve", "--auto", "--memory", "4GB", "--install", "--json"]);
    assert_eq!((code, said.trim()), (Some(0), r#"{"installed":"potluck"}"#));
    let file = config.join("systemd/user/potluck.service");
    let unit = fs::read_to_string(&file).unwrap();
    assert!(unit.contains(r#"potluck" "serve" "--auto" "--memory" "4GB""#), "{unit}");
    assert!(unit.contains(&format!("POTLUCK_HOME={}", machine.path("home").display())), "{unit}");
    assert_eq!(run(&["serve", "--uninstall", "--json"]).0, Some(0));
    assert!(!file.exists());
    let asked = fs::read_to_string(&log).unwrap();
    let words: Vec<_> = asked.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(words, ["--user enable", "--user start", "--user stop", "--user disable"], "{asked}");
}

#[test]
fn a_doctor_says_what_is_wrong_and_whose_turn_it_is() {
    let machine = Machine::new();
    let finding = |report: &serde_json::Value, id: &str| {
        let found = report["findings"].as_array().unwrap().iter().find(|finding| finding["id"] == id).cloned();
        found.unwrap_or_else(|| panic!("no {id} in {report}"))
    };
    let (fresh, code) = machine.json(&["doctor"]);
    assert_eq!((fresh["failures"].as_u64(), code), (Some(0), 0), "{fresh}");
    assert_eq!(finding(&fresh, "model")["how"], "warn");
    let file = machine.path("model.gguf");
    fs::copy(crate::machine::model(), &file).unwrap();
    machine.json(&["model", "add", file.to_str().unwrap()]);
    let (well, code) = machine.json(&["doctor"]);
    assert_eq!((finding(&well, "engine")["how"].as_str(), code), (Some("ok"), 0), "{well}");
    assert!(finding(&well, "plan")["text"].as_str().unwrap().contains("fit this machine"), "{well}");
    fs::write(&file, "cut short").unwrap();
    let (sick, code) = machine.json(&["doctor"]);
    assert_eq!((finding(&sick, "model")["how"].as_str(), code), (Some("fail"), 1), "{sick}");
    assert!(finding(&sick, "model")["hint"].as_str().unwrap().contains("potluck model add"), "{sick}");
}
