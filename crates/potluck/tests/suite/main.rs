//! Every test of the command and of the client, in one program: each alone would link the whole of Potluck once more.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

#[cfg(target_os = "linux")]
mod acme;
mod api_keys;
mod bench;
#[cfg(target_os = "linux")]
mod canaries;
mod chat;
mod disk;
mod drafts;
mod examples;
mod failures;
mod gateway;
#[cfg(target_os = "linux")]
mod losses;
mod machine;
#[cfg(target_os = "linux")]
mod namespaces;
mod owner;
mod parked;
mod places;
mod plan;
mod privacy;
mod prove;
mod recorded;
mod recovery;
#[cfg(target_os = "linux")]
mod roaming;
#[cfg(unix)]
mod root;
mod run;
mod sdk;
mod sessions;
mod shell;
#[cfg(target_os = "linux")]
mod soak;
mod streams;
mod swarm;
mod telemetry;
mod tidy;
mod transcripts;
#[cfg(target_os = "linux")]
mod tunnel;
mod upgrade;
mod upstream;
