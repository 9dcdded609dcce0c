//! A context: the caches, and batches that run over them.

use std::{
    ffi::{CStr, CString, c_void},
    ptr::{self, NonNull},
    sync::Arc,
};

use llama_cpp_sys_2 as sys;
use zeroize::{Zeroize as _, Zeroizing};

use potluck_core::bounds::TREE_ROWS_MAX;

use super::{log, model::Model, threads::ThreadPool};
use crate::{EngineError, EngineSettings, FlashAttention, KvType};

/// How a context is made.
pub(crate) struct ContextParams<'a> {
    pub(crate) settings: &'a EngineSettings,
    /// The tensor whose rows are taken from each batch, after which the rest is not computed.
    pub(crate) capture: Option<CString>,
}

/// Caches of a model, and batches over them. One sequence each has its own memory (`kv_unified = false`), unless trees of drafts are to
/// run as one batch: see [`EngineSettings::lanes`].
pub(crate) struct Context {
    ptr: NonNull<sys::llama_context>,
    memory: sys::llama_memory_t,
    capture: Option<NonNull<Capture>>,
    model: Arc<Model>,
    chunk: usize,
    /// The first of the sequences that branches of a tree borrow, and how many there are.
    lanes: (u16, u16),
    /// A batch is done when the device is done with it.
    settles: bool,
    _pools: Vec<ThreadPool>,
}

/// The rows that the captured tensor had in the last batch.
pub(crate) struct Capture {
    name: CString,
    width: usize,
    rows_max: usize,
    rows: Vec<f32>,
    fault: Option<&'static str>,
}

/// What enters a batch.
pub(crate) enum Rows {
    /// Token ids.
    Tokens(Vec<i32>),
    /// Hidden states.
    Hidden(Vec<f32>),
}

/// Rows of one or more sequences for a single call; reused, so that a step allocates nothing.
pub(crate) struct Batch {
    pub(crate) rows: Rows,
    components: usize,
    starts: Vec<i32>,
    positions: Vec<i32>,
    sequence_counts: Vec<i32>,
    /// Of all rows, one row after the other.
    sequences: Vec<i32>,
    sequence_pointers: Vec<*mut i32>,
    outputs: Vec<i8>,
}

/// Why a batch did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("no room in the cache")]
    NoRoom,
    #[error("llama_decode gave {0}")]
    Failed(i32),
    #[error("the hidden states of {found} rows came out of a batch of {expected}: {why}")]
    Capture { expected: usize, found: usize, why: &'static str },
}

impl Batch {
    /// An empty batch of tokens or hidden states for `model`.
    pub(crate) fn new(model: &Model, tokens: bool) -> Self {
        Self {
            rows: if tokens { Rows::Tokens(Vec::new()) } else { Rows::Hidden(Vec::new()) },
            // Tokens have one component: llama.cpp makes the others itself.
            components: if tokens { 1 } else { model.position_components() },
            starts: Vec::new(),
            positions: Vec::new(),
            sequence_counts: Vec::new(),
            sequences: Vec::new(),
            sequence_pointers: Vec::new(),
            outputs: Vec::new(),
        }
    }

    pub(crate) fn clear(&mut self) {
        match &mut self.rows {
            Rows::Tokens(tokens) => forget(tokens),
            Rows::Hidden(hidden) => forget(hidden),
        }
        self.starts.clear();
        self.sequence_counts.clear();
        self.sequences.clear();
        self.outputs.clear();
    }

    /// Adds the position of one row; its content is pushed to [`rows`](Self::rows).
    pub(crate) fn push(&mut self, sequence: u16, position: u32, output: bool) {
        self.push_shared(&[sequence], position, output);
    }

