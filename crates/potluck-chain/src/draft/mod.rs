//! What to draft, and when it pays: speculation without IO and without a clock.
//!
//! A draft is a guess at the tokens that the target will choose. It travels as further rows of a step and costs nobody a
//! token where it is wrong, for the target's choice alone counts; it costs time, and this module decides how much:
//! - a [`Lookup`] finds in the session's own text what followed the last time it went like this, for nothing;
//! - a [`Growth`] turns rows of a draft model into a [`Tree`] of guesses, best first;
//! - a [`Calibration`] learns what a source's confidence is worth, from what the target accepted;
//! - a [`Controller`] picks source, depth, width and the number of windows in flight, and keeps account of what
//!   speculation has cost, so that it is never more than 2 % slower than none.
//!
//! One round of the loop that drives them:
//! ```
//! use potluck_chain::draft::{Controller, Lookup, Plan, Source};
//! let (mut lookup, mut controller) = (Lookup::default(), Controller::default());
//! lookup.extend([5, 6, 7, 8, 9, 5, 6, 7]);
//! let guesses = lookup.continuation(&[], 32);
//! assert_eq!(guesses[0].0, 8);
//! match controller.plan(&guesses, false) {
//!     Plan::Plain => {}                    // One row: nothing is known of the chain yet.
//!     Plan::Lookup { rows } => {           // A chain of the first guesses: then ask `another_window`.
//!         let _tree = controller.chain(Source::Lookup, &guesses[..rows]);
//!     }
//!     Plan::Model(_rule) => {}             // Grow a tree with the draft model under this rule.
//! }
//! controller.traversed(1, 0.060);          // The answer took 60 ms,
//! controller.judged(Source::Lookup, guesses[0].1, true); // a guess that was not sent is judged for nothing,
//! controller.progressed(1, 0.060);         // and the session is a token further.
//! ```
//! Not here: draft models, sampling, and the session that sends the rows.

mod account;
mod calibration;
mod choice;
mod controller;
mod cost;
mod growth;
mod lookup;
mod scale;
mod tree;

pub use calibration::Calibration;
pub use controller::{Controller, Plan, WINDOWS_MAX};
pub use growth::{Expand, Growth, Rule};
pub use lookup::{LOOKUP_MATCH_MAX, LOOKUP_POSITIONS_MAX, Lookup};
pub use tree::{Node, TREE_ROWS_MAX, Tree, TreeError};

/// Where a draft comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The session's own text. It costs no time.
    Lookup,
    /// A draft model at the client. Each forward costs time.
    Model,
}

impl Source {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Lookup, Self::Model];
}
