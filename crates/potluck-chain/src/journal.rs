//! What a sender has sent of a session, so that another peer can take the place of the one that it was sent to.
//!
//! A step is kept as it was sent, and as long as one of its positions is in use: kernels round differently for other batch
//! shapes, so a substitute is sent the very steps that the lost peer had had, unless these are many and results need not be exact:
//! then they are merged. A step all of whose positions were written again by a later one changes nothing, and is left out.

use std::collections::VecDeque;

use potluck_core::{Rows, Tree};
use potluck_wire::{Frame, StepFrame};

use crate::STEPS_IN_FLIGHT_MAX;

/// Bytes of the steps that a sender keeps of one session: 4,096 positions of the widest models in `f16`. Of longer sessions
/// the first steps are let go of, and whoever takes a lost peer's place has to be sent the tokens again.
pub const JOURNAL_BYTES_MAX: usize = 64 << 20;

/// Up to so many steps each is sent again as it was. More are merged where the session is not exact: a decoded position costs a stage
/// almost as much as eight of a prompt.
pub const REPLAYED_SINGLY_MAX: usize = 32;

/// Positions of a merged step at most: wide enough for the kernels, and the next one is on its way while it is computed. None is longer
/// than the longest step that was sent before, for an engine may take no more at once.
const MERGED_POSITIONS_MAX: usize = 256;

/// The steps that one hop of a session has sent, or has still to send, in order.
///
/// Until it is told to [`keep`](Self::keep) them it lets go of each as it is sent, and is a queue.
#[derive(Debug, Default)]
pub struct Journal {
    entries: VecDeque<Entry>,
    /// The present stream.
    main: Reader,
    /// The stream to a standby.
    mirror: Option<Reader>,
    /// Steps before this one were sent once, or need not be.
    counted: u32,
    bytes: usize,
    /// Positions of the longest step so far: no engine behind was given more.
    widest: u16,
    /// Entries of which nothing is left.
    overwritten: usize,
    keeps: bool,
    /// Steps before this one may be in no entry though somebody could need them.
    forgotten: u32,
    /// Some of what a cache behind it holds is in no entry.
    is_short: bool,
}

/// How far a stream has come.
#[derive(Debug, Clone, Copy, Default)]
struct Reader {
    /// Entries before this one are done with.
    done: usize,
    /// Steps before this one are not sent: the peer behind the stream has had them.
    wanted: u32,
    /// Steps before this one are merged, where they are sent again.
    merged: u32,
    /// The number that the peer behind the stream expects, once it has all that was sent.
    due: u32,
}

impl Reader {
    /// Sends that step: the number that was expected instead, where some were left out.
    fn passes(&mut self, step: &StepFrame) -> u32 {
        std::mem::replace(&mut self.due, step.sequence.saturating_add(1))
    }
}

#[derive(Debug)]
struct Entry {
    step: StepFrame,
    again: bool,
    owed: bool,
    /// The first later step that starts where it does or before: then nothing that it wrote is left. Its own number where it was
    /// skipped.
    overwritten: Option<u32>,
}

/// A step that is to be sent.
#[derive(Debug, PartialEq)]
pub struct Outgoing {
    /// The step.
    pub step: StepFrame,
    /// It was sent to somebody before: numbers before it may be left out.
    pub again: bool,
    /// The number behind that of the step before it on the stream: no other was lost between them.
    pub due: u32,
    /// Whoever sent us its input waits for credit for it.
    pub owed: bool,
}

impl Outgoing {
    /// The frame that carries it.
    pub fn frame(self) -> Frame {
        let Self { step, again, due, .. } = self;
        if again { Frame::Replay { due, step, checked: true } } else { Frame::Step(step) }
    }
}

impl Entry {
    /// The step, for a stream of that epoch.
    fn copy(&self, epoch: u32) -> StepFrame {
        let mut payload = StepFrame::buffer();
        payload.extend_from_slice(&self.step.payload);
        let tree = self.step.tree.clone();
        let StepFrame { sequence, start, count, rows, top, codec, pad, fence, skipped, .. } = self.step;
        StepFrame { sequence, epoch, start, count, rows, top, codec, payload, pad, tree, fence, skipped }
    }
}