    /// Adds the position of one row that several sequences hold; it sees what the first of them holds.
    pub(crate) fn push_shared(&mut self, sequences: &[u16], position: u32, output: bool) {
        self.starts.push(position as i32);
        self.sequence_counts.push(sequences.len() as i32);
        self.sequences.extend(sequences.iter().map(|&sequence| i32::from(sequence)));
        self.outputs.push(output.into());
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The raw batch: borrows everything from `self`.
    fn raw(&mut self) -> sys::llama_batch {
        let rows = self.len();
        self.sequence_pointers.clear();
        let mut rest = &mut self.sequences[..];
        for &count in &self.sequence_counts {
            let (own, after) = rest.split_at_mut(count as usize);
            self.sequence_pointers.push(own.as_mut_ptr());
            rest = after;
        }
        // M-RoPE of text: three equal components, and a fourth that is zero; section by section.
        self.positions.clear();
        for component in 0..self.components {
            match component {
                3 => self.positions.resize(4 * rows, 0),
                _ => self.positions.extend_from_slice(&self.starts),
            }
        }
        let (token, embd) = match &mut self.rows {
            Rows::Tokens(tokens) => (tokens.as_mut_ptr(), ptr::null_mut()),
            Rows::Hidden(hidden) => (ptr::null_mut(), hidden.as_mut_ptr()),
        };
        sys::llama_batch {
            n_tokens: rows as i32,
            token,
            embd,
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.sequence_counts.as_mut_ptr(),
            seq_id: self.sequence_pointers.as_mut_ptr(),
            logits: self.outputs.as_mut_ptr(),
        }
    }

    /// True if there is content for exactly the rows that were pushed.
    fn is_whole(&self, width: usize) -> bool {
        match &self.rows {
            Rows::Tokens(tokens) => tokens.len() == self.len(),
            Rows::Hidden(hidden) => hidden.len() == self.len() * width,
        }
    }
}

impl Context {
    /// Makes the caches. Their memory is taken at once: check the budget before.
    ///
    /// # Errors
    /// `Context` with llama.cpp's complaints.
    pub(crate) fn new(model: Arc<Model>, params: ContextParams<'_>) -> Result<Self, EngineError> {
        let ContextParams { settings, capture } = params;
        let capture = capture.map(|name| {
            NonNull::from(Box::leak(Box::new(Capture {
                name,
                width: model.width() as usize,
                rows_max: settings.chunk.into(),
                rows: Vec::new(),
                fault: None,
            })))
        });
        let raw = raw_params(settings, capture);
        // SAFETY: the model is loaded; the callback's data lives until the context is freed.
        let ptr = unsafe { sys::llama_init_from_model(model.as_ptr(), raw) };
        let Some(ptr) = NonNull::new(ptr) else {
            // SAFETY: leaked above, and no context exists that could use it.
            capture.map(|capture| unsafe { Box::from_raw(capture.as_ptr()) });
            return Err(EngineError::Context(log::recent_errors()));
        };
        // SAFETY: the context was just made.
        let memory = unsafe { sys::llama_get_memory(ptr.as_ptr()) };
        let (chunk, lanes) = (settings.chunk.into(), (settings.caches, settings.lanes));
        let mut context =
            Self { ptr, memory, capture, model, chunk, lanes, settles: settings.share < 100, _pools: Vec::new() };
        if memory.is_null() {
            return Err(EngineError::NotAStage("it keeps no cache".into()));
        }
        context.attach_pools(settings)?;
        Ok(context)
    }

    fn attach_pools(&mut self, settings: &EngineSettings) -> Result<(), EngineError> {
        let Some(poll) = settings.poll else { return Ok(()) };
        let pool = |threads| {
            ThreadPool::new(threads, poll).ok_or_else(|| EngineError::Context(format!("no pool of {threads} threads")))
        };
        let single = pool(settings.threads)?;
        let batch = (settings.threads_batch != settings.threads).then(|| pool(settings.threads_batch)).transpose()?;
        let batch_ptr = batch.as_ref().map_or(single.as_ptr(), ThreadPool::as_ptr);
        // SAFETY: both pools are owned by `self`, which frees the context before them.
        unsafe { sys::llama_attach_threadpool(self.ptr.as_ptr(), single.as_ptr(), batch_ptr) };
        self._pools = std::iter::once(single).chain(batch).collect();
        Ok(())
    }

