//! Which codecs change nothing measurable of a model: what was measured, the criterion, and the signed note of it.
//!
//! A text is scored twice: with hidden states that travel as they are, and with a codec at the cuts. A [`Tally`] compares the
//! two, row by row; a [`Table`] has what came of it for each codec; [`Table::smallest_without_loss`] is the criterion, a plain
//! function of the table; a [`Note`] is a table that a machine has signed. `docs/decisions/0008-codecs.md` says why it is what
//! it is. Not here: engines and texts (`potluck-engine`), where notes lie (`potluck-store`).

mod criterion;
mod note;
mod tally;
#[cfg(test)]
mod tests;

pub use criterion::{KL_FREE, KL_OF_F16_MAX, LOSS_SHARE_MAX, Loss, MARGIN_KEPT, POSITIONS_MIN, STANDARD_ERRORS};
pub use note::{NOTE_BYTES_MAX, Note, NoteError, PROGRAM_CHARS_MAX};
pub use tally::{Expected, NotFinite, Tally};

use potluck_wire::Codec;
use serde::{Deserialize, Serialize};

/// Cuts of the chain that is measured. A table with more is refused.
pub const CUTS_MAX: usize = 64;

/// Rows of a table: every codec at all cuts, and at each alone. A table with more is refused.
pub const ROWS_MAX: usize = 16 * (CUTS_MAX + 1);

/// What else comes out of a model, against what comes out where nothing is changed, over the same positions of the same text.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Change {
    /// How much larger the negative log likelihood of the text's next token is: the mean, in nats a position.
    pub loss: f64,
    /// The standard error of that mean: the differences are taken position by position.
    pub loss_error: f64,
    /// The mean divergence from the unchanged distribution (Kullback and Leibler), in nats a position.
    pub kl: f64,
    /// Positions at which the likeliest token is the same.
    pub agreed: u32,
    /// Where it is another: how much less likely the other one was unchanged, in logits. The median; 0 where there are none.
    pub margin_median: f64,
    /// The largest such margin.
    pub margin_max: f64,
}

/// Where the codec was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum At {
    /// At every cut of the chain.
    AllCuts,
    /// At the cut before this layer alone.
    Cut(u32),
}

/// What a codec does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Which.
    pub codec: Codec,
    /// Where it was.
    pub at: At,
    /// What it changed.
    pub change: Change,
    /// Nanoseconds that encoding a value of these hidden states took, on the machine that measured.
    pub encode_ns: f64,
    /// The same, decoding.
    pub decode_ns: f64,
}

/// What was measured of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Positions that were scored.
    pub positions: u32,
    /// Values in one hidden state.
    pub width: u32,
    /// The layers that the chain was cut before, ascending.
    pub cuts: Vec<u32>,
    /// The negative log likelihood of the text's next token with nothing changed: the mean, in nats a position.
    pub nll: f64,
    /// What sending half as many positions at once changes, without any codec: kernels may round otherwise for other batches.
    pub halved: Change,
    /// What codecs change.
    pub rows: Vec<Measured>,
}

impl Change {
    fn is_sound(&self, positions: u32) -> bool {
        let Self { loss, loss_error, kl, agreed, margin_median, margin_max } = *self;
        let finite = [loss, loss_error, kl, margin_median, margin_max].iter().all(|value| value.is_finite());
        let signs = loss_error >= 0.0 && margin_median >= 0.0 && margin_max >= margin_median;
        finite && signs && agreed <= positions
    }
}

impl Table {
    /// Bytes that a value takes on the wire in this codec, at this model's width.
    pub fn bytes_per_value(&self, codec: Codec) -> f64 {
        codec.bytes(1, self.width as usize) as f64 / f64::from(self.width.max(1))
    }

    /// What a codec does at all cuts at once.
    pub fn together(&self, codec: Codec) -> Option<&Measured> {
        self.rows.iter().find(|row| row.codec == codec && row.at == At::AllCuts)
    }

    /// False for a table that no measurement makes: a number that is none, counts that do not fit each other.
    pub fn is_sound(&self) -> bool {
        let Self { positions, width, ref cuts, nll, halved, ref rows } = *self;
        let shape =
            width > 0 && width as usize <= potluck_core::bounds::HIDDEN_WIDTH_MAX && nll.is_finite() && nll > 0.0;
        let ascending = cuts.is_sorted_by(|a, b| a < b) && cuts.first().is_none_or(|&first| first > 0);
        let known = |at: At| match at {
            At::AllCuts => true,
            At::Cut(cut) => cuts.contains(&cut),
        };
        let sound = |row: &Measured| {
            let times = [row.encode_ns, row.decode_ns].iter().all(|ns| ns.is_finite() && *ns >= 0.0);
            known(row.at) && times && row.codec != Codec::Tokens && row.change.is_sound(positions)
        };
        let twice = |(at, row): (usize, &Measured)| {
            rows[..at].iter().any(|other| (other.codec, other.at) == (row.codec, row.at))
        };
        let bounded = cuts.len() <= CUTS_MAX && rows.len() <= ROWS_MAX;
        bounded
            && shape
            && ascending
            && halved.is_sound(positions)
            && rows.iter().all(sound)
            && !rows.iter().enumerate().any(twice)
    }
}
