use potluck_core::{ModelId, SecretKey};
use potluck_wire::Codec;
use proptest::prelude::*;

use super::*;

fn measured(codec: Codec, at: At, kl: f64) -> Measured {
    let change = Change { loss: 0.0005, loss_error: 0.0004, kl, agreed: 4_090, margin_median: 0.02, margin_max: 0.1 };
    Measured { codec, at, change, encode_ns: 1.0, decode_ns: 1.0 }
}

/// A table in which all codecs are without loss.
fn table() -> Table {
    let codecs = [Codec::F16, Codec::Q8, Codec::Dyn8, Codec::Mixed8, Codec::Mixed6, Codec::Mixed4];
    let rows = codecs.map(|codec| measured(codec, At::AllCuts, 0.0008)).to_vec();
    Table { positions: 4_096, width: 576, cuts: vec![1, 10, 20, 29], nll: 3.0, halved: Change::default(), rows }
}

fn change(table: &mut Table, codec: Codec, to: impl Fn(&mut Change)) {
    to(&mut table.rows.iter_mut().find(|row| row.codec == codec && row.at == At::AllCuts).unwrap().change);
}

fn note(table: Table) -> Note {
    Note {
        signer: key(1).peer_id(),
        model: ModelId::from_bytes([7; 32]),
        codec: table.smallest_without_loss(),
        table,
        text: [3; 32],
        gpu_layers: 0,
        window: 512,
        program: "0.1.0".into(),
        made: 1_700_000_000,
    }
}

fn key(seed: u8) -> SecretKey {
    SecretKey::from_bytes(&[seed; 32])
}

#[test]
fn the_smallest_of_those_without_loss_is_chosen() {
    let mut table = table();
    assert_eq!(table.smallest_without_loss(), Some(Codec::Mixed4));
    change(&mut table, Codec::Mixed4, |c| c.kl = 0.01);
    assert_eq!(table.smallest_without_loss(), Some(Codec::Mixed6));
    change(&mut table, Codec::Mixed6, |c| c.margin_max = 1.0);
    assert_eq!(table.smallest_without_loss(), Some(Codec::Dyn8), "1.03 bytes: less than q8 and mixed8 at this width");
    change(&mut table, Codec::Dyn8, |c| c.loss = -0.0055);
    assert_eq!(table.smallest_without_loss(), Some(Codec::Q8));
    for codec in [Codec::Q8, Codec::Mixed8] {
        change(&mut table, codec, |c| c.loss_error = 0.003);
    }
    assert_eq!(table.smallest_without_loss(), Some(Codec::F16));
    change(&mut table, Codec::F16, |c| c.margin_max = 2.0);
    assert_eq!(table.smallest_without_loss(), None, "a model that f16 itself changes has no proven codec");
}

#[test]
fn each_bound_is_told_with_its_number() {
    let mut table = table();
    change(&mut table, Codec::Mixed4, |c| {
        (c.loss, c.loss_error, c.kl, c.margin_max) = (0.01, 0.001, 0.02, 1.5);
    });
    let told: Vec<_> = table.losses(Codec::Mixed4).iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "log likelihood within 0.40 %; at most 0.20 %",
            "divergence 0.02000; at most 0.00160",
            "another likeliest token at a margin of 1.50 logits; below 1"
        ]
    );
    // A yardstick that moves much lets others move as much.
    change(&mut table, Codec::F16, |c| c.kl = 0.01);
    assert!(!table.losses(Codec::Mixed4).iter().any(|loss| matches!(loss, Loss::Divergence { .. })));
}

#[test]
fn few_positions_prove_nothing() {
    let table = Table { positions: POSITIONS_MIN - 1, ..table() };
    assert_eq!(table.smallest_without_loss(), None);
    assert_eq!(table.losses(Codec::F16), [Loss::Positions { scored: 4_095 }]);
}

#[test]
fn without_the_yardstick_nothing_is_proven() {
    let mut table = table();
    table.rows.retain(|row| row.codec != Codec::F16);
    assert_eq!(table.smallest_without_loss(), None);
    // One cut alone is not the route.
    let mut alone = self::table();
    alone.rows.iter_mut().filter(|row| row.codec == Codec::Mixed4).for_each(|row| row.at = At::Cut(10));
    assert_eq!(alone.smallest_without_loss(), Some(Codec::Mixed6));
}

