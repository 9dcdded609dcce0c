//! When somebody last typed at a terminal of this machine, here or from afar.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

/// By so much a clock may be set back while somebody types.
const CLOCK_STEP: Duration = Duration::from_secs(60);

/// How long ago somebody typed at a terminal; none: there is none. Linux notes it in steps of eight seconds, the first key at once.
pub(crate) fn since_input() -> Option<Duration> {
    let consoles = terminals(Path::new("/dev"), "tty");
    let others = terminals(Path::new("/dev/pts"), "");
    consoles.into_iter().chain(others).min()
}

/// How long ago each terminal of a folder was read: those whose names are a number, after `prefix`.
fn terminals(folder: &Path, prefix: &str) -> Vec<Duration> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let now = SystemTime::now();
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let number = name.to_str()?.strip_prefix(prefix)?;
        let is_one = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let read = is_one.then(|| entry.metadata().ok()?.accessed().ok()).flatten()?;
        // Consoles that nobody has opened since the machine started bear the time at which they were made: by a clock that was wrong then, it
        // may be.
        match now.duration_since(read) {
            Ok(since) => Some(since),
            Err(ahead) => (ahead.duration() < CLOCK_STEP).then_some(Duration::ZERO),
        }
    };
    entries.flatten().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_terminals_count() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tty1", "tty", "ttyS0", "tty12", "ptmx", "3"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(terminals(folder.path(), "tty").len(), 2);
        assert_eq!(terminals(folder.path(), "").len(), 1);
        assert!(terminals(folder.path(), "tty").iter().all(|since| *since < Duration::from_secs(60)));
        assert!(terminals(&folder.path().join("none"), "tty").is_empty());
    }
}
