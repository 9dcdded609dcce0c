//! llama.cpp behind safe types: the only place that calls into C, and the one that holds its rules.
//!
//! A [`Model`] reads a virtual file, a [`Context`] runs batches over it. Nothing here knows what a stage is.

mod context;
mod log;
mod model;
mod stream;
mod table;
mod threads;
mod vocab;

pub(crate) use context::{Batch, Context, ContextParams, DecodeError, Rows};
pub(crate) use log::{init, recent_errors};
pub(crate) use model::{Model, ModelParams};
pub(crate) use stream::{Stream, VirtualReader};
pub(crate) use table::Table;
pub(crate) use vocab::{Grammar, GrammarRefusal, Vocab};
