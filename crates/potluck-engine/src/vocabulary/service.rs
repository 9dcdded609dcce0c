//! The vocabulary's side: answers, one after the other.

use std::collections::HashMap;

use potluck_core::bounds::SESSION_POSITIONS_MAX;
use serde_bytes::ByteBuf;

use super::{
    GRAMMARS_MAX, GrammarId, GrammarSource, TEXT_BYTES_MAX, VocabularyError, VocabularyInfo,
    grammar::{check_rules, within},
    messages::{Command, Reply},
};
use crate::{
    EngineError, Load,
    llama::{Grammar, GrammarRefusal, Model, ModelParams, Vocab},
};

/// Bytes of address space of the vocabulary's process: what a grammar that explodes runs into.
const ADDRESS_SPACE_MAX: u64 = 4 << 30;

/// Tokenizer and open grammars.
pub(crate) struct VocabularyService {
    vocab: Vocab,
    grammars: HashMap<GrammarId, Grammar>,
}

impl VocabularyService {
    pub(crate) fn load(load: &Load) -> Result<Self, EngineError> {
        let limit = libc::rlimit { rlim_cur: ADDRESS_SPACE_MAX, rlim_max: ADDRESS_SPACE_MAX };
        // SAFETY: a plain system call.
        unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
        let params = ModelParams { gpu_layers: 0, mmap: false, vocabulary_only: true };
        let model = Model::load(load.part.model(), &load.files, params, |_| {})?;
        let vocab = Vocab::new(model);
        match vocab.len() as usize {
            0 => Err(EngineError::Model("it has no vocabulary".into())),
            n if n > potluck_core::bounds::VOCABULARY_MAX => {
                Err(EngineError::Model(format!("{n} tokens are too many")))
            }
            _ => Ok(Self { vocab, grammars: HashMap::new() }),
        }
    }

    pub(crate) fn info(&self) -> VocabularyInfo {
        let (begin, end) = self.vocab.bounds();
        let (adds_begin, adds_end) = self.vocab.adds();
        let all = || 0..self.vocab.len();
        VocabularyInfo {
            tokens: self.vocab.len(),
            begin,
            end,
            ends: all().filter(|&token| self.vocab.ends(token)).collect(),
            control: all().filter(|&token| self.vocab.is_control(token)).collect(),
            adds_begin,
            adds_end,
        }
    }

    pub(crate) fn answer(&mut self, command: Command) -> Reply {
        self.try_answer(command).unwrap_or_else(Reply::Refused)
    }

    fn try_answer(&mut self, command: Command) -> Result<Reply, VocabularyError> {
        Ok(match command {
            Command::Tokenize { text, special, parse } => Reply::Tokens(self.tokenize(&text, special, parse)?),
            Command::Pieces { tokens, special } => {
                Reply::Pieces(tokens.iter().map(|&token| ByteBuf::from(self.vocab.piece(token, special))).collect())
            }
            Command::Open { grammar, source } => {
                within("open grammars", self.grammars.len() + 1, GRAMMARS_MAX)?;
                self.grammars.insert(grammar, self.parse(&source)?);
                Reply::Done
            }
            Command::Close { grammar } => {
                self.grammars.remove(&grammar);
                Reply::Done
            }
            Command::Allowed { grammar, candidates } => {
                let candidates = candidates.unwrap_or_else(|| (0..self.vocab.len()).collect());
                Reply::Allowed(self.grammar(grammar)?.allowed(&candidates))
            }
            Command::Accept { grammar, token } => {
                self.grammar(grammar)?.accept(token).map_err(|_| VocabularyError::NotAllowed(token))?;
                Reply::Done
            }
        })
    }

    fn tokenize(&self, text: &str, special: bool, parse: bool) -> Result<Vec<u32>, VocabularyError> {
        within("bytes of the text", text.len(), TEXT_BYTES_MAX)?;
        let max = SESSION_POSITIONS_MAX as usize;
        let too_many =
            |count: usize| VocabularyError::TooMuch { what: "tokens".into(), value: count as u64, max: max as u64 };
        self.vocab.tokenize(text, special, parse, max).map_err(too_many)
    }

    fn parse(&self, source: &GrammarSource) -> Result<Grammar, VocabularyError> {
        source.check()?;
        let malformed = |what: &str| {
            let what = what.to_owned();
            move |_: GrammarRefusal| VocabularyError::Malformed(what)
        };
        let gbnf = match source {
            GrammarSource::Gbnf(text) => text.clone(),
            GrammarSource::JsonSchema(text) => Grammar::of_schema(text).map_err(malformed("JSON schema"))?,
        };
        check_rules(&gbnf)?;
        Grammar::parse(&self.vocab, &gbnf).map_err(malformed("grammar"))
    }

    fn grammar(&mut self, id: GrammarId) -> Result<&mut Grammar, VocabularyError> {
        self.grammars.get_mut(&id).ok_or(VocabularyError::UnknownGrammar(id))
    }
}
