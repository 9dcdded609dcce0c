//! Tiny models, written with the header writer: enough for every rule, small enough to read.
#![allow(unreachable_pub, dead_code, reason = "each test file uses its own part")]

use potluck_core::{LayerRange, Manifest, MetaArray, MetaValue, TensorType};
use potluck_model::{gguf, gguf::TensorSpec, manifest_of, types};

/// Values in a hidden state of the tiny models.
pub const WIDTH: u64 = 64;
/// Tokens of their vocabulary.
pub const VOCABULARY: u64 = 100;

/// A model to write.
#[derive(Clone)]
pub struct Tiny {
    pub metadata: Vec<(String, MetaValue)>,
    pub tensors: Vec<TensorSpec>,
}

pub fn spec(name: &str, kind: TensorType, shape: &[u64]) -> TensorSpec {
    TensorSpec { name: name.into(), kind, shape: shape.into() }
}

impl Tiny {
    /// A model of that architecture with `layers` layers of two tensors each and a tied output.
    pub fn new(architecture: &str, layers: u32) -> Self {
        let mut tensors = vec![
            spec("token_embd.weight", types::Q4_0, &[WIDTH, VOCABULARY]),
            spec("output_norm.weight", types::F32, &[WIDTH]),
        ];
        for layer in 0..layers {
            tensors.push(spec(&format!("blk.{layer}.attn_norm.weight"), types::F32, &[WIDTH]));
            tensors.push(spec(
                &format!("blk.{layer}.ffn_up.weight"),
                types::Q8_0,
                &[WIDTH, 32 + 32 * u64::from(layer % 3)],
            ));
        }
        let tokens = (0..VOCABULARY).map(|n| format!("t{n}").into_bytes().into()).collect();
        let mut tiny = Self { metadata: vec![], tensors };
        tiny.set("general.architecture", MetaValue::String(architecture.into()));
        tiny.set("general.license", MetaValue::String("apache-2.0".into()));
        tiny.set("tokenizer.ggml.model", MetaValue::String("gpt2".into()));
        tiny.set("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::String(tokens)));
        tiny.set("tokenizer.chat_template", MetaValue::String("{{ messages }}".into()));
        tiny.arch("block_count", MetaValue::U32(layers));
        tiny.arch("embedding_length", MetaValue::U32(WIDTH as u32));
        tiny.arch("context_length", MetaValue::U32(128));
        tiny.arch("attention.head_count", MetaValue::U32(4));
        tiny.arch("attention.head_count_kv", MetaValue::U32(2));
        tiny
    }

    pub fn architecture(&self) -> &str {
        match &self.metadata[0].1 {
            MetaValue::String(text) => text,
            _ => "",
        }
    }

    pub fn set(&mut self, key: &str, value: MetaValue) {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.into(), value));
    }

    pub fn arch(&mut self, part: &str, value: MetaValue) {
        self.set(&format!("{}.{part}", self.architecture()), value);
    }

    pub fn with(mut self, part: &str, value: MetaValue) -> Self {
        self.arch(part, value);
        self
    }

    pub fn with_tensor(mut self, name: &str, kind: TensorType, shape: &[u64]) -> Self {
        self.tensors.push(spec(name, kind, shape));
        self
    }

    /// A tensor's bytes: different for each tensor and each offset.
    pub fn data(spec: &TensorSpec) -> Vec<u8> {
        let bytes = types::tensor_bytes(spec.kind, &spec.shape).unwrap() as usize;
        let mut data = vec![0; bytes];
        blake3::Hasher::new().update(spec.name.as_bytes()).finalize_xof().fill(&mut data);
        data
    }

    /// The whole file.
    pub fn file(&self) -> Vec<u8> {
        let mut file = gguf::write(&self.metadata, &self.tensors).unwrap();
        for tensor in &self.tensors {
            file.extend(Self::data(tensor));
            file.resize(file.len().next_multiple_of(32), 0);
        }
        file
    }

    pub fn manifest(&self) -> Manifest {
        let header = gguf::parse(&self.file()).unwrap();
        let hash = |name: &str| {
            let spec = self.tensors.iter().find(|t| t.name == name).unwrap();
            *blake3::hash(&Self::data(spec)).as_bytes()
        };
        manifest_of(&[&header], |_, tensor| Some(hash(&tensor.name))).unwrap()
    }
}

pub fn range(start: u32, end: u32) -> LayerRange {
    LayerRange::new(start, end).unwrap()
}

pub fn bools(pattern: &[u8]) -> MetaValue {
    MetaValue::Array(MetaArray::Bool(pattern.iter().map(|&b| b != 0).collect()))
}

pub fn u32s(values: &[u32]) -> MetaValue {
    MetaValue::Array(MetaArray::U32(values.to_vec()))
}
