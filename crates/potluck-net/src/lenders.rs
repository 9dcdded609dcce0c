//! Members that lend by an upstream, as far as a peer was told: so that whoever asks one member finds the others.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use potluck_core::PeerId;
use potluck_grant::{Gate, GrantError, Member};
use potluck_wire::{LENDERS_MAX, Lender, PeerAddress, Upstream, Upstreams};

/// How long a member is remembered that has said that it lends. It says so again well before.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Members that are remembered. Beyond it, the one that was heard of longest ago makes room.
const LENDERS_KEPT_MAX: usize = 256;

/// Whoever said so: it is not noted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotNoted {
    /// A member speaks for itself alone.
    #[error("it speaks for {}, which is another", .0.short())]
    Another(PeerId),
    /// Others could not check that it is a member.
    #[error(transparent)]
    NotMember(#[from] GrantError),
}

/// Who has said that it lends, and when. Knows no clock and no socket.
#[derive(Debug, Default)]
pub(crate) struct Lenders(BTreeMap<PeerId, Noted>);

#[derive(Debug)]
struct Noted {
    heard: Instant,
    lender: Lender,
    member: Member,
}

impl Lenders {
    /// Notes what `by` says of itself at this instant (and UTC second).
    pub(crate) fn note(
        &mut self,
        by: Option<PeerId>,
        lender: Lender,
        gate: &Gate,
        (instant, utc): (Instant, u64),
    ) -> Result<(), NotNoted> {
        let peer = lender.address.peer;
        if by != Some(peer) {
            return Err(NotNoted::Another(peer));
        }
        let (_, member) = gate.check_lender(&lender.grant, peer, utc)?.into_parts();
        self.expire(instant);
        if self.0.len() >= LENDERS_KEPT_MAX && !self.0.contains_key(&peer) {
            let first = self.0.iter().min_by_key(|(_, noted)| noted.heard).map(|(peer, _)| *peer);
            first.map(|peer| self.0.remove(&peer));
        }
        self.0.insert(peer, Noted { heard: instant, lender, member });
        Ok(())
    }

    /// What a peer answers whoever asks: full pages, and a last one that is not full. The first one says what it lends itself.
    pub(crate) fn pages(&mut self, own: Option<Upstream>, now: Instant) -> Vec<Upstreams> {
        self.expire(now);
        let others: Vec<_> = self.0.values().map(|noted| noted.lender.clone()).collect();
        let page = |others: &[Lender]| Upstreams { own: None, others: others.to_vec() };
        let mut pages: Vec<_> = others.chunks(LENDERS_MAX).map(page).collect();
        if others.len().is_multiple_of(LENDERS_MAX) {
            pages.push(Upstreams::default());
        }
        pages[0].own = own;
        pages
    }

    /// Forgets whoever may not lend any more.
    pub(crate) fn review(&mut self, gate: &Gate, utc: u64) {
        self.0.retain(|_, noted| gate.still(&noted.member, utc).is_ok());
    }

    /// Where they are.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = PeerAddress> {
        self.0.values().map(|noted| noted.lender.address.clone())
    }

    fn expire(&mut self, now: Instant) {
        self.0.retain(|_, noted| now.saturating_duration_since(noted.heard) < REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_core::SecretKey;
    use potluck_grant::Root;

    const FAR: u64 = 4_000_000_000;

    fn lender(n: u16, root: u8) -> Lender {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        let peer = SecretKey::from_bytes(&bytes).peer_id();
        let grant = Root::from_bytes(&[root; 32]).grant(peer, FAR).unwrap().into_bytes();
        Lender { address: PeerAddress { peer, addresses: vec![format!("10.0.0.1:{n}")], relay: None }, grant }
    }

    #[test]
    fn who_lends_is_remembered_for_a_while_and_speaks_for_itself() {
        let (gate, start) = (Gate::new(Root::from_bytes(&[7; 32]).public()), Instant::now());
        let mut lenders = Lenders::default();
        let (one, other, stranger) = (lender(1, 7), lender(2, 7), lender(3, 8));
        let by = |lender: &Lender| Some(lender.address.peer);
        assert_eq!(lenders.note(by(&one), one.clone(), &gate, (start, 1)), Ok(()));
        let for_another = lenders.note(by(&one), other.clone(), &gate, (start, 1));
        assert_eq!(for_another, Err(NotNoted::Another(other.address.peer)));
        let refused = lenders.note(by(&stranger), stranger.clone(), &gate, (start, 1));
        assert!(matches!(refused, Err(NotNoted::NotMember(_))), "{refused:?}");
        let late = start + REMEMBERED / 2;
        assert_eq!(lenders.note(by(&other), other.clone(), &gate, (late, 1)), Ok(()));
        let known = |lenders: &mut Lenders, now| lenders.pages(None, now)[0].others.len();
        assert_eq!(known(&mut lenders, late), 2);
        assert_eq!(known(&mut lenders, start + REMEMBERED), 1);
        assert_eq!(known(&mut lenders, late + REMEMBERED), 0);
    }

    #[test]
    fn pages_are_full_but_the_last_and_lenders_never_pile_up() {
        let (gate, now) = (Gate::new(Root::from_bytes(&[7; 32]).public()), Instant::now());
        let mut lenders = Lenders::default();
        let sizes = |lenders: &mut Lenders| {
            let pages = lenders.pages(Some(Upstream::default()), now);
            assert!(pages.iter().enumerate().all(|(n, page)| page.own.is_some() == (n == 0)), "{pages:?}");
            pages.iter().map(|page| page.others.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&mut lenders), [0]);
        for n in 0..LENDERS_KEPT_MAX as u16 + 3 {
            let lender = lender(n, 7);
            lenders.note(Some(lender.address.peer), lender, &gate, (now, 1)).unwrap();
            match usize::from(n) + 1 {
                LENDERS_MAX => assert_eq!(sizes(&mut lenders), [LENDERS_MAX, 0]),
                13 => assert_eq!(sizes(&mut lenders), [LENDERS_MAX, 1]),
                _ => {}
            }
        }
        assert_eq!(lenders.0.len(), LENDERS_KEPT_MAX);
    }
}
