//! A slice holds its layers, counted from 0, and not a byte of any other.
#![allow(clippy::unwrap_used)]

mod tiny;

use potluck_core::{Manifest, MetaArray, MetaValue};
use potluck_model::{
    CutError, EmbeddingTable, Extent, Segment, StagePlan, gguf,
    gguf::Header,
    slice::{self, SMALL_VOCABULARY, check_range, legal_cuts, plan},
    types,
};
use proptest::prelude::*;
use tiny::{Tiny, VOCABULARY, WIDTH, bools, range, u32s};

/// The virtual file, put together from the model's tensors.
fn bytes(tiny: &Tiny, plan: &StagePlan) -> Vec<u8> {
    let data = |name: &str| Tiny::data(tiny.tensors.iter().find(|t| t.name == name).unwrap());
    let mut file = Vec::new();
    for segment in &plan.segments {
        match segment {
            Segment::Inline(bytes) => file.extend(bytes),
            Segment::Zeros { len } => file.resize(file.len() + *len as usize, 0),
            Segment::Tensor { name, offset, len } => {
                file.extend(&data(name)[*offset as usize..(*offset + *len) as usize]);
            }
        }
    }
    assert_eq!(file.len() as u64, plan.size);
    file
}

fn header(tiny: &Tiny, layers: (u32, u32), head: bool, tail: bool) -> Header {
    let plan = plan(&tiny.manifest(), range(layers.0, layers.1), head, tail).unwrap();
    gguf::parse(&bytes(tiny, &plan)).unwrap()
}

/// Each tensor of the slice has the bytes of the model's tensor of that layer, or zeros.
fn assert_faithful(tiny: &Tiny, plan: &StagePlan) {
    let file = bytes(tiny, plan);
    let header = gguf::parse(&file).unwrap();
    let mut end = 0;
    for tensor in &header.tensors {
        assert_eq!(tensor.offset, end, "the loader wants {} to follow at once", tensor.name);
        end = (tensor.offset + tensor.bytes).next_multiple_of(32);
        let at = (header.data_offset + tensor.offset) as usize;
        let found = &file[at..at + tensor.bytes as usize];
        let original = match potluck_model::layer_of(&tensor.name) {
            Some(layer) => {
                let rest = tensor.name.splitn(3, '.').nth(2).unwrap();
                format!("blk.{}.{rest}", layer as u32 + plan.layers.start())
            }
            None => tensor.name.clone(),
        };
        let spec = tiny.tensors.iter().find(|t| t.name == original).unwrap();
        let zeros = potluck_model::layer_of(&tensor.name).is_none() && found.iter().all(|&b| b == 0);
        assert!(zeros || found == Tiny::data(spec), "{original}");
    }
    assert_eq!(header.data_offset + end, file.len() as u64);
}

proptest! {
    #[test]
    fn a_chain_covers_each_layer_once_and_nothing_else(layers in 1u32..12, parts in 1usize..5, untied: bool) {
        let mut tiny = Tiny::new("llama", layers).with_tensor("rope_freqs.weight", types::F32, &[8]);
        if untied {
            tiny = tiny.with_tensor("output.weight", types::Q8_0, &[WIDTH, VOCABULARY]);
        }
        let manifest = tiny.manifest();
        let parts = parts.min(layers as usize);
        let mut read = Vec::new();
        for part in range(0, layers).split(parts).unwrap() {
            let plan = plan(&manifest, part, part.start() == 0, part.end() == layers).unwrap();
            assert_faithful(&tiny, &plan);
            let names: Vec<_> = plan.tensors().iter().map(ToString::to_string).collect();
            prop_assert!(names.iter().all(|n| manifest.tensor(n).unwrap().layer.is_none_or(|l| part.contains(l))));
            read.extend(names.into_iter().filter(|n| n.starts_with("blk.")));
        }
        read.sort();
        let mut all: Vec<_> = tiny.tensors.iter().map(|t| t.name.clone()).filter(|n| n.starts_with("blk.")).collect();
        all.sort();
        prop_assert_eq!(read, all);
    }
}

