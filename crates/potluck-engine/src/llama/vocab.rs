//! Tokenizer and grammar sampler of a loaded vocabulary.

use std::{
    ffi::{CStr, CString, c_char},
    ptr::NonNull,
    sync::Arc,
};

use llama_cpp_sys_2 as sys;

use super::Model;

/// The vocabulary of a model; keeps the model loaded.
#[derive(Clone)]
pub(crate) struct Vocab {
    model: Arc<Model>,
}

/// Why there is no grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GrammarRefusal {
    /// The text has a zero byte, or llama.cpp cannot read it.
    Malformed,
    /// The grammar cannot be in the state that was asked of it.
    Stuck,
}

impl Vocab {
    pub(crate) fn new(model: Arc<Model>) -> Self {
        Self { model }
    }

    fn as_ptr(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is loaded and owns its vocabulary.
        unsafe { sys::llama_model_get_vocab(self.model.as_ptr()) }
    }

    /// Tokens in the vocabulary.
    pub(crate) fn len(&self) -> u32 {
        self.model.vocabulary()
    }

    /// The tokens of `text`: `special` adds what begins and ends a text, `parse` reads control tokens in it.
    /// Fails with the number of tokens where there are more than `max`.
    pub(crate) fn tokenize(&self, text: &str, special: bool, parse: bool, max: usize) -> Result<Vec<u32>, usize> {
        let len = i32::try_from(text.len()).map_err(|_| usize::MAX)?;
        // A token covers at least a byte, but for the few that begin and end a text.
        let mut room = (text.len() + 16).min(max);
        loop {
            let mut tokens = vec![0i32; room];
            let given = i32::try_from(room).map_err(|_| usize::MAX)?;
            let out = tokens.as_mut_ptr();
            // SAFETY: the text has `len` bytes and the output room for `given` tokens.
            let count =
                unsafe { sys::llama_tokenize(self.as_ptr(), text.as_ptr().cast(), len, out, given, special, parse) };
            if let Ok(count) = usize::try_from(count) {
                tokens.truncate(count);
                return Ok(tokens.into_iter().map(|token| token as u32).collect());
            }
            let needed = count.unsigned_abs() as usize;
            if needed > max || needed <= room {
                return Err(needed);
            }
            room = needed;
        }
    }

    /// The bytes that `token` stands for; `special` shows control tokens too. Empty for what it does not have.
    pub(crate) fn piece(&self, token: u32, special: bool) -> Vec<u8> {
        if token >= self.len() {
            return Vec::new();
        }
        let mut bytes = vec![0u8; 64];
        loop {
            let room = bytes.len() as i32;
            let out = bytes.as_mut_ptr().cast::<c_char>();
            // SAFETY: the token exists and the output has `room` bytes.
            let count = unsafe { sys::llama_token_to_piece(self.as_ptr(), token as i32, out, room, 0, special) };
            match usize::try_from(count) {
                Ok(count) => {
                    bytes.truncate(count);
                    return bytes;
                }
                Err(_) if count.unsigned_abs() as usize <= bytes.len() => return Vec::new(),
                Err(_) => bytes.resize(count.unsigned_abs() as usize, 0),
            }
        }
    }

    /// True if `token` ends an answer.
    pub(crate) fn ends(&self, token: u32) -> bool {
        // SAFETY: the token is checked.
        token < self.len() && unsafe { sys::llama_vocab_is_eog(self.as_ptr(), token as i32) }
    }

    /// True if `token` is for control and not part of a text.
    pub(crate) fn is_control(&self, token: u32) -> bool {
        // SAFETY: the token is checked.
        token < self.len() && unsafe { sys::llama_vocab_is_control(self.as_ptr(), token as i32) }
    }

    /// The token that begins a text, and the one that ends it.
    pub(crate) fn bounds(&self) -> (Option<u32>, Option<u32>) {
        // SAFETY: plain reads of a loaded vocabulary; -1 is none.
        let (begin, end) = unsafe { (sys::llama_vocab_bos(self.as_ptr()), sys::llama_vocab_eos(self.as_ptr())) };
        (begin.try_into().ok(), end.try_into().ok())
    }

