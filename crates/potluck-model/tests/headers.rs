//! Headers from strangers: a typed error, never a panic, and nothing that grows with what they announce.
#![allow(clippy::unwrap_used)]

mod tiny;

use potluck_core::{MetaArray, MetaValue, TensorType};
use potluck_model::{
    Facts, ModelError, gguf,
    gguf::{GgufError, TensorSpec},
    manifest_of, types,
};
use proptest::prelude::*;
use tiny::{Tiny, WIDTH, spec, u32s};

/// A header by hand: version, counts, then whatever follows.
fn raw(version: u32, tensors: u64, keys: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF".as_slice(), &version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes(), rest].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

fn tensor(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let extents: Vec<u8> = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
    [&text(name), &(shape.len() as u32).to_le_bytes()[..], &extents, &kind.to_le_bytes(), &offset.to_le_bytes()]
        .concat()
}

fn error(bytes: &[u8]) -> GgufError {
    gguf::parse(bytes).unwrap_err()
}

#[test]
fn what_is_no_gguf_of_ours() {
    assert_eq!(error(b""), GgufError::Truncated("the magic number"));
    assert_eq!(error(b"PK\x03\x04 and so on"), GgufError::Magic(*b"PK\x03\x04"));
    assert_eq!(error(&raw(1, 0, 0, b"")), GgufError::Version(1));
    assert_eq!(error(&raw(4, 0, 0, b"")), GgufError::Version(4));
    assert_eq!(error(&raw(3u32.swap_bytes(), 0, 0, b"")), GgufError::Version(3 << 24), "big endian");
    assert!(gguf::parse(&raw(2, 0, 0, b"")).is_ok());
}

#[test]
fn counts_are_bounded_before_anything_is_allocated() {
    let huge = u64::MAX.to_le_bytes();
    for bytes in [
        raw(3, u64::MAX, 0, b""),
        raw(3, 0, u64::MAX, b""),
        raw(3, 0, 1, &huge),
        raw(3, 0, 1, &entry("k", 8, &huge)),
        raw(3, 0, 1, &entry("k", 9, &[&4u32.to_le_bytes()[..], &huge].concat())),
        raw(3, 1, 0, &huge),
        raw(3, 1, 0, &[text("t"), 5u32.to_le_bytes().to_vec()].concat()),
    ] {
        assert!(matches!(error(&bytes), GgufError::Bound { .. }), "{:?}", error(&bytes));
    }
    let almost = gguf::ARRAY_LEN_MAX.to_le_bytes();
    let bytes = raw(3, 0, 1, &entry("k", 9, &[&12u32.to_le_bytes()[..], &almost].concat()));
    assert_eq!(error(&bytes), GgufError::Truncated("an array"), "announced, and never sent");
}

#[test]
fn values_are_what_they_say() {
    let nested = entry("k", 9, &[9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat());
    assert!(matches!(error(&raw(3, 0, 1, &nested)), GgufError::Value { what: "an array of arrays", .. }));
    assert!(matches!(error(&raw(3, 0, 1, &entry("k", 13, b""))), GgufError::Value { .. }));
    assert!(matches!(error(&raw(3, 0, 1, &entry("k", 7, &[2]))), GgufError::Value { .. }));
    let twice = [entry("k", 0, &[1]), entry("k", 0, &[1])].concat();
    assert_eq!(error(&raw(3, 0, 2, &twice)), GgufError::DuplicateKey("k".into()));
    assert_eq!(error(&raw(3, 0, 1, &entry("", 0, &[1]))), GgufError::DuplicateKey(String::new()));
    let latin = [&1u64.to_le_bytes()[..], &[0xff]].concat();
    assert!(matches!(error(&raw(3, 0, 1, &latin)), GgufError::NotUtf8(_)));
}

#[test]
fn alignment_is_a_power_of_two() {
    for alignment in [0u32, 3, 33, 1 << 20] {
        let bytes = raw(3, 0, 1, &entry("general.alignment", 4, &alignment.to_le_bytes()));
        assert!(matches!(error(&bytes), GgufError::Value { .. } | GgufError::Bound { .. }), "{alignment}");
    }
    assert!(matches!(error(&raw(3, 0, 1, &entry("general.alignment", 0, &[32]))), GgufError::Value { .. }));
    let bytes = raw(3, 0, 1, &entry("general.alignment", 4, &64u32.to_le_bytes()));
    assert_eq!(gguf::parse(&bytes).unwrap().alignment, 64);
}

#[test]
fn tensors_lie_inside_the_file_and_apart() {
    let with = |tensors: &[Vec<u8>], data: usize| {
        let mut bytes = raw(3, tensors.len() as u64, 0, &tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        gguf::parse(&bytes)
    };
    assert!(with(&[tensor("a", &[8], 0, 0), tensor("b", &[8], 0, 32)], 64).is_ok());
    for (tensors, what) in [
        (vec![tensor("a", &[8], 0, 64)], "outside the file"),
        (vec![tensor("a", &[17], 0, 0)], "outside the file"),
        (vec![tensor("a", &[8], 0, u64::MAX - 31)], "outside the file"),
        (vec![tensor("a", &[8], 0, 4)], "not aligned"),
        (vec![tensor("a", &[16], 0, 0), tensor("b", &[8], 0, 32)], "it overlaps another tensor"),
    ] {
        assert!(matches!(with(&tensors, 64), Err(GgufError::Place { what: w, .. }) if w == what), "{what}");
    }
    for shape in [&[][..], &[0], &[4, 0], &[u64::MAX, 2], &[1 << 62, 4], &[1 << 40, 1 << 40]] {
        assert!(matches!(with(&[tensor("a", shape, 0, 0)], 64), Err(GgufError::Tensor { .. })), "{shape:?}");
    }
    assert!(matches!(with(&[tensor("a", &[31], 2, 0)], 64), Err(GgufError::Tensor { .. })), "no whole block");
    assert!(matches!(with(&[tensor("a", &[32], 4, 0)], 64), Err(GgufError::Tensor { .. })), "a type that is gone");
    let twice = [tensor("a", &[8], 0, 0), tensor("a", &[8], 0, 32)];
    assert_eq!(with(&twice, 64), Err(GgufError::DuplicateTensor("a".into())));
    assert!(matches!(with(&[tensor(&"a".repeat(64), &[8], 0, 0)], 64), Err(GgufError::Bound { .. })));
}

fn model_error(tiny: &Tiny) -> ModelError {
    let header = gguf::parse(&tiny.file()).unwrap();
    manifest_of(&[&header], |_, _| Some([0; 32])).unwrap_err()
}

#[test]
fn a_file_that_is_no_model() {
    let tiny = || Tiny::new("llama", 2);
    assert_eq!(
        model_error(&tiny().with("block_count", MetaValue::U32(1))),
        ModelError::NoSuchLayer { name: "blk.1.attn_norm.weight".into(), layer: 1, layers: 1 }
    );
    let more = model_error(&tiny().with("block_count", MetaValue::U32(3)));
    assert_eq!(more, ModelError::EmptyLayer { layer: 2, layers: 3 });
    for count in [MetaValue::U32(0), MetaValue::I32(-4), MetaValue::F32(0x4000_0000), MetaValue::String("2".into())] {
        assert!(matches!(model_error(&tiny().with("block_count", count)), ModelError::Missing(_)));
    }
    assert!(matches!(model_error(&tiny().with("block_count", MetaValue::U64(u64::MAX))), ModelError::Bound { .. }));
    assert!(matches!(model_error(&tiny().with("embedding_length", MetaValue::U32(1 << 20))), ModelError::Bound { .. }));
    assert!(matches!(model_error(&tiny().with("embedding_length", MetaValue::U32(32))), ModelError::Embedding { .. }));
    let gigantic = tiny().with_tensor("blk.4294967296.attn_norm.weight", types::F32, &[WIDTH]);
    assert!(matches!(model_error(&gigantic), ModelError::Bound { value: 4_294_967_296, .. }));
    let far = tiny().with_tensor("blk.4000000000.attn_norm.weight", types::F32, &[WIDTH]);
    assert!(matches!(model_error(&far), ModelError::NoSuchLayer { layer: 4_000_000_000, .. }));
    assert_eq!(potluck_model::layer_of("blk.01.x"), None, "one layer, one name");
    assert_eq!(potluck_model::layer_of("blk.99999999999999999999999.x"), None);
}

#[test]
fn the_manifest_is_the_same_however_the_file_is_laid_out() {
    let tiny = Tiny::new("llama", 3);
    let mut other = tiny.clone();
    other.tensors.reverse();
    other.metadata.swap(1, 4);
    other.set("split.count", MetaValue::U16(1));
    other.set("general.alignment", MetaValue::U32(32));
    assert_eq!(other.manifest().id(), tiny.manifest().id());
    let mut renamed = tiny.clone();
    renamed.set("general.license", MetaValue::String("mit".into()));
    assert_ne!(renamed.manifest().id(), tiny.manifest().id());
}

#[test]
fn the_manifest_of_a_tiny_model_is_pinned() {
    let manifest = Tiny::new("llama", 2).manifest();
    // A change of these two lines renames every model in the world.
    assert_eq!(manifest.encode().len(), GOLDEN_LENGTH);
    assert_eq!(manifest.id().short(), GOLDEN_ID);
}

const GOLDEN_LENGTH: usize = 1029;
const GOLDEN_ID: &str = "812243daf5";

#[test]
fn facts_are_read_layer_by_layer() {
    let facts = Facts::of(&Tiny::new("llama", 2).manifest());
    assert_eq!(facts.cache_bytes_per_position, 2 * 2 * (2 * 16) * 2);
    assert_eq!((facts.licence.as_deref(), facts.tied, facts.vocabulary), (Some("apache-2.0"), true, 100));
    let uneven = Tiny::new("openelm", 3).with("attention.head_count_kv", u32s(&[1, 0, 3]));
    assert_eq!(Facts::of(&uneven.manifest()).cache_bytes_per_position, 2 * (4 * 16) * 2);
    let wide = Tiny::new("llama", 1).with("attention.key_length", MetaValue::U32(32));
    assert_eq!(Facts::of(&wide.manifest()).cache_bytes_per_position, (2 * 32 + 2 * 16) * 2);
}

fn value() -> impl Strategy<Value = MetaValue> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..8);
    prop_oneof![
        any::<u8>().prop_map(MetaValue::U8),
        any::<i8>().prop_map(MetaValue::I8),
        any::<u16>().prop_map(MetaValue::U16),
        any::<i16>().prop_map(MetaValue::I16),
        any::<u32>().prop_map(MetaValue::U32),
        any::<i32>().prop_map(MetaValue::I32),
        any::<u32>().prop_map(MetaValue::F32),
        any::<bool>().prop_map(MetaValue::Bool),
        ".{0,12}".prop_map(MetaValue::String),
        any::<u64>().prop_map(MetaValue::U64),
        any::<i64>().prop_map(MetaValue::I64),
        any::<u64>().prop_map(MetaValue::F64),
        bytes().prop_map(|v| MetaValue::Array(MetaArray::U8(v))),
        any::<Vec<i16>>().prop_map(|v| MetaValue::Array(MetaArray::I16(v))),
        any::<Vec<u32>>().prop_map(|v| MetaValue::Array(MetaArray::F32(v))),
        any::<Vec<bool>>().prop_map(|v| MetaValue::Array(MetaArray::Bool(v))),
        any::<Vec<u64>>().prop_map(|v| MetaValue::Array(MetaArray::F64(v))),
        prop::collection::vec(bytes(), 0..5)
            .prop_map(|v| MetaValue::Array(MetaArray::String(v.into_iter().map(Into::into).collect()))),
    ]
}

fn tensors() -> impl Strategy<Value = Vec<TensorSpec>> {
    let kinds = prop::sample::select(vec![0u32, 1, 2, 8, 12, 30, 41]);
    let shape = (1u64..4, prop::collection::vec(1u64..5, 0..3));
    prop::collection::btree_map("[a-z.0-9]{1,20}", (kinds, shape), 0..6).prop_map(|tensors| {
        let shape = |(blocks, rest): (u64, Vec<u64>)| [vec![blocks * 256], rest].concat();
        tensors.into_iter().map(|(name, (kind, s))| spec(&name, TensorType(kind), &shape(s))).collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        metadata in prop::collection::btree_map("[a-z]{1,9}[.][a-z]{1,9}", value(), 0..9),
        tensors in tensors(),
    ) {
        prop_assume!(!metadata.contains_key("general.alignment"));
        let metadata: Vec<_> = metadata.into_iter().collect();
        let file = Tiny { metadata: metadata.clone(), tensors: tensors.clone() }.file();
        let header = gguf::parse(&file).unwrap();
        prop_assert_eq!(header.metadata, metadata);
        let read: Vec<_> = header.tensors.iter().map(|t| spec(&t.name, t.kind, &t.shape)).collect();
        prop_assert_eq!(read, tensors);
    }

    #[test]
    fn a_manifest_from_a_stranger(
        at in 0usize..20,
        change in 0usize..6,
        numbers in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..9], 0..6),
        key in prop::sample::select(vec![
            "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "moe_every_n_layers",
            "attention.key_length", "interleave_moe_layer_step", "leading_dense_block_count", "attention.sliding_window",
            "attention.sliding_window_pattern", "expert_used_count",
        ]),
        list: bool,
    ) {
        let tiny = Tiny::new("gemma3", 3).with("attention.sliding_window", MetaValue::U32(16));
        let mut manifest = tiny.with("moe_every_n_layers", MetaValue::U32(u32::MAX)).manifest();
        let number = numbers.first().copied().unwrap_or(u64::MAX);
        let count = manifest.tensors.len();
        let tensor = &mut manifest.tensors[at % count];
        match change {
            0 => tensor.shape = numbers.clone(),
            1 => tensor.bytes = number,
            2 => tensor.layer = Some(number as u32),
            3 => tensor.kind = TensorType(number as u32),
            _ => {}
        }
        let value = if list { MetaValue::Array(MetaArray::U64(numbers)) } else { MetaValue::U64(number) };
        let key = format!("gemma3.{key}");
        manifest.metadata.retain(|(k, _)| *k != key);
        manifest.metadata.push((key, value));
        let manifest = potluck_core::Manifest::new(manifest.tensors, manifest.metadata);
        let _ = Facts::of(&manifest);
        let _ = potluck_model::slice::legal_cuts(&manifest);
        for (start, end) in [(0, 1), (1, 2), (0, 3), (2, 3)] {
            let _ = potluck_model::slice::plan(&manifest, tiny::range(start, end), start == 0, end == 3);
        }
    }

    #[test]
    fn hostile_bytes(bytes: Vec<u8>) {
        let _ = gguf::parse(&bytes);
    }

    #[test]
    fn perturbed_bytes(changes in prop::collection::vec((0usize..4000, any::<u8>()), 1..6), cut in 0usize..8000) {
        let tiny = Tiny::new("gemma3", 3).with("attention.sliding_window", MetaValue::U32(16));
        let mut file = tiny.file();
        for (at, byte) in changes {
            let at = at % file.len();
            file[at] = byte;
        }
        file.truncate(cut.max(24));
        let Ok(header) = gguf::parse(&file) else { return Ok(()) };
        let Ok(manifest) = manifest_of(&[&header], |_, _| Some([0; 32])) else { return Ok(()) };
        let _ = Facts::of(&manifest);
        let _ = potluck_model::slice::legal_cuts(&manifest);
        for end in 1..=manifest.layers() {
            let _ = potluck_model::slice::plan(&manifest, tiny::range(0, end), true, end == manifest.layers());
        }
    }
}
