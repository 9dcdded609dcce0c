//! The owner comes first: on which terms a machine is lent, whether somebody uses it, and what follows from both.
//!
//! [`Terms`] are what an owner sets. [`Senses`] see what goes on: input, what other programs compute, power, heat, the time. A
//! [`Keeper`] has the last word: it gives the machine back at once, and lends it again when that has been all right for a while.

mod hours;
mod keeper;
mod senses;
mod terminals;
mod terms;
mod watched;

pub use hours::{Hours, HoursError, Moment};
pub use keeper::{Keeper, Pause, Reason, Verdict};
pub use senses::{Power, Presence, Seen, Senses};
pub use terms::{Battery, BatteryError, Preset, Terms};
