//! A module a command: its arguments, and what it does with them.

pub(crate) mod authority;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod connect;
pub(crate) mod doctor;
pub(crate) mod gateway;
pub(crate) mod join;
pub(crate) mod model;
pub(crate) mod order;
pub(crate) mod peers;
pub(crate) mod plan;
pub(crate) mod prove;
pub(crate) mod relay;
pub(crate) mod root;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod service;
pub(crate) mod shell;
pub(crate) mod swarm;
pub(crate) mod terms;
pub(crate) mod tools;
pub(crate) mod tunnel;
pub(crate) mod up;