    /// Computes with so many threads of its pools from now on, for single positions and for batches.
    pub(crate) fn use_threads(&mut self, single: u16, batch: u16) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_set_n_threads(self.ptr.as_ptr(), single.into(), batch.into()) };
    }

    /// Positions that each sequence has room for.
    pub(crate) fn context(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_ctx_seq(self.ptr.as_ptr()) }
    }

    /// Runs `batch`, whose sequences must not change order: see [`crate::stage`].
    pub(crate) fn decode(&mut self, batch: &mut Batch) -> Result<(), DecodeError> {
        let rows = batch.len();
        // llama.cpp aborts on more rows than it was made for, and reads what is not there on fewer values.
        if rows == 0 || rows > self.chunk || !batch.is_whole(self.model.width() as usize) {
            return Err(DecodeError::Failed(-1));
        }
        self.reset_capture();
        // SAFETY: every array of the batch holds `rows` entries and outlives the call.
        match unsafe { sys::llama_decode(self.ptr.as_ptr(), batch.raw()) } {
            0 => {}
            1 => return Err(DecodeError::NoRoom),
            code => return Err(DecodeError::Failed(code)),
        }
        if self.settles {
            // SAFETY: the context is alive.
            unsafe { sys::llama_synchronize(self.ptr.as_ptr()) };
        }
        self.check_capture(rows)
    }

    /// Forgets the hidden states of the last batch.
    pub(crate) fn reset_capture(&mut self) {
        if let Some(capture) = self.capture {
            // SAFETY: no batch is running, so the callback does not touch it.
            let capture = unsafe { &mut *capture.as_ptr() };
            forget(&mut capture.rows);
            capture.fault = None;
        }
    }

    fn check_capture(&mut self, expected: usize) -> Result<(), DecodeError> {
        let Some(capture) = self.capture else { return Ok(()) };
        // SAFETY: the context is alive; after this no computation is under way.
        unsafe { sys::llama_synchronize(self.ptr.as_ptr()) };
        // SAFETY: as in `reset_capture`.
        let capture = unsafe { capture.as_ref() };
        let found = capture.rows.len() / capture.width.max(1);
        match capture.fault {
            None if found == expected => Ok(()),
            fault => {
                Err(DecodeError::Capture { expected, found, why: fault.unwrap_or("the layer has no such output") })
            }
        }
    }

    /// Hidden states of the last batch, in the order of its rows.
    pub(crate) fn captured(&self) -> &[f32] {
        // SAFETY: as in `reset_capture`; the borrow of `self` keeps a batch from running.
        self.capture.map_or(&[], |capture| unsafe { &(*capture.as_ptr()).rows })
    }

    /// Logits of row `row` of the last batch; none if the row was not asked for.
    pub(crate) fn logits(&self, row: usize) -> Option<&[f32]> {
        // SAFETY: the context is alive; llama.cpp checks the row.
        let values = unsafe { sys::llama_get_logits_ith(self.ptr.as_ptr(), row as i32) };
        // SAFETY: the row holds one value for each token of the vocabulary and lives until the next batch.
        (!values.is_null()).then(|| unsafe { std::slice::from_raw_parts(values, self.model.vocabulary() as usize) })
    }

    /// Whether batches keep the hidden states that the output matrix sees, from now on.
    pub(crate) fn keep_states(&mut self, keep: bool) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_set_embeddings(self.ptr.as_ptr(), keep) };
    }

    /// The hidden state of row `row` of the last batch, after the last norm; none if it was not kept.
    pub(crate) fn state(&self, row: usize) -> Option<&[f32]> {
        // SAFETY: the context is alive; llama.cpp checks the row.
        let values = unsafe { sys::llama_get_embeddings_ith(self.ptr.as_ptr(), row as i32) };
        // SAFETY: the row holds the model's width of values and lives until the next batch.
        (!values.is_null()).then(|| unsafe { std::slice::from_raw_parts(values, self.model.width() as usize) })
    }

    /// Forgets the positions of `sequence` from `start` on. False where its memory cannot be cut there.
    pub(crate) fn truncate(&mut self, sequence: u16, start: u32) -> bool {
        // SAFETY: the context is alive and has this sequence.
        unsafe { sys::llama_memory_seq_rm(self.memory, sequence.into(), start as i32, -1) }
    }

    /// Copies all of `from` to `to`, whose own content is lost. (llama.cpp aborts on a part of a sequence.)
    pub(crate) fn copy(&mut self, from: u16, to: u16) {
        // SAFETY: the context is alive and has both sequences; -1 to -1 is the whole.
        unsafe { sys::llama_memory_seq_cp(self.memory, from.into(), to.into(), -1, -1) };
    }

    /// How many branches of a tree can run beside the first path.
    pub(crate) fn lanes(&self) -> u16 {
        self.lanes.1
    }

    /// The sequence that the branch of that number borrows.
    pub(crate) fn lane(&self, branch: u16) -> u16 {
        self.lanes.0 + branch
    }

    /// Lets a lane hold what `sequence` holds before `end`, beside it. Only where all share one memory.
    pub(crate) fn lend(&mut self, sequence: u16, lane: u16, end: u32) {
        // SAFETY: the context is alive, has both sequences, and one memory for all: a range may be shared.
        unsafe { sys::llama_memory_seq_cp(self.memory, sequence.into(), lane.into(), 0, end as i32) };
    }

    /// Overwrites every cache with zeros.
    pub(crate) fn wipe(&mut self) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_clear(self.memory, true) };
    }

    /// Overwrites every cache with zeros, and gives these sequences back what they hold. Those that could not be given it.
    pub(crate) fn wipe_around(&mut self, keep: &[u16]) -> Vec<u16> {
        let saved: Vec<_> = keep.iter().map(|&sequence| (sequence, self.saved(sequence))).collect();
        self.wipe();
        let lost = |(sequence, held): (u16, Zeroizing<Vec<u8>>)| (!self.restore(sequence, &held)).then_some(sequence);
        saved.into_iter().filter_map(lost).collect()
    }

    /// What a sequence holds, in llama.cpp's own words.
    pub(crate) fn saved(&self, sequence: u16) -> Zeroizing<Vec<u8>> {
        let context = self.ptr.as_ptr();
        // SAFETY: the context is alive and has this sequence.
        let mut held = vec![0u8; unsafe { sys::llama_state_seq_get_size(context, sequence.into()) }];
        // SAFETY: the buffer has so many bytes.
        let saved = unsafe { sys::llama_state_seq_get_data(context, held.as_mut_ptr(), held.len(), sequence.into()) };
        held.truncate(saved);
        Zeroizing::new(held)
    }

    /// Gives a sequence what such words say; whether it holds that now. llama.cpp believes them: they are its own, from a context like
    /// this one.
    pub(crate) fn restore(&mut self, sequence: u16, held: &[u8]) -> bool {
        let context = self.ptr.as_ptr();
        // SAFETY: the context is alive and has this sequence; llama.cpp reads no more than these bytes.
        let read = unsafe { sys::llama_state_seq_set_data(context, held.as_ptr(), held.len(), sequence.into()) };
        read == held.len() && read > 0
    }

    /// Positions up to the last that a sequence holds.
    pub(crate) fn held(&self, sequence: u16) -> u32 {
        // SAFETY: the context is alive and has this sequence; -1 is said of an empty one.
        let last = unsafe { sys::llama_memory_seq_pos_max(self.memory, sequence.into()) };
        u32::try_from(last.saturating_add(1)).unwrap_or(0)
    }
}

