//! The root key of a swarm: locked by a passphrase, taken offline, and followed by another.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    process::Stdio,
};

use serde_json::Value;

use crate::machine::{Machine, Running, model, wait_until};

const WORDS: &str = "five words that nobody chooses";

/// Where a machine serves that is found there again after a restart.
fn place() -> String {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().to_string()
}

/// Lends the small model there; returns once it is served.
fn serve(machine: &Machine, at: &str, more: &[&str]) -> Running {
    let model = model();
    let args = ["serve", "--model", &model, "--layers", "0..30", "--bind", at, "--threads", "1", "--exact"];
    let mut serving = machine.start(&[&args[..], &["--context", "512", "--json"], more].concat());
    let ready = serving.object();
    assert_eq!(ready["layers"].to_string(), "[0,30]", "{ready}");
    serving
}

fn stop(serving: Running) {
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0));
}

/// What a command that must do prints.
fn done(machine: &Machine, args: &[&str]) -> Value {
    let (value, code) = machine.json(args);
    assert_eq!(code, 0, "{args:?}: {value}");
    value
}

fn refused(machine: &Machine, args: &[&str]) -> String {
    let (value, code) = machine.json(args);
    assert_eq!(code, 1, "{args:?}: {value}");
    value["error"]["code"].as_str().unwrap().to_owned()
}

/// A file that its owner alone reads.
fn secret(machine: &Machine, name: &str, text: &str) -> String {
    let path = machine.path(name);
    let mut file = fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    path.display().to_string()
}

fn invite(owner: &Machine, more: &[&str]) -> String {
    done(owner, &[&["swarm", "invite"], more].concat())["invitation"].as_str().unwrap().to_owned()
}

fn keys(machine: &Machine) -> [String; 2] {
    let keys = done(machine, &["swarm", "join"]);
    [0, 1].map(|n| keys["keys"][n].as_str().unwrap().to_owned())
}

/// Whether somebody who lends is seen from there.
fn is_in(machine: &Machine) -> bool {
    let (peers, code) = machine.json(&["peers"]);
    code == 0 && peers["peers"].as_array().is_some_and(|peers| !peers.is_empty())
}

fn is_private(path: &Path) -> bool {
    fs::metadata(path).unwrap().permissions().mode() & 0o077 == 0
}