#[test]
fn a_middle_stage_has_no_tokenizer_and_a_small_vocabulary() {
    let tiny = Tiny::new("llama", 6).with_tensor("output.weight", types::Q8_0, &[WIDTH, VOCABULARY]);
    let header = header(&tiny, (2, 4), false, false);
    assert_eq!(header.number("llama.block_count"), Some(2));
    assert_eq!(header.number("llama.vocab_size"), Some(SMALL_VOCABULARY.into()));
    assert_eq!(header.get("tokenizer.ggml.model"), Some(&MetaValue::String("no_vocab".into())));
    assert_eq!(header.get("tokenizer.ggml.tokens"), None);
    for name in ["token_embd.weight", "output.weight"] {
        let tensor = header.tensors.iter().find(|t| t.name == name).unwrap();
        assert_eq!((tensor.kind, tensor.shape.as_slice()), (types::F32, [WIDTH, 64].as_slice()), "{name}");
    }
    let plan = plan(&tiny.manifest(), range(2, 4), false, false).unwrap();
    let names = ["blk.2.attn_norm.weight", "blk.2.ffn_up.weight", "blk.3.attn_norm.weight", "blk.3.ffn_up.weight"];
    assert_eq!(plan.tensors(), names);
    assert_eq!(plan.embedding, None);
}

#[test]
fn the_ends_have_what_they_need() {
    let tied = Tiny::new("llama", 4);
    let tail = plan(&tied.manifest(), range(2, 4), false, true).unwrap();
    assert!(tail.tensors().contains(&"token_embd.weight"), "the table is the output matrix");
    let head = plan(&tied.manifest(), range(0, 2), true, false).unwrap();
    let table = EmbeddingTable { kind: types::Q4_0, rows: 100, width: 64, row_bytes: 36, scale: 1.0 };
    assert_eq!(head.embedding, Some(table));

    let untied = tied.with_tensor("output.weight", types::Q8_0, &[WIDTH, VOCABULARY]);
    let tail = plan(&untied.manifest(), range(2, 4), false, true).unwrap();
    assert!(!tail.tensors().contains(&"token_embd.weight") && tail.tensors().contains(&"output.weight"));
    let header = header(&untied, (2, 4), false, true);
    assert_eq!(header.number("llama.vocab_size"), Some(VOCABULARY));
    let table = header.tensors.iter().find(|t| t.name == "token_embd.weight").unwrap();
    assert_eq!(
        (table.shape.as_slice(), table.bytes),
        ([WIDTH, VOCABULARY].as_slice(), 1800),
        "the smallest that loads"
    );
}

#[test]
fn the_whole_model_is_a_stage_too() {
    let tiny = Tiny::new("gemma2", 4).with("attention.sliding_window", MetaValue::U32(16));
    let plan = plan(&tiny.manifest(), range(0, 4), true, true).unwrap();
    assert_faithful(&tiny, &plan);
    assert_eq!(plan.tensors().len(), tiny.tensors.len());
}

#[test]
fn an_end_is_where_the_model_ends() {
    let manifest = Tiny::new("llama", 4).manifest();
    assert!(matches!(plan(&manifest, range(1, 4), true, true), Err(CutError::Ends { .. })));
    assert!(matches!(plan(&manifest, range(0, 3), true, true), Err(CutError::Ends { .. })));
    assert!(matches!(plan(&manifest, range(0, 5), true, true), Err(CutError::NoSuchLayers { of: 4, .. })));
    assert!(plan(&manifest, range(0, 4), false, false).is_ok(), "the client may hold both ends");
}

#[test]
fn lists_with_an_entry_a_layer_are_cut_with_the_layers() {
    let tiny = Tiny::new("openelm", 4)
        .with("attention.head_count_kv", u32s(&[1, 2, 3, 4]))
        .with("feed_forward_length", u32s(&[10, 20, 30, 40]))
        .with("leading_dense_block_count", MetaValue::U32(3))
        .with("rope.dimension_sections", u32s(&[1, 2, 3, 4]));
    let header = header(&tiny, (1, 3), false, false);
    assert_eq!(header.get("openelm.attention.head_count_kv"), Some(&u32s(&[2, 3])));
    assert_eq!(header.get("openelm.feed_forward_length"), Some(&u32s(&[20, 30])));
    assert_eq!(header.number("openelm.leading_dense_block_count"), Some(2));
    assert_eq!(header.get("openelm.rope.dimension_sections"), Some(&u32s(&[1, 2, 3, 4])));
}

