//! What a machine shows to a relay: that it belongs to the swarm, or was invited to it.
//!
//! A relay sees who asks by the key that the relay's own handshake has proven. A member shows its grant, which names that key. A newcomer
//! has none yet: its invitation carries a [`RelayPass`], the root's signature over a key that is made from the invitation's secret, and
//! the newcomer signs its own key with that one. So what a relay is shown is of no use to whoever reads it there.

use data_encoding::BASE64URL_NOPAD;
use potluck_core::{Defence, PeerId, SecretKey};
use potluck_wire::GRANT_BYTES_MAX;

use crate::{Gate, GrantError, Member, Root};

/// The root's word that whoever holds an invitation may be helped by the swarm's relays. It admits to nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayPass {
    /// UTC seconds until which it holds.
    pub until: u64,
    /// The root's signature.
    pub signature: [u8; 64],
}

/// Whom a relay lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relayed {
    /// A member, by its grant.
    Member(Member),
    /// Whoever was invited, until this UTC second.
    Invited {
        /// Its key.
        peer: PeerId,
        /// The key that its invitation stands for: what takes the invitation back.
        by: PeerId,
        /// UTC seconds.
        until: u64,
    },
}

const PASS_CONTEXT: &[u8] = b"potluck relay pass 1\0";
const SHOWN_CONTEXT: &[u8] = b"potluck relay pass shown 1\0";

/// How a token begins: which kind it is.
const GRANT: u8 = 1;
const PASS: u8 = 2;

/// Bytes of a pass as it is shown, behind its kind: the key, the end, two signatures.
const PASS_BYTES: usize = 32 + 8 + 64 + 64;

/// Characters of a token. A longer one is refused unread.
pub const RELAY_TOKEN_CHARS_MAX: usize = (GRANT_BYTES_MAX + 1).div_ceil(3) * 4;

/// The key that an invitation stands for at relays: whoever takes that back takes back the help.
pub fn relay_pass_key(secret: &[u8; 16]) -> PeerId {
    invited_key(secret).peer_id()
}

fn invited_key(secret: &[u8; 16]) -> SecretKey {
    SecretKey::from_bytes(&blake3::derive_key("potluck 2026-11 relay pass of an invitation", secret))
}

fn pass_message(root: PeerId, invited: PeerId, until: u64) -> Vec<u8> {
    [PASS_CONTEXT, root.as_bytes(), invited.as_bytes(), &until.to_le_bytes()].concat()
}

fn shown_message(peer: PeerId) -> Vec<u8> {
    [SHOWN_CONTEXT, peer.as_bytes()].concat()
}

impl Root {
    /// Lets whoever knows that invitation's secret be helped by relays, until then (UTC seconds).
    pub fn relay_pass(&self, secret: &[u8; 16], until: u64) -> RelayPass {
        let (key, invited) = (self.key(), invited_key(secret).peer_id());
        RelayPass { until, signature: key.sign(&pass_message(key.peer_id(), invited, until)) }
    }
}

/// What a member shows.
pub fn relay_token(grant: &[u8]) -> String {
    BASE64URL_NOPAD.encode(&[&[GRANT], grant].concat())
}

impl RelayPass {
    /// What the machine with the key `peer` shows, which knows the invitation's secret.
    pub fn token(&self, secret: &[u8; 16], peer: PeerId) -> String {
        let key = invited_key(secret);
        let shown = key.sign(&shown_message(peer));
        let (invited, until) = (key.peer_id(), self.until.to_le_bytes());
        let parts: [&[u8]; 5] = [&[PASS], invited.as_bytes(), &until, &self.signature, &shown];
        BASE64URL_NOPAD.encode(&parts.concat())
    }
}

