//! Who takes layers that no route leads through any more, where machines choose for themselves what they serve.

use std::time::{Duration, Instant};

use potluck_core::{LayerRange, PeerId};

use super::{ModelFacts, lend::lent_bytes};

/// How long each of those has that had better move first.
const TURN: Duration = Duration::from_secs(4);

/// How long it has to be anybody's turn: what was heard may be about to change.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);

/// How long a peer that is gone has to be there again, before another ends its own sessions to take its layers as well.
const RESTARTS_WITHIN: Duration = Duration::from_secs(6);

/// A machine that serves layers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lender {
    /// Whose.
    pub peer: PeerId,
    /// What it serves.
    pub layers: LayerRange,
    /// Positions that it keeps caches for, in all.
    pub positions: u64,
    /// Bytes that it gives for layers and their caches in all; none: what it serves is its owner's choice.
    pub memory: Option<u64>,
    /// Sessions are open there.
    pub is_used: bool,
}

/// A machine that had better serve other layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mender {
    /// Whose.
    pub peer: PeerId,
    /// What it should serve instead.
    pub layers: LayerRange,
    /// The others lead as far without it: nobody misses it where it is.
    pub is_spare: bool,
}

/// Layers that no machine has on the best way through the model: 0 where a route leads from the first layer to the last. Stages follow each
/// other where one ends and the next begins, so that ranges which overlap make no route.
pub fn missing(model: &ModelFacts, lenders: &[Lender]) -> u32 {
    Ways::over(model, lenders.iter().map(|lender| lender.layers)).missing()
}

/// Who had better serve other layers, where no route leads through the model: the one that should do so first, and then those that should
/// where it does not. Each of these moves brings the model closer to a route. One lender a machine.
///
/// First come machines that nobody misses where they are, for the sessions of another end with its move; then whoever leaves the fewest
/// layers missing; then those without sessions; then whoever has the least to load. Everybody who knows the same comes to the same list.
pub fn menders(model: &ModelFacts, lenders: &[Lender]) -> Vec<Mender> {
    let now = missing(model, lenders);
    if now == 0 {
        return Vec::new();
    }
    let mut menders: Vec<_> = lenders.iter().filter_map(|lender| mender(model, lenders, lender, now)).collect();
    menders.sort_by_key(|(order, _)| *order);
    menders.into_iter().map(|(_, mender)| mender).collect()
}

/// Whether it is one machine's turn to move, as it looks again and again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Turn {
    /// What it should serve, how many should move first, and since when.
    since: Option<(LayerRange, usize, Instant)>,
}

impl Turn {
    /// Looks at what [`menders`] says now: what this machine is to serve instead, if it is its turn.
    pub fn look(&mut self, now: Instant, menders: &[Mender], own: PeerId) -> Option<LayerRange> {
        let Some((place, mender)) = menders.iter().enumerate().find(|(_, mender)| mender.peer == own) else {
            self.since = None;
            return None;
        };
        // Where something has changed, it begins anew.
        let same = self.since.filter(|(layers, first, _)| (*layers, *first) == (mender.layers, place));
        let since = same.map_or(now, |(_, _, since)| since);
        self.since = Some((mender.layers, place, since));
        let first = if mender.is_spare { SETTLES_WITHIN } else { RESTARTS_WITHIN };
        let wait = first + TURN.saturating_mul(u32::try_from(place).unwrap_or(u32::MAX));
        (now.saturating_duration_since(since) >= wait).then_some(mender.layers)
    }
}

/// How many layers are missing up to each cut of a model, and from there on.
#[derive(Debug)]
struct Ways {
    before: Vec<u32>,
    behind: Vec<u32>,
}

impl Ways {
    fn over(model: &ModelFacts, ranges: impl Iterator<Item = LayerRange>) -> Self {
        let layers = model.layers.len();
        let whole = layers as u32;
        let mut ranges: Vec<(usize, usize)> = ranges
            .filter(|range| range.end() <= whole)
            .map(|range| (range.start() as usize, range.end() as usize))
            .collect();
        let mut before: Vec<u32> = (0..=whole).collect();
        ranges.sort_unstable();
        for at in 0..=layers {
            if at > 0 {
                before[at] = before[at].min(before[at - 1] + 1);
            }
            for &(start, end) in ranges.iter().filter(|(start, _)| *start == at) {
                before[end] = before[end].min(before[start]);
            }
        }
        let mut behind: Vec<u32> = (0..=whole).rev().collect();
        for at in (0..=layers).rev() {
            if at < layers {
                behind[at] = behind[at].min(behind[at + 1] + 1);
            }
            for &(start, end) in ranges.iter().filter(|(_, end)| *end == at) {
                behind[start] = behind[start].min(behind[end]);
            }
        }
        Self { before, behind }
    }