#[test]
fn a_list_of_the_wrong_length_is_refused() {
    let short = Tiny::new("llama", 4).with("attention.head_count_kv", u32s(&[1, 2])).manifest();
    assert!(matches!(plan(&short, range(0, 2), true, false), Err(CutError::ListLength { len: 2, layers: 4, .. })));
    let unknown = Tiny::new("llama", 4).with("mystery", u32s(&[1, 2, 3, 4])).manifest();
    assert!(matches!(check_range(&unknown, range(0, 2)), Err(CutError::UnknownList { .. })));
    assert!(legal_cuts(&unknown).iter().all(Result::is_err));
    assert!(plan(&unknown, range(0, 4), true, true).is_ok(), "uncut, it does not matter");
}

#[test]
fn a_window_pattern_is_written_out() {
    let tiny = Tiny::new("gemma3", 8).with("attention.sliding_window", MetaValue::U32(16));
    let pattern = |a, b| header(&tiny, (a, b), false, false).get("gemma3.attention.sliding_window_pattern").cloned();
    assert_eq!(pattern(0, 8), Some(bools(&[1, 1, 1, 1, 1, 0, 1, 1])));
    assert_eq!(pattern(4, 7), Some(bools(&[1, 0, 1])));
    let alone = header(&tiny, (5, 6), false, false);
    assert_eq!(pattern(5, 6), None);
    assert_eq!(alone.get("gemma3.attention.sliding_window"), None, "a slice without a window layer has no windows");
    let scale = plan(&tiny.manifest(), range(0, 3), true, false).unwrap().embedding.unwrap().scale;
    assert_eq!(scale, 8.0, "the engine scales tokens only, so we do");
}

#[test]
fn where_the_engine_demands_a_window_layer_there_is_one() {
    let manifest = Tiny::new("gpt-oss", 4).with("attention.sliding_window", MetaValue::U32(16)).manifest();
    assert!(check_range(&manifest, range(0, 2)).is_ok());
    assert_eq!(check_range(&manifest, range(1, 2)), Err(CutError::NoWindow { layers: range(1, 2) }));
    let listed = Tiny::new("mimo2", 3).with("attention.sliding_window", MetaValue::U32(16));
    let listed = listed.with("attention.sliding_window_pattern", bools(&[0, 0, 1])).manifest();
    assert!(matches!(check_range(&listed, range(0, 2)), Err(CutError::NoWindow { .. })));
    let unknown = Tiny::new("brandnew", 4).with("attention.sliding_window", MetaValue::U32(16)).manifest();
    assert!(matches!(check_range(&unknown, range(0, 2)), Err(CutError::Never { .. })));
}

#[test]
fn what_comes_before_layer_0_happens_once() {
    let learned = Tiny::new("gpt2", 4).with_tensor("position_embd.weight", types::F32, &[WIDTH, 128]);
    let manifest = learned.manifest();
    assert!(plan(&manifest, range(0, 2), true, false).unwrap().tensors().contains(&"position_embd.weight"));
    assert!(!plan(&manifest, range(2, 4), false, true).unwrap().tensors().contains(&"position_embd.weight"));
    assert_faithful(&learned, &plan(&manifest, range(2, 4), false, true).unwrap());

    let granite = Tiny::new("granite", 4).with("embedding_scale", MetaValue::F32(12f32.to_bits()));
    let scale = |a, b| header(&granite, (a, b), false, false).get("granite.embedding_scale").cloned();
    assert_eq!(scale(0, 2), Some(MetaValue::F32(12f32.to_bits())));
    assert_eq!(scale(2, 4), Some(MetaValue::F32(1f32.to_bits())));
    let grok = header(&Tiny::new("grok", 4), (2, 4), false, false);
    assert_eq!(grok.get("grok.embedding_scale"), Some(&MetaValue::F32(1f32.to_bits())), "its default is not 1");
    let minicpm = header(&Tiny::new("minicpm", 4), (2, 4), false, false);
    assert_eq!(minicpm.get("minicpm.residual_scale"), Some(&MetaValue::F32(0.7f32.to_bits())), "counted in the model");
}

