//! Who lends which model, how busy each is, and who is asked next. Knows no clock and no socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use potluck_core::PeerId;
use potluck_gateway::LentModel;
use potluck_wire::{PeerAddress, Upstream};

use crate::serving::{FoundLender, Heard};

/// Times that a lender may be slow to say what it lends before it counts as lost.
const LATE_MAX: u8 = 2;

/// Names of models that are remembered when nobody lends them any more. Those that come later are forgotten.
const KNOWN_MAX: usize = 1_024;

/// Those who lend, as they were heard of last.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: BTreeMap<PeerId, Row>,
    /// Models that somebody has lent at some time.
    known: BTreeSet<String>,
    /// Choices so far.
    choices: u64,
}

#[derive(Debug)]
struct Row {
    address: PeerAddress,
    upstream: Upstream,
    /// Requests of ours that are under way there, and how many there were when it was asked and heard last.
    ours: Arc<AtomicUsize>,
    ours_asked: usize,
    ours_then: usize,
    /// How often it has been late since.
    late: u8,
    /// When it was chosen last.
    chosen: u64,
}

/// A lender that was chosen. Counted as busy with us until it is dropped.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) address: PeerAddress,
    ours: Arc<AtomicUsize>,
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.ours.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Row {
    /// How full it is, in thousandths of its places: by us, and by others as it said.
    fn load(&self) -> usize {
        let others = usize::from(self.upstream.running).saturating_sub(self.ours_then);
        (self.ours.load(Ordering::Relaxed) + others) * 1_000 / usize::from(self.upstream.places.max(1))
    }

    fn has(&self, model: &str) -> bool {
        self.upstream.models.iter().any(|has| has.name == model)
    }
}

