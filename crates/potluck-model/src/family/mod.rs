//! What is known about each architecture: whether it may be cut, where, and what must be done at the ends.
//!
//! Read from the engine's own graphs (llama.cpp, `src/models/*.cpp`). Every stage takes hidden states as its input, so
//! whatever a graph does before layer 0 is done once: by the head of the chain, or by us before it.

mod table;

use potluck_core::{Manifest, MetaValue};

use crate::facts;
pub(crate) use table::counted;
pub use table::{EXACT, is_recurrent};

/// What Potluck knows about a model's family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Whether it may serve.
    pub admission: Admission,
    /// What is done to an embedding row before layer 0.
    pub scale: EmbeddingScale,
    /// Position components that a batch of hidden states carries for each position: 1, or 4 for M-RoPE.
    pub positions_per_token: u8,
    /// Where it may be cut.
    pub cuts: Cuts,
    /// Its sliding windows.
    pub window: Window,
    /// What its graph does to hidden states that enter, which later stages must not repeat.
    pub entry: Entry,
}

/// Whether a family may serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Proven: a chain of slices equals the whole model, bit for bit, in the tests.
    Exact,
    /// Not known to slice exactly: each cut is probed in a child process before it serves.
    Probe,
    /// Cannot serve, not even as one stage; the reason.
    Refused(String),
}

/// What we do to an embedding row before layer 0, because the engine does it for tokens only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbeddingScale {
    /// Nothing.
    None,
    /// Each value times the square root of the width, in f32.
    SqrtWidth,
}

/// Where a family may be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuts {
    /// At every layer boundary, as far as this rule goes.
    Anywhere,
    /// Only where a multiple of that many layers comes before: something repeats with that period from layer 0.
    Multiples(u32),
    /// Nowhere: one stage holds all layers; the reason.
    Never(String),
}

/// Which layers attend to a sliding window only, where the metadata does not say it layer by layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// None, or the engine ignores them.
    None,
    /// The metadata has an array with one entry a layer.
    Listed,
    /// Repeats every `period` layers: all but one of them have a window.
    Periodic {
        /// Layers in a period, unless the metadata has another number.
        period: u32,
        /// True if the layer without a window is the period's first, not its last.
        dense_first: bool,
        /// True if a slice without any window layer is the same model with the window left out of the metadata.
        removable: bool,
    },
}

/// What a graph does before layer 0, to hidden states as well as to tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Nothing; or it adds learned positions, a tensor that later stages get as zeros.
    Plain,
    /// It multiplies with `embedding_scale`; later stages get 1. `always`: also where the metadata has no such key.
    Scaled {
        /// True if the engine has a default of its own.
        always: bool,
    },
}

/// The key that says which layers have a sliding window.
pub(crate) const WINDOW_PATTERN: &str = "attention.sliding_window_pattern";
/// The key that says how wide the window is.
pub(crate) const WINDOW_WIDTH: &str = "attention.sliding_window";

impl Family {
    /// What is known about the model's family.
    pub fn of(manifest: &Manifest) -> Self {
        table::family(manifest)
    }

    /// The factor that goes with [`scale`](Self::scale).
    pub fn scale_factor(&self, width: u32) -> f32 {
        match self.scale {
            EmbeddingScale::None => 1.0,
            EmbeddingScale::SqrtWidth => (width as f32).sqrt(),
        }
    }
}

/// For each layer whether it attends to a sliding window only; none where the model has no windows.
pub fn window_layers(manifest: &Manifest) -> Option<Vec<bool>> {
    let family = Family::of(manifest);
    let key = format!("{}.{WINDOW_PATTERN}", manifest.architecture());
    let layers = manifest.layers();
    if family.window == Window::None {
        return None;
    }
    if let Some(MetaValue::Array(array)) = manifest.get(&key) {
        let window = |layer| facts::element(array, layer as usize).is_some_and(|n| n != 0);
        return Some((0..layers).map(window).collect());
    }
    let Window::Periodic { period, dense_first, .. } = family.window else { return None };
    let period = manifest.number(&key).and_then(|n| n.try_into().ok()).unwrap_or(period);
    Some((0..layers).map(|layer| in_window(layer, period, dense_first)).collect())
}

/// llama.cpp's `set_swa_pattern`: period 0 means that all layers have a window.
fn in_window(layer: u32, period: u32, dense_first: bool) -> bool {
    match (period, dense_first) {
        (0, _) => true,
        (_, true) => !layer.is_multiple_of(period),
        (_, false) => layer % period < period - 1,
    }
}