#[test]
fn a_note_holds_for_its_model_its_key_and_as_it_was_signed() {
    let written = note(table());
    let bytes = written.sign(&key(1));
    let (model, text, signer) = (written.model, written.text, written.signer);
    assert_eq!(Note::read(&bytes, model, text, signer), Ok(written.clone()));
    assert_eq!(Note::read(&bytes, model, [9; 32], signer), Err(NoteError::Text));
    let other = ModelId::from_bytes([8; 32]);
    assert_eq!(Note::read(&bytes, other, text, signer), Err(NoteError::Model(model)));
    assert_eq!(Note::read(&bytes, model, text, key(2).peer_id()), Err(NoteError::Signer(signer)));
    let forged = written.sign(&key(2));
    assert_eq!(Note::read(&forged, model, text, signer), Err(NoteError::Signature(signer)));
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert!(Note::read(&bytes, model, text, signer).is_err(), "byte {at}");
    }
    assert!(Note::read(&[bytes.clone(), vec![0]].concat(), model, text, signer).is_err(), "it goes on");
    assert!(matches!(Note::read(&vec![0; NOTE_BYTES_MAX + 1], model, text, signer), Err(NoteError::Malformed(_))));
}

#[test]
fn a_note_claims_what_its_table_shows() {
    let honest = note(table());
    let read = |note: &Note| Note::read(&note.sign(&key(1)), note.model, note.text, note.signer);
    let bold = Note { codec: Some(Codec::Mixed4), table: Table { positions: 4_095, ..table() }, ..honest.clone() };
    assert_eq!(read(&bold), Err(NoteError::Claim { claims: Some(Codec::Mixed4), shows: None }));
    assert!(read(&Note { codec: None, ..bold }).is_ok(), "few positions: noted, and nothing proven");
    let mut odd = table();
    change(&mut odd, Codec::Mixed4, |c| c.kl = f64::NAN);
    let odd = Note { codec: odd.smallest_without_loss(), table: odd, ..honest.clone() };
    assert!(matches!(read(&odd), Err(NoteError::Malformed(_))));
    let mut twice = table();
    twice.rows.push(twice.rows[0]);
    assert!(matches!(read(&Note { table: twice, ..honest }), Err(NoteError::Malformed(_))));
}

#[test]
fn what_is_the_same_changes_nothing() {
    let row = vec![1.0, 5.0, -3.0, 5.0];
    let expected = Expected::new(row.clone(), 2).unwrap();
    let mut tally = Tally::default();
    tally.add(&expected, &row).unwrap();
    let change = tally.change();
    assert_eq!((change.loss, change.loss_error, change.agreed, change.margin_max), (0.0, 0.0, 1, 0.0));
    assert!(change.kl < 1e-6);
    assert!((expected.nll() - (8.0 + (2.0 + (-4f64).exp() + (-8f64).exp()).ln())).abs() < 1e-6);
}

#[test]
fn what_is_no_number_is_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(Expected::new(vec![0.0, bad], 0), Err(NotFinite));
        let expected = Expected::new(vec![0.0, 1.0], 0).unwrap();
        assert_eq!(Tally::default().add(&expected, &[bad, 1.0]), Err(NotFinite));
    }
    assert_eq!(Expected::new(vec![0.0, 1.0], 2), Err(NotFinite));
    assert_eq!(Expected::new(Vec::new(), 0), Err(NotFinite));
    assert_eq!(Tally::default().add(&Expected::new(vec![0.0], 0).unwrap(), &[0.0, 0.0]), Err(NotFinite));
}

#[test]
fn differences_are_counted_as_they_are() {
    let mut tally = Tally::default();
    let expected = Expected::new(vec![0.0, 1.5, 0.25], 0).unwrap();
    // The target gains, and another token takes the lead at a margin of 1.25.
    tally.add(&expected, &[0.0, 0.0, 2.0]).unwrap();
    tally.add(&expected, &[0.0, 1.5, 0.25]).unwrap();
    let change = tally.change();
    let nll = |row: [f64; 3]| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[0];
    let (was, is) = (nll([0.0, 1.5, 0.25]), nll([0.0, 0.0, 2.0]));
    let p = [0.0, 1.5, 0.25].map(|x: f64| x - was).map(f64::exp);
    let kl: f64 = p.iter().zip([0.0f64, 0.0, 2.0]).map(|(p, q)| p * (p.ln() - (q - is))).sum();
    assert!((change.loss - (is - was) / 2.0).abs() < 1e-6, "{change:?}");
    // Two differences, d and 0: a deviation of d/√2, and an error of d/2.
    assert!((change.loss_error - (is - was).abs() / 2.0).abs() < 1e-6, "{change:?}");
    assert!((change.kl - kl / 2.0).abs() < 1e-6, "{change:?} {kl}");
    assert_eq!((change.agreed, change.margin_max), (1, 1.25));
}