    fn missing(&self) -> u32 {
        self.behind.first().copied().unwrap_or(0)
    }
}

/// In which order machines should move.
type Order = (bool, u32, bool, u64, PeerId);

/// What one of them should serve instead, where `now` layers are missing.
fn mender(model: &ModelFacts, lenders: &[Lender], lender: &Lender, now: u32) -> Option<(Order, Mender)> {
    let Lender { peer, layers: own, positions, memory, is_used } = *lender;
    let (memory, whole) = (memory?, model.layers.len() as u32);
    let others = lenders.iter().filter(|other| other.peer != peer).map(|other| other.layers);
    let ways = Ways::over(model, others);
    let is_spare = ways.missing() <= now;
    let cuts = || [0].into_iter().chain(model.cuts.iter().copied()).chain([whole]);
    let mut best: Option<(u32, u64, LayerRange)> = None;
    for start in cuts() {
        for end in cuts().filter(|end| *end > start) {
            let (Some(before), Some(behind)) = (ways.before.get(start as usize), ways.behind.get(end as usize)) else {
                continue;
            };
            let after = ways.missing().min(before + behind);
            // Where it is needed it leaves nothing behind, unless a route leads through then.
            let may = is_spare || after == 0 || start <= own.start() && end >= own.end();
            let Some(range) = LayerRange::new(start, end).ok().filter(|_| may && after < now) else { continue };
            let bytes = lent_bytes(model, range, positions);
            if bytes <= memory && best.is_none_or(|(missing, least, _)| (after, bytes) < (missing, least)) {
                best = Some((after, bytes, range));
            }
        }
    }
    let (after, bytes, layers) = best?;
    Some(((!is_spare, after, is_used, bytes, peer), Mender { peer, layers, is_spare }))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test is its own driver")]
mod tests {
    use super::{
        super::lend::tests::{ANYWHERE, model},
        *,
    };

    const PLENTY: Option<u64> = Some(10_000);

    fn range(start: u32, end: u32) -> LayerRange {
        LayerRange::new(start, end).unwrap()
    }

    /// Each: first layer, end, and what it gives for layers that it chooses.
    fn lenders(of: &[(u32, u32, Option<u64>)]) -> Vec<Lender> {
        let lender = |(n, &(start, end, memory)): (usize, &(u32, u32, Option<u64>))| {
            let (peer, layers) = (PeerId::from_bytes([n as u8; 32]), range(start, end));
            Lender { peer, layers, positions: 10, memory, is_used: false }
        };
        of.iter().enumerate().map(lender).collect()
    }

    fn found(cuts: &[u32], of: &[(u32, u32, Option<u64>)]) -> Vec<(u8, u32, u32, bool)> {
        let told = |mender: Mender| {
            let number = mender.peer.as_bytes()[0];
            (number, mender.layers.start(), mender.layers.end(), mender.is_spare)
        };
        menders(&model(cuts), &lenders(of)).into_iter().map(told).collect()
    }

    #[test]
    fn ranges_that_overlap_make_no_route() {
        let missing = |of: &[(u32, u32, Option<u64>)]| missing(&model(&ANYWHERE), &lenders(of));
        assert_eq!(missing(&[]), 8);
        assert_eq!(missing(&[(0, 4, None), (4, 8, None)]), 0);
        assert_eq!(missing(&[(0, 5, None), (4, 8, None)]), 3, "all layers are served, and nothing follows the fifth");
        assert_eq!(missing(&[(0, 5, None), (4, 8, None), (5, 6, None), (0, 4, None)]), 0);
        assert_eq!(missing(&[(2, 3, None), (5, 99, None)]), 7, "a range of another model's length is none");
    }

    #[test]
    fn where_a_route_leads_through_everybody_stays() {
        assert_eq!(found(&ANYWHERE, &[(0, 4, PLENTY), (4, 8, PLENTY), (0, 4, PLENTY)]), []);
        assert_eq!(found(&ANYWHERE, &[]), []);
    }

    #[test]
    fn who_is_spare_comes_first_and_takes_the_gap_alone() {
        let lenders = [(0, 3, PLENTY), (6, 8, PLENTY), (0, 3, PLENTY)];
        // Both that serve the first layers may go, and the lower key goes first; who serves the last ones would take theirs along.
        assert_eq!(found(&ANYWHERE, &lenders), [(0, 3, 6, true), (2, 3, 6, true), (1, 3, 8, false)]);
    }

    #[test]
    fn of_two_that_are_spare_the_one_without_sessions_goes_first() {
        let mut lenders = lenders(&[(0, 3, PLENTY), (3, 8, None), (0, 3, PLENTY)]);
        lenders.remove(1);
        lenders[0].is_used = true;
        let order: Vec<u8> = menders(&model(&ANYWHERE), &lenders).iter().map(|it| it.peer.as_bytes()[0]).collect();
        assert_eq!(order, [2, 0]);
    }

    #[test]
    fn who_is_needed_takes_the_gap_beside_its_own_layers_with_these() {
        assert_eq!(found(&ANYWHERE, &[(0, 3, PLENTY), (6, 8, PLENTY)]), [(1, 3, 8, false), (0, 0, 6, false)]);
        // As far as its memory goes: 110 a layer, and 70 for the last one's matrix.
        assert_eq!(found(&ANYWHERE, &[(0, 3, None), (6, 8, Some(4 * 110 + 70))]), [(1, 4, 8, false)]);
        assert_eq!(found(&ANYWHERE, &[(0, 3, None), (6, 8, Some(3 * 110 + 69))]), []);
    }

    #[test]
    fn who_has_taken_too_much_goes_back() {
        // Cut off from the others it took what it could; now nothing follows the first one's layers.
        assert_eq!(found(&ANYWHERE, &[(0, 3, None), (2, 6, Some(700)), (6, 8, None)]), [(1, 3, 6, false)]);
        // Two moved at once.
        assert_eq!(found(&ANYWHERE, &[(0, 6, PLENTY), (3, 8, PLENTY)]), [(1, 6, 8, true), (0, 0, 3, false)]);
    }

    #[test]
    fn nobody_is_told_to_whose_owner_chose_or_where_the_model_cannot_be_cut() {
        assert_eq!(found(&ANYWHERE, &[(0, 4, None), (0, 4, None)]), []);
        assert_eq!(found(&[4], &[(0, 4, None), (0, 4, PLENTY)]), [(1, 4, 8, true)]);
        assert_eq!(found(&[], &[(0, 4, None), (0, 4, Some(700))]), []);
    }

    #[test]
    fn each_move_brings_a_route_closer_and_fits() {
        let mut seed = 7u32;
        let mut random = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        let model = model(&ANYWHERE);
        for _ in 0..2_000 {
            let of: Vec<_> = (0..1 + random(4))
                .map(|_| {
                    let start = random(8);
                    (start, start + 1 + random(8 - start), (random(3) > 0).then(|| u64::from(random(1_200))))
                })
                .collect();
            let lenders = lenders(&of);
            for mender in menders(&model, &lenders) {
                let moved = |lender: &Lender| match lender.peer == mender.peer {
                    true => Lender { layers: mender.layers, ..*lender },
                    false => *lender,
                };
                let after: Vec<_> = lenders.iter().map(moved).collect();
                assert!(missing(&model, &after) < missing(&model, &lenders), "{mender:?} of {lenders:?}");
                let lender = lenders.iter().find(|lender| lender.peer == mender.peer).unwrap();
                assert!(lent_bytes(&model, mender.layers, 10) <= lender.memory.unwrap());
            }
        }
    }

    #[test]
    fn a_turn_comes_when_those_before_it_have_let_theirs_pass() {
        let own = PeerId::from_bytes([1; 32]);
        let mender = |n, is_spare| Mender { peer: PeerId::from_bytes([n; 32]), layers: range(3, 6), is_spare };
        let (mut turn, begun) = (Turn::default(), Instant::now());
        let mut at = |ms, menders: &[Mender]| turn.look(begun + Duration::from_millis(ms), menders, own);
        assert_eq!(at(0, &[mender(1, true)]), None, "what was heard may be about to change");
        assert_eq!(at(1_000, &[mender(1, true)]), Some(range(3, 6)));
        assert_eq!(at(2_000, &[]), None);
        assert_eq!(at(2_500, &[mender(0, true), mender(1, true)]), None);
        assert_eq!(at(7_400, &[mender(0, true), mender(1, true)]), None);
        assert_eq!(at(7_500, &[mender(0, true), mender(1, true)]), Some(range(3, 6)), "the other did not go");
        assert_eq!(at(7_600, &[mender(1, true)]), None, "it did, and something is missing still: it begins anew");
        assert_eq!(at(13_500, &[mender(1, false)]), None, "others' sessions would end");
        assert_eq!(at(13_600, &[mender(1, false)]), Some(range(3, 6)));
    }
}
