//! The table: one place to look when a new architecture appears.

use potluck_core::{Manifest, MetaArray, MetaValue};

use super::{Admission, Cuts, EmbeddingScale, Entry, Family, WINDOW_WIDTH, Window};
use crate::facts;

/// Chains of slices of these equal the whole model bit for bit. A name enters this list together with a tiny random
/// model of it in the engine's tests, which prove each of them.
pub const EXACT: [&str; 8] = ["gemma3", "gpt2", "llama", "phi3", "qwen2", "qwen2vl", "qwen3", "qwen3moe"];

/// Their cache is a running state, in all layers or in some.
const RECURRENT: [&str; 24] = [
    "arwkv7",
    "bailingmoe3",
    "deepseek4",
    "falcon-h1",
    "glm5-next",
    "granitehybrid",
    "jamba",
    "kimi-k3",
    "kimi-linear",
    "lfm2",
    "lfm2moe",
    "mamba",
    "mamba2",
    "minimax-01",
    "nemotron_h",
    "nemotron_h_moe",
    "plamo2",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "qwen4exp",
    "rwkv6",
    "rwkv6qwen2",
    "rwkv7",
];

/// They encode, denoise, draft or speak; none gives the next token of a text.
const NO_TEXT: [&str; 24] = [
    "bert",
    "clef",
    "clip",
    "dflash",
    "dream",
    "eagle3",
    "eurobert",
    "gemma-embedding",
    "gemma4-assistant",
    "jina-bert-v2",
    "jina-bert-v3",
    "llada",
    "llada-moe",
    "llama-embed",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "pockettts",
    "qwen3tts",
    "rnd1",
    "t5",
    "t5encoder",
    "wavtokenizer-dec",
];

/// More than the hidden state goes from layer to layer, or the graph needs the tokens themselves.
const BESIDE: [(&str, &str); 7] = [
    ("cogvlm", "its graph takes hidden states for pictures and routes them to other weights"),
    ("gemma3n", "its layers share caches and take inputs of their own"),
    ("glm-dsa", "its layers share the choice of positions to attend to"),
    ("graniteswitch", "its graph needs the tokens themselves"),
    ("hrm_text", "its layers run in nested loops"),
    ("hy_v4", "several streams run beside the hidden state"),
    ("nanbeige", "its layers run in a loop"),
];

/// Their graphs change every hidden state that enters, by a constant or a norm that no metadata switches off.
const ENTRY_FIXED: [&str; 6] = ["afmoe", "bloom", "gemma", "gemma2", "muse-glimmer", "talkie"];

/// Their graphs multiply what enters with `embedding_scale`; the flag: also without the key.
const ENTRY_SCALED: [(&str, bool); 5] =
    [("granite", false), ("granite_swa", false), ("granitemoe", false), ("grok", true), ("minicpm", true)];

/// Four position components a token.
const MULTI_POSITION: [&str; 4] = ["paddleocr", "qwen2vl", "qwen3vl", "qwen3vlmoe"];
/// Four, if the metadata has the sections.
const MULTI_POSITION_IF_SECTIONS: [&str; 3] = ["glm4", "glm4moe", "hunyuan_vl"];

/// Windows that repeat: period, the dense layer comes first, a slice without a window layer needs no window.
const PERIODIC: [(&str, u32, bool, bool); 15] = [
    ("afmoe", 4, false, false),
    ("cohere2", 4, false, false),
    ("cohere2moe", 4, true, false),
    ("exaone-moe", 4, false, false),
    ("exaone4", 4, false, false),
    ("gemma2", 2, false, false),
    ("gemma3", 6, false, true),
    ("gpt-oss", 2, false, false),
    ("laguna", 4, true, false),
    ("llama4", 4, false, false),
    ("mellum", 4, false, false),
    ("muse-glimmer", 4, false, false),
    ("olmo2", 4, false, false),
    ("plamo3", 8, false, false),
    ("smallthinker", 4, true, false),
];
/// These have windows whether or not the metadata has a width.
const ALWAYS_WINDOWED: [&str; 2] = ["gemma2", "llama4"];
/// The engine reads no window for these, or ignores what it reads.
const WINDOW_IGNORED: [&str; 10] =
    ["llama", "mistral3", "mistral4", "phi3", "phimoe", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "starcoder2"];

/// The engine tells some sizes of a family by the number of layers alone, and computes differently for them.
const COUNTED: [(&str, &[u32]); 4] =
    [("baichuan", &[40]), ("deepseek2", &[26, 27, 47, 48]), ("exaone4", &[64]), ("gemma3", &[62])];

/// Numbers of layers by which the engine takes a model of this architecture for a special size.
pub(crate) fn counted(architecture: &str) -> &'static [u32] {
    COUNTED.iter().find(|(name, _)| *name == architecture).map_or(&[], |(_, counts)| counts)
}

/// True if the architecture's cache is a running state, in all layers or in some.
pub fn is_recurrent(architecture: &str) -> bool {
    RECURRENT.contains(&architecture)
}