/// Empties a buffer that is used again, and overwrites what it held.
fn forget<T: zeroize::DefaultIsZeroes>(buffer: &mut Vec<T>) {
    buffer.as_mut_slice().zeroize();
    buffer.clear();
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by us; its pools and its capture are freed after it.
        unsafe { sys::llama_free(self.ptr.as_ptr()) };
        // SAFETY: leaked in `new`, and the context that used it is gone.
        self.capture.map(|capture| unsafe { Box::from_raw(capture.as_ptr()) });
    }
}

fn raw_params(settings: &EngineSettings, capture: Option<NonNull<Capture>>) -> sys::llama_context_params {
    // SAFETY: a plain structure returned by value.
    let mut raw = unsafe { sys::llama_context_default_params() };
    // Branches need cells while they run; the sessions' own are counted per session, though they share one memory then.
    let branches = if settings.lanes > 0 { TREE_ROWS_MAX as u32 } else { 0 };
    raw.n_ctx = settings.context.saturating_mul(settings.caches.into()).saturating_add(branches);
    raw.n_seq_max = u32::from(settings.caches) + u32::from(settings.lanes);
    raw.n_batch = settings.chunk.into();
    raw.n_ubatch = settings.chunk.into();
    raw.n_threads = settings.threads.into();
    raw.n_threads_batch = settings.threads_batch.into();
    raw.flash_attn_type = match settings.flash_attention() {
        FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
        FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    };
    let kind = match settings.kv {
        KvType::F32 => sys::GGML_TYPE_F32,
        KvType::F16 => sys::GGML_TYPE_F16,
        KvType::Bf16 => sys::GGML_TYPE_BF16,
        KvType::Q8_0 => sys::GGML_TYPE_Q8_0,
        KvType::Q4_0 => sys::GGML_TYPE_Q4_0,
    };
    (raw.type_k, raw.type_v) = (kind, kind);
    raw.no_perf = true;
    // A model that pools by itself would keep no state of a position: the mean is ours.
    raw.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
    // Sliding windows keep every position: a step may be sent again from any start.
    raw.swa_full = true;
    raw.kv_unified = settings.lanes > 0;
    if let Some(capture) = capture {
        raw.cb_eval = Some(take_rows);
        raw.cb_eval_user_data = capture.as_ptr().cast();
    }
    raw
}

