//! Who may do what: biscuit grants, bound to a key, checked before any work.
//!
//! A swarm's root signs a grant that names its holder; [`Gate::check`] is the only maker of a [`Member`], and what
//! needs a grant takes a `Member`: forgetting the check does not compile.
