//! What the fuzzers found worth keeping, replayed: `fuzz/corpus`, by the fuzzers' own checks.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../fuzz/checks/grant.rs"]
mod grant;
#[path = "../../../fuzz/replay.rs"]
mod replay;
#[path = "../../../fuzz/checks/signed.rs"]
mod signed;

use potluck_core::{Action, Order, PeerId, Revocation, Revoked, SecretKey};
use potluck_grant::{ApiKey, Gate, Root, relay_token};
use potluck_wire::Frame;
use replay::replay;

#[test]
fn grant_corpus() {
    replay("grant", grant::check);
}

#[test]
fn signed_corpus() {
    const NOW: u64 = 1_800_000_000;
    const REVOCATIONS: u8 = 33;
    let (key, root) = (SecretKey::from_bytes(&[9; 32]), Root::from_bytes(&[8; 32]));
    let grant = root.grant(key.peer_id(), 4_000_000_000).unwrap().into_bytes();
    let body = |frame: Frame| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        // Without its length and its kind.
        bytes.split_off(5)
    };
    let peer = PeerId::from_bytes([0xee; 32]);
    let order = Order { peer, sequence: 1, expires: 1_800_000_060, action: Action::Unload }.sign(&key);
    let (swarm, what) = (Root::from_bytes(&[7; 32]).key().peer_id(), Revoked::Key(peer));
    let revocation = Revocation::sign(swarm, what, 1_700_000_000, &key, grant.clone());
    let seeds: [(&str, Vec<u8>); 5] = [
        ("order", body(Frame::Order(order))),
        ("revocation", body(Frame::Revocations(vec![revocation]))),
        ("relay-grant", relay_token(&grant).into_bytes()),
        ("relay-pass", root.relay_pass(&[7; 16], 4_000_000_000).token(&[7; 16], peer).into_bytes()),
        ("api-key", ApiKey::new(&key, grant.clone()).to_string().into_bytes()),
    ];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/signed");
    if std::env::var_os("POTLUCK_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        seeds.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
    }
    // Each is what it is called, and so worth a fuzzer's time; not byte for byte as made now, since grants hold keys drawn by chance.
    let [order, revocation, relay_grant, relay_pass, api_key] =
        seeds.each_ref().map(|(name, _)| std::fs::read(folder.join(name)).unwrap());
    assert_eq!(order, seeds[0].1);
    let revocations = Frame::decode(&[&[REVOCATIONS], &revocation[..]].concat()).unwrap();
    assert!(matches!(revocations, Frame::Revocations(of) if of.len() == 1));
    let gate = Gate::new(root.public());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    gate.check_relayed(&text(relay_grant), key.peer_id(), NOW).unwrap();
    gate.check_relayed(&text(relay_pass), peer, NOW).unwrap();
    gate.check_api_key(&text(api_key), NOW).unwrap();
    replay("signed", signed::check);
}