impl Journal {
    /// Keeps what is sent from now on. `short`: the session has begun with positions that it took over from another.
    pub fn keep(&mut self, short: bool) {
        self.keeps = true;
        self.is_short |= short;
    }

    /// A step to send, behind all others. `again`: what it was made of was sent to us again; `owed`: see [`Outgoing`].
    pub fn push(&mut self, step: StepFrame, again: bool, owed: bool) {
        if self.keeps && !step.skipped {
            // What is written from the first position on rests on nothing.
            self.is_short &= step.start > 0;
            // Those of which something is left start one behind the other: none before the first that does so earlier is meant.
            for entry in self.entries.iter_mut().rev().filter(|entry| entry.overwritten.is_none()) {
                if entry.step.start < step.start {
                    break;
                }
                entry.overwritten = Some(step.sequence);
                self.overwritten += 1;
            }
        }
        self.bytes += step.bytes();
        self.widest = self.widest.max(if step.skipped { 0 } else { step.count });
        let overwritten = step.skipped.then_some(step.sequence);
        self.overwritten += usize::from(overwritten.is_some());
        self.entries.push_back(Entry { step, again, owed, overwritten });
        // A look at all of them pays where many may go.
        if self.overwritten > 2 * STEPS_IN_FLIGHT_MAX || self.bytes > JOURNAL_BYTES_MAX {
            self.let_go();
        }
    }

    /// Passes over the steps that the peer behind the present stream has had. Returns for how many of them credit is owed.
    #[must_use]
    pub fn pass_over(&mut self) -> usize {
        let mut owed = 0;
        let Reader { done, wanted, .. } = &mut self.main;
        while let Some(entry) = self.entries.get_mut(*done).filter(|entry| entry.step.sequence < *wanted) {
            owed += usize::from(std::mem::take(&mut entry.owed));
            self.counted = self.counted.max(entry.step.sequence.saturating_add(1));
            *done += 1;
        }
        owed
    }

    /// There is nobody to send anything to for now: all is kept for whoever comes ([`resume`](Self::resume)).
    pub fn rest(&mut self) {
        self.main.wanted = u32::MAX;
    }

    /// Whether a step waits to be sent on the present stream. [`pass_over`](Self::pass_over) comes first.
    pub fn waits(&self) -> bool {
        self.main.done < self.entries.len()
    }

    /// Sends all that there is, and all that follows, on a second stream as well: to a standby, which has had none of it. `settled`: as
    /// for [`resume`](Self::resume).
    ///
    /// False where that cannot be: some of it was let go of, or nothing is kept.
    #[must_use]
    pub fn mirror(&mut self, settled: u32) -> bool {
        self.let_go();
        let may = self.keeps && !self.is_short;
        self.mirror = may.then(|| self.begin(0, settled));
        may
    }

    /// Whether there is a second stream. It ends by itself where it is so far behind that what it needs was let go of.
    pub fn is_mirrored(&self) -> bool {
        self.mirror.is_some()
    }

    /// Whether a step waits to be sent on the second stream.
    pub fn mirror_waits(&self) -> bool {
        self.mirror.is_some_and(|mirror| mirror.done < self.entries.len())
    }

    /// The next step for the second stream, whose epoch it gets.
    pub fn send_mirror(&mut self, epoch: u32) -> Option<Outgoing> {
        let mut mirror = self.mirror?;
        let step = match self.merged(&mut mirror, epoch) {
            Some(step) => step,
            None => {
                let step = self.entries.get(mirror.done)?.copy(epoch);
                mirror.done += 1;
                step
            }
        };
        let due = mirror.passes(&step);
        self.mirror = Some(mirror);
        Some(Outgoing { step, again: true, due, owed: false })
    }

    /// The second stream takes the place of the first: for how many steps, which it alone has sent so far, credit is owed. None where
    /// there is no second stream.
    pub fn promote(&mut self) -> Option<usize> {
        let mirror = self.mirror.take()?;
        let mut owed = 0;
        for entry in self.entries.range_mut(self.main.done.min(mirror.done)..mirror.done) {
            owed += usize::from(std::mem::take(&mut entry.owed));
            entry.again = true;
            self.counted = self.counted.max(entry.step.sequence.saturating_add(1));
        }
        self.main = mirror;
        Some(owed)
    }