#[test]
fn a_root_is_locked_and_opened_by_its_passphrase_alone() {
    let owner = Machine::new();
    let swarm = done(&owner, &["swarm", "create"])["swarm"].clone();
    let shown = done(&owner, &["swarm", "root"]);
    assert_eq!(
        (shown["kept"].as_str(), &shown["root"], shown["invitations"].as_u64()),
        (Some("plain"), &swarm, Some(1))
    );
    let (plain, locked) = (owner.path("home/root.key"), owner.path("home/root.age"));
    let key = fs::read_to_string(&plain).unwrap();
    // A second name for the file shows that what it held is overwritten, not only unlinked.
    let shadow = owner.path("shadow");
    fs::hard_link(&plain, &shadow).unwrap();

    let words = secret(&owner, "words", &format!("{WORDS}\n"));
    let short = secret(&owner, "short", "seven\n");
    assert_eq!(refused(&owner, &["swarm", "root", "--lock"]), "root_locked", "nobody is there to ask");
    assert_eq!(refused(&owner, &["swarm", "root", "--lock", "--passphrase-file", &short]), "passphrase");
    done(&owner, &["swarm", "root", "--lock", "--passphrase-file", &words]);
    assert!(!plain.exists() && is_private(&locked));
    assert_eq!(fs::read_to_string(&shadow).unwrap(), "\0".repeat(key.len()));
    assert!(fs::read_to_string(&locked).unwrap().starts_with("-----BEGIN AGE ENCRYPTED FILE-----"));
    assert_eq!(done(&owner, &["swarm", "root"])["kept"], "locked", "shown without the passphrase");
    assert_eq!(done(&owner, &["swarm", "whoami"])["root"], true);

    let wrong = secret(&owner, "wrong", "five words that somebody chose\n");
    assert_eq!(refused(&owner, &["swarm", "invite"]), "root_locked");
    assert_eq!(refused(&owner, &["swarm", "invite", "--passphrase-file", &wrong]), "passphrase");
    assert_eq!(refused(&owner, &["swarm", "create"]), "already_joined");
    invite(&owner, &["--passphrase-file", &words]);
    // By a pipe, and by the environment.
    let mut command = owner.command(&["swarm", "invite", "--json", "--passphrase-file", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{WORDS}\n").as_bytes()).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    let mut command = owner.command(&["swarm", "invite", "--json"]);
    assert!(command.env("POTLUCK_ROOT_PASSPHRASE_FILE", &words).output().unwrap().status.success());
    // A file that others read is none to keep a passphrase in.
    fs::set_permissions(&words, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(refused(&owner, &["swarm", "invite", "--passphrase-file", &words]), "identity");
    fs::set_permissions(&words, fs::Permissions::from_mode(0o600)).unwrap();

    done(&owner, &["swarm", "root", "--unlock", "--passphrase-file", &words]);
    assert_eq!(fs::read_to_string(&plain).unwrap(), key);
    assert!(!locked.exists() && is_private(&plain));
    invite(&owner, &[]);
}

#[test]
fn a_root_lives_elsewhere_and_is_named_where_it_is_needed() {
    let (owner, guest, other, at) = (Machine::new(), Machine::new(), Machine::new(), place());
    done(&owner, &["swarm", "create"]);
    let words = secret(&owner, "words", WORDS);
    let (away, opened) = (owner.path("away.age"), ["--passphrase-file", &*words]);
    let away = away.to_str().unwrap();
    done(&owner, &[&["swarm", "root", "--export", away, "--remove"], &opened[..]].concat());
    assert!(is_private(Path::new(away)) && !owner.path("home/root.key").exists());
    assert_eq!(refused(&owner, &[&["swarm", "root", "--export", away], &opened[..]].concat()), "exists");
    assert_eq!(done(&owner, &["swarm", "root"])["kept"], "elsewhere");
    assert_eq!(done(&owner, &["swarm", "whoami"])["root"], false);
    let named = [&["--root", away], &opened[..]].concat();

    // Whoever serves says that nobody is let in, unless it was given the root.
    let serving = serve(&owner, &at, &[]);
    assert_eq!(refused(&owner, &["swarm", "invite"]), "no_root");
    let line = invite(&owner, &named);
    assert_eq!(refused(&guest, &["swarm", "join", &line]), "door_shut");
    stop(serving);
    let serving = serve(&owner, &at, &named);
    done(&guest, &["swarm", "join", &line]);
    wait_until("the guest is in", || is_in(&guest));

    // A grant, and what takes it back.
    let theirs = keys(&other);
    let granted = done(&owner, &[&["swarm", "grant", &theirs[0], &theirs[1]], &named[..]].concat());
    done(&other, &["swarm", "join", granted["invitation"].as_str().unwrap()]);
    wait_until("the other is in", || is_in(&other));
    assert_eq!(done(&owner, &[&["swarm", "revoke", &theirs[1]], &named[..]].concat())["told"], 1);
    assert!(!is_in(&other) && is_in(&guest));
    stop(serving);
    // Back again.
    done(&owner, &[&["swarm", "root", "--unlock"], &named[..]].concat());
    invite(&owner, &[]);
}

#[test]
fn a_root_is_followed_by_another_and_its_members_notice_nothing() {
    let (owner, member, friend, thief, newcomer) =
        (Machine::new(), Machine::new(), Machine::new(), Machine::new(), Machine::new());
    let swarm = done(&owner, &["swarm", "create"])["swarm"].clone();
    let words = secret(&owner, "words", WORDS);
    let (opened, at) = (["--passphrase-file", &*words], place());
    let serving = serve(&owner, &at, &[]);
    done(&member, &["swarm", "join", &invite(&owner, &[])]);
    let theirs = keys(&friend);
    let handed = done(&member, &["swarm", "attenuate", &theirs[0], &theirs[1], "--role", "guest"]);
    done(&friend, &["swarm", "join", handed["invitation"].as_str().unwrap()]);
    for machine in [&member, &friend] {
        wait_until("a member is in", || is_in(machine));
    }
    // The whole home is stolen, with the root key in it.
    fs::create_dir(thief.path("home")).unwrap();
    for name in ["root.key", "swarm.json", "peer.key", "client.key"] {
        fs::copy(owner.path("home").join(name), thief.path("home").join(name)).unwrap();
    }
    let old = fs::read_to_string(owner.path("home/root.key")).unwrap();

    // The thief shuts a member out, which is given back what it had.
    assert_eq!(done(&thief, &["swarm", "revoke", &keys(&member)[1]])["told"], 1);
    assert!(!is_in(&member) && !is_in(&friend));

    let rotated = done(&owner, &["swarm", "root", "--rotate", "--restore", "all"]);
    assert_ne!(rotated["root"], swarm);
    let figures = ["adopted", "restored", "told"].map(|name| rotated[name].as_u64().unwrap());
    assert_eq!(figures, [4, 1, 1], "{rotated}");
    assert_ne!(fs::read_to_string(owner.path("home/root.key")).unwrap(), old);
    let shown = done(&owner, &["swarm", "root"]);
    assert_eq!((&shown["root"], &shown["swarm"], shown["rotations"].as_u64()), (&rotated["root"], &swarm, Some(1)));

    // Those who were in are in, and are answered.
    for machine in [&member, &friend] {
        wait_until("a member stays in", || is_in(machine));
    }
    let answer = member.answer("Hello", 4, &["--context", "512", "--exact", "--prefer", "swarm"]);
    assert_eq!(answer["route"].as_array().unwrap().len(), 1, "{answer}");
    let states = |machine: &Machine| {
        let members = done(machine, &["swarm", "members"]);
        members["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["state"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(states(&owner), ["holds", "holds"]);
    assert_eq!(done(&member, &["swarm", "explain", "lend"])["may"], true);
    assert_eq!(done(&friend, &["swarm", "whoami"])["keys"][1]["state"], "holds");

    // The thief lets somebody in, who gets no further than the door.
    let accomplice = Machine::new();
    let theirs = keys(&accomplice);
    let granted = done(&thief, &["swarm", "grant", &theirs[0], &theirs[1], "--role", "owner"]);
    done(&accomplice, &["swarm", "join", granted["invitation"].as_str().unwrap()]);
    assert!(!is_in(&accomplice), "minted by the old root");
    // Nor does a second succession replace the first: it is a warning.
    assert_eq!(
        refused(&thief, &["swarm", "root", "--rotate"]),
        "root_followed",
        "he hears of it when he asks the owner"
    );

    // It goes on after a restart, locked, and newcomers are led to the new root by either way.
    stop(serving);
    done(&owner, &[&["swarm", "root", "--lock"], &opened[..]].concat());
    let shut = serve(&owner, &at, &[]);
    let line = invite(&owner, &opened);
    assert_eq!(refused(&newcomer, &["swarm", "join", &line]), "door_shut", "the root is locked");
    stop(shut);
    let serving = serve(&owner, &at, &opened);
    assert_eq!(done(&newcomer, &["swarm", "join", &line])["swarm"], swarm, "the swarm keeps its name");
    wait_until("a newcomer is in", || is_in(&newcomer));
    assert!(is_in(&member) && is_in(&friend) && !is_in(&accomplice));
    let by_hand = Machine::new();
    let theirs = keys(&by_hand);
    let granted = done(&owner, &[&["swarm", "grant", &theirs[0], &theirs[1]], &opened[..]].concat());
    done(&by_hand, &["swarm", "join", granted["invitation"].as_str().unwrap()]);
    wait_until("whoever was granted by hand is in", || is_in(&by_hand));

    // Twice, and the new root takes back what the first one gave.
    let again = done(&owner, &[&["swarm", "root", "--rotate"], &opened[..]].concat());
    assert_ne!(again["root"], rotated["root"]);
    assert_eq!(done(&owner, &["swarm", "root"])["kept"], "locked", "as the one before");
    let members_key = keys(&member)[1].clone();
    assert_eq!(done(&owner, &[&["swarm", "revoke", &members_key], &opened[..]].concat())["told"], 1);
    assert!(!is_in(&member) && !is_in(&friend), "what was handed on falls with it");
    assert!(is_in(&newcomer) && is_in(&by_hand) && !is_in(&accomplice));
    stop(serving);
}

#[test]
fn a_rotation_that_was_cut_short_is_finished_and_a_rival_is_shown() {
    let (owner, thief) = (Machine::new(), Machine::new());
    done(&owner, &["swarm", "create"]);
    fs::create_dir(thief.path("home")).unwrap();
    for name in ["root.key", "swarm.json", "peer.key", "client.key"] {
        fs::copy(owner.path("home").join(name), thief.path("home").join(name)).unwrap();
    }
    let old = fs::read(owner.path("home/root.key")).unwrap();
    let rotated = done(&owner, &["swarm", "root", "--rotate"]);
    // As if it had ended before the new key took the old one's place.
    fs::rename(owner.path("home/root.key"), owner.path("home/root.key.next")).unwrap();
    fs::write(owner.path("home/root.key"), &old).unwrap();
    fs::set_permissions(owner.path("home/root.key"), fs::Permissions::from_mode(0o600)).unwrap();
    invite(&owner, &[]);
    assert!(!owner.path("home/root.key.next").exists());
    assert_ne!(fs::read(owner.path("home/root.key")).unwrap(), old);
    // A key that was rotated away is told so.
    let stale = secret(&owner, "stale", &String::from_utf8(old).unwrap());
    assert_eq!(refused(&owner, &["swarm", "invite", "--root", &stale]), "root_followed");

    // The thief, who has heard of nothing, names another: whoever has both follows the first.
    let theirs = done(&thief, &["swarm", "root", "--rotate"]);
    let said = |machine: &Machine| -> Value {
        serde_json::from_str(&fs::read_to_string(machine.path("home/revoked.json")).unwrap()).unwrap()
    };
    let mut both = said(&owner);
    both["revocations"].as_array_mut().unwrap().push(said(&thief)["revocations"][0].clone());
    fs::write(owner.path("home/revoked.json"), both.to_string()).unwrap();
    let shown = done(&owner, &["swarm", "root"]);
    assert_eq!(shown["root"], rotated["root"]);
    assert_eq!(shown["rivals"][0], theirs["root"]);
    let findings = owner.json(&["doctor"]).0;
    let warned = |finding: &Value| finding["id"] == "root" && finding["how"] == "warn";
    assert!(findings["findings"].as_array().unwrap().iter().any(warned), "{findings}");
}
