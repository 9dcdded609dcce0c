//! Which models there are in the zoo.

use potluck_core::{MetaArray, MetaValue};

/// A tiny model: its metadata, from which [`write`](super::write) makes a file.
#[derive(Debug, Clone)]
pub struct Animal {
    /// llama.cpp's name of the architecture.
    pub architecture: &'static str,
    /// What it is here for.
    pub shows: &'static str,
    /// The metadata, tokenizer included.
    pub metadata: Vec<(String, MetaValue)>,
}

/// Layers of each.
const LAYERS: u32 = 6;
/// Values in a hidden state: four heads of sixteen.
const WIDTH: u32 = 64;
const HEADS: u32 = 4;
const HEAD_WIDTH: u32 = WIDTH / HEADS;

/// The models of the zoo.
pub fn animals() -> Vec<Animal> {
    vec![
        animal("llama", "the most common family", &[]),
        animal("llama", "a mixture of experts", &[("expert_count", 4), ("expert_used_count", 2)]),
        animal("qwen2", "biases on queries, keys and values", &[]),
        animal("qwen3", "norms on queries and keys", &[]),
        animal(
            "qwen3moe",
            "a mixture of experts of their own size",
            &[("expert_count", 4), ("expert_used_count", 2), ("expert_feed_forward_length", 32)],
        ),
        animal(
            "gemma3",
            "a sliding window in five layers of six, and a scaled embedding",
            &[
                ("attention.sliding_window", 16),
                ("attention.key_length", HEAD_WIDTH),
                ("attention.value_length", HEAD_WIDTH),
            ],
        ),
        animal("olmo2", "norms after attention", &[]),
        animal("phi3", "one matrix for queries, keys and values", &[("rope.scaling.original_context_length", 512)]),
        animal("gpt2", "learned positions", &[]),
        with(
            animal("granite", "an embedding scaled by the metadata", &[]),
            &[("logit_scale", 8.0), ("residual_scale", 0.22), ("embedding_scale", 12.0), ("attention.scale", 0.25)],
        ),
        sections(animal("qwen2vl", "positions with several components", &[])),
        animal(
            "gpt-oss",
            "a window in every other layer, sinks, experts",
            &[
                ("attention.sliding_window", 16),
                ("expert_count", 4),
                ("expert_used_count", 2),
                ("expert_feed_forward_length", 32),
                ("attention.key_length", HEAD_WIDTH),
                ("attention.value_length", HEAD_WIDTH),
            ],
        ),
    ]
}

fn animal(architecture: &'static str, shows: &'static str, more: &[(&str, u32)]) -> Animal {
    let sizes = [
        ("block_count", LAYERS),
        ("context_length", 512),
        ("embedding_length", WIDTH),
        ("feed_forward_length", 96),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", if architecture == "gpt2" { HEADS } else { HEADS / 2 }),
        ("rope.dimension_count", HEAD_WIDTH),
    ];
    let key = |name: &str| format!("{architecture}.{name}");
    let mut metadata = vec![
        ("general.architecture".to_owned(), MetaValue::String(architecture.into())),
        (key("attention.layer_norm_rms_epsilon"), MetaValue::F32(1e-5f32.to_bits())),
        (key("attention.layer_norm_epsilon"), MetaValue::F32(1e-5f32.to_bits())),
        (key("rope.freq_base"), MetaValue::F32(10_000f32.to_bits())),
    ];
    metadata.extend(sizes.iter().chain(more).map(|&(name, value)| (key(name), MetaValue::U32(value))));
    metadata.extend(tokenizer());
    Animal { architecture, shows, metadata }
}

fn with(mut animal: Animal, more: &[(&str, f32)]) -> Animal {
    let architecture = animal.architecture;
    let entry = |&(name, value): &(&str, f32)| (format!("{architecture}.{name}"), MetaValue::F32(value.to_bits()));
    animal.metadata.extend(more.iter().map(entry));
    animal
}

/// M-RoPE: how the pairs of a head are shared out over the components of a position.
fn sections(mut animal: Animal) -> Animal {
    let sections = MetaValue::Array(MetaArray::I32(vec![2, 3, 3, 0]));
    animal.metadata.push((format!("{}.rope.dimension_sections", animal.architecture), sections));
    animal
}

/// A tokenizer of 320 tokens: three for control, each byte, and some letters.
fn tokenizer() -> [(String, MetaValue); 6] {
    let control = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let letters = (0..61u32).filter_map(|at| char::from_u32(0x4E00 + at)).map(String::from);
    let tokens: Vec<String> = control.into_iter().chain(bytes).chain(letters).collect();
    let kinds = (0..tokens.len()).map(|at| match at {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    });
    let array = |array| MetaValue::Array(array);
    [
        ("model", MetaValue::String("llama".into())),
        ("token_type", array(MetaArray::I32(kinds.collect()))),
        ("scores", array(MetaArray::F32((0..tokens.len()).map(|at| (-(at as f32)).to_bits()).collect()))),
        ("tokens", array(MetaArray::String(tokens.into_iter().map(|token| token.into_bytes().into()).collect()))),
        ("bos_token_id", MetaValue::U32(1)),
        ("eos_token_id", MetaValue::U32(2)),
    ]
    .map(|(name, value)| (format!("tokenizer.ggml.{name}"), value))
}