    /// The second stream is no more.
    pub fn end_mirror(&mut self) {
        self.mirror = None;
    }

    /// The next step for the present stream, whose epoch it gets.
    pub fn send(&mut self, epoch: u32) -> Option<Outgoing> {
        if !self.keeps {
            let Entry { step, again, owed, .. } = self.entries.pop_front()?;
            self.bytes -= step.bytes();
            let due = self.main.passes(&step);
            return Some(Outgoing { step: StepFrame { epoch, ..step }, again, due, owed });
        }
        let mut main = self.main;
        if let Some(step) = self.merged(&mut main, epoch) {
            let due = main.passes(&step);
            self.main = main;
            return Some(Outgoing { step, again: true, due, owed: false });
        }
        let entry = self.entries.get_mut(main.done)?;
        let again = std::mem::replace(&mut entry.again, true);
        let owed = std::mem::take(&mut entry.owed);
        self.counted = self.counted.max(entry.step.sequence.saturating_add(1));
        self.main.done += 1;
        let due = self.main.passes(&entry.step);
        Some(Outgoing { step: entry.copy(epoch), again, due, owed })
    }

    /// As many of the next steps as one may hold, as one: what is left of each, for whoever has had none of them. None where the next
    /// is to go as it was.
    fn merged(&self, reader: &mut Reader, epoch: u32) -> Option<StepFrame> {
        let may = |entry: &&Entry| entry.step.sequence < reader.merged && entry.again && !entry.owed;
        let run = self.entries.range(reader.done..).take_while(may).count();
        // What comes behind the run goes as it was, and so may rest on anything that was there.
        let run = self.entries.range(reader.done..reader.done + run).rposition(|entry| !entry.step.skipped)? + 1;
        let end = self.entries.get(reader.done + run - 1)?.step.sequence;
        // Of these nothing is left, and nothing that comes later rests on them.
        let is_void = |entry: &Entry| entry.overwritten.is_some_and(|by| by <= end);
        let max = MERGED_POSITIONS_MAX.min(self.widest.into());
        let (mut payload, mut count, mut sent) = (StepFrame::buffer(), 0, 0);
        let mut first: Option<&StepFrame> = None;
        let mut sequence = 0;
        for (at, entry) in self.entries.range(reader.done..reader.done + run).enumerate() {
            let step = &entry.step;
            if is_void(entry) {
                continue;
            }
            let next = self.entries.range(reader.done + at + 1..).find(|later| !is_void(later));
            let trunk = step.tree.trunk(step.count.into());
            let left = next.map_or(trunk, |next| trunk.min(next.step.start.saturating_sub(step.start) as usize));
            let is_alike = first.is_none_or(|first| (first.codec, first.pad) == (step.codec, step.pad));
            if !is_alike || count + left > max.max(left) {
                break;
            }
            first.get_or_insert(step);
            let row = step.payload.len() / usize::from(step.count).max(1);
            payload.extend_from_slice(&step.payload[..left * row]);
            count += left;
            (sequence, sent) = (step.sequence, at + 1);
        }
        let &StepFrame { start, codec, pad, .. } = first.filter(|_| count > 0)?;
        reader.done += sent;
        let (rows, top, tree, fence, skipped) = (Rows::None, 0, Tree::chain(), false, false);
        let count = count as u16;
        Some(StepFrame { sequence, epoch, start, count, rows, top, codec, payload, pad, tree, fence, skipped })
    }

    /// Another stream takes the place of the present one. `expected`: the step that the peer behind it has not had; a
    /// substitute has had none, and is sent all that there is. `settled`: the last peer has answered the steps before that one, so
    /// that nobody else needs them one by one, and many of them may be merged; 0: all go as they were.
    ///
    /// False where that cannot be: some of it was let go of.
    #[must_use]
    pub fn resume(&mut self, expected: u32, settled: u32) -> bool {
        self.let_go();
        self.main = self.begin(expected, settled);
        let first = self.entries.iter().find(|entry| entry.step.sequence >= expected);
        match expected {
            0 => !self.is_short,
            // Numbers are left out before what was sent to somebody, and nowhere else.
            _ => {
                let is_next = first.is_none_or(|entry| entry.again || entry.step.sequence == expected);
                self.keeps && expected >= self.forgotten && is_next
            }
        }
    }

