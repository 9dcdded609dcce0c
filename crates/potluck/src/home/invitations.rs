//! The invitations that this machine has written: by the hash of their secret, with what is left of them.

use std::fs::File;

use data_encoding::HEXLOWER;
use potluck_core::PeerId;
use potluck_grant::{Role as Standing, relay_pass_key};
use potluck_wire::{FailureCode, Join};
use serde::{Deserialize, Serialize};

use super::{Home, identity::random, invitation::code};
use crate::failure::{Failure, OrFail};

/// Days that a grant holds unless the owner says otherwise.
pub(crate) const GRANT_DAYS: u32 = 365;

const FILE: &str = "invitations.json";
const LOCK: &str = "invitations.lock";

/// Invitations that are kept. The next one is refused until one of them is revoked or over.
const KEPT_MAX: usize = 1_000;

/// Seconds for which an invitation that is over is kept, so that whoever comes late is told so.
const KEPT_AFTER: u64 = 7 * 24 * 3_600;

/// An invitation and what became of it. The secret itself is nowhere but in the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The hash of its secret, shortened: its name in lists.
    pub(crate) id: String,
    hash: String,
    /// UTC seconds until which it may be used.
    pub(crate) expires: u64,
    /// How many machines it is for.
    pub(crate) uses: u16,
    /// Days that whoever comes in by it is a member.
    #[serde(default = "grant_days")]
    pub(crate) days: u32,
    /// As what, where not as a member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<String>,
    /// How much in a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_per_day: Option<u64>,
    /// The key by which relays know it: taken back with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pass: Option<String>,
    /// Who has come in by it.
    pub(crate) used_by: Vec<Use>,
}

/// What whoever comes in by an invitation gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// For so many days.
    pub(crate) days: u32,
    /// As what.
    pub(crate) role: Standing,
    /// How much in a day.
    pub(crate) tokens_per_day: Option<u64>,
}

/// Invitations that were written before they said so.
fn grant_days() -> u32 {
    GRANT_DAYS
}

/// One machine that came in by an invitation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Use {
    /// The key that it asked with.
    pub(crate) peer: String,
    /// The keys that were let in.
    pub(crate) keys: Vec<String>,
    /// The six digits that it was shown, too.
    pub(crate) code: String,
}

/// The invitations of one swarm's root. One process at a time changes them.
#[derive(Debug)]
pub(crate) struct Invitations<'a> {
    home: &'a Home,
    kept: Vec<Kept>,
    _lock: File,
}

impl<'a> Invitations<'a> {
    /// Opens them; waits for whoever is at it. `now`: UTC seconds.
    pub(crate) fn open(home: &'a Home, now: u64) -> Result<Self, Failure> {
        let path = home.path(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.and_then(|file| file.lock().map(|()| file));
        let lock = lock.map_err(|error| Failure::io(path.display(), &error))?;
        let mut kept: Vec<Kept> = match home.read(FILE)? {
            Some(text) => serde_json::from_str(&text).or_fail("invitations", "restore it from a copy, or remove it")?,
            None => Vec::new(),
        };
        kept.retain(|invitation| invitation.expires.saturating_add(KEPT_AFTER) > now);
        Ok(Self { home, kept, _lock: lock })
    }

    /// Forgets all of them: the swarm is no more.
    pub(crate) fn forget(home: &Home) -> Result<(), Failure> {
        home.remove(FILE)
    }

    /// All that are kept, the oldest first. Nobody is kept waiting any longer.
    pub(crate) fn into_all(self) -> Vec<Kept> {
        self.kept
    }

    /// A new one: its secret.
    pub(crate) fn write(&mut self, expires: u64, uses: u16, terms: Terms) -> Result<[u8; 16], Failure> {
        if self.kept.len() >= KEPT_MAX {
            let message = format!("{KEPT_MAX} invitations are kept already");
            return Err(Failure::new("too_many_invitations", message, "potluck swarm invitations --revoke ID"));
        }
        let secret = random()?;
        let hash = hash_of(&secret);
        let Terms { days, role, tokens_per_day } = terms;
        let role = (role != Standing::Member).then(|| role.to_string());
        let (id, used_by) = (hash[..8].to_owned(), Vec::new());
        let pass = Some(relay_pass_key(&secret).to_string());
        self.kept.push(Kept { id, hash, expires, uses, days, role, tokens_per_day, pass, used_by });
        self.save()?;
        Ok(secret)
    }

    /// Takes one back: whoever comes with it from now on is told that there is none. By which key relays know it.
    pub(crate) fn revoke(&mut self, id: &str) -> Result<Option<PeerId>, Failure> {
        let Some(at) = self.kept.iter().position(|invitation| invitation.id == id) else {
            let message = format!("there is no invitation `{id}`");
            return Err(Failure::new("invitation_unknown", message, "potluck swarm invitations"));
        };
        let pass = self.kept.remove(at).pass();
        self.save().map(|()| pass)
    }

    /// By which keys relays know the invitations that let this one in.
    pub(crate) fn passes_of(&self, key: PeerId) -> Vec<PeerId> {
        let key = key.to_string();
        let used = |invitation: &&Kept| invitation.used_by.iter().any(|newcomer| newcomer.keys.contains(&key));
        self.kept.iter().filter(used).filter_map(Kept::pass).collect()
    }

    /// Uses one up for this newcomer; kept before anything is granted. Whoever has used it already may come again, for its
    /// answer may have been lost, but with the same keys only: else one use would let in any number. Who it is, and what it gets.
    pub(crate) fn redeem(
        &mut self,
        swarm: &str,
        newcomer: PeerId,
        join: &Join,
        now: u64,
    ) -> Result<Result<(Use, Terms), FailureCode>, Failure> {
        let hash = hash_of(&join.secret);
        let keys = join.keys.iter().map(ToString::to_string).collect();
        let newcomer = Use { peer: newcomer.to_string(), keys, code: code(swarm, &join.secret, newcomer) };
        let Some(invitation) = self.kept.iter_mut().find(|kept| kept.hash == hash) else {
            return Ok(Err(FailureCode::InvitationUnknown));
        };
        if invitation.expires < now {
            return Ok(Err(FailureCode::InvitationExpired));
        }
        if invitation.used_by.contains(&newcomer) {
            return Ok(Ok((newcomer, invitation.terms()?)));
        }
        if invitation.used_by.len() >= usize::from(invitation.uses) {
            return Ok(Err(FailureCode::InvitationUsed));
        }
        invitation.used_by.push(newcomer.clone());
        let terms = invitation.terms()?;
        self.save()?;
        Ok(Ok((newcomer, terms)))
    }

    fn save(&self) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(&self.kept).or_fail("internal", "report this")?;
        self.home.write(FILE, &(text + "\n"))
    }
}

