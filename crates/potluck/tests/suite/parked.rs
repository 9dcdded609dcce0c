//! A conversation is put aside, and taken up again by another process, over the machines that have kept what they had computed for it.

use std::{fs, io::Write, path::Path, process::ChildStdin, process::Stdio};

use serde_json::Value;

use crate::{
    machine::{Machine, Running, model},
    recovery::join,
};

const QUESTIONS: [&str; 2] = ["My name is Ada, and I sail. Tell me of the sea.", "What is my name?"];

/// What a client asks with.
struct Asking<'a> {
    machine: &'a Machine,
    over: &'a [&'a str],
}

impl Asking<'_> {
    fn chat(&self, more: &[&str]) -> (Running, ChildStdin) {
        let model = model();
        let args = ["chat", "--model", &model, "--temperature", "0", "--max-tokens", "24", "--ignore-eos"];
        let fixed = ["--threads", "1", "--context", "512", "--exact", "--json"];
        let mut running = self.machine.start_with(&[&args[..], &fixed, self.over, more].concat(), Stdio::piped());
        let stdin = running.child.stdin.take().unwrap();
        (running, stdin)
    }

    /// Both questions, one after the other, in one process. Between them the conversation is kept in a file.
    fn unbroken(&self, file: &Path) -> Value {
        let (mut chat, mut stdin) = self.chat(&[]);
        writeln!(stdin, "{}", QUESTIONS[0]).unwrap();
        chat.object();
        writeln!(stdin, "/park {}\n{}", file.display(), QUESTIONS[1]).unwrap();
        let second = chat.object();
        assert!(second["answer"]["reused_tokens"].as_u64().unwrap() > 24, "the answer, too: {second}");
        drop(stdin);
        assert_eq!(chat.end().0, Some(0), "{second}");
        second
    }

    /// The second question, in another process.
    fn taken_up(&self, file: &Path) -> Value {
        let (mut chat, mut stdin) = self.chat(&["--load", &file.display().to_string()]);
        writeln!(stdin, "{}", QUESTIONS[1]).unwrap();
        let second = chat.object();
        drop(stdin);
        assert_eq!(chat.end().0, Some(0), "{second}");
        second
    }
}

/// Lends these layers there; and where that is.
fn lend(owner: &Machine, layers: &str, at: &str, more: &[&str]) -> (Running, String) {
    let fixed = ["--bind", at, "--threads", "1", "--exact", "--context", "512", "--json"];
    let mut serving = owner.start(&[&["serve", "--model", &model(), "--layers", layers], &fixed[..], more].concat());
    let ready = serving.object();
    let at = ready["addresses"][0].as_str().unwrap_or_else(|| panic!("{ready}")).to_owned();
    (serving, at)
}

/// What a machine keeps of others' conversations, and of its own.
const LENT: &str = "home/states";
const OWN: &str = "home/states-own";

fn kept(machine: &Machine, folder: &str) -> Vec<fs::DirEntry> {
    fs::read_dir(machine.path(folder)).map(|entries| entries.map(Result::unwrap).collect()).unwrap_or_default()
}

fn check(layers: &str, over: &[&str]) {
    let [owner, client] = [(); 2].map(|()| Machine::new());
    owner.json(&["swarm", "create"]);
    let (serving, at) = lend(&owner, layers, "127.0.0.1:0", &[]);
    join(&owner, &client);
    let asking = Asking { machine: &client, over };
    let file = client.path("talk.json");
    let unbroken = asking.unbroken(&file);
    assert_eq!((kept(&owner, LENT).len(), kept(&client, LENT).len()), (1, 0));
    let state = kept(&owner, LENT)[0].path();
    let text = fs::read_to_string(&file).unwrap();
    for part in kept(&owner, LENT).into_iter().chain(kept(&client, OWN)) {
        assert_private(&part.path());
    }
    assert_private(&file);
    // However often, and after whoever keeps it has started anew.
    let same = |again: &Value| {
        assert_eq!(again["answer"]["reused_tokens"], unbroken["answer"]["reused_tokens"], "{again}");
        assert_eq!(again["answer"]["tokens"], unbroken["answer"]["tokens"], "{again}");
        let layers = |answer: &Value| {
            answer["route"].as_array().map(|stages| stages.iter().map(|it| it["layers"].clone()).collect::<Vec<_>>())
        };
        assert_eq!(layers(again), layers(&unbroken));
    };
    same(&asking.taken_up(&file));
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0));
    let (serving, _) = lend(&owner, layers, &at, &[]);
    same(&asking.taken_up(&file));
    // A file that says something else opens nothing; what is missing is evaluated.
    let key = serde_json::from_str::<Value>(&text).unwrap()["parked"]["key"].as_str().unwrap().to_owned();
    fs::write(&file, text.replace(&key, &data_encoding::BASE64.encode(&[7; 32]))).unwrap();
    let anew = asking.taken_up(&file);
    assert_eq!(anew["answer"]["reused_tokens"], 0, "{anew}");
    assert_eq!(anew["answer"]["tokens"].as_array().map(Vec::len), Some(24), "{anew}");
    fs::write(&file, &text).unwrap();
    let bytes = fs::read(&state).unwrap();
    fs::remove_file(&state).unwrap();
    let anew = asking.taken_up(&file);
    assert_eq!(anew["answer"]["reused_tokens"], 0, "{anew}");
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0));
    // Who keeps nothing any more has nothing any more, and is asked all the same.
    fs::write(&state, bytes).unwrap();
    let _serving = lend(&owner, layers, &at, &["--parked", "0"]);
    assert_eq!(kept(&owner, LENT).len(), 0);
    let again = asking.unbroken(&file);
    assert_eq!(again["answer"]["tokens"], unbroken["answer"]["tokens"]);
    assert!(serde_json::from_str::<Value>(&fs::read_to_string(&file).unwrap()).unwrap().is_array(), "the words alone");
}

fn assert_private(file: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
}

#[test]
fn a_conversation_that_was_put_aside_goes_on_over_the_machines_that_have_it() {
    check("0..30", &["--prefer", "swarm"]);
}

#[test]
fn so_does_one_whose_ends_never_leave_the_machine_that_asks() {
    check("2..28", &["--memory", "85MB", "--hide-layers", "2"]);
}