    /// The peer behind the present stream is reached on another one, and goes on where it was: it has had the steps before `expected`,
    /// and what the session began with.
    ///
    /// False where that cannot be: some of what it has not had was let go of, or it was about to be sent merged steps.
    #[must_use]
    pub fn go_on(&mut self, expected: u32, settled: u32) -> bool {
        if expected == 0 {
            return self.resume(0, settled) || self.forgotten == 0;
        }
        // What a merged step left out is not sent one by one.
        expected >= self.main.merged && self.resume(expected, 0)
    }

    /// A stream that begins.
    fn begin(&self, expected: u32, settled: u32) -> Reader {
        // A row of the last one may be asked for yet: it stays what it was.
        let settled = if expected == 0 { settled.saturating_sub(1) } else { 0 };
        let steps = self.entries.iter().filter(|entry| entry.step.sequence < settled).count();
        let merged = if steps > REPLAYED_SINGLY_MAX { settled } else { 0 };
        Reader { done: 0, wanted: expected, merged, due: expected }
    }

    /// Whoever was owed credit is gone.
    pub fn forgive(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.owed = false);
    }

    /// Steps that wait to be sent for the first time, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        let waiting = self.entries.range(self.main.done.min(self.entries.len())..);
        let waiting = waiting.filter(|entry| entry.step.sequence >= self.counted);
        waiting.fold((0, 0), |(steps, bytes), entry| (steps + 1, bytes + entry.step.bytes()))
    }

    /// Bytes of the steps that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lets go of what is of no use to anybody, and of the oldest where there is too much.
    fn let_go(&mut self) {
        if !self.keeps {
            return;
        }
        // A peer that counts steps may be as far behind as steps are in flight. What was written again before that is of use to
        // nobody; and a step goes with all that built on it, for those were written again no later.
        let newest = self.entries.back().map_or(0, |entry| entry.step.sequence);
        let counted = self.counted.min(newest.saturating_sub(STEPS_IN_FLIGHT_MAX as u32));
        let (mut at, sent) = (0, self.main.done);
        let mirrored = self.mirror.map_or(0, |mirror| mirror.done);
        self.entries.retain(|entry| {
            let is_of_use = entry.overwritten.is_none_or(|by| by >= counted);
            at += 1;
            if !is_of_use {
                self.bytes -= entry.step.bytes();
                self.overwritten -= 1;
                self.main.done -= usize::from(at <= sent);
                if let Some(mirror) = &mut self.mirror {
                    mirror.done -= usize::from(at <= mirrored);
                }
            }
            is_of_use
        });
        while self.bytes > JOURNAL_BYTES_MAX
            && self.main.done > 0
            && let Some(Entry { step, overwritten, .. }) = self.entries.pop_front()
        {
            self.bytes -= step.bytes();
            self.main.done -= 1;
            // Whoever is so far behind has to begin anew, and cannot.
            self.mirror =
                self.mirror.filter(|mirror| mirror.done > 0).map(|mirror| Reader { done: mirror.done - 1, ..mirror });
            self.forgotten = step.sequence.saturating_add(1);
            self.overwritten -= usize::from(overwritten.is_some());
            self.is_short |= overwritten.is_none();
        }
    }
}

#[cfg(test)]
mod tests {
    use potluck_wire::Codec;

    use super::*;

    fn step(sequence: u32, start: u32, count: u16) -> StepFrame {
        StepFrame {
            sequence,
            epoch: 0,
            start,
            count,
            rows: Rows::None,
            top: 0,
            codec: Codec::F16,
            payload: vec![sequence as u8; 4 * usize::from(count)],
            pad: false,
            tree: Tree::chain(),
            fence: false,
            skipped: false,
        }
    }

