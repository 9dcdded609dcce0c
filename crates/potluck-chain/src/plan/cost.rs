//! What a route costs: the time of a token, and of a prefill chunk.

use potluck_wire::{Codec, HEADER_BYTES};

use super::{
    facts::{Machine, ModelFacts, Who, Wish},
    stage::Piece,
};

/// Bytes of an answer: the logits that are usually asked for, with their ids.
const ANSWER_BYTES: f64 = (HEADER_BYTES + 16 + 128 * 8) as f64;

/// Costs of hops between the machines of a plan.
pub(super) struct Costs<'a> {
    pub(super) model: &'a ModelFacts,
    pub(super) machines: &'a [Machine],
    pub(super) wish: &'a Wish,
}

/// What travels on a hop.
#[derive(Clone, Copy)]
enum Load {
    Tokens,
    Hidden,
    Answer,
}

impl Costs<'_> {
    /// Microseconds before `piece` can start on a position that `before` has finished (none: the client sends it).
    pub(super) fn hop_us(&self, before: Option<&Piece>, piece: &Piece) -> f64 {
        match before {
            None => self.transfer(None, Some(piece.machine), Load::Tokens, 1, true),
            Some(before) => self.transfer(Some(before.machine), Some(piece.machine), Load::Hidden, 1, true),
        }
    }

    /// Microseconds from the tail to the client.
    pub(super) fn answer_us(&self, tail: &Piece) -> f64 {
        self.transfer(Some(tail.machine), None, Load::Answer, 1, true)
    }

    /// Microseconds for one token down the whole route.
    pub(super) fn decode_us(&self, route: &[Piece]) -> f64 {
        let hops: f64 = (0..route.len()).map(|i| self.hop_us(i.checked_sub(1).map(|i| &route[i]), &route[i])).sum();
        let stages: f64 = route.iter().map(|piece| piece.decode_us).sum();
        stages + hops + route.last().map_or(0.0, |tail| self.answer_us(tail))
    }

    /// Microseconds that a full chunk holds the slowest stage or hop up: what a filled pipeline waits for.
    pub(super) fn chunk_us(&self, route: &[Piece]) -> f64 {
        let positions = usize::from(self.wish.chunk);
        let stages = route.iter().map(|piece| piece.prefill_us * positions as f64);
        let hops = route
            .windows(2)
            .map(|pair| self.transfer(Some(pair[0].machine), Some(pair[1].machine), Load::Hidden, positions, false));
        stages.chain(hops).fold(0.0, f64::max)
    }

    /// Microseconds for a full chunk down the whole route, with no other behind it: to the last answer.
    pub(super) fn chunk_alone_us(&self, route: &[Piece]) -> f64 {
        let positions = usize::from(self.wish.chunk);
        let stages: f64 = route.iter().map(|piece| piece.prefill_us * positions as f64).sum();
        let machines: Vec<usize> = route.iter().map(|piece| piece.machine).collect();
        let between = machines.windows(2);
        let hops: f64 =
            between.map(|pair| self.transfer(Some(pair[0]), Some(pair[1]), Load::Hidden, positions, true)).sum();
        let first =
            machines.first().map_or(0.0, |&head| self.transfer(None, Some(head), Load::Tokens, positions, true));
        stages + first + hops + route.last().map_or(0.0, |tail| self.answer_us(tail))
    }

    /// Bytes on all hops of a route, for one position in decode.
    pub(super) fn bytes_per_position(&self, route: &[Piece]) -> f64 {
        let own = |piece: &Piece| self.machines[piece.machine].who == Who::Own;
        let hidden = route.windows(2).count() as f64 * self.bytes(Load::Hidden, 1);
        let to_head = route.first().filter(|head| !own(head)).map_or(0.0, |_| self.bytes(Load::Tokens, 1));
        let from_tail = route.last().filter(|tail| !own(tail)).map_or(0.0, |_| ANSWER_BYTES);
        hidden + to_head + from_tail
    }

    fn bytes(&self, load: Load, positions: usize) -> f64 {
        let payload = |codec: Codec| (HEADER_BYTES + codec.bytes(positions, self.model.width as usize)) as f64;
        match load {
            Load::Tokens => payload(Codec::Tokens),
            Load::Hidden => payload(self.wish.codec),
            Load::Answer => ANSWER_BYTES,
        }
    }

    /// Between two machines; none is the client, which the own machine is too. How far two peers are from each other
    /// is not known: as far as the farther is from the client.
    fn transfer(&self, from: Option<usize>, to: Option<usize>, load: Load, positions: usize, latency: bool) -> f64 {
        let remote = |end: Option<usize>| end.map(|i| &self.machines[i]).filter(|m| m.who != Who::Own);
        let ends = [remote(from), remote(to)];
        let links = || ends.iter().flatten().map(|machine| machine.link);
        if links().next().is_none() {
            return 0.0;
        }
        let rtt = links().map(|link| link.rtt_us).fold(0.0, f64::max);
        let rate = links().map(|link| link.bytes_per_second).fold(f64::INFINITY, f64::min).max(1.0);
        self.bytes(load, positions) / rate * 1e6 + if latency { rtt / 2.0 } else { 0.0 }
    }
}
