//! `potluck model prove`: a trial proves nothing, a proof becomes the default, and a note by anybody else counts for nothing.

use std::{fs, path::PathBuf};

use data_encoding::HEXLOWER;
use potluck_core::{ModelId, SecretKey};
use potluck_engine::codecs::TEXT;
use potluck_model::proof::{At, Change, Measured, Note, POSITIONS_MIN, Table};
use potluck_wire::Codec;
use serde_json::Value;

use crate::machine::{Machine, model};

const PROMPT: &str = "List five animals.";

/// A trial: enough to see that all of it works, and far too little to prove anything.
const TRIAL: [&str; 4] = ["model", "prove", "--positions=24", "--threads=1"];

fn trial(machine: &Machine) -> (Value, ModelId) {
    let path = model();
    let (found, code) = machine.json(&[&TRIAL[..], &[path.as_str()]].concat());
    assert_eq!(code, 0, "{found}");
    let id = found["model"].as_str().unwrap().parse().unwrap();
    (found, id)
}

fn key(machine: &Machine) -> SecretKey {
    let text = fs::read_to_string(machine.path("home/peer.key")).unwrap();
    SecretKey::from_bytes(&HEXLOWER.decode(text.trim().as_bytes()).unwrap().try_into().unwrap())
}

fn note_path(machine: &Machine, id: ModelId) -> PathBuf {
    machine.path("home/models").join(format!("{id}.proof"))
}

/// What a measurement over enough positions would leave, in which `mixed6` is the smallest without loss.
fn proof(key: &SecretKey, id: ModelId) -> Note {
    let row = |(codec, kl)| {
        let change = Change { kl, agreed: POSITIONS_MIN, ..Change::default() };
        Measured { codec, at: At::AllCuts, change, encode_ns: 1.0, decode_ns: 1.0 }
    };
    let rows = [(Codec::F16, 0.0004), (Codec::Mixed6, 0.0005), (Codec::Mixed4, 0.02)].map(row).to_vec();
    let table = Table {
        positions: POSITIONS_MIN,
        width: 576,
        cuts: vec![1, 10, 20, 29],
        nll: 3.0,
        halved: Change::default(),
        rows,
    };
    let codec = table.smallest_without_loss();
    assert_eq!(codec, Some(Codec::Mixed6));
    let program = "0.1.0".into();
    let (text, gpu_layers) = (*blake3::hash(TEXT.as_bytes()).as_bytes(), 0);
    Note { signer: key.peer_id(), model: id, codec, table, text, gpu_layers, window: 512, program, made: 1 }
}

fn ask(machine: &Machine, more: &[&str]) -> (Value, f64) {
    let answer = machine.answer(PROMPT, 4, &[&["--drafts", "off", "--ignore-eos"], more].concat());
    let bytes = answer["bytes_per_position"].as_f64().unwrap();
    (answer["codec"].clone(), bytes)
}

fn codec(machine: &Machine, more: &[&str]) -> Value {
    ask(machine, more).0
}

#[test]
fn a_trial_is_noted_as_one_and_proves_nothing() {
    let machine = Machine::new();
    let (found, id) = trial(&machine);
    assert_eq!((&found["codec"], &found["positions"]), (&Value::Null, &24.into()), "{found}");
    let cuts: Vec<_> = found["cuts"].as_array().unwrap().iter().map(|cut| cut.as_u64().unwrap()).collect();
    assert!(matches!(cuts[..], [1, _, _, 29]), "{cuts:?}");
    let rows = found["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["codec"].as_str().unwrap()).collect();
    assert_eq!(names, ["f16", "q8", "dyn8", "mixed8", "mixed6", "mixed4"]);
    for row in rows {
        assert!(row["losses"][0].as_str().unwrap().contains("24 positions were scored; a proof takes 4096"), "{row}");
        assert!(row["agreed"].as_u64().unwrap() <= 24 && row["kl"].as_f64().unwrap() >= 0.0, "{row}");
    }
    let kl = |at: usize| rows[at]["kl"].as_f64().unwrap();
    assert!(kl(0) < kl(5), "mixed4 moves more than f16 does: {} {}", kl(0), kl(5));
    assert!(found["halved_steps"]["kl"].is_f64() && found["perplexity"].as_f64().unwrap() > 1.0);

    let (shown, _) = machine.json(&["model", "show", &id.to_string()]);
    assert_eq!((&shown["codec"], &shown["proof"]["counts"]), (&Value::Null, &false.into()), "{shown}");
    assert_eq!(shown["proof"]["signer"], key(&machine).peer_id().to_string());
    assert_eq!(codec(&machine, &["--peers", "2"]), "f16");

    // Nor does it take the place of a proof.
    fs::write(note_path(&machine, id), proof(&key(&machine), id).sign(&key(&machine))).unwrap();
    assert_eq!(trial(&machine).0["kept"], false);
    let (listed, _) = machine.json(&["model", "list"]);
    assert_eq!(listed["models"][0]["codec"], "mixed6");
}

#[test]
fn what_is_proven_is_the_default_and_nothing_more() {
    let machine = Machine::new();
    let (_, id) = trial(&machine);
    let key = key(&machine);
    let note = proof(&key, id);
    let path = note_path(&machine, id);
    fs::write(&path, note.sign(&key)).unwrap();
    let (used, bytes) = ask(&machine, &["--peers", "2"]);
    assert_eq!(used, "mixed6");
    assert!(bytes < 576.0 * 1.9, "{bytes} bytes a token");
    // What the user says counts first.
    assert_eq!(codec(&machine, &["--peers", "2", "--codec", "f16"]), "f16");
    assert_eq!(codec(&machine, &["--peers", "2", "--exact"]), "f32");
    assert_eq!(codec(&machine, &["--local"]), Value::Null);
    // Four hops were measured, and no more are trusted with it.
    assert_eq!(codec(&machine, &["--peers", "5"]), "mixed6");
    assert_eq!(codec(&machine, &["--peers", "6"]), "f16");

    // Anybody else's word, and a changed one, count for nothing, and that is said.
    let stranger = SecretKey::from_bytes(&[9; 32]);
    let mut damaged = note.sign(&key);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let other = Note { model: ModelId::from_bytes([3; 32]), ..note.clone() };
    for (bytes, why) in [
        (Note { signer: stranger.peer_id(), ..note.clone() }.sign(&stranger), "not by this machine"),
        (note.sign(&stranger), "is not signed by"),
        (damaged, "is not signed by"),
        (other.sign(&key), "it is about model 03030303"),
        (b"nothing".to_vec(), "it is damaged"),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(codec(&machine, &["--peers", "2"]), "f16", "{why}");
        let (shown, _) = machine.json(&["model", "show", &id.to_string()]);
        assert_eq!((&shown["codec"], &shown["proof"]["counts"]), (&Value::Null, &false.into()), "{shown}");
        assert!(shown["proof"]["why"].as_str().unwrap().contains(why), "{shown}");
    }
    let output = machine.run(&["run", "--model", &model(), "--peers", "2", "--max-tokens", "1", PROMPT]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("counts for nothing") && told.contains("potluck model prove"), "{told}");
}