impl Gate {
    /// Whether a relay of this swarm is to help the machine that has proven the key `peer` and shows this, at `now` (UTC seconds).
    ///
    /// # Errors
    /// As [`check`](Self::check); `NotOurs` or `Expired` for a pass. The text may come from anybody.
    pub fn check_relayed(&self, token: &str, peer: PeerId, now: u64) -> Result<Relayed, GrantError> {
        if token.len() > RELAY_TOKEN_CHARS_MAX {
            return Err(GrantError::TooLarge { len: token.len() });
        }
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes());
        let bytes = bytes.map_err(|error| GrantError::Unreadable(format!("no relay token: {error}")))?;
        match bytes.split_first() {
            Some((&GRANT, grant)) => self.check(grant, peer, now).map(Relayed::Member),
            Some((&PASS, pass)) => self.check_pass(pass, peer, now),
            _ => Err(GrantError::Unreadable("no relay token".into())),
        }
    }

    fn check_pass(&self, pass: &[u8], peer: PeerId, now: u64) -> Result<Relayed, GrantError> {
        let pass: &[u8; PASS_BYTES] =
            pass.try_into().map_err(|_| GrantError::Unreadable("a pass of another length".into()))?;
        let (invited, rest) = pass.split_at(32);
        let (until, rest) = rest.split_at(8);
        let (by_root, shown) = rest.split_at(64);
        let unreadable = |_| GrantError::Unreadable("a pass of another length".into());
        let invited = PeerId::from_bytes(invited.try_into().map_err(unreadable)?);
        let until = u64::from_le_bytes(until.try_into().map_err(unreadable)?);
        let by_root: &[u8; 64] = by_root.try_into().map_err(unreadable)?;
        let shown: &[u8; 64] = shown.try_into().map_err(unreadable)?;
        let root = self.root();
        if !root.verify(&pass_message(root, invited, until), by_root) {
            return Err(GrantError::NotOurs("the pass is not signed by its present root".into()));
        }
        if !invited.verify(&shown_message(peer), shown) && Defence::PassHolder.stands() {
            return Err(GrantError::NotAdmitted(peer));
        }
        let relayed = Relayed::Invited { peer, by: invited, until };
        self.still_relayed(&relayed, now).map(|()| relayed)
    }

    /// Whether somebody that was let in by a relay may stay.
    ///
    /// # Errors
    /// As [`still`](Self::still); `Expired`, `Revoked`.
    pub fn still_relayed(&self, relayed: &Relayed, now: u64) -> Result<(), GrantError> {
        match relayed {
            Relayed::Member(member) => self.still(member, now),
            Relayed::Invited { until, .. } if *until < now => Err(GrantError::Expired { at: *until }),
            Relayed::Invited { peer, by, .. } => self.still_a_key(*peer).and_then(|()| self.still_a_key(*by)),
        }
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{Revocation, Revoked};

    use super::*;

    const NOW: u64 = 1_900_000_000;

    fn peer(n: u8) -> PeerId {
        SecretKey::from_bytes(&[n; 32]).peer_id()
    }

    #[test]
    fn a_member_shows_its_grant_and_nobody_elses() {
        let root = Root::from_bytes(&[1; 32]);
        let gate = Gate::new(root.public());
        let token = relay_token(root.grant(peer(2), NOW + 1).unwrap().as_bytes());
        assert!(
            matches!(gate.check_relayed(&token, peer(2), NOW), Ok(Relayed::Member(member)) if member.peer() == peer(2))
        );
        assert!(matches!(gate.check_relayed(&token, peer(3), NOW), Err(GrantError::NotAdmitted(_))));
        assert!(matches!(gate.check_relayed(&token, peer(2), NOW + 2), Err(GrantError::Expired { .. })));
        let other = Gate::new(Root::from_bytes(&[9; 32]).public());
        assert!(matches!(other.check_relayed(&token, peer(2), NOW), Err(GrantError::NotOurs(_))));
    }

    #[test]
    fn whoever_is_invited_is_helped_until_the_invitation_ends() {
        let root = Root::from_bytes(&[1; 32]);
        let gate = Gate::new(root.public());
        let pass = root.relay_pass(&[7; 16], NOW);
        let token = pass.token(&[7; 16], peer(2));
        let admitted = gate.check_relayed(&token, peer(2), NOW).unwrap();
        let by = relay_pass_key(&[7; 16]);
        assert_eq!(admitted, Relayed::Invited { peer: peer(2), by, until: NOW });
        assert!(gate.still_relayed(&admitted, NOW).is_ok());
        assert!(gate.still_relayed(&admitted, NOW + 1).is_err());
        // What the relay was shown is of no use to it.
        assert!(matches!(gate.check_relayed(&token, peer(3), NOW), Err(GrantError::NotAdmitted(_))));
        // Another secret, another end, another root.
        assert!(matches!(
            gate.check_relayed(&pass.token(&[8; 16], peer(2)), peer(2), NOW),
            Err(GrantError::NotOurs(_))
        ));
        let longer = RelayPass { until: NOW + 9, ..pass };
        assert!(matches!(
            gate.check_relayed(&longer.token(&[7; 16], peer(2)), peer(2), NOW),
            Err(GrantError::NotOurs(_))
        ));
        let other = Gate::new(Root::from_bytes(&[9; 32]).public());
        assert!(matches!(other.check_relayed(&token, peer(2), NOW), Err(GrantError::NotOurs(_))));
        // Taken back, it helps nobody: neither who is there, nor who comes with another key.
        let swarm = root.key().peer_id();
        gate.revoke(Revocation::sign(swarm, Revoked::Key(by), NOW, &root.key(), Vec::new())).unwrap();
        assert!(gate.still_relayed(&admitted, NOW).is_err());
        assert!(matches!(
            gate.check_relayed(&pass.token(&[7; 16], peer(3)), peer(3), NOW),
            Err(GrantError::Revoked(_))
        ));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let gate = Gate::new(Root::from_bytes(&[1; 32]).public());
        let pass = Root::from_bytes(&[1; 32]).relay_pass(&[7; 16], NOW).token(&[7; 16], peer(2));
        for text in ["", "A", "!!", "AAAA", "AQ", "Ag", &pass[..pass.len() - 4], &"A".repeat(RELAY_TOKEN_CHARS_MAX + 1)]
        {
            assert!(gate.check_relayed(text, peer(2), NOW).is_err(), "{text}");
        }
    }
}