    /// Whether the tokenizer begins a text, and ends it, by itself.
    pub(crate) fn adds(&self) -> (bool, bool) {
        // SAFETY: plain reads of a loaded vocabulary.
        unsafe { (sys::llama_vocab_get_add_bos(self.as_ptr()), sys::llama_vocab_get_add_eos(self.as_ptr())) }
    }
}

/// A grammar and how far a text has come in it.
pub(crate) struct Grammar {
    sampler: NonNull<sys::llama_sampler>,
    vocab: Vocab,
}

impl Drop for Grammar {
    fn drop(&mut self) {
        // SAFETY: made by us, freed once.
        unsafe { sys::llama_sampler_free(self.sampler.as_ptr()) };
    }
}

impl Grammar {
    /// Reads a grammar in GBNF whose first rule is `root`.
    pub(crate) fn parse(vocab: &Vocab, gbnf: &str) -> Result<Self, GrammarRefusal> {
        let text = CString::new(gbnf).map_err(|_| GrammarRefusal::Malformed)?;
        // SAFETY: both strings end in a zero byte and live through the call; exceptions do not pass the wrapper.
        let sampler = unsafe { sys::llama_rs_sampler_init_grammar(vocab.as_ptr(), text.as_ptr(), c"root".as_ptr()) };
        let sampler = NonNull::new(sampler).ok_or(GrammarRefusal::Malformed)?;
        Ok(Self { sampler, vocab: vocab.clone() })
    }

    /// Turns a JSON schema into GBNF.
    pub(crate) fn of_schema(schema: &str) -> Result<String, GrammarRefusal> {
        let text = CString::new(schema).map_err(|_| GrammarRefusal::Malformed)?;
        let mut out: *mut c_char = std::ptr::null_mut();
        // SAFETY: the text ends in a zero byte; exceptions do not pass the wrapper.
        let status = unsafe { sys::llama_rs_json_schema_to_grammar(text.as_ptr(), false, &raw mut out) };
        if status != sys::LLAMA_RS_STATUS_OK || out.is_null() {
            return Err(GrammarRefusal::Malformed);
        }
        // SAFETY: the wrapper made a string that ends in a zero byte, which we copy and free once.
        let gbnf = unsafe { CStr::from_ptr(out) }.to_string_lossy().into_owned();
        // SAFETY: as above.
        unsafe { sys::llama_rs_string_free(out) };
        Ok(gbnf)
    }

    /// Which of `candidates` may come next.
    pub(crate) fn allowed(&mut self, candidates: &[u32]) -> Vec<bool> {
        let known = |token: u32| if token < self.vocab.len() { token as i32 } else { 0 };
        let mut data: Vec<sys::llama_token_data> =
            candidates.iter().map(|&token| sys::llama_token_data { id: known(token), logit: 0.0, p: 0.0 }).collect();
        let mut array =
            sys::llama_token_data_array { data: data.as_mut_ptr(), size: data.len(), selected: -1, sorted: false };
        // SAFETY: the array describes `data`, which outlives the call; every token is of this vocabulary.
        unsafe { sys::llama_sampler_apply(self.sampler.as_ptr(), &raw mut array) };
        // The sampler writes minus infinity to what may not come, and leaves the order.
        let is_allowed = |(data, &token): (&sys::llama_token_data, &u32)| data.logit == 0.0 && token < self.vocab.len();
        data.iter().zip(candidates).map(is_allowed).collect()
    }

    /// Takes `token` as the next of the text.
    ///
    /// # Errors
    /// `Stuck` where the grammar does not allow it: llama.cpp would abort on some of these.
    pub(crate) fn accept(&mut self, token: u32) -> Result<(), GrammarRefusal> {
        if self.allowed(&[token]) != [true] {
            return Err(GrammarRefusal::Stuck);
        }
        // SAFETY: the token is of this vocabulary; exceptions do not pass the wrapper.
        match unsafe { sys::llama_rs_sampler_accept(self.sampler.as_ptr(), token as i32) } {
            sys::LLAMA_RS_STATUS_OK => Ok(()),
            _ => Err(GrammarRefusal::Stuck),
        }
    }
}