/// Called by the scheduler: first whether `tensor` is wanted (`ask`), then when it is computed.
unsafe extern "C" fn take_rows(tensor: *mut sys::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: the scheduler passes a live tensor whose name ends in a zero byte, and our own data.
    let (tensor, capture, name) =
        unsafe { (&*tensor, &mut *data.cast::<Capture>(), CStr::from_ptr((*tensor).name.as_ptr())) };
    if name != capture.name.as_c_str() {
        // Not wanted; and had it been computed all the same: go on.
        return !ask;
    }
    if !ask {
        capture.take(tensor);
    }
    // Wanted; and once it is taken, the rest of the graph (final norm, output matrix) is left out.
    ask
}

impl Capture {
    fn take(&mut self, tensor: &sys::ggml_tensor) {
        let [width, rows, planes, blocks] = tensor.ne;
        let rows = usize::try_from(rows).unwrap_or(0);
        let held = self.rows.len() / self.width.max(1);
        if tensor.type_ != sys::GGML_TYPE_F32 || width != self.width as i64 || planes != 1 || blocks != 1 {
            self.fault = Some("the layer's output is no matrix of f32");
        } else if held + rows > self.rows_max {
            self.fault = Some("more rows than the batch has");
        // SAFETY: the tensor is live; ggml checks its shape.
        } else if !unsafe { sys::ggml_is_contiguous(tensor) } {
            self.fault = Some("the layer's output is not contiguous");
        } else {
            let start = self.rows.len();
            self.rows.resize(start + rows * self.width, 0.0);
            let into = &mut self.rows[start..];
            // SAFETY: the tensor holds exactly `into.len()` values of four bytes.
            unsafe { sys::ggml_backend_tensor_get(tensor, into.as_mut_ptr().cast(), 0, size_of_val(into)) };
        }
    }
}
