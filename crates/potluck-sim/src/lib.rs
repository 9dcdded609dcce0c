//! A deterministic simulator that drives production peers and sessions.
