//! What a sender has sent of a session, so that another peer can take the place of the one that it was sent to.
//!
//! A step is kept as it was sent, and as long as one of its positions is in use: kernels round differently for other batch
//! shapes, so a substitute is sent the very steps that the lost peer had had. A step all of whose positions were written
//! again by a later one changes nothing, and is left out.

use std::collections::VecDeque;

use potluck_wire::StepFrame;

use crate::STEPS_IN_FLIGHT_MAX;

/// Bytes of the steps that a sender keeps of one session: 4,096 positions of the widest models in `f16`. Of longer sessions
/// the first steps are let go of, and whoever takes a lost peer's place has to be sent the tokens again.
pub const JOURNAL_BYTES_MAX: usize = 64 << 20;

/// The steps that one hop of a session has sent, or has still to send, in order.
///
/// Until it is told to [`keep`](Self::keep) them it lets go of each as it is sent, and is a queue.
#[derive(Debug, Default)]
pub struct Journal {
    entries: VecDeque<Entry>,
    /// Entries before this one are done with on the present stream.
    done: usize,
    /// Steps before this one are not sent on the present stream: the peer behind it has had them.
    wanted: u32,
    /// Steps before this one were sent once, or need not be.
    counted: u32,
    bytes: usize,
    /// Entries of which nothing is left.
    overwritten: usize,
    keeps: bool,
    /// Steps before this one may be in no entry though somebody could need them.
    forgotten: u32,
    /// Some of what a cache behind it holds is in no entry.
    is_short: bool,
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
    /// Whoever sent us its input waits for credit for it.
    pub owed: bool,
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
        while let Some(entry) = self.entries.get_mut(self.done).filter(|entry| entry.step.sequence < self.wanted) {
            owed += usize::from(std::mem::take(&mut entry.owed));
            self.counted = self.counted.max(entry.step.sequence.saturating_add(1));
            self.done += 1;
        }
        owed
    }

    /// Whether a step waits to be sent on the present stream. [`pass_over`](Self::pass_over) comes first.
    pub fn waits(&self) -> bool {
        self.done < self.entries.len()
    }

    /// The next step for the present stream, whose epoch it gets.
    pub fn send(&mut self, epoch: u32) -> Option<Outgoing> {
        if !self.keeps {
            let Entry { step, again, owed, .. } = self.entries.pop_front()?;
            self.bytes -= step.bytes();
            return Some(Outgoing { step: StepFrame { epoch, ..step }, again, owed });
        }
        let entry = self.entries.get_mut(self.done)?;
        let again = std::mem::replace(&mut entry.again, true);
        let owed = std::mem::take(&mut entry.owed);
        self.counted = self.counted.max(entry.step.sequence.saturating_add(1));
        let mut payload = StepFrame::buffer();
        payload.extend_from_slice(&entry.step.payload);
        let tree = entry.step.tree.clone();
        let StepFrame { sequence, start, count, rows, top, codec, pad, fence, skipped, .. } = entry.step;
        let step = StepFrame { sequence, epoch, start, count, rows, top, codec, payload, pad, tree, fence, skipped };
        self.done += 1;
        Some(Outgoing { step, again, owed })
    }

    /// Another stream takes the place of the present one. `expected`: the step that the peer behind it has not had; a
    /// substitute has had none, and is sent all that there is.
    ///
    /// False where that cannot be: some of it was let go of.
    #[must_use]
    pub fn resume(&mut self, expected: u32) -> bool {
        self.let_go();
        (self.done, self.wanted) = (0, expected);
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

    /// Whoever was owed credit is gone.
    pub fn forgive(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.owed = false);
    }

    /// Steps that wait to be sent on the present stream, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        let waiting = self.entries.range(self.done.min(self.entries.len())..);
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
        let (mut at, sent) = (0, self.done);
        self.entries.retain(|entry| {
            let is_of_use = entry.overwritten.is_none_or(|by| by >= counted);
            at += 1;
            if !is_of_use {
                self.bytes -= entry.step.bytes();
                self.overwritten -= 1;
                self.done -= usize::from(at <= sent);
            }
            is_of_use
        });
        while self.bytes > JOURNAL_BYTES_MAX
            && self.done > 0
            && let Some(Entry { step, overwritten, .. }) = self.entries.pop_front()
        {
            self.bytes -= step.bytes();
            self.done -= 1;
            self.forgotten = step.sequence.saturating_add(1);
            self.overwritten -= usize::from(overwritten.is_some());
            self.is_short |= overwritten.is_none();
        }
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{Rows, Tree};
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
        assert!(!journal.resume(2), "nothing is kept");
    }

    #[test]
    fn a_substitute_is_sent_the_same_steps_and_then_the_next() {
        let mut journal = after(&[(0, 8), (8, 1), (9, 3)]);
        assert!(journal.resume(0));
        journal.push(step(3, 12, 1), false, false);
        assert_eq!(sent(&mut journal, 1), [(0, true), (1, true), (2, true), (3, false)]);
        // A second substitute, and the payloads are still what they were.
        assert!(journal.resume(0));
        let all: Vec<_> = std::iter::from_fn(|| journal.send(2)).collect();
        assert!(all.iter().all(|out| out.again && out.step.payload.iter().all(|&b| u32::from(b) == out.step.sequence)));
    }

    #[test]
    fn who_was_there_before_is_sent_what_it_has_not_had() {
        let mut journal = after(&[(0, 8), (8, 1), (9, 1), (10, 1)]);
        assert!(journal.resume(2));
        assert_eq!(sent(&mut journal, 1), [(2, true), (3, true)]);
        assert!(journal.resume(4));
        assert_eq!(sent(&mut journal, 1), []);
    }

    #[test]
    fn what_was_written_again_is_left_out_once_everybody_has_counted_it() {
        let many: Vec<(u32, u16)> = (0..STEPS_IN_FLIGHT_MAX as u32 + 20).map(|n| (8 + n, 1)).collect();
        // A draft of four, of which two hold; then one after the other.
        let mut journal = after(&[&[(0, 8), (8, 4), (8, 2), (9, 4)], &many[2..]].concat());
        assert!(journal.resume(0));
        let again: Vec<u32> = sent(&mut journal, 1).iter().map(|(sequence, _)| *sequence).collect();
        // 1 was written again by 2, which starts there. Of 2 one position is in use; 3 was written again from 10 on, not at 9.
        assert_eq!(again[..4], [0, 2, 3, 4]);
        assert!(again.windows(2).skip(1).all(|pair| pair[1] == pair[0] + 1));
    }

    #[test]
    fn what_was_overwritten_of_late_is_kept_for_who_counts() {
        let mut journal = after(&[(0, 8), (8, 4), (8, 4), (8, 4)]);
        assert!(journal.resume(1));
        assert_eq!(sent(&mut journal, 1), [(1, true), (2, true), (3, true)]);
    }

    #[test]
    fn what_is_sent_to_us_again_is_passed_on_to_who_has_not_had_it() {
        let mut journal = Journal::default();
        journal.keep(false);
        assert!(journal.resume(7), "a substitute, whose next peer has had seven");
        for (sequence, start) in [(0, 0), (3, 8), (6, 9), (7, 10)] {
            journal.push(step(sequence, start, 1), sequence < 8, true);
        }
        assert_eq!(journal.pass_over(), 3);
        let next = journal.send(1).unwrap();
        assert_eq!((next.step.sequence, next.again, next.owed), (7, true, true));
        // Its next peer is lost as well: the substitute there has had none.
        assert!(journal.resume(0));
        assert_eq!(sent(&mut journal, 2), [(0, true), (3, true), (6, true), (7, true)]);
    }

    #[test]
    fn a_skipped_step_keeps_its_number_and_overwrites_nothing() {
        let mut journal = after(&[(0, 8), (8, 4)]);
        journal.push(StepFrame::skipped(2, 0, 8, 1), false, false);
        assert!(journal.resume(0));
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
        assert!(journal.resume(60), "who was there needs the last ones alone");
        assert!(!journal.resume(0));
        assert!(!journal.resume(1), "the second is gone");
        let mut journal = Journal::default();
        journal.keep(true);
        assert!(!journal.resume(0), "the first positions are another session's");
    }

    #[test]
    fn nobody_is_given_credit_who_is_gone() {
        let mut journal = Journal::default();
        journal.keep(false);
        journal.push(step(0, 0, 1), false, true);
        journal.forgive();
        assert!(!journal.send(0).unwrap().owed);
    }
}
