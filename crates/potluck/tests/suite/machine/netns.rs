//! Network namespaces, for tests whose machines are machines to each other.

use std::process::{Command, Stdio};

/// Runs `ip`; true if it did what it was asked for.
pub(crate) fn ip(args: &str) -> bool {
    let words: Vec<_> = args.split_whitespace().collect();
    Command::new("ip").args(words).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Makes the first namespace of a test; false where this one may not, which is said, and is a failure where nothing may be skipped.
pub(crate) fn made(namespace: &str) -> bool {
    let made = ip(&format!("netns add {namespace}"));
    if !made {
        assert!(
            std::env::var_os("POTLUCK_SKIP_NOTHING").is_none(),
            "no network namespaces here, and nothing may be skipped"
        );
        eprintln!("SKIPPED: this needs root and `ip netns`");
    }
    made
}