impl Kept {
    fn pass(&self) -> Option<PeerId> {
        self.pass.as_deref()?.parse().ok()
    }

    /// What it lets in for.
    fn terms(&self) -> Result<Terms, Failure> {
        let role = self.role.as_deref().map_or(Ok(Standing::Member), str::parse);
        let role = role.or_fail("invitations", "restore invitations.json from a copy, or remove it")?;
        Ok(Terms { days: self.days, role, tokens_per_day: self.tokens_per_day })
    }

    /// In a word, at `now`.
    pub(crate) fn state(&self, now: u64) -> &'static str {
        match self {
            _ if self.used_by.len() >= usize::from(self.uses) => "used",
            _ if self.expires < now => "expired",
            _ => "open",
        }
    }
}

fn hash_of(secret: &[u8; 16]) -> String {
    HEXLOWER.encode(blake3::hash(secret).as_bytes())
}

#[cfg(test)]
mod tests {
    use potluck_core::SecretKey;

    use super::*;

    const SWARM: &str = "07";

    fn key(n: u8) -> PeerId {
        SecretKey::from_bytes(&[n; 32]).peer_id()
    }

    fn days(days: u32) -> Terms {
        Terms { days, role: Standing::Member, tokens_per_day: None }
    }

    fn join(secret: [u8; 16], keys: &[u8]) -> Join {
        Join { secret, keys: keys.iter().map(|&n| key(n)).collect() }
    }

    #[test]
    fn an_invitation_is_good_for_its_uses_and_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), crate::args::Reach::default()).unwrap();
        let secret = Invitations::open(&home, 1_000)
            .unwrap()
            .write(1_100, 2, Terms { role: Standing::Guest, tokens_per_day: Some(9), ..days(7) })
            .unwrap();
        let redeem = |secret: &[u8; 16], n, now| {
            let used = Invitations::open(&home, now).unwrap().redeem(SWARM, key(n), &join(*secret, &[n]), now).unwrap();
            used.map(|(newcomer, terms)| {
                assert_eq!(terms, Terms { days: 7, role: Standing::Guest, tokens_per_day: Some(9) });
                newcomer.code
            })
        };
        let first = redeem(&secret, 1, 1_050).unwrap();
        assert_eq!(redeem(&[0; 16], 1, 1_050), Err(FailureCode::InvitationUnknown));
        assert_ne!(redeem(&secret, 2, 1_100).unwrap(), first);
        assert_eq!(redeem(&secret, 3, 1_100), Err(FailureCode::InvitationUsed));
        assert_eq!(redeem(&secret, 1, 1_100), Ok(first), "the same machine may ask again");
        assert_eq!(redeem(&secret, 1, 1_101), Err(FailureCode::InvitationExpired));
        assert_eq!(redeem(&secret, 1, 1_100 + KEPT_AFTER), Err(FailureCode::InvitationUnknown), "forgotten at last");
    }

    #[test]
    fn one_use_lets_in_the_same_keys_only_however_often_it_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), crate::args::Reach::default()).unwrap();
        let mut invitations = Invitations::open(&home, 0).unwrap();
        let secret = invitations.write(100, 1, days(7)).unwrap();
        let mut redeem = |keys: &[u8]| invitations.redeem(SWARM, key(1), &join(secret, keys), 0).unwrap();
        let first = redeem(&[1, 2]).unwrap();
        assert_eq!(redeem(&[1, 2]), Ok(first));
        for others in [&[1, 3][..], &[2, 1], &[1], &[3, 1]] {
            assert_eq!(redeem(others), Err(FailureCode::InvitationUsed), "{others:?}");
        }
    }

    #[test]
    fn the_secret_is_not_kept_and_what_is_revoked_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), crate::args::Reach::default()).unwrap();
        let mut invitations = Invitations::open(&home, 0).unwrap();
        let secret = invitations.write(100, 1, days(7)).unwrap();
        assert!(!home.read(FILE).unwrap().unwrap().contains(&HEXLOWER.encode(&secret)));
        let kept = invitations.into_all().remove(0);
        assert_eq!((kept.state(100), kept.state(101)), ("open", "expired"));
        let (id, mut invitations) = (kept.id, Invitations::open(&home, 0).unwrap());
        assert_eq!(invitations.revoke(&id).unwrap(), Some(relay_pass_key(&secret)));
        assert_eq!(invitations.revoke(&id).unwrap_err().code, "invitation_unknown");
        assert_eq!(
            invitations.redeem(SWARM, key(1), &join(secret, &[1]), 0).unwrap(),
            Err(FailureCode::InvitationUnknown)
        );
    }
}
