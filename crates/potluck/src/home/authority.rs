//! What this machine knows of its swarm's authority: what was taken back, and whom it let in itself.

use std::{
    fs::{self, File},
    time::SystemTime,
};

use data_encoding::{BASE64, HEXLOWER};
use potluck_core::{PeerId, SignedRevocation};
use potluck_grant::Gate;
use serde::{Deserialize, Serialize};

use super::Home;
use crate::failure::{Failure, OrFail};

const REVOKED: &str = "revoked.json";
const ISSUED: &str = "issued.json";

/// Grants that are remembered as given out. Beyond it the oldest are forgotten: they hold all the same.
const ISSUED_MAX: usize = 10_000;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Taken {
    swarm: String,
    revocations: Vec<String>,
}

/// A grant that was given out here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Issued {
    /// To whom.
    pub(crate) key: String,
    /// The grant, in hexadecimal.
    grant: String,
}

impl Issued {
    /// The grant.
    pub(crate) fn grant(&self) -> Vec<u8> {
        HEXLOWER.decode(self.grant.as_bytes()).unwrap_or_default()
    }
}

/// Tells a gate what this machine knows to be taken back.
pub(crate) fn tell(home: &Home, gate: &Gate) -> Result<(), Failure> {
    for signed in kept_revocations(home, gate)? {
        // In the order in which they were kept none is refused, unless the gate has heard of others since.
        if let Err(error) = gate.revoke(signed) {
            tracing::debug!(%error, "a revocation that was kept counts no longer");
        }
    }
    Ok(())
}

/// What this machine knows to be taken back in the gate's swarm, in the order in which it came.
pub(crate) fn kept_revocations(home: &Home, gate: &Gate) -> Result<Vec<SignedRevocation>, Failure> {
    let Some(text) = home.read(REVOKED)? else { return Ok(Vec::new()) };
    let restore =
        "restore it from a copy: without it, whoever was shut out is let in again until another member is asked";
    let taken: Taken = serde_json::from_str(&text).or_fail("revocations", restore)?;
    if taken.swarm != gate.swarm().to_string() {
        return Ok(Vec::new());
    }
    let read = |text: &String| {
        let bytes = BASE64.decode(text.as_bytes()).or_fail("revocations", restore)?;
        postcard::from_bytes(&bytes).or_fail("revocations", restore)
    };
    taken.revocations.iter().map(read).collect()
}

/// A file of revocations, told apart from what it was before: it is replaced as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revoked {
    modified: SystemTime,
    bytes: u64,
}

/// What is kept now; none where nothing is.
pub(crate) fn revoked_as_of(home: &Home) -> Option<Revoked> {
    let file = fs::metadata(home.path(REVOKED)).ok()?;
    Some(Revoked { modified: file.modified().ok()?, bytes: file.len() })
}

/// Keeps what a gate knows to be taken back, beside what is kept already.
pub(crate) fn keep_revocations(home: &Home, gate: &Gate) -> Result<(), Failure> {
    let _lock = lock(home)?;
    tell(home, gate)?;
    let kept = kept_revocations(home, gate)?;
    // What is kept comes first: of two successors of a root the first that was heard stands, whatever this process heard.
    let all = Gate::new(gate.swarm());
    for signed in kept.iter().cloned().chain(gate.revocations()) {
        if let Err(error) = all.revoke(signed) {
            tracing::debug!(%error, "a revocation is not kept");
        }
    }
    let all = all.revocations();
    if kept == all {
        return Ok(());
    }
    let encode = |signed: &SignedRevocation| postcard::to_stdvec(signed).map(|bytes| BASE64.encode(&bytes));
    let revocations = all.iter().map(encode).collect::<Result<_, _>>().or_fail("internal", "report this")?;
    let taken = Taken { swarm: gate.swarm().to_string(), revocations };
    home.write(REVOKED, &serde_json::to_string(&taken).or_fail("internal", "report this")?)
}

/// One process at a time changes these files.
fn lock(home: &Home) -> Result<File, Failure> {
    lock_file(home, "authority.lock")
}

/// One process at a time gives the swarm another root, for as long as this is kept.
pub(crate) fn lock_rotation(home: &Home) -> Result<File, Failure> {
    lock_file(home, "root.lock")
}

fn lock_file(home: &Home, name: &str) -> Result<File, Failure> {
    let path = home.path(name);
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    lock.and_then(|file| file.lock().map(|()| file)).map_err(|error| Failure::io(path.display(), &error))
}

/// What was given out here, the oldest first.
pub(crate) fn issued(home: &Home) -> Result<Vec<Issued>, Failure> {
    let Some(text) = home.read(ISSUED)? else { return Ok(Vec::new()) };
    serde_json::from_str(&text).or_fail("issued", "restore issued.json from a copy, or remove it")
}

/// Remembers that these were given out.
pub(crate) fn remember_issued(home: &Home, grants: &[(PeerId, Vec<u8>)]) -> Result<(), Failure> {
    let _lock = lock(home)?;
    let mut all = issued(home)?;
    all.extend(grants.iter().map(|(key, grant)| Issued { key: key.to_string(), grant: HEXLOWER.encode(grant) }));
    let over = all.len().saturating_sub(ISSUED_MAX);
    all.drain(..over);
    home.write(ISSUED, &serde_json::to_string(&all).or_fail("internal", "report this")?)
}