#[test]
fn cuts_that_cannot_work_are_refused_with_the_reason() {
    let refused = |tiny: Tiny| match check_range(&tiny.manifest(), range(0, 4)) {
        Err(CutError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(Tiny::new("mamba", 4)).contains("cut back"));
    assert!(refused(Tiny::new("bert", 4)).contains("continue"));
    assert!(refused(Tiny::new("gemma3n", 4)).contains("share"));
    assert!(refused(Tiny::new("gemma4", 4).with("attention.shared_kv_layers", MetaValue::U32(2))).contains("share"));
    assert!(refused(Tiny::new("glm4moe", 4)).contains("M-RoPE"));
    assert!(refused(Tiny::new("llama", 4).with("attention.causal", MetaValue::Bool(false))).contains("continue"));

    for (architecture, layers) in [("gemma2", 4), ("bloom", 4), ("gemma3", 62), ("baichuan", 40)] {
        let cuts = legal_cuts(&Tiny::new(architecture, layers).manifest());
        assert_eq!(cuts.len() as u32, layers - 1);
        assert!(cuts.iter().all(|cut| matches!(cut, Err(CutError::Never { .. }))), "{architecture}");
    }
    let cuts = legal_cuts(&Tiny::new("smollm3", 9).manifest());
    let legal: Vec<_> = (1..9).filter(|&layer| cuts[layer - 1].is_ok()).collect();
    assert_eq!(legal, [4, 8]);
    let experts = Tiny::new("ernie4_5-moe", 6).with("interleave_moe_layer_step", MetaValue::U32(3)).manifest();
    assert_eq!(legal_cuts(&experts)[1], Err(CutError::Boundary { layer: 2, period: 3 }));
    let long = Tiny::new("gemma3", 63).manifest();
    assert_eq!(check_range(&long, range(0, 62)), Err(CutError::Count { count: 62 }));
    let odd = Tiny::new("llama", 4).with_tensor("altup_proj.weight", types::F32, &[WIDTH]).manifest();
    assert!(matches!(check_range(&odd, range(0, 2)), Err(CutError::UnknownTensor { .. })));
}

#[test]
fn many_position_components() {
    let of = |tiny: Tiny| plan(&tiny.manifest(), range(0, 4), true, true).unwrap().positions_per_token;
    assert_eq!(of(Tiny::new("llama", 4)), 1);
    assert_eq!(of(Tiny::new("qwen2vl", 4)), 4);
    assert_eq!(of(Tiny::new("glm4", 4).with("rope.dimension_sections", u32s(&[8, 12, 12, 0]))), 4);
}

#[test]
fn the_header_of_a_slice_is_pinned() {
    // Two peers that make the same stage make the same bytes: a change here changes every stage's file.
    let tiny = Tiny::new("gemma3", 8).with("attention.sliding_window", MetaValue::U32(16));
    let plan = plan(&tiny.manifest(), range(4, 7), false, false).unwrap();
    let Segment::Inline(header) = &plan.segments[0] else { panic!("a file starts with its header") };
    assert_eq!((header.len(), plan.size), GOLDEN_SIZES);
    assert_eq!(blake3::hash(header).to_hex().as_str()[..16], *GOLDEN_HEADER);
}

const GOLDEN_SIZES: (usize, u64) = (928, 31_392);
const GOLDEN_HEADER: &str = "2ea33586918d358f";

#[test]
fn a_plan_resolves_to_extents() {
    let tiny = Tiny::new("llama", 4);
    let plan = plan(&tiny.manifest(), range(0, 2), true, false).unwrap();
    let source = plan.resolve(|_, offset, len| Some(Extent::File { file: 0, offset, len })).unwrap();
    assert_eq!((source.model.size, source.layers, source.embedding.unwrap().1[0].len()), (plan.size, 2, 3600));
    assert_eq!(plan.resolve(|name, _, _| (!name.contains("ffn")).then_some(Extent::Zeros { len: 0 })), None);
    let bytes = plan.bytes(&tiny.manifest(), types::F16, types::F16);
    assert_eq!(bytes.cache_per_position, 2 * 2 * 2 * 16 * 2, "layers, keys and values, heads, width, bytes");
}

#[test]
fn the_vocabulary_file_has_no_tensor() {
    let manifest: Manifest = Tiny::new("llama", 4).manifest();
    let file = slice::vocabulary_file(&manifest).unwrap();
    let Extent::Inline(bytes) = &file.extents[0] else { panic!("made bytes") };
    let header = gguf::parse(bytes).unwrap();
    assert_eq!(header.tensors, []);
    assert!(
        matches!(header.get("tokenizer.ggml.tokens"), Some(MetaValue::Array(MetaArray::String(t))) if t.len() == 100)
    );
}
