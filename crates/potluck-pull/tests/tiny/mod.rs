//! A model for tests that move models and run none.

use potluck_core::{MetaArray, MetaValue};
use potluck_model::{
    gguf::{self, TensorSpec},
    types,
};

/// A model of some megabytes that no engine could load: what it is called says which one.
pub(crate) fn tiny_model(number: u8) -> Vec<u8> {
    let tokens = (0..2_000).map(|n| format!("t{n}").into_bytes().into()).collect();
    let metadata = [
        ("general.architecture", MetaValue::String("llama".into())),
        ("llama.block_count", MetaValue::U32(1)),
        ("llama.embedding_length", MetaValue::U32(512)),
        ("llama.context_length", MetaValue::U32(128)),
        ("llama.attention.head_count", MetaValue::U32(4)),
        ("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::String(tokens))),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let spec = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), kind: types::F32, shape: shape.to_vec() };
    let tensors = [spec("token_embd.weight", &[512, 2_000]), spec("blk.0.attn_norm.weight", &[512])];
    let mut file = gguf::write(&metadata, &tensors).unwrap();
    file.resize(file.len() + (512 * 2_000 + 512) * 4, number);
    file
}
