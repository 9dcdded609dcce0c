//! What a shell and a reader of manuals get. The shell is bash, where there is one.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::process::Command;

fn potluck() -> Command {
    Command::new(env!("CARGO_BIN_EXE_potluck"))
}

#[test]
fn bash_completes_commands_and_options() {
    let script = potluck().args(["completions", "bash"]).output().unwrap();
    assert!(script.status.success() && script.stderr.is_empty());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("potluck.bash");
    std::fs::write(&path, script.stdout).unwrap();
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
