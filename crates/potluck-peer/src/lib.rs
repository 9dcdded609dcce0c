//! A whole peer as one state machine.
