//! Models on this machine: importing, hashing, the catalogue.