    fn sent(journal: &mut Journal, epoch: u32) -> Vec<(u32, bool)> {
        let _ = journal.pass_over();
        let out: Vec<_> = std::iter::from_fn(|| journal.send(epoch)).collect();
        assert!(out.iter().all(|out| out.step.epoch == epoch && !out.owed));
        for pair in out.windows(2) {
            assert_eq!(pair[1].due, pair[0].step.sequence + 1, "each says which one it comes behind");
        }
        out.iter().map(|out| (out.step.sequence, out.again)).collect()
    }

    /// A journal that keeps, and has sent these (start, count), and what waits in it.
    fn after(steps: &[(u32, u16)]) -> Journal {
        let mut journal = Journal::default();
        journal.keep(false);
        for (sequence, &(start, count)) in steps.iter().enumerate() {
            journal.push(step(sequence as u32, start, count), false, false);
            assert_eq!(sent(&mut journal, 0), [(sequence as u32, false)]);
        }
        journal
    }

    #[test]
    fn a_queue_lets_go_of_what_it_sent() {
        let mut journal = Journal::default();
        (0..3).for_each(|sequence| journal.push(step(sequence, sequence, 1), false, true));
        assert!(journal.waits() && journal.bytes() > 0);
        let out: Vec<_> = std::iter::from_fn(|| journal.send(4)).collect();
        assert_eq!(out.len(), 3);
        assert!(out.iter().all(|out| out.owed && !out.again && out.step.epoch == 4));
        assert_eq!((journal.bytes(), journal.waits()), (0, false));
        assert!(!journal.resume(2, 0), "nothing is kept");
    }

    #[test]
    fn a_substitute_is_sent_the_same_steps_and_then_the_next() {
        let mut journal = after(&[(0, 8), (8, 1), (9, 3)]);
        assert!(journal.resume(0, 0));
        journal.push(step(3, 12, 1), false, false);
        assert_eq!(sent(&mut journal, 1), [(0, true), (1, true), (2, true), (3, false)]);
        // A second substitute, and the payloads are still what they were.
        assert!(journal.resume(0, 0));
        let all: Vec<_> = std::iter::from_fn(|| journal.send(2)).collect();
        assert!(all.iter().all(|out| out.again && out.step.payload.iter().all(|&b| u32::from(b) == out.step.sequence)));
    }

    #[test]
    fn who_was_there_before_is_sent_what_it_has_not_had() {
        let mut journal = after(&[(0, 8), (8, 1), (9, 1), (10, 1)]);
        assert!(journal.resume(2, 0));
        assert_eq!(sent(&mut journal, 1), [(2, true), (3, true)]);
        assert!(journal.resume(4, 0));
        assert_eq!(sent(&mut journal, 1), []);
    }

    #[test]
    fn what_was_written_again_is_left_out_once_everybody_has_counted_it() {
        let many: Vec<(u32, u16)> = (0..STEPS_IN_FLIGHT_MAX as u32 + 20).map(|n| (8 + n, 1)).collect();
        // A draft of four, of which two hold; then one after the other.
        let mut journal = after(&[&[(0, 8), (8, 4), (8, 2), (9, 4)], &many[2..]].concat());
        assert!(journal.resume(0, 0));
        let again: Vec<u32> = sent(&mut journal, 1).iter().map(|(sequence, _)| *sequence).collect();
        // 1 was written again by 2, which starts there. Of 2 one position is in use; 3 was written again from 10 on, not at 9.
        assert_eq!(again[..4], [0, 2, 3, 4]);
        assert!(again.windows(2).skip(1).all(|pair| pair[1] == pair[0] + 1));
    }

    #[test]
    fn what_was_overwritten_of_late_is_kept_for_who_counts() {
        let mut journal = after(&[(0, 8), (8, 4), (8, 4), (8, 4)]);
        assert!(journal.resume(1, 0));
        assert_eq!(sent(&mut journal, 1), [(1, true), (2, true), (3, true)]);
    }

