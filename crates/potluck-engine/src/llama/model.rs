//! A model that llama.cpp has loaded.

use std::{ffi::c_void, fs::File, ptr::NonNull, sync::Arc};

use llama_cpp_sys_2 as sys;
use potluck_model::VirtualFile;

use super::{log, stream::Stream};
use crate::EngineError;

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelParams {
    /// Layers on a GPU; `u32::MAX`: all.
    pub(crate) gpu_layers: u32,
    /// Map the file where that is possible.
    pub(crate) mmap: bool,
    /// Tokenizer only.
    pub(crate) vocabulary_only: bool,
}

/// A loaded model. Contexts borrow it by counting.
pub(crate) struct Model {
    ptr: NonNull<sys::llama_model>,
}

// SAFETY: a loaded model is never changed again; llama.cpp documents it as shareable between contexts and threads.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: loaded by us, and every context holds an `Arc` of this.
        unsafe { sys::llama_model_free(self.ptr.as_ptr()) };
    }
}

impl Model {
    /// Loads the model that `file` holds, calling `progress` with 0.0 to 1.0 now and then.
    ///
    /// # Errors
    /// `Model` with llama.cpp's complaints. A hostile file may also abort the process: load in a child.
    pub(crate) fn load(
        file: &VirtualFile,
        files: &[Arc<File>],
        params: ModelParams,
        mut progress: impl FnMut(f32),
    ) -> Result<Arc<Self>, EngineError> {
        log::init();
        let stream = Stream::open(file, files, params.mmap)?;
        let mut callback: &mut dyn FnMut(f32) = &mut progress;
        // SAFETY: a plain structure returned by value.
        let mut raw = unsafe { sys::llama_model_default_params() };
        raw.n_gpu_layers = i32::try_from(params.gpu_layers).unwrap_or(-1);
        raw.load_mode = if stream.mappable { sys::LLAMA_LOAD_MODE_MMAP } else { sys::LLAMA_LOAD_MODE_NONE };
        raw.vocab_only = params.vocabulary_only;
        raw.progress_callback = Some(report);
        raw.progress_callback_user_data = (&raw mut callback).cast();
        // SAFETY: the stream is open, and the callback's data outlives the call.
        let ptr = unsafe { sys::llama_model_load_from_file_ptr(stream.as_ptr().cast(), raw) };
        NonNull::new(ptr).map(|ptr| Arc::new(Self { ptr })).ok_or_else(|| EngineError::Model(log::recent_errors()))
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_model {
        self.ptr.as_ptr()
    }

    pub(crate) fn layers(&self) -> u32 {
        // SAFETY: the model is loaded.
        unsafe { sys::llama_model_n_layer(self.as_ptr()) }.try_into().unwrap_or(0)
    }

    /// Values in one hidden state.
    pub(crate) fn width(&self) -> u32 {
        // SAFETY: the model is loaded.
        unsafe { sys::llama_model_n_embd(self.as_ptr()) }.try_into().unwrap_or(0)
    }

    /// Values that one position takes as an input that is no token: more than the width in models that add vision
    /// features to several layers.
    pub(crate) fn input_width(&self) -> u32 {
        // SAFETY: the model is loaded.
        unsafe { sys::llama_model_n_embd_inp(self.as_ptr()) }.try_into().unwrap_or(0)
    }

    /// Tokens of its vocabulary.
    pub(crate) fn vocabulary(&self) -> u32 {
        // SAFETY: the model is loaded and owns its vocabulary.
        unsafe { sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(self.as_ptr())) }.try_into().unwrap_or(0)
    }

    /// Bytes of its tensors.
    pub(crate) fn bytes(&self) -> u64 {
        // SAFETY: the model is loaded.
        unsafe { sys::llama_model_size(self.as_ptr()) }
    }

    /// Components of a position where the input is hidden states: 4 with M-RoPE, else 1.
    pub(crate) fn position_components(&self) -> usize {
        // SAFETY: the model is loaded.
        match unsafe { sys::llama_model_rope_type(self.as_ptr()) } {
            sys::LLAMA_ROPE_TYPE_MROPE | sys::LLAMA_ROPE_TYPE_IMROPE => 4,
            _ => 1,
        }
    }

    /// True if its memory is (in part) a running state that cannot be cut back to any position.
    pub(crate) fn recurrent(&self) -> bool {
        // SAFETY: the model is loaded.
        unsafe { sys::llama_model_is_recurrent(self.as_ptr()) || sys::llama_model_is_hybrid(self.as_ptr()) }
    }

    /// True if it generates text from left to right, without an encoder before it.
    pub(crate) fn decoder_only(&self) -> bool {
        // SAFETY: the model is loaded.
        unsafe { sys::llama_model_has_decoder(self.as_ptr()) && !sys::llama_model_has_encoder(self.as_ptr()) }
    }
}

unsafe extern "C" fn report(progress: f32, data: *mut c_void) -> bool {
    // SAFETY: `load` passes a pointer to its reference, which outlives the loading.
    let callback = unsafe { &mut *data.cast::<&mut dyn FnMut(f32)>() };
    callback(progress);
    true
}
