//! What a machine remembers: its keys, its swarm, its models. Under `POTLUCK_HOME`, or the platform's data directory.

mod authority;
mod identity;
mod invitation;
mod invitations;
mod lending;
mod membership;
mod meter;
mod root;
mod trust;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use directories::ProjectDirs;
use potluck_net::{Node, RelayInvitation, RelayUse};
use tempfile::NamedTempFile;

use crate::{args::Reach, failure::Failure};

pub(crate) use authority::{
    Issued, Revoked, issued, keep_revocations, kept_revocations, lock_rotation, remember_issued, revoked_as_of, tell,
};
pub(crate) use identity::{Identity, KeyLock, Role, new_key};
pub(crate) use invitation::{Admission, Invitation, Line};
pub(crate) use invitations::{GRANT_DAYS, Invitations, Terms};
pub(crate) use lending::{Lending, LendingNote, Lent};
pub(crate) use membership::{Membership, Room, learn, usable};
pub(crate) use meter::{Counted, byte_meter, meter};
pub(crate) use root::{Form, Passphrase, RootKept, RootSource, SwarmRoot};
pub(crate) use trust::{change_trusted, trusted};

/// Held by the process that is at the relay with the key that asks.
const RELAY_LOCK: &str = "relay.lock";

/// The directory of one machine's keys, swarm and models, and how this command reaches the others of the swarm.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    folder: PathBuf,
    /// Bytes that what is fetched may take; none: nobody said.
    disk: Option<u64>,
    /// As the user wants it this time.
    pub(crate) reach: Reach,
    /// The endpoint of the key that asks, where this program keeps one: it has no other.
    node: Option<Node>,
    /// Where the root key is, and what opens it.
    pub(crate) root: RootSource,
}

impl Home {
    /// Opens it, made for its owner only where it was not there. `dir`: what `POTLUCK_HOME` says.
    pub(crate) fn open(dir: Option<PathBuf>, reach: Reach) -> Result<Self, Failure> {
        let dir = match dir {
            Some(dir) => dir,
            None => ProjectDirs::from("", "", "potluck")
                .ok_or_else(|| Failure::new("io", "this system names no data directory", "set POTLUCK_HOME"))?
                .data_dir()
                .to_owned(),
        };
        make_private_dir(&dir).map_err(|error| Failure::io(dir.display(), &error))?;
        Ok(Self { folder: dir, disk: None, reach, node: None, root: RootSource::default() })
    }

    /// A file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Those relays for one of the processes that ask with this machine's key; none while another of them is there. `pass`: what it shows
    /// that has no grant yet.
    pub(crate) fn claim_relays(&self, urls: Vec<String>, pass: Option<RelayInvitation>) -> Option<RelayUse> {
        if urls.is_empty() {
            return None;
        }
        let file = fs::File::options().create(true).truncate(false).write(true).open(self.path(RELAY_LOCK)).ok()?;
        if file.try_lock().is_err() {
            tracing::warn!("another command of this machine is at the relay: this one goes without");
            return None;
        }
        Some(RelayUse { urls, pass, claim: Some(Arc::new(file)) })
    }

    /// The same home, where what is fetched takes no more than so many bytes.
    pub(crate) fn with_disk(&self, disk: Option<u64>) -> Self {
        Self { disk, ..self.clone() }
    }

    /// The same home, where whatever asks uses that endpoint and leaves it open.
    pub(crate) fn with_node(&self, node: Node) -> Self {
        Self { node: Some(node), ..self.clone() }
    }

    /// The endpoint that whatever asks uses; none: each has one of its own.
    pub(crate) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Closes the endpoint of something that asked, where it had its own.
    pub(crate) async fn let_go(&self, node: &Node) {
        if self.node.is_none() {
            node.close().await;
        }
    }

    /// The same home, with the swarm's root key from there.
    pub(crate) fn with_root(&self, root: RootSource) -> Self {
        Self { root, ..self.clone() }
    }

    /// Bytes that what is fetched may take, where the user said so.
    pub(crate) fn disk(&self) -> Option<u64> {
        self.disk
    }

    /// Where the catalogue of models lies.
    pub(crate) fn models(&self) -> PathBuf {
        self.path("models")
    }

    /// Where models are kept that no other program has a place for.
    pub(crate) fn downloads(&self) -> PathBuf {
        self.path("downloads")
    }

    /// A folder that only its owner looks into, made where it is not there.
    pub(crate) fn private_folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let folder = self.path(name);
        make_private_dir(&folder).map_err(|error| Failure::io(folder.display(), &error))?;
        Ok(folder)
    }

    /// Replaces a file, readable by its owner only, as a whole or not at all.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        write_private(&self.path(name), text)
    }

    /// The same for what nobody misses after a crash: it waits for no disk.
    pub(crate) fn write_soon(&self, name: &str, text: &str) -> Result<(), Failure> {
        replace_private(&self.path(name), text, false)
    }

    /// Removes a file, if there is one.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Failure> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::io(path.display(), &error)),
            _ => Ok(()),
        }
    }

    /// A file's text, if there is one.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>, Failure> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(path.display(), &error)),
        }
    }
}

/// Replaces a file, wherever it is, readable by its owner only, as a whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    replace_private(path, text, true)
}

/// `lasts`: it is on the disk when this returns.
fn replace_private(path: &Path, text: &str, lasts: bool) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A temporary file is made with mode 600.
    let write = || {
        let mut file = NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        if lasts {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|e| e.error).map(drop)
    };
    write().map_err(|error| Failure::io(path.display(), &error))
}

#[cfg(unix)]
fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(not(unix))]
fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_is_at_the_relay() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), Reach::default()).unwrap();
        let claim = || home.claim_relays(vec!["https://relay.example/".into()], None);
        assert!(home.claim_relays(Vec::new(), None).is_none());
        let first = claim().unwrap();
        assert!(claim().is_none(), "they share a key");
        let clone = first.clone();
        drop(first);
        assert!(claim().is_none(), "its node lives");
        drop(clone);
        assert!(claim().is_some());
    }
}
