//! Tiny models of many architectures with weights that are random and the same every time: what a family is proven with.
//!
//! llama.cpp itself says which tensors an architecture has; each is filled by its name. A model of this kind says
//! nothing of interest, but computes what a real one of its family computes.

mod animals;

use std::{
    collections::HashSet,
    ffi::{CStr, c_void},
    io::Write,
};

use llama_cpp_sys_2 as sys;
use potluck_core::{MetaValue, TensorType};
use potluck_model::{
    Extent, VirtualFile,
    gguf::{self, ALIGNMENT_DEFAULT, TensorSpec},
};

use crate::{EngineError, llama};

pub use animals::{Animal, animals};

/// Values of all tensors of one model together: an animal is tiny.
const VALUES_MAX: usize = 16 << 20;

/// Writes the GGUF of a model with this metadata.
///
/// # Errors
/// `Model` where llama.cpp finds a key missing; `System` where nothing can be written. It may also end the process.
pub fn write(metadata: &[(String, MetaValue)], out: &mut impl Write) -> Result<(), EngineError> {
    let refused = |error: gguf::GgufError| EngineError::Model(error.to_string());
    let tensors = tensors(gguf::write(metadata, &[]).map_err(refused)?)?;
    let (specs, values): (Vec<TensorSpec>, Vec<Vec<f32>>) = tensors.into_iter().unzip();
    let mut file = gguf::write(metadata, &specs).map_err(refused)?;
    for values in values {
        file.resize(file.len().next_multiple_of(ALIGNMENT_DEFAULT as usize), 0);
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT_DEFAULT as usize), 0);
    out.write_all(&file).map_err(|why| EngineError::system("writing a model", why))
}

/// What llama.cpp asks for when it makes a model of these bytes of metadata, each with its content.
fn tensors(header: Vec<u8>) -> Result<Vec<(TensorSpec, Vec<f32>)>, EngineError> {
    llama::init();
    let stream = llama::Stream::open(&VirtualFile::new(vec![Extent::Inline(header)]), &[], false)?;
    let params = sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
    // SAFETY: the stream is open.
    let context = unsafe { sys::gguf_init_from_file_ptr(stream.as_ptr().cast(), params) };
    if context.is_null() {
        return Err(EngineError::Model(llama::recent_errors()));
    }
    let mut made = Made::default();
    // SAFETY: the context and what the callback writes to live through the call; both are freed or read after it.
    let model = unsafe {
        let model = sys::llama_model_init_from_user(
            context,
            Some(fill),
            (&raw mut made).cast::<c_void>(),
            sys::llama_model_default_params(),
        );
        sys::gguf_free(context);
        model
    };
    if model.is_null() {
        return Err(EngineError::Model(llama::recent_errors()));
    }
    // SAFETY: made above, freed once.
    unsafe { sys::llama_model_free(model) };
    match made.values > VALUES_MAX {
        true => Err(EngineError::Model(format!("{} values; an animal has at most {VALUES_MAX}", made.values))),
        false => Ok(made.tensors),
    }
}

#[derive(Default)]
struct Made {
    names: HashSet<String>,
    tensors: Vec<(TensorSpec, Vec<f32>)>,
    values: usize,
}

/// Called by llama.cpp for each tensor of the model.
unsafe extern "C" fn fill(tensor: *mut sys::ggml_tensor, data: *mut c_void) {
    // SAFETY: llama.cpp passes a live tensor, whose name ends in a zero byte, and the `Made` of `tensors`.
    let (tensor, made, name) =
        unsafe { (&*tensor, &mut *data.cast::<Made>(), CStr::from_ptr((*tensor).name.as_ptr())) };
    let name = name.to_string_lossy().into_owned();
    if name.starts_with("cls.") {
        // Optional: it makes a ranking model of one that writes text.
        return;
    }
    let mut shape: Vec<u64> = tensor.ne.iter().map(|&extent| extent.max(1) as u64).collect();
    while shape.len() > 1 && shape.last() == Some(&1) {
        shape.pop();
    }
    let count = shape.iter().fold(1usize, |all, &extent| all.saturating_mul(extent as usize));
    made.values = made.values.saturating_add(count);
    // A tensor that is used twice (a tied output) comes twice.
    if tensor.type_ == sys::GGML_TYPE_F32 && made.values <= VALUES_MAX && made.names.insert(name.clone()) {
        let values = content(&name, count, shape[0] as f32);
        made.tensors.push((TensorSpec { name, kind: TensorType(sys::GGML_TYPE_F32), shape }, values));
    }
}

/// The values of a tensor: drawn by its name, so large that signals neither die nor explode.
fn content(name: &str, count: usize, inputs: f32) -> Vec<f32> {
    let (middle, spread) = match name {
        _ if name.starts_with("rope_") => (1.0, 0.1),
        _ if name.ends_with("norm.weight") => (1.0, 0.2),
        _ if name.ends_with(".bias") || name.contains("sinks") => (0.0, 0.2),
        _ if name.starts_with("token_embd") || name.starts_with("position_embd") => (0.0, 1.0),
        _ => (0.0, 1.7 / inputs.sqrt()),
    };
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut state = seed | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| middle + spread * draw()).collect()
}