pub(super) fn family(manifest: &Manifest) -> Family {
    let architecture = manifest.architecture();
    let scaled = ENTRY_SCALED.iter().find(|(name, _)| *name == architecture);
    Family {
        admission: admission(manifest),
        scale: match architecture {
            "gemma3" | "gemma4" => EmbeddingScale::SqrtWidth,
            _ => EmbeddingScale::None,
        },
        positions_per_token: if multi_position(manifest) { 4 } else { 1 },
        cuts: cuts(manifest),
        window: window(manifest),
        entry: scaled.map_or(Entry::Plain, |&(_, always)| Entry::Scaled { always }),
    }
}

fn admission(manifest: &Manifest) -> Admission {
    let architecture = manifest.architecture();
    match refusal(manifest) {
        Some(reason) => Admission::Refused(reason),
        None if EXACT.contains(&architecture) => Admission::Exact,
        None => Admission::Probe,
    }
}

fn refusal(manifest: &Manifest) -> Option<String> {
    let architecture = manifest.architecture();
    if is_recurrent(architecture) {
        return Some("its cache cannot be cut back to the start of a step".into());
    }
    if NO_TEXT.contains(&architecture)
        || manifest.get(&key(manifest, "attention.causal")) == Some(&MetaValue::Bool(false))
    {
        return Some("it does not continue a text".into());
    }
    if let Some((_, reason)) = BESIDE.iter().find(|(name, _)| *name == architecture) {
        return Some((*reason).into());
    }
    for (part, reason) in [
        ("attention.shared_kv_layers", "its layers share caches"),
        ("embedding_length_per_layer_input", "its layers take inputs of their own"),
        ("hyper_connection.count", "several streams run beside the hidden state"),
        ("nextn_predict_layers", "some of its layers guess further tokens, and are not told apart yet"),
        ("num_loops", "its layers run in a loop"),
    ] {
        if manifest.arch_number(part).is_some_and(|n| n > 0) {
            return Some(reason.into());
        }
    }
    if manifest.get(&key(manifest, "deepstack_mapping")).is_some() {
        return Some("pictures enter at several of its layers".into());
    }
    if manifest.metadata.iter().any(|(key, _)| key.starts_with("general.tensor_extra.")) {
        return Some("its file sets a precision for single tensors".into());
    }
    if matches!(architecture, "glm4" | "glm4moe") && !multi_position(manifest) {
        return Some("its engine refuses hidden states as input; a newer conversion of it has M-RoPE sections".into());
    }
    None
}

fn key(manifest: &Manifest, part: &str) -> String {
    format!("{}.{part}", manifest.architecture())
}

fn multi_position(manifest: &Manifest) -> bool {
    let architecture = manifest.architecture();
    let sections = || match manifest.get(&key(manifest, "rope.dimension_sections")) {
        Some(MetaValue::Array(array)) => (0..2).all(|i| facts::element(array, i).is_some_and(|n| n > 0)),
        _ => false,
    };
    MULTI_POSITION.contains(&architecture) || (MULTI_POSITION_IF_SECTIONS.contains(&architecture) && sections())
}

fn cuts(manifest: &Manifest) -> Cuts {
    let architecture = manifest.architecture();
    if ENTRY_FIXED.contains(&architecture) {
        return Cuts::Never("its graph changes what enters each stage, not only the first".into());
    }
    let layers = manifest.layers();
    if counted(architecture).contains(&layers) {
        return Cuts::Never(format!("the engine tells this size of {architecture} by its {layers} layers"));
    }
    if window(manifest) == Window::None && is_wide(manifest) && !WINDOW_IGNORED.contains(&architecture) {
        return Cuts::Never("it has sliding windows, and which layers use them is not known".into());
    }
    match period(manifest) {
        0 | 1 => Cuts::Anywhere,
        period => Cuts::Multiples(period),
    }
}

/// Layers after which the kinds of layers repeat, where the engine counts them from its own layer 0.
fn period(manifest: &Manifest) -> u32 {
    let step = |part| manifest.arch_number(part).and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1);
    let experts = step("interleave_moe_layer_step");
    let rope = match manifest.architecture() {
        // Without windows, the engine leaves the rotation out at a slice's last layer: cut nowhere.
        "llama4" if manifest.arch_number(WINDOW_WIDTH) == Some(0) => manifest.layers(),
        "llama4" | "smollm3" | "smallthinker" => 4,
        _ => 1,
    };
    least_common_multiple(least_common_multiple(experts, rope), step("moe_every_n_layers"))
}

fn least_common_multiple(a: u32, b: u32) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (a / gcd(a, b).max(1)).saturating_mul(b)
}

fn window(manifest: &Manifest) -> Window {
    let architecture = manifest.architecture();
    if WINDOW_IGNORED.contains(&architecture) {
        return Window::None;
    }
    let listed =
        matches!(manifest.get(&key(manifest, super::WINDOW_PATTERN)), Some(MetaValue::Array(a)) if !is_text(a));
    match PERIODIC.iter().find(|(name, ..)| *name == architecture) {
        Some(_) if !is_wide(manifest) && !ALWAYS_WINDOWED.contains(&architecture) => Window::None,
        Some(&(_, period, dense_first, removable)) => Window::Periodic { period, dense_first, removable },
        None if listed => Window::Listed,
        None => Window::None,
    }
}

fn is_wide(manifest: &Manifest) -> bool {
    manifest.arch_number(WINDOW_WIDTH).is_some_and(|n| n > 0)
}

fn is_text(array: &MetaArray) -> bool {
    matches!(array, MetaArray::String(_))
}