    #[test]
    fn what_is_sent_to_us_again_is_passed_on_to_who_has_not_had_it() {
        let mut journal = Journal::default();
        journal.keep(false);
        assert!(journal.resume(7, 0), "a substitute, whose next peer has had seven");
        for (sequence, start) in [(0, 0), (3, 8), (6, 9), (7, 10)] {
            journal.push(step(sequence, start, 1), sequence < 8, true);
        }
        assert_eq!(journal.pass_over(), 3);
        let next = journal.send(1).unwrap();
        assert_eq!((next.step.sequence, next.again, next.owed), (7, true, true));
        // Its next peer is lost as well: the substitute there has had none.
        assert!(journal.resume(0, 0));
        assert_eq!(sent(&mut journal, 2), [(0, true), (3, true), (6, true), (7, true)]);
    }

    #[test]
    fn who_goes_on_where_it_was_needs_nothing_that_it_has_had() {
        let sent = |journal: &mut Journal| {
            std::iter::from_fn(|| journal.send(0)).map(|it| it.step.sequence).collect::<Vec<_>>()
        };
        // The session began with another's positions: whoever is there has them.
        let mut journal = Journal::default();
        journal.keep(true);
        journal.push(step(0, 4, 1), false, false);
        assert!(!journal.resume(0, 0) && journal.go_on(0, 0));
        assert_eq!(sent(&mut journal), [0]);
        journal.push(step(1, 5, 1), false, false);
        assert!(journal.go_on(1, 0));
        assert_eq!(journal.pass_over(), 0);
        assert_eq!(sent(&mut journal), [1]);
        // Whoever was in the midst of merged steps goes on with none of those that were left out.
        let mut journal = Journal::default();
        journal.keep(false);
        (0..40).for_each(|n| journal.push(step(n, n, 1), false, false));
        sent(&mut journal);
        assert!(journal.resume(0, 40));
        journal.send(0);
        assert!(!journal.go_on(2, 40));
        assert!(journal.go_on(0, 40) && journal.go_on(39, 40));
    }

    #[test]
    fn a_skipped_step_keeps_its_number_and_overwrites_nothing() {
        let mut journal = after(&[(0, 8), (8, 4)]);
        journal.push(StepFrame::skipped(2, 0, 8, 1), false, false);
        assert!(journal.resume(0, 0));
        assert_eq!(sent(&mut journal, 1), [(0, true), (1, true), (2, false)]);
    }

    #[test]
    fn what_outgrows_its_bound_is_let_go_of_and_says_so() {
        let mut journal = Journal::default();
        journal.keep(false);
        let large = |sequence: u32| StepFrame { payload: vec![0; 1 << 20], ..step(sequence, 512 * sequence, 512) };
        for sequence in 0..70 {
            journal.push(large(sequence), false, false);
            assert_eq!(sent(&mut journal, 0), [(sequence, false)]);
        }
        assert!(journal.bytes() <= JOURNAL_BYTES_MAX + (2 << 20), "{}", journal.bytes());
        assert!(journal.resume(60, 0), "who was there needs the last ones alone");
        assert!(!journal.resume(0, 0));
        assert!(!journal.resume(1, 0), "the second is gone");
        let mut journal = Journal::default();
        journal.keep(true);
        assert!(!journal.resume(0, 0), "the first positions are another session's");
    }

    #[test]
    fn nobody_is_given_credit_who_is_gone() {
        let mut journal = Journal::default();
        journal.keep(false);
        journal.push(step(0, 0, 1), false, true);
        journal.forgive();
        assert!(!journal.send(0).unwrap().owed);
    }

    #[test]
    fn many_steps_that_are_settled_are_merged_and_the_last_of_them_stays() {
        let mut steps = vec![(0, 256), (200, 4)];
        steps.extend((1..60).map(|n| (200 + n, 1)));
        let mut journal = after(&steps);
        assert!(journal.resume(0, 50));
        let _ = journal.pass_over();
        let out: Vec<_> = std::iter::from_fn(|| journal.send(1)).collect();
        let shapes: Vec<_> = out.iter().map(|out| (out.step.sequence, out.step.start, out.step.count)).collect();
        assert_eq!(shapes[..2], [(48, 0, 248), (49, 248, 1)]);
        assert_eq!(shapes.len(), 1 + 12);
        assert!(out.iter().all(|out| out.again && out.step.epoch == 1 && out.step.tree == Tree::chain()));
        let payload = &out[0].step.payload;
        assert_eq!(payload.len(), 4 * 248);
        assert_eq!((payload[0], payload[4 * 200], payload[4 * 247]), (0, 1, 48));
        // Few go as they were, and so do all where nothing may be merged.
        assert!(journal.resume(0, 30) && sent(&mut journal, 2).len() == 61);
        assert!(journal.resume(0, 0) && sent(&mut journal, 3).len() == 61);
        // Who has had some is sent the others.
        assert!(journal.resume(59, 50) && sent(&mut journal, 4).len() == 2);
    }

