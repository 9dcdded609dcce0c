//! The swarm's root key: where it lies, plain or locked by a passphrase, and what it signs.

mod age_file;
mod file;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use potluck_core::{PeerId, Revoked, SecretKey, SignedRevocation};
use potluck_grant::{Caveats, Gate, GrantId, RelayPass, Root, SwarmId};

pub(crate) use age_file::Passphrase;
pub(crate) use file::{Form, RootKept};

use super::{Home, Membership, identity::new_key, keep_revocations};
use crate::failure::{Failure, OrFail};

/// Where the root key is, and what opens it, as the user says this time.
#[derive(Debug, Clone, Default)]
pub(crate) struct RootSource {
    /// Elsewhere than in the home.
    pub(crate) file: Option<PathBuf>,
    /// Whose first line is its passphrase; `-`: stdin.
    pub(crate) passphrase: Option<PathBuf>,
    /// Opened already, and kept in memory alone.
    pub(crate) held: Option<Arc<Root>>,
}

impl RootSource {
    /// Whether the user has said that it is not in the home.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.file.is_some()
    }

    /// Whether the user has said something.
    pub(crate) fn is_named(&self) -> bool {
        self.file.is_some() || self.passphrase.is_some() || self.held.is_some()
    }
}

/// The key that grants places in a swarm, opened.
#[derive(Debug)]
pub(crate) struct SwarmRoot {
    root: Arc<Root>,
    swarm: SwarmId,
    /// Where it was read, and how it lies there; none where it was made, or is held in memory.
    kept: Option<(RootKept, Form)>,
}

impl SwarmRoot {
    /// The root key of this machine's swarm, from wherever the user says that it is. Asks for its passphrase where it is locked.
    pub(crate) fn open(home: &Home) -> Result<Self, Failure> {
        let membership = Membership::find(home)?;
        if let Some(root) = &home.root.held {
            return Self::of(home, membership.as_ref(), Root::clone(root), None);
        }
        let kept = match &home.root.file {
            Some(path) => RootKept::at(path.clone()),
            None => RootKept::of(home)?.ok_or_else(|| {
                let hint =
                    "run this where `potluck swarm create` was run, or name the file it was exported to: --root FILE";
                Failure::new("no_root", "this machine does not hold the swarm's root key", hint)
            })?,
        };
        let mut form = Form::default();
        let opened = kept.open(&home.root, &mut form)?;
        match Self::of(home, membership.as_ref(), opened, Some((kept.clone(), form.clone()))) {
            // A rotation that was cut short after it counted: its key is there, beside the one before.
            Err(failure) if failure.code == "root_followed" => match kept.open_next(&home.root, &mut form)? {
                Some(next) => {
                    let root = Self::of(home, membership.as_ref(), next, Some((kept.clone(), form)))?;
                    kept.put_next()?;
                    Ok(root)
                }
                None => Err(failure),
            },
            opened => opened,
        }
    }

    /// Checks that it signs for the swarm that this machine belongs to.
    fn of(
        home: &Home,
        membership: Option<&Membership>,
        root: Root,
        kept: Option<(RootKept, Form)>,
    ) -> Result<Self, Failure> {
        let own = root.public();
        let Some(membership) = membership else { return Ok(Self { root: Arc::new(root), swarm: own, kept }) };
        let gate = membership.gate(home)?;
        let own = own.root();
        if gate.root() == own {
            return Ok(Self { root: Arc::new(root), swarm: gate.swarm(), kept });
        }
        if gate.was_root(own) {
            let message = format!("this root key signs no longer: {} follows it", gate.root().short());
            let hint = "use the key that was made when the root was rotated; if you did not rotate it, somebody has the key: docs/guides/roles.md";
            return Err(Failure::new("root_followed", message, hint));
        }
        let message = format!(
            "this is the root key {}, and this machine belongs to swarm {}",
            own.short(),
            &membership.swarm[..10]
        );
        Err(Failure::new("no_root", message, "run this where `potluck swarm create` of its swarm was run"))
    }

