//! Scripted attacks on a swarm: `tests/attacks`. Nothing of this is in any program.
//!
//! Each is tried twice, against real peers on loopback: as the programs are built, where it has to fail, and with one
//! [`Defence`](potluck_core::Defence) switched off, where it has to get through. So each defence is seen to be what stops its
//! attack, and an attack that would never have worked proves nothing and is a failure.
