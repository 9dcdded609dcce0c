//! One link, both ways.
