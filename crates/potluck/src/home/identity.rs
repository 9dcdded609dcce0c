//! Who a machine is: one key to serve with, one to ask with. Files of mode 600, one user each at a time.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use data_encoding::HEXLOWER;
use potluck_core::SecretKey;

use super::Home;
use crate::failure::Failure;

/// What a key is for. A machine that serves can be asked by itself: so it has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// `serve`: the peer.
    Peer,
    /// `run`, `chat`, `peers`: the client.
    Client,
}

/// A key that belongs to this machine.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The secret key.
    pub(crate) key: SecretKey,
    role: Role,
}

/// Held while a peer serves under a key: two peers with one key would take each other's connections.
#[derive(Debug)]
pub(crate) struct KeyLock {
    _file: File,
}

impl Role {
    fn file(self) -> &'static str {
        match self {
            Self::Peer => "peer.key",
            Self::Client => "client.key",
        }
    }
}

impl Identity {
    /// The machine's key for this role; made where there is none.
    pub(crate) fn open(home: &Home, role: Role) -> Result<Self, Failure> {
        let path = home.path(role.file());
        check_mode(&path)?;
        let key = match home.read(role.file())? {
            Some(text) => parse(&text).ok_or_else(|| {
                let message = format!("{} holds no key of 64 hexadecimal digits", path.display());
                Failure::new("identity", message, "restore it from a copy, or remove it to get a new identity")
            })?,
            None => {
                let key = new_key()?;
                home.write(role.file(), &(HEXLOWER.encode(&key.to_bytes()) + "\n"))?;
                key
            }
        };
        Ok(Self { key, role })
    }

    /// Claims the key for this process until the lock is dropped.
    pub(crate) fn lock(&self, home: &Home) -> Result<KeyLock, Failure> {
        let path = home.path(&format!("{}.lock", self.role.file()));
        let failed = |error| Failure::io(path.display(), &error);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(KeyLock { _file: file }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
            Err(TryLockError::WouldBlock) => Err(Failure::new(
                "identity_in_use",
                format!("peer {} already serves on this machine", self.key.peer_id().short()),
                "stop the other `potluck serve`, or set POTLUCK_HOME to another directory",
            )),
        }
    }
}

/// A fresh key from the system's randomness.
pub(crate) fn new_key() -> Result<SecretKey, Failure> {
    Ok(SecretKey::from_bytes(&random()?))
}

/// Bytes that nobody can guess.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Failure::new("io", format!("no randomness: {error}"), ""))?;
    Ok(bytes)
}

fn parse(text: &str) -> Option<SecretKey> {
    let bytes = HEXLOWER.decode(text.trim().as_bytes()).ok()?;
    Some(SecretKey::from_bytes(&bytes.try_into().ok()?))
}

/// Refuses a secret that others on this machine may read.
#[cfg(unix)]
pub(super) fn check_mode(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    match fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => Err(Failure::new(
            "identity",
            format!("{} can be read by others (mode {:o})", path.display(), meta.permissions().mode() & 0o777),
            format!("chmod 600 {}", path.display()),
        )),
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
pub(super) fn check_mode(_path: &Path) -> Result<(), Failure> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), crate::args::Reach::default()).unwrap();
        (dir, home)
    }

    #[test]
    fn a_key_is_made_once_and_one_for_each_role() {
        let (_dir, home) = home();
        let first = Identity::open(&home, Role::Peer).unwrap().key.peer_id();
        assert_eq!(Identity::open(&home, Role::Peer).unwrap().key.peer_id(), first);
        assert_ne!(Identity::open(&home, Role::Client).unwrap().key.peer_id(), first);
    }

    #[test]
    #[cfg(unix)]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, home) = home();
        Identity::open(&home, Role::Peer).unwrap();
        let path = home.path("peer.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let failure = Identity::open(&home, Role::Peer).unwrap_err();
        assert!(failure.message.contains("mode 640") && failure.hint.starts_with("chmod 600"), "{failure:?}");
    }

    #[test]
    fn a_key_serves_once_at_a_time() {
        let (_dir, home) = home();
        let identity = Identity::open(&home, Role::Peer).unwrap();
        let lock = identity.lock(&home).unwrap();
        assert_eq!(identity.lock(&home).unwrap_err().code, "identity_in_use");
        drop(lock);
        identity.lock(&home).unwrap();
    }

    #[test]
    fn a_damaged_key_is_never_replaced() {
        let (_dir, home) = home();
        home.write("peer.key", "not a key").unwrap();
        assert_eq!(Identity::open(&home, Role::Peer).unwrap_err().code, "identity");
        assert_eq!(home.read("peer.key").unwrap().unwrap(), "not a key");
    }
}