    /// Whether a root key is kept here that may be this swarm's: one that is locked may.
    pub(crate) fn is_here(home: &Home) -> Result<bool, Failure> {
        let Some(kept) = RootKept::of(home)? else { return Ok(false) };
        let Some(root) = kept.plain()? else { return Ok(true) };
        match Self::of(home, Membership::find(home)?.as_ref(), root, None) {
            Ok(_) => Ok(true),
            Err(failure) if failure.code == "root_followed" => Ok(true),
            Err(failure) if failure.code == "no_root" => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Makes a swarm: its root key, kept here.
    pub(crate) fn create(home: &Home) -> Result<Self, Failure> {
        if let Some(kept) = RootKept::of(home)? {
            let message = format!("{} holds a swarm's root key already", kept.path().display());
            return Err(Failure::new(
                "already_created",
                message,
                "use another POTLUCK_HOME for a second swarm, or end that one: potluck swarm leave --end",
            ));
        }
        let root = Self::ephemeral()?;
        RootKept::write(home, &root.root, &Form::default())?;
        Ok(root)
    }

    /// A root that nobody keeps: for the peers that one command starts and ends.
    pub(crate) fn ephemeral() -> Result<Self, Failure> {
        let root = Root::from_bytes(&new_key()?.to_bytes());
        Ok(Self { swarm: root.public(), root: Arc::new(root), kept: None })
    }

    /// The swarm's name: the first root's public key.
    pub(crate) fn swarm(&self) -> SwarmId {
        self.swarm
    }

    /// Its own public key.
    pub(crate) fn public(&self) -> PeerId {
        self.root.public().root()
    }

    /// To be kept in memory, for as long as this machine serves.
    pub(crate) fn held(&self) -> RootSource {
        RootSource { held: Some(self.root.clone()), ..RootSource::default() }
    }

    /// A grant that makes this key a member until `expires` (UTC seconds).
    pub(crate) fn admit(&self, holder: PeerId, expires: u64) -> Result<Vec<u8>, Failure> {
        Ok(self.root.grant(holder, expires).or_fail("internal", "report this")?.into_bytes())
    }

    /// A grant as these caveats say.
    pub(crate) fn admit_as(&self, holder: PeerId, caveats: &Caveats) -> Result<Vec<u8>, Failure> {
        Ok(self.root.grant_as(holder, caveats).or_fail("grant", "name fewer models and peers")?.into_bytes())
    }

    /// Lets whoever knows that invitation's secret be helped by the swarm's relays until then.
    pub(crate) fn relay_pass(&self, secret: &[u8; 16], until: u64) -> RelayPass {
        self.root.relay_pass(secret, until)
    }

    /// The root's key, to take something back with, or to give an order.
    pub(crate) fn key(&self) -> SecretKey {
        self.root.key()
    }

    /// How it is locked where it was read, if it is.
    pub(crate) fn locked_as(&self) -> Option<Form> {
        self.kept.as_ref().map(|(_, form)| form.clone()).filter(|form| matches!(form, Form::Locked(_)))
    }

    /// Keeps it in this form: here, or at `to`. Where it was here in another form, that one is overwritten.
    pub(crate) fn keep(&self, home: &Home, form: &Form, to: Option<PathBuf>) -> Result<PathBuf, Failure> {
        match to {
            Some(path) => RootKept::at(path).replace(&self.root, form),
            None => RootKept::write(home, &self.root, form),
        }
    }

    /// Lets a new root sign in this one's place, from `at` on (UTC seconds), where this one lies, and locked as it is: what to tell every
    /// member. `gate` knows what is taken back; of what roots took back, `taken` stays so.
    pub(crate) fn rotate(
        self,
        home: &Home,
        gate: &Gate,
        (adopted, taken): (&BTreeSet<GrantId>, &BTreeSet<Revoked>),
        at: u64,
        until: u64,
    ) -> Result<(PeerId, Vec<SignedRevocation>), Failure> {
        let hint = "the swarm has had as many roots as it can, or too much was taken back (--restore), or it has too many members: make a new one";
        let next = Root::from_bytes(&new_key()?.to_bytes());
        let said = self.root.rotate_over(gate, &next, (adopted, taken), at, until).or_fail("rotate", hint)?;
        for one in &said {
            gate.revoke(one.clone()).or_fail("internal", "report this")?;
        }
        let Some((kept, form)) = &self.kept else {
            return Err(Failure::new("rotate", "the root key is in memory alone", "run it where the key file is"));
        };
        // The new key is on the disk before anything says that it signs, and the old one until then.
        kept.write_next(&next, form)?;
        keep_revocations(home, gate)?;
        kept.put_next()?;
        Ok((next.public().root(), said))
    }
}
