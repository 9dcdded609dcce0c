//! Who may do what: biscuit grants, checked before any work.