fn any_change() -> impl Strategy<Value = Change> {
    let parts = (-0.02..0.02, 0.0..0.005, 0.0..0.01, 0u32..=5_000, 0.0..1.5, 0.0..1.5);
    parts.prop_map(|(loss, loss_error, kl, agreed, a, b): (f64, f64, f64, u32, f64, f64)| Change {
        loss,
        loss_error,
        kl,
        agreed,
        margin_median: a.min(b),
        margin_max: a.max(b),
    })
}

fn any_table() -> impl Strategy<Value = Table> {
    let codec = proptest::sample::select(Codec::ALL[1..].to_vec());
    let rows = proptest::collection::vec((codec, any_change()), 0..8);
    (3_000u32..6_000, 8u32..5_000, 0.5..5.0, rows).prop_map(|(positions, width, nll, rows)| {
        let mut table = Table { positions, width, cuts: vec![1, 2], nll, halved: Change::default(), rows: Vec::new() };
        for (codec, change) in rows {
            if table.together(codec).is_none() {
                table.rows.push(Measured { change, ..measured(codec, At::AllCuts, 0.0) });
            }
        }
        table
    })
}

proptest! {
    /// Whatever is chosen passes, nothing smaller does, and being worse never helps.
    #[test]
    fn the_choice_is_the_least_that_passes(table in any_table(), codec in 1usize..8, more in 1.0f64..10.0) {
        let chosen = table.smallest_without_loss();
        for row in &table.rows {
            let passes = table.losses(row.codec).is_empty();
            prop_assert!(!passes || table.positions >= POSITIONS_MIN);
            if passes {
                let chosen = chosen.unwrap();
                prop_assert!(table.bytes_per_value(chosen) <= table.bytes_per_value(row.codec));
                prop_assert!(table.losses(chosen).is_empty());
            }
        }
        let codec = Codec::ALL[codec];
        let mut worse = table.clone();
        worse.rows.iter_mut().filter(|row| row.codec == codec && codec != Codec::F16).for_each(|row| {
            let c = &mut row.change;
            (c.loss, c.loss_error, c.kl, c.margin_max) = (c.loss * more, c.loss_error * more, c.kl * more, c.margin_max * more);
        });
        prop_assert!(table.losses(codec).len() <= worse.losses(codec).len());
    }

    /// A note is read as it was written; what else the bytes may be, reading them is an error at most.
    #[test]
    fn a_note_is_read_as_written(table in any_table(), junk in proptest::collection::vec(any::<u8>(), 0..400)) {
        let written = note(table);
        let read = Note::read(&written.sign(&key(1)), written.model, written.text, written.signer);
        prop_assert_eq!(read.is_ok(), written.table.is_sound());
        if let Ok(read) = read {
            prop_assert_eq!(read, written.clone());
        }
        prop_assert!(Note::read(&junk, written.model, written.text, written.signer).is_err());
    }

    /// The divergence is never negative, and nothing where nothing moves but all together.
    #[test]
    fn divergence_is_that_of_distributions(
        rows in (2usize..40).prop_flat_map(|n| {
            let row = || proptest::collection::vec(-20.0f32..20.0, n);
            (row(), row())
        }),
        shift in -5.0f32..5.0,
    ) {
        let (was, is) = rows;
        let expected = Expected::new(was.clone(), 1).unwrap();
        let mut tally = Tally::default();
        tally.add(&expected, &is).unwrap();
        let kl = tally.change().kl;
        let log = |row: &[f32]| {
            let sum = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            row.iter().map(|&x| f64::from(x) - sum).collect::<Vec<_>>()
        };
        let direct: f64 = log(&was).iter().zip(log(&is)).map(|(p, q)| p.exp() * (p - q)).sum();
        prop_assert!((kl - direct).abs() < 1e-4 * (1.0 + direct), "{} {}", kl, direct);
        let mut shifted = Tally::default();
        shifted.add(&expected, &was.iter().map(|x| x + shift).collect::<Vec<_>>()).unwrap();
        let change = shifted.change();
        prop_assert!(change.kl < 1e-5 && change.loss.abs() < 1e-4);
    }
}