impl Table {
    /// Notes what came of asking a member.
    pub(super) fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Lends(FoundLender { address, upstream }) => {
                let row = self.rows.entry(address.peer).or_insert_with(|| Row {
                    address: address.clone(),
                    upstream: Upstream::default(),
                    ours: Arc::default(),
                    ours_asked: 0,
                    ours_then: 0,
                    late: 0,
                    chosen: 0,
                });
                // One that has ended since it counted them was among them.
                row.ours_then = row.ours.load(Ordering::Relaxed).max(row.ours_asked);
                for model in &upstream.models {
                    if self.known.len() < KNOWN_MAX {
                        self.known.insert(model.name.clone());
                    }
                }
                (row.address, row.upstream, row.late) = (address, upstream, 0);
            }
            Heard::Nothing(peer) | Heard::Lost(peer) => self.lost(peer),
            Heard::Late(peer) => {
                if let Some(row) = self.rows.get_mut(&peer) {
                    row.late += 1;
                    if row.late >= LATE_MAX {
                        self.lost(peer);
                    }
                }
            }
        }
    }

    /// It does not answer: it is chosen no more until it is heard of again.
    pub(super) fn lost(&mut self, peer: PeerId) {
        self.rows.remove(&peer);
    }

    /// They are to be asked: where they are.
    pub(super) fn ask(&mut self) -> Vec<PeerAddress> {
        let rows = self.rows.values_mut();
        rows.map(|row| {
            row.ours_asked = row.ours.load(Ordering::Relaxed);
            row.address.clone()
        })
        .collect()
    }

    /// True if somebody lends a model of that name, or has lent one.
    pub(super) fn knew(&self, model: &str) -> bool {
        self.known.contains(model)
    }

    /// The models that somebody lends, each once: with the shortest context that one of its lenders has, where one says so.
    pub(super) fn models(&self) -> Vec<LentModel> {
        let mut models = BTreeMap::<&str, Option<u32>>::new();
        for model in self.rows.values().flat_map(|row| &row.upstream.models) {
            let known = models.entry(&model.name).or_insert(model.context);
            *known = known.iter().chain(&model.context).min().copied();
        }
        models.into_iter().map(|(name, context)| LentModel { name: name.to_owned(), context }).collect()
    }

    /// Requests for a model that we may have under way, at all of its lenders.
    pub(super) fn places(&self, model: &str) -> usize {
        let fit = self.rows.values().filter(|row| row.has(model));
        fit.map(|row| usize::from(Upstream::share(row.upstream.places))).sum()
    }

    /// The least busy lender of a model that was not tried: of equals, the one that was chosen longest ago.
    pub(super) fn choose(&mut self, model: &str, tried: &BTreeSet<PeerId>) -> Option<Chosen> {
        let fit = self.rows.iter_mut().filter(|(peer, row)| !tried.contains(peer) && row.has(model));
        let (_, row) = fit.min_by_key(|(_, row)| (row.load(), row.chosen))?;
        self.choices += 1;
        row.chosen = self.choices;
        row.ours.fetch_add(1, Ordering::Relaxed);
        Some(Chosen { address: row.address.clone(), ours: row.ours.clone() })
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::SecretKey;
    use potluck_wire::UpstreamModel;

    use super::*;

    fn peer(n: u8) -> PeerId {
        SecretKey::from_bytes(&[n; 32]).peer_id()
    }

    fn lends(n: u8, running: u16, models: &[(&str, Option<u32>)]) -> Heard {
        let model = |&(name, context): &(&str, _)| UpstreamModel { name: name.into(), context };
        let models = models.iter().map(model).collect();
        let upstream = Upstream { models, running, places: 64, trouble: None };
        Heard::Lends(FoundLender { address: PeerAddress { peer: peer(n), addresses: vec![], relay: None }, upstream })
    }

    fn choose(table: &mut Table) -> Option<Chosen> {
        table.choose("m", &BTreeSet::new())
    }

    #[test]
    fn the_least_busy_is_asked_and_equals_take_turns() {
        let mut table = Table::default();
        assert!(choose(&mut table).is_none());
        assert_eq!(table.places("m"), 0);
        [1, 2].into_iter().for_each(|n| table.hear(lends(n, 0, &[("m", None)])));
        table.hear(lends(3, 0, &[("other", None)]));
        assert_eq!((table.places("m"), table.places("other")), (96, 48));
        let first = choose(&mut table).unwrap();
        let second = choose(&mut table).unwrap();
        assert_ne!(first.address.peer, second.address.peer);
        let (busy, free) = (second.address.peer, first.address.peer);
        drop(first);
        assert_eq!(choose(&mut table).unwrap().address.peer, free, "the other is at work for us");
        drop(second);
        assert_eq!(choose(&mut table).unwrap().address.peer, busy, "in turn");
        assert_eq!(choose(&mut table).unwrap().address.peer, free);
        let tried = BTreeSet::from([busy, free]);
        assert!(table.choose("m", &tried).is_none(), "nobody is asked twice");
    }

    #[test]
    fn what_others_have_under_way_there_counts_and_ours_is_not_counted_twice() {
        let mut table = Table::default();
        [1, 2].into_iter().for_each(|n| table.hear(lends(n, 0, &[("m", None)])));
        let ours = choose(&mut table).unwrap();
        let (mine, other) = if ours.address.peer == peer(1) { (1, 2) } else { (2, 1) };
        // It says that one is under way: that is ours. At the other there are two of others.
        table.hear(lends(mine, 1, &[("m", None)]));
        table.hear(lends(other, 2, &[("m", None)]));
        let next = choose(&mut table).unwrap();
        assert_eq!(next.address.peer, peer(mine));
        assert_eq!(table.rows[&peer(mine)].load(), 2 * 1_000 / 64);
        // Asked while ours are under way, it answers when they have ended.
        table.ask();
        drop((ours, next));
        table.hear(lends(mine, 2, &[("m", None)]));
        assert_eq!(table.rows[&peer(mine)].load(), 0);
        table.ask();
        table.hear(lends(mine, 2, &[("m", None)]));
        assert_eq!(table.rows[&peer(mine)].load(), 2 * 1_000 / 64, "these are others'");
    }

    #[test]
    fn who_is_lost_or_ill_is_listed_no_more_and_who_is_late_is_for_a_while() {
        let mut table = Table::default();
        let names = |table: &Table| table.models().into_iter().map(|model| model.name).collect::<Vec<_>>();
        table.hear(lends(1, 0, &[("m", Some(4_096)), ("a", None)]));
        table.hear(lends(2, 0, &[("m", Some(2_048))]));
        assert_eq!(table.models()[1], LentModel { name: "m".into(), context: Some(2_048) });
        table.hear(Heard::Late(peer(1)));
        assert_eq!(names(&table), ["a", "m"]);
        table.hear(Heard::Late(peer(1)));
        assert_eq!(names(&table), ["m"]);
        table.hear(lends(2, 0, &[]));
        assert!(names(&table).is_empty(), "it is there, and its upstream is not well");
        table.hear(lends(1, 0, &[("m", None)]));
        table.hear(Heard::Late(peer(1)));
        table.hear(lends(1, 0, &[("m", None)]));
        table.hear(Heard::Late(peer(1)));
        assert_eq!(names(&table), ["m"], "late now and then");
        table.hear(Heard::Lost(peer(1)));
        assert!(names(&table).is_empty());
        assert!(table.knew("m") && table.knew("a") && !table.knew("b"));
    }
}
