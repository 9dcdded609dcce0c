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

/// Which llama.cpp it is: what one computes another may compute otherwise.
pub const LLAMA_BUILD: &str = "llama-cpp-sys-2 0.1.161";

pub(crate) use context::{Batch, Context, ContextParams, DecodeError, Rows};
pub(crate) use log::{init, recent_errors};
pub(crate) use model::{Model, ModelParams};
pub(crate) use stream::{Stream, VirtualReader};
pub(crate) use table::Table;
pub(crate) use vocab::{Grammar, GrammarRefusal, Vocab};

#[cfg(test)]
mod tests {
    use super::LLAMA_BUILD;

    #[test]
    fn the_build_is_the_one_that_is_locked() {
        let (name, version) = LLAMA_BUILD.split_once(' ').unwrap();
        let locked = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        assert!(include_str!("../../../../Cargo.lock").replace('\r', "").contains(&locked));
    }
}
