//! A grant from anybody: nobody can make one that lets a stranger in.

use potluck_core::PeerId;
use potluck_grant::{Gate, Root};

pub(crate) fn check(bytes: &[u8]) {
    let gate = Gate::new(Root::from_bytes(&[7; 32]).public());
    let stranger = PeerId::from_bytes([0xee; 32]);
    assert!(gate.check(bytes, stranger, 1_800_000_000).is_err(), "a stranger is let in");
}
