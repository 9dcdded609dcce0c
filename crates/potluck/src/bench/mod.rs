//! What `potluck bench` measures: this machine, the ways between the machines of a route, and where the time of a token goes.

mod links;
mod machine;
mod phase;
mod report;
mod show;

pub(crate) use links::{Link, Transfer, links, transfer};
pub(crate) use machine::{Measured, measure_machine};
pub(crate) use phase::Times;
pub(crate) use report::{Answered, Compared, Drafted, Predicted, Report, Whole};
pub(crate) use show::show;
