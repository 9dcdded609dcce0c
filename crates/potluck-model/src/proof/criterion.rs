//! When a codec is without loss: `docs/decisions/0008-codecs.md`, as code.

use potluck_wire::Codec;

use super::{Measured, Table};

/// Positions that have to be scored: fewer prove nothing.
pub const POSITIONS_MIN: u32 = 4_096;

/// How far the text's negative log likelihood may move, up or down, as a share of itself.
pub const LOSS_SHARE_MAX: f64 = 0.002;

/// Standard errors that the difference is widened by: it is to lie within the share with 97.5 % confidence on each side.
pub const STANDARD_ERRORS: f64 = 1.96;

/// How many times the divergence of `f16` a codec may have.
pub const KL_OF_F16_MAX: f64 = 2.0;

/// Divergence that is allowed in any case, in nats a position: far below what a text shows.
pub const KL_FREE: f64 = 0.001;

/// Where the likeliest token led by so many logits, it has to stay the likeliest.
pub const MARGIN_KEPT: f64 = 1.0;

/// What a codec fails by.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Loss {
    /// Too little was scored to say.
    Positions {
        /// How many were.
        scored: u32,
    },
    /// `f16`, the yardstick, was not measured, or this codec was not.
    NotMeasured,
    /// The likelihood of the text moves.
    Likelihood {
        /// By so much, with its error, as a share of the negative log likelihood.
        share: f64,
    },
    /// The distribution moves.
    Divergence {
        /// By so much, in nats a position.
        kl: f64,
        /// What is allowed.
        max: f64,
    },
    /// Another token is the likeliest, where there was no doubt.
    Greedy {
        /// By so many logits.
        margin: f64,
    },
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Positions { scored } => write!(f, "{scored} positions were scored; a proof takes {POSITIONS_MIN}"),
            Self::NotMeasured => write!(f, "it was not measured beside f16"),
            Self::Likelihood { share } => {
                write!(f, "log likelihood within {:.2} %; at most {:.2} %", share * 100.0, LOSS_SHARE_MAX * 100.0)
            }
            Self::Divergence { kl, max } => write!(f, "divergence {kl:.5}; at most {max:.5}"),
            Self::Greedy { margin } => {
                write!(f, "another likeliest token at a margin of {margin:.2} logits; below {MARGIN_KEPT}")
            }
        }
    }
}

impl Table {
    /// Everything that keeps a codec, at all cuts at once, from being without loss; nothing where it is.
    pub fn losses(&self, codec: Codec) -> Vec<Loss> {
        let mut losses = Vec::new();
        if self.positions < POSITIONS_MIN {
            losses.push(Loss::Positions { scored: self.positions });
        }
        let (Some(row), Some(f16)) = (self.together(codec), self.together(Codec::F16)) else {
            losses.push(Loss::NotMeasured);
            return losses;
        };
        losses.extend(self.exceeded(row, f16).into_iter().flatten());
        losses
    }

    fn exceeded(&self, row: &Measured, f16: &Measured) -> [Option<Loss>; 3] {
        let change = row.change;
        let share = (change.loss.abs() + STANDARD_ERRORS * change.loss_error) / self.nll;
        let max = (KL_OF_F16_MAX * f16.change.kl).max(KL_FREE);
        // Written so that what is no number fails.
        let within = |value: f64, max: f64| value <= max;
        [
            (!within(share, LOSS_SHARE_MAX)).then_some(Loss::Likelihood { share }),
            (!within(change.kl, max)).then_some(Loss::Divergence { kl: change.kl, max }),
            (change.margin_max.is_nan() || change.margin_max >= MARGIN_KEPT)
                .then_some(Loss::Greedy { margin: change.margin_max }),
        ]
    }

    /// The codec with the fewest bytes of those that are without loss at all cuts at once; none where not even `f16` is, or too
    /// little was scored.
    pub fn smallest_without_loss(&self) -> Option<Codec> {
        let lossless = Codec::ALL.into_iter().filter(|&codec| codec != Codec::Tokens && self.losses(codec).is_empty());
        lossless.min_by_key(|&codec| (codec.bytes(1, self.width as usize), codec))
    }
}