    #[test]
    fn of_what_was_written_again_only_what_is_left_is_merged() {
        // Guesses of four, of which two hold each time.
        let mut steps = vec![(0, 220), (8, 4)];
        steps.extend((1..100).map(|n| (8 + 2 * n, 4)));
        let mut journal = after(&steps);
        journal.push(StepFrame::skipped(101, 0, 100, 1), false, false);
        assert_eq!(sent(&mut journal, 0).len(), 1);
        assert!(journal.resume(0, 101));
        let _ = journal.pass_over();
        let out: Vec<_> = std::iter::from_fn(|| journal.send(1)).collect();
        let shapes: Vec<_> = out.iter().map(|out| (out.step.sequence, out.step.start, out.step.count)).collect();
        assert_eq!(shapes, [(99, 0, 8 + 2 * 99), (100, 206, 4), (101, 100, 1)]);
        assert_eq!(out[0].step.payload[4 * 8..4 * 12], [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn a_merged_step_has_room_for_so_many_positions() {
        let steps: Vec<(u32, u16)> = (0..40).map(|n| (20 * n, 20)).collect();
        let mut journal = after(&steps);
        assert!(journal.resume(0, 40));
        let _ = journal.pass_over();
        let counts: Vec<u16> = std::iter::from_fn(|| journal.send(1)).map(|out| out.step.count).collect();
        assert_eq!(counts, [20; 40], "as many as the longest that an engine was given");
        let steps: Vec<(u32, u16)> = (0..40).map(|n| (20 * n, 20)).chain([(800, 512), (900, 1)]).collect();
        let mut journal = after(&steps);
        assert!(journal.resume(0, 42));
        let _ = journal.pass_over();
        let counts: Vec<u16> = std::iter::from_fn(|| journal.send(1)).map(|out| out.step.count).collect();
        assert_eq!(counts, [240, 240, 240, 180, 1]);
    }

    /// What a peer that begins with nothing makes of these steps: each starts where it holds something, and what it holds in the end.
    fn computed(out: &[Outgoing]) -> Vec<u8> {
        let mut rows: Vec<u8> = Vec::new();
        for Outgoing { step, .. } in out {
            let (start, count) = (step.start as usize, usize::from(step.count));
            assert!(start <= rows.len(), "step {} starts at {start}; {} are held", step.sequence, rows.len());
            if !step.skipped {
                rows.truncate(start);
                rows.extend(step.payload.chunks(4).map(|row| row[0]));
            }
            rows.resize(rows.len().max(start + count), 0);
        }
        rows
    }

    #[test]
    fn nothing_that_goes_as_it_was_starts_beyond_what_was_merged() {
        // Guesses from 60 on, of which one holds; more behind them, which are skipped; and what is right, which fences them off.
        let mut steps: Vec<(u32, u16)> = vec![(0, 20)];
        steps.extend((20..60).map(|start| (start, 1)));
        steps.push((60, 4));
        for (skipped, settled) in [(1, 43), (1, 44), (1, 45), (2, 43), (2, 44), (2, 45), (2, 46)] {
            let mut journal = after(&steps);
            let mut sequence = steps.len() as u32;
            for n in 0..skipped {
                journal.push(StepFrame::skipped(sequence, 0, 64 + 2 * n, 2), false, false);
                sequence += 1;
            }
            journal.push(step(sequence, 61, 2), false, false);
            journal.push(step(sequence + 1, 63, 1), false, false);
            assert_eq!(sent(&mut journal, 0).len(), skipped as usize + 2);
            assert!(journal.resume(0, settled));
            let _ = journal.pass_over();
            let out: Vec<_> = std::iter::from_fn(|| journal.send(1)).collect();
            assert!(out.len() < 20, "{settled}: {} steps", out.len());
            let rows = computed(&out);
            let numbers: Vec<u8> = (0..64)
                .map(|at| match at {
                    0..20 => 0,
                    20..=60 => at - 19,
                    61..63 => sequence as u8,
                    _ => sequence as u8 + 1,
                })
                .collect();
            assert_eq!(rows[..64], numbers, "{skipped} {settled}");
        }
    }

    #[test]
    fn what_is_owed_for_goes_as_it_was() {
        let mut journal = Journal::default();
        journal.keep(false);
        journal.push(step(0, 0, 30), true, false);
        (1..32).for_each(|n| journal.push(step(n, 29 + n, 1), true, false));
        journal.push(step(32, 61, 4), true, false);
        // Sent to us again, and not passed on yet when the next peer was lost.
        for (sequence, start, count) in [(33, 65, 2), (34, 62, 1), (35, 63, 1)] {
            journal.push(step(sequence, start, count), true, true);
        }
        assert!(journal.resume(0, 36));
        let _ = journal.pass_over();
        let out: Vec<_> = std::iter::from_fn(|| journal.send(1)).collect();
        assert_eq!(out.iter().filter(|out| out.owed).count(), 3);
        assert_eq!(computed(&out)[60..], [31, 32, 34, 35]);
    }

    #[test]
    fn a_standby_is_sent_everything_at_its_own_pace_and_takes_over_where_it_is() {
        let mut journal = after(&[(0, 8), (8, 1), (9, 1)]);
        assert!(!journal.mirror_waits() && journal.mirror(0) && journal.is_mirrored());
        let numbers = |journal: &mut Journal| -> Vec<u32> {
            std::iter::from_fn(|| journal.send_mirror(7)).map(|out| out.step.sequence).collect()
        };
        assert_eq!(journal.send_mirror(7).map(|out| (out.step.sequence, out.step.epoch)), Some((0, 7)));
        journal.push(step(3, 10, 1), false, true);
        assert_eq!(numbers(&mut journal), [1, 2, 3]);
        // What it is sent first is still to be sent to the other, and owed.
        let out = journal.send(1).unwrap();
        assert_eq!((out.step.sequence, out.again, out.owed), (3, false, true));
        journal.push(step(4, 11, 1), false, false);
        assert_eq!((journal.promote(), journal.is_mirrored(), journal.promote()), (Some(0), false, None));
        assert_eq!(sent(&mut journal, 7), [(4, false)]);
    }

    #[test]
    fn what_a_standby_alone_was_sent_counts_as_sent_once_it_takes_over() {
        let mut journal = after(&[(0, 8)]);
        assert!(journal.mirror(0));
        for n in 1..100 {
            journal.push(step(n, 7 + n.min(20), 1), false, true);
        }
        assert_eq!(journal.waiting().0, 99, "the other has had none of these");
        assert_eq!(std::iter::from_fn(|| journal.send_mirror(7)).count(), 100);
        assert_eq!(journal.promote(), Some(99));
        assert_eq!(journal.waiting(), (0, 0));
        // Numbers may be left out before each of them, whoever comes next.
        assert!(journal.resume(0, 0));
        assert_eq!(journal.waiting().0, 0, "nothing waits to be sent for the first time");
        assert!(sent(&mut journal, 8).iter().all(|(_, again)| *again));
    }

    #[test]
    fn a_standby_that_is_too_far_behind_is_one_no_more() {
        let mut journal = Journal::default();
        journal.keep(false);
        let large = |sequence: u32| StepFrame { payload: vec![0; 1 << 20], ..step(sequence, 512 * sequence, 512) };
        journal.push(large(0), false, false);
        assert!(journal.mirror(0));
        for sequence in 1..70 {
            journal.push(large(sequence), false, false);
            assert!(!sent(&mut journal, 0).is_empty());
        }
        assert!(!journal.is_mirrored() && !journal.mirror_waits());
        assert!(!journal.mirror(0), "its first steps are gone");
    }
}
