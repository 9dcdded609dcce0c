//! A swarm of machines: made, joined, served and asked, by people who type commands.

use crate::machine::{Machine, Running, model, wait_until};

/// Lends layers of the small model; returns once they are served.
fn serve(machine: &Machine, layers: &str) -> Running {
    let model = model();
    let args = ["serve", "--model", &model, "--layers", layers, "--bind", "127.0.0.1:0", "--threads", "1", "--exact"];
    let mut serving = machine.start(&[&args[..], &["--context", "512", "--json"]].concat());
    let ready = serving.object();
    assert_eq!(ready["layers"].to_string(), format!("[{}]", layers.replace("..", ",")), "{ready}");
    serving
}

/// What another machine has to type to join.
fn invitation(owner: &Machine, guest: &Machine) -> String {
    let (keys, _) = guest.json(&["swarm", "join"]);
    let keys: Vec<_> = keys["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect();
    let (granted, code) = owner.json(&["swarm", "grant", &keys[0], &keys[1]]);
    assert_eq!(code, 0, "{granted}");
    granted["invitation"].as_str().unwrap().to_owned()
}

/// A line that lets one machine in.
fn invite(owner: &Machine, more: &[&str]) -> String {
    let (invited, code) = owner.json(&[&["swarm", "invite"], more].concat());
    assert_eq!(code, 0, "{invited}");
    invited["invitation"].as_str().unwrap().to_owned()
}

/// Joins by such a line and lends; what it says of joining comes first, then what it serves.
fn join(machine: &Machine, line: &str, more: &[&str]) -> Running {
    let fixed = ["--bind", "127.0.0.1:0", "--threads", "1", "--exact", "--context", "512", "--json"];
    machine.start(&[&["join", line], more, &fixed[..]].concat())
}

#[test]
fn two_machines_answer_a_third() {
    let (owner, second, third) = (Machine::new(), Machine::new(), Machine::new());
    let (swarm, _) = owner.json(&["swarm", "create"]);
    let first = serve(&owner, "0..15");
    // The owner serves: so its invitations say where.
    let (joined, code) = second.json(&["swarm", "join", &invitation(&owner, &second)]);
    assert_eq!((joined["swarm"].as_str(), code), (swarm["swarm"].as_str(), 0), "{joined}");
    let last = serve(&second, "15..30");
    third.json(&["swarm", "join", &invitation(&owner, &third)]);
    let mut offered = Vec::new();
    crate::machine::wait_until("both offers are known", || {
        let (peers, code) = third.json(&["peers"]);
        assert_eq!(code, 0, "{peers}");
        offered = peers["peers"].as_array().unwrap().iter().map(|peer| peer["layers"].to_string()).collect();
        offered.len() == 2
    });
    offered.sort_unstable();
    assert_eq!(offered, ["[0,15]", "[15,30]"]);

    let (plan, code) = third.json(&["model", "plan", &model(), "--context", "512"]);
    assert_eq!(code, 0, "{plan}");
    assert_eq!(plan["verdict"]["kind"], "single", "the small model fits this machine: pooling would not pay. {plan}");
    assert_eq!(plan["stages"][0]["who"], "own");
    assert_eq!(plan["left_out"].as_array().unwrap().len(), 2, "and each peer is told why: {plan}");

    let alone = third.answer("Hello", 24, &["--context", "512", "--exact"]);
    assert_eq!(alone["route"][0]["path"], "self", "so it runs there");
    let prompt = ["--context", "512", "--exact", "--prefer", "swarm"];
    let pooled = third.answer("Hello", 24, &prompt);
    assert_eq!(pooled["route"].as_array().unwrap().len(), 2, "{pooled}");
    assert_eq!(pooled["tokens"], alone["tokens"]);

    let bench = ["bench", "--model", &model(), "--tokens", "8", "--threads", "1"];
    let (report, code) = third.json(&[&bench[..], &prompt].concat());
    assert_eq!(code, 0, "{report}");
    assert_eq!(
        (report["route"].as_array().unwrap().len(), report["links"].as_array().unwrap().len()),
        (2, 3),
        "{report}"
    );
    assert_eq!(report["alone"]["measured"], true, "what it did a moment ago: {report}");
    let predicted = &report["predicted"]["tokens_per_s"];
    assert!(
        predicted["predicted"].as_f64().unwrap() > 0.0 && predicted["ratio"].is_f64(),
        "by the peers' own figures: {report}"
    );
    assert_eq!(report["drafted"], serde_json::Value::Null, "nothing is drafted where answers are exact");

    for serving in [first, last] {
        serving.signal("TERM");
        assert_eq!(serving.end().0, Some(0));
    }
    [&owner, &second, &third].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

/// A machine's keys, as it prints them for whoever is to let it in.
fn keys_of(machine: &Machine) -> Vec<String> {
    let (keys, _) = machine.json(&["swarm", "join"]);
    keys["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_guest_uses_and_does_not_lend_until_it_is_shut_out() {
    let (owner, guest, friend) = (Machine::new(), Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let serving = serve(&owner, "0..30");
    let keys = keys_of(&guest);
    let limits = ["--role", "guest", "--hand-on", "1", "--only-model", &model(), "--tokens-per-day", "100000"];
    let (granted, code) = owner.json(&[&["swarm", "grant", &keys[0], &keys[1]][..], &limits].concat());
    assert_eq!(code, 0, "{granted}");
    assert_eq!(guest.json(&["swarm", "join", granted["invitation"].as_str().unwrap()]).1, 0);
    let (who, _) = guest.json(&["swarm", "whoami"]);
    assert_eq!(who["keys"][1]["rights"], serde_json::json!(["look", "use"]), "{who}");
    assert_eq!(who["keys"][1]["tokens_per_day"], 100_000, "{who}");
    assert_eq!(owner.json(&["swarm", "whoami"]).0["keys"][0]["rights"].as_array().unwrap().len(), 8);
    let (may, _) = guest.json(&["swarm", "explain", "lend"]);
    assert_eq!((may["may"].as_bool(), may["why"].as_str()), (Some(false), Some("the grant does not allow to lend")));
    assert_eq!(guest.json(&["swarm", "explain", "use", "--model", &"0".repeat(64)]).0["may"], false);
    assert_eq!(owner.json(&["swarm", "explain", "look", "--of", &keys[1]]).0["may"], true);
    assert_eq!(guest.json(&["swarm", "explain", "fly"]).1, 2);

    let asked = ["--context", "512", "--exact", "--prefer", "swarm"];
    let answer = guest.answer("Hello", 4, &asked);
    assert_eq!(answer["route"].as_array().unwrap().len(), 1, "{answer}");
    let (lending, code) = guest.json(&["serve", "--model", &model(), "--layers", "0..30", "--bind", "127.0.0.1:0"]);
    assert_eq!((lending["error"]["code"].as_str(), code), (Some("not_allowed"), 1), "{lending}");

    // It hands on what it has, without asking anybody, and no more than that.
    let theirs = keys_of(&friend);
    let wider = ["--role", "owner", "--days", "3000"];
    let (handed, code) = guest.json(&[&["swarm", "attenuate", &theirs[0], &theirs[1]][..], &wider].concat());
    assert_eq!(code, 0, "{handed}");
    assert_eq!(friend.json(&["swarm", "join", handed["invitation"].as_str().unwrap()]).1, 0);
    assert_eq!(friend.json(&["swarm", "whoami"]).0["keys"][1]["rights"], serde_json::json!(["look", "use"]));
    assert_eq!(friend.answer("Hello", 4, &asked)["tokens"], answer["tokens"]);
    let (further, code) = friend.json(&["swarm", "attenuate", &keys[0]]);
    assert_eq!((further["error"]["code"].as_str(), code), (Some("grant"), 1), "{further}");

    // One word shuts out both: the friend's right rests on the guest's.
    let (revoked, code) = owner.json(&["swarm", "revoke", &keys[1]]);
    assert_eq!((revoked["told"].as_u64(), code), (Some(1), 0), "{revoked}");
    for machine in [&guest, &friend] {
        let (refused, code) = machine.json(&["peers"]);
        assert!(code != 0 || refused["peers"].as_array().unwrap().is_empty(), "{refused}");
        let (refused, code) = machine.json(&["run", "Hello", "--prefer", "swarm", "--model", &model()]);
        assert_eq!(
            (refused["error"]["code"].as_str(), code),
            (Some("not_admitted"), 1),
            "and it is told so: {refused}"
        );
    }
    let (members, _) = owner.json(&["swarm", "members"]);
    let states: Vec<_> =
        members["members"].as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert!(states[0] == "holds" && states[1].starts_with("revoked"), "{members}");
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0));
    // It is known after a restart, too.
    let serving = serve(&owner, "0..30");
    let (refused, code) = friend.json(&["peers"]);
    assert!(code != 0 || refused["peers"].as_array().unwrap().is_empty(), "{refused}");
    drop(serving);
}

#[test]
fn one_line_lets_one_machine_in() {
    let (owner, second, third) = (Machine::new(), Machine::new(), Machine::new());
    let (created, code) = owner.json(&["swarm", "create"]);
    assert_eq!(code, 0, "{created}");
    let first = serve(&owner, "0..30");
    let line = invite(&owner, &[]);
    let (joined, code) = second.json(&["swarm", "join", &line]);
    assert_eq!((joined["swarm"].as_str(), code), (created["swarm"].as_str(), 0), "{joined}");
    let (again, code) = second.json(&["swarm", "join", &line]);
    assert_eq!((&again["code"], code), (&joined["code"], 0), "whose answer was lost may ask again: {again}");
    let (late, code) = third.json(&["swarm", "join", &line]);
    assert_eq!((late["error"]["code"].as_str(), code), (Some("invitation_used"), 1), "{late}");

    let (listed, _) = owner.json(&["swarm", "invitations"]);
    let listed = listed["invitations"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "the one of `swarm create` is open still: {listed:?}");
    assert_eq!(listed[1]["used_by"][0]["code"], joined["code"], "both sides see the same six digits");
    let second_line = invite(&owner, &["--uses", "2", "--days", "7", "--hours", "1"]);
    let listed = owner.json(&["swarm", "invitations"]).0["invitations"][2].clone();
    assert_eq!(
        (listed["uses"].as_u64(), listed["days"].as_u64(), listed["state"].as_str()),
        (Some(2), Some(7), Some("open"))
    );
    for beyond in [["--uses", "0"], ["--uses", "1001"], ["--hours", "8761"], ["--days", "3651"]] {
        assert_eq!(owner.json(&[&["swarm", "invite"][..], &beyond].concat()).1, 2, "{beyond:?}");
    }
    let id = owner.json(&["swarm", "invitations"]).0["invitations"][2]["id"].as_str().unwrap().to_owned();
    assert_eq!(owner.json(&["swarm", "invitations", "--revoke", &id]).1, 0);
    let (revoked, _) = third.json(&["swarm", "join", &second_line]);
    assert_eq!(revoked["error"]["code"], "invitation_unknown", "{revoked}");
    assert!(third.json(&["peers"]).0["error"]["code"] == "no_swarm", "nothing of it is kept");

    // The newcomer is a member: it uses what the owner lends, and the owner's restart changes nothing.
    wait_for_peers(&second, 1);
    let answer = second.answer("Hello", 4, &["--context", "512", "--exact", "--prefer", "swarm"]);
    assert_eq!(answer["route"].as_array().unwrap().len(), 1, "{answer}");
    first.signal("TERM");
    assert_eq!(first.end().0, Some(0));
    let (alone, _) = third.json(&["swarm", "join", &invite(&owner, &[])]);
    assert_eq!(alone["error"]["code"], "peer_lost", "nobody answers it: {alone}");
    assert!(alone["error"]["hint"].as_str().unwrap().contains("potluck serve"), "{alone}");
    let again = serve(&owner, "0..30");
    assert_eq!(third.json(&["swarm", "join", &invite(&owner, &["--days", "7"])]).1, 0);
    let (checked, _) = third.json(&["doctor"]);
    let ends = |finding: &serde_json::Value| finding["id"] == "grant" && finding["how"] == "warn";
    assert!(checked["findings"].as_array().unwrap().iter().any(ends), "a member for a week: {checked}");
    wait_for_peers(&third, 1);
    again.signal("TERM");
    assert_eq!(again.end().0, Some(0));
    [&owner, &second, &third].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

#[test]
fn one_line_is_all_that_a_machine_without_a_model_takes() {
    let (owner, second, third) = (Machine::new(), Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let first = serve(&owner, "0..15");
    let mut lending = join(&second, &invite(&owner, &[]), &[]);
    let joined = lending.object();
    assert!(joined["code"].is_string(), "{joined}");
    let ready = lending.object();
    assert_eq!(ready["layers"].to_string(), "[15,30]", "it takes what nobody serves: {ready}");
    let (listed, _) = second.json(&["model", "list"]);
    let [name, held, bytes] = ["name", "held_bytes", "bytes"].map(|key| listed["models"][0][key].clone());
    assert_eq!(name, owner.json(&["model", "list"]).0["models"][0]["name"], "a model keeps its name");
    assert!(held.as_u64().unwrap() < bytes.as_u64().unwrap() * 7 / 10, "its layers and the output, no more: {listed}");

    // A third asks, and has nothing of the model but its description.
    third.json(&["swarm", "join", &invite(&owner, &[])]);
    wait_for_peers(&third, 2);
    let args = ["run", "Hello", "--max-tokens", "24", "--temperature", "0", "--context", "512", "--exact"];
    let (pooled, code) = third.json(&args);
    assert_eq!(code, 0, "{pooled}");
    assert_eq!(pooled["route"].as_array().unwrap().len(), 2, "{pooled}");
    assert_eq!(third.json(&["model", "list"]).0["models"][0]["held_bytes"], 0);
    let alone = owner.answer("Hello", 24, &["--local", "--context", "512", "--exact"]);
    assert_eq!(pooled["tokens"], alone["tokens"]);
    let (refused, code) = third.json(&[&args[..], &["--local"]].concat());
    assert_eq!((refused["error"]["code"].as_str(), code), (Some("not_here"), 1), "{refused}");

    // Then it pulls: the first half from the first, what the tail needs from either.
    let (pulled, code) = third.json(&["model", "pull", name.as_str().unwrap()]);
    assert_eq!(code, 0, "{pulled}");
    assert_eq!(pulled["held_bytes"], pulled["bytes"], "{pulled}");
    assert_eq!(pulled["from"].as_object().unwrap().len(), 2, "{pulled}");
    let received = pulled["received_bytes"].as_u64().unwrap();
    assert!(received < pulled["wanted_bytes"].as_u64().unwrap() * 105 / 100, "{pulled}");
    let (local, code) = third.json(&[&args[..], &["--local"]].concat());
    assert_eq!((&local["tokens"], code), (&alone["tokens"], 0), "it is the same model: {local}");

    for serving in [first, lending] {
        serving.signal("TERM");
        assert_eq!(serving.end().0, Some(0));
    }
    [&owner, &second, &third].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

#[test]
fn a_peer_that_moves_is_found_again() {
    let (owner, second, third) = (Machine::new(), Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let first = serve(&owner, "0..15");
    let mut lending = join(&second, &invite(&owner, &[]), &["--layers", "15..30"]);
    let _joined = lending.object();
    assert_eq!(lending.object()["layers"].to_string(), "[15,30]");
    let known = |machine: &Machine| {
        std::fs::read_to_string(machine.path("home/swarm.json")).unwrap().matches("\"peer\"").count()
    };
    wait_until("the owner remembers where the second is", || known(&owner) == 2);
    third.json(&["swarm", "join", &invite(&owner, &[])]);
    assert_eq!(known(&third), 2, "a newcomer is told of both");

    // The owner comes back at another port: nobody tells the others, and they find it.
    first.signal("TERM");
    assert_eq!(first.end().0, Some(0));
    let again = serve(&owner, "0..15");
    let run =
        ["run", "Hello", "--max-tokens", "4", "--context", "512", "--exact", "--threads", "1", "--prefer", "swarm"];
    for machine in [&third, &second] {
        wait_until("the swarm answers again", || machine.json(&run).1 == 0);
    }
    for serving in [again, lending] {
        serving.signal("TERM");
        assert_eq!(serving.end().0, Some(0));
    }
    [&owner, &second, &third].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

#[test]
fn an_operator_moves_layers_and_waits_for_the_sessions_that_are_open() {
    let (owner, second, third) = (Machine::new(), Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let first = serve(&owner, "0..15");
    let mut lending = join(&second, &invite(&owner, &[]), &["--layers", "15..30"]);
    lending.object();
    let ready = lending.object();
    assert_eq!(ready["layers"].to_string(), "[15,30]", "{ready}");
    let peer = ready["id"].as_str().unwrap().to_owned();
    let name = owner.json(&["model", "list"]).0["models"][0]["name"].as_str().unwrap().to_owned();
    third.json(&["swarm", "join", &invite(&owner, &[])]);
    wait_for_peers(&third, 2);

    // Only by who may, and only what can be served.
    let load = |machine: &Machine, layers: &str| {
        machine.json(&["model", "load", &name, "--layers", layers, "--peer", &peer[..8]])
    };
    let refused = load(&second, "0..15").0["error"].clone();
    assert_eq!(refused["code"], "peer_failed", "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("does not allow to order"), "{refused}");
    assert_eq!(load(&owner, "20..40").0["error"]["code"], "illegal_cut");
    let nobody = owner.json(&["model", "unload", "--peer", "ffffffff"]);
    assert_eq!(nobody.0["error"]["code"], "no_peer", "{}", nobody.0);

    // A conversation over the owner's peer and the second's: it is let finish.
    let routed = |machine: &Machine| {
        let (peers, _) = machine.json(&["peers"]);
        let layers = peers["peers"].as_array().unwrap().iter().map(|peer| peer["layers"].to_string());
        layers.collect::<std::collections::BTreeSet<_>>()
    };
    wait_until("both halves are known", || routed(&third).is_superset(&["[0,15]", "[15,30]"].map(String::from).into()));
    let long = ["run", "Tell me a long story.", "--model", &name, "--max-tokens", "160", "--ignore-eos"];
    let rest = ["--context", "512", "--exact", "--prefer", "swarm", "--threads", "1"];
    let mut talking = third.start(&[&long[..], &rest].concat());
    let mut begun = [0; 1];
    std::io::Read::read_exact(&mut talking.stdout, &mut begun).unwrap();
    // An operator that does not hold the root's key.
    let keys = keys_of(&third);
    let (granted, _) = owner.json(&["swarm", "grant", &keys[0], &keys[1], "--role", "operator"]);
    assert_eq!(third.json(&["swarm", "join", granted["invitation"].as_str().unwrap()]).1, 0);
    let (ordered, code) = load(&third, "0..15");
    assert_eq!(code, 0, "{ordered}");
    assert!(ordered["answer"].as_str().unwrap().contains("0..15"), "{ordered}");
    let mut story = String::new();
    std::io::Read::read_to_string(&mut talking.stdout, &mut story).unwrap();
    assert_eq!(talking.end().0, Some(0), "the conversation was let finish: {story}");
    assert!(story.len() > 200, "{story}");
    let moved = lending.object();
    assert_eq!(moved["layers"].to_string(), "[0,15]", "{moved}");
    assert_eq!(moved["id"].as_str(), Some(&*peer), "the same peer");
    assert!(moved["pulled"]["wanted_bytes"].as_u64().unwrap() > 0, "it fetched what it lacked: {moved}");

    let (unloaded, code) = owner.json(&["model", "unload", "--peer", &peer[..8]]);
    assert_eq!(code, 0, "{unloaded}");
    assert_eq!(lending.object()["unloaded"], true);
    wait_until("its offer is withdrawn", || routed(&third) == ["[0,15]".to_owned()].into());
    let at = moved["addresses"][0].as_str().unwrap();
    let (again, code) = owner.json(&["model", "load", &name, "--layers", "15..30", "--peer", &format!("{peer}@{at}")]);
    assert_eq!(code, 0, "{again}");
    assert_eq!(lending.object()["layers"].to_string(), "[15,30]");
    for serving in [first, lending] {
        serving.signal("TERM");
        assert_eq!(serving.end().0, Some(0));
    }
    [&owner, &second, &third].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

#[test]
fn who_has_left_a_swarm_invites_nobody_to_it() {
    let (owner, other) = (Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    other.json(&["swarm", "create"]);
    let line = invitation(&other, &owner);
    let (kept, code) = owner.json(&["swarm", "join", &line]);
    assert_eq!((kept["error"]["code"].as_str(), code), (Some("already_joined"), 1), "{kept}");
    assert_eq!(owner.json(&["swarm", "join", &line, "--replace"]).1, 0);
    for command in [&["swarm", "invite"][..], &["swarm", "grant", &"0".repeat(64)]] {
        let (refused, _) = owner.json(command);
        assert_eq!(refused["error"]["code"], "no_root", "{refused}");
    }
    let serving = serve(&owner, "0..15");
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0), "a root key of another swarm is in nobody's way");
}

/// Waits until that machine is told of so many offers.
fn wait_for_peers(machine: &Machine, count: usize) {
    crate::machine::wait_until("the offers are known", || {
        machine.json(&["peers"]).0["peers"].as_array().is_some_and(|peers| peers.len() == count)
    });
}

#[test]
fn a_gateway_finds_the_peers_that_are_there() {
    let (owner, second, third) = (Machine::new(), Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let first = serve(&owner, "0..15");
    second.json(&["swarm", "join", &invitation(&owner, &second)]);
    let last = serve(&second, "15..30");
    third.json(&["swarm", "join", &invitation(&owner, &third)]);
    crate::machine::wait_until("both offers are known", || {
        third.json(&["peers"]).0["peers"].as_array().unwrap().len() == 2
    });
    let model = model();
    let fixed = ["gateway", "--model", &model, "--prefer", "swarm", "--context", "512", "--exact", "--slots", "2"];
    let mut gateway = third.start(&[&fixed[..], &["--listen", "127.0.0.1:0", "--json"]].concat());
    let ready = gateway.object();
    let url = ready["url"].as_str().unwrap_or_else(|| panic!("{ready}")).to_owned();
    assert_eq!(ready["peers"].as_array().unwrap().len(), 0, "none were started for it");
    let body = r#"{"model":"SmolLM2-135M-Instruct.Q4_1","prompt":"Hello","temperature":0,"max_tokens":8}"#;
    let ask = || crate::machine::http::ask(&url, "POST", "/v1/completions", &[], body);
    let answer = ask();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let text = answer.json()["choices"][0]["text"].clone();
    // One peer goes, and comes back at another address: nobody touches the gateway.
    last.signal("TERM");
    assert_eq!(last.end().0, Some(0));
    let answer = ask();
    assert_eq!(answer.status, 503, "{}", answer.body);
    let last = serve(&second, "15..30");
    crate::machine::wait_until("it is whole again", || ask().status == 200);
    assert_eq!(ask().json()["choices"][0]["text"], text);
    gateway.signal("TERM");
    assert_eq!(gateway.end().0, Some(0));
    for serving in [first, last] {
        serving.signal("TERM");
        assert_eq!(serving.end().0, Some(0));
    }
    [&owner, &second, &third].iter().for_each(|machine| machine.wait_until_empty(&[]));
}

#[test]
fn both_ends_stay_on_the_asking_machine_where_the_whole_does_not_fit() {
    let (owner, client) = (Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let middle = serve(&owner, "5..25");
    client.json(&["swarm", "join", &invitation(&owner, &client)]);
    // The whole model takes more than 97 MB, its ends with five layers each less than 88.
    let private = client.answer("Hello", 24, &["--context", "512", "--exact", "--memory", "92MB"]);
    let paths: Vec<_> = private["route"].as_array().unwrap().iter().map(|stage| stage["path"].clone()).collect();
    assert_eq!(paths.first().unwrap(), "self", "{private}");
    assert_eq!(paths.last().unwrap(), "self");
    assert_eq!(paths.len(), 3);
    let whole = client.answer("Hello", 24, &["--context", "512", "--exact", "--local"]);
    assert_eq!(private["tokens"], whole["tokens"]);
    middle.signal("TERM");
    assert_eq!(middle.end().0, Some(0));
}

#[test]
fn a_stranger_is_not_let_in() {
    let (owner, stranger) = (Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let serving = serve(&owner, "0..15");
    // A swarm of the stranger's own, whose invitation names the owner's peer as a contact.
    stranger.json(&["swarm", "create"]);
    let theirs = std::fs::read_to_string(owner.path("home/swarm.json")).unwrap();
    let contacts = serde_json::from_str::<serde_json::Value>(&theirs).unwrap()["contacts"].clone();
    let path = stranger.path("home/swarm.json");
    let mut own: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    own["contacts"] = contacts;
    std::fs::write(&path, own.to_string()).unwrap();
    let (peers, code) = stranger.json(&["peers"]);
    assert_eq!(code, 0);
    assert_eq!(peers["peers"].as_array().unwrap().len(), 0, "{peers}");
    assert_eq!(peers["silent"].as_array().unwrap().len(), 1, "and it learns that it was refused: {peers}");
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0));
}

#[test]
fn an_invitation_is_for_one_machine() {
    let (owner, guest, other) = (Machine::new(), Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let (error, code) = other.json(&["swarm", "join", &invitation(&owner, &guest)]);
    assert_eq!((error["error"]["code"].as_str(), code), (Some("not_for_us"), 1));
    let (error, _) = guest.json(&["swarm", "grant", &"00".repeat(32)]);
    assert_eq!(error["error"]["code"], "no_root");
}

#[test]
fn one_key_serves_once() {
    let machine = Machine::new();
    machine.json(&["swarm", "create"]);
    let serving = serve(&machine, "0..1");
    let (error, code) = machine.json(&["serve", "--model", &model(), "--layers", "1..2", "--bind", "127.0.0.1:0"]);
    assert_eq!((error["error"]["code"].as_str(), code), (Some("identity_in_use"), 1));
    serving.signal("INT");
    assert_eq!(serving.end().0, Some(0));
}

#[test]
fn a_machine_leaves_its_swarm_and_whoever_made_it_says_so_twice() {
    let (owner, guest) = (Machine::new(), Machine::new());
    assert_eq!(owner.json(&["swarm", "leave"]).0["error"]["code"], "no_swarm");
    let (made, _) = owner.json(&["swarm", "create"]);
    let swarm = made["swarm"].as_str().unwrap();
    // The guest is let in by its keys: nobody serves here.
    let (keys, _) = guest.json(&["swarm", "join"]);
    let keys: Vec<_> = keys["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let (granted, _) = owner.json(&[&["swarm", "grant"], &keys[..]].concat());
    assert_eq!(guest.json(&["swarm", "join", granted["invitation"].as_str().unwrap()]).1, 0);
    assert_eq!(guest.json(&["swarm", "leave"]), (serde_json::json!({ "left": swarm }), 0));
    assert_eq!(guest.json(&["swarm", "leave"]).0["error"]["code"], "no_swarm");

    let (kept, code) = owner.json(&["swarm", "leave"]);
    assert_eq!((kept["error"]["code"].as_str(), code), (Some("root_here"), 1));
    assert_eq!(owner.json(&["swarm", "leave", "--end"]).1, 0);
    assert_eq!(owner.json(&["swarm", "invite"]).0["error"]["code"], "no_root");
    let (again, code) = owner.json(&["swarm", "create"]);
    assert!(code == 0 && again["swarm"] != swarm, "{again}");

    // Who made a swarm and went over to another one keeps its root key until it is told to end it.
    let host = Machine::new();
    host.json(&["swarm", "create"]);
    let (keys, _) = owner.json(&["swarm", "join"]);
    let keys: Vec<_> = keys["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let (granted, _) = host.json(&[&["swarm", "grant"], &keys[..]].concat());
    let line = granted["invitation"].as_str().unwrap();
    assert_eq!(owner.json(&["swarm", "join", line]).0["error"]["code"], "already_joined");
    assert_eq!(owner.json(&["swarm", "join", line, "--replace"]).1, 0);
    assert_eq!(owner.json(&["swarm", "leave"]).1, 0, "that swarm was not made here");
    assert_eq!(owner.json(&["swarm", "create"]).0["error"]["code"], "already_created");
    assert_eq!(owner.json(&["swarm", "leave", "--end"]), (serde_json::json!({ "left": null }), 0));
    assert_eq!(owner.json(&["swarm", "create"]).1, 0);

    // What is damaged can be left, or replaced.
    std::fs::write(owner.path("home/swarm.json"), "{").unwrap();
    assert_eq!(owner.json(&["peers"]).0["error"]["code"], "membership");
    assert_eq!(owner.json(&["swarm", "join", line, "--replace"]).1, 0);
    std::fs::write(owner.path("home/swarm.json"), "{").unwrap();
    assert_eq!(owner.json(&["swarm", "leave"]).0["error"]["code"], "root_here", "it may be that root's swarm");
    assert_eq!(owner.json(&["swarm", "leave", "--end"]).1, 0);
}
