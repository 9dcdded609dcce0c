//! Every bound that more than one crate relies on: a name, a unit, and what happens beyond it.

/// Positions in one step. A longer prefill is cut in chunks; a longer step is refused.
pub const STEP_POSITIONS_MAX: usize = 512;

/// Rows of a step that is a tree of drafts. A larger one is refused.
pub const TREE_ROWS_MAX: usize = 64;

/// Positions in one step whose mean is asked for: an engine computes their logits on the way. A longer one is refused.
pub const MEAN_POSITIONS_MAX: usize = 64;

/// Values in one hidden state. A model that is wider is refused when it is added.
pub const HIDDEN_WIDTH_MAX: usize = 32_768;

/// Layers of a model. A model with more is refused when it is added.
pub const LAYERS_MAX: u32 = 1_024;

/// Tokens of a vocabulary. A model with more is refused when it is added.
pub const VOCABULARY_MAX: usize = 1 << 20;

/// Stages of one route. A longer route is refused by the planner and by each peer.
pub const ROUTE_STAGES_MAX: usize = 64;

/// Sessions that a stage keeps caches for. The next one is refused with `Busy`.
pub const STAGE_SESSIONS_MAX: usize = 256;

/// Positions of one session. Beyond it the session ends with `ContextFull`.
pub const SESSION_POSITIONS_MAX: u32 = 1 << 20;

/// Largest logits that a tail returns for one row without being asked for the whole row.
pub const TOP_LOGITS_MAX: usize = 1_024;

/// Bytes of a manifest. A larger one is refused before it is decoded.
pub const MANIFEST_BYTES_MAX: usize = 64 << 20;

/// Bytes of one position's hidden state at the widest codec (`f32`) of the widest model.
pub const POSITION_BYTES_MAX: usize = HIDDEN_WIDTH_MAX * size_of::<f32>();

/// Bytes of one step's payload at the widest codec of the widest model: what a frame can never exceed.
/// A session's own limit follows from its model's width and is far smaller.
pub const STEP_BYTES_MAX: usize = STEP_POSITIONS_MAX * POSITION_BYTES_MAX;

/// Bytes of a whole row of logits.
pub const ROW_BYTES_MAX: usize = VOCABULARY_MAX * size_of::<f32>();

const _: () =
    assert!(STEP_BYTES_MAX <= u32::MAX as usize / 2, "a frame's length fits its field with room for a header");
const _: () = assert!(ROW_BYTES_MAX <= STEP_BYTES_MAX, "a row travels in a frame");
const _: () = assert!(STEP_POSITIONS_MAX <= u16::MAX as usize, "a step's count fits its field");
