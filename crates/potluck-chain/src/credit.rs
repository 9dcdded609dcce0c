//! How many frames may be under way between two neighbours.

use potluck_wire::HOP_FRAMES_MAX;

/// The sender's side: what it may still send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    left: u32,
    /// Frames sent so far.
    sent: u64,
}

impl Default for Credit {
    fn default() -> Self {
        Self { left: HOP_FRAMES_MAX, sent: 0 }
    }
}

impl Credit {
    /// Takes one frame's worth; false where none is left and the frame has to wait.
    pub fn take(&mut self) -> bool {
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        self.sent += u64::from(left.is_some());
        left.is_some()
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Frames that the receiver has said it is done with, so far.
    pub fn done(&self) -> u64 {
        self.sent.saturating_sub(u64::from(HOP_FRAMES_MAX - self.left))
    }

    /// The receiver granted more. A receiver that grants beyond the window is at fault: false.
    #[must_use]
    pub fn grant(&mut self, frames: u32) -> bool {
        match self.left.checked_add(frames) {
            Some(total) if total <= HOP_FRAMES_MAX => {
                self.left = total;
                true
            }
            _ => false,
        }
    }
}

/// Whether a standby has come as far as the peer that it stands by for: once it is done with all that had been sent when nothing waited
/// any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Level {
    /// What it has to be done with; none: something waits yet.
    mark: Option<u64>,
    reached: bool,
}

impl Level {
    /// What was sent, and what it is done with. `waits`: something is still to be sent. True once, when it is as far.
    pub fn look(&mut self, credit: &Credit, waits: bool) -> bool {
        if !waits {
            self.mark.get_or_insert(credit.sent());
        }
        let is_level = !self.reached && self.mark.is_some_and(|mark| credit.done() >= mark);
        self.reached |= is_level;
        is_level
    }
}

/// The receiver's side: what the sender may still send, and when to grant more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Receipts {
    open: u32,
    done: u32,
}

impl Receipts {
    /// Frames that are done with before they are granted back: fewer credits, fewer packets.
    const BATCH: u32 = HOP_FRAMES_MAX / 4;

    /// A frame came; false where the sender had no credit for it.
    #[must_use]
    pub fn received(&mut self) -> bool {
        self.open += 1;
        self.open + self.done <= HOP_FRAMES_MAX
    }

    /// A frame is done with. The credit to grant now, if it is time.
    #[must_use]
    pub fn finished(&mut self) -> Option<u32> {
        self.open = self.open.saturating_sub(1);
        self.done += 1;
        (self.done >= Self::BATCH).then(|| self.take()).flatten()
    }

    /// What is done with and not granted yet, where that is not to wait for more.
    #[must_use]
    pub fn take(&mut self) -> Option<u32> {
        Some(std::mem::take(&mut self.done)).filter(|done| *done > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_that_waits_for_credit_never_oversteps() {
        let (mut credit, mut receipts) = (Credit::default(), Receipts::default());
        for _ in 0..1_000 {
            while credit.take() {
                assert!(receipts.received());
            }
            let granted = (0..HOP_FRAMES_MAX).filter_map(|_| receipts.finished()).sum();
            assert_eq!(granted, HOP_FRAMES_MAX);
            assert!(credit.grant(granted));
        }
        assert!(!credit.grant(1), "more than the window");
        let sent = credit.sent();
        assert_eq!(credit.done(), sent);
        assert!(credit.take() && credit.take() && receipts.received() && receipts.received());
        assert_eq!((credit.sent(), credit.done(), receipts.finished()), (sent + 2, sent, None));
        assert_eq!((receipts.take(), receipts.take()), (Some(1), None));
        assert!(credit.grant(1));
        assert_eq!(credit.done(), sent + 1);
    }

    #[test]
    fn whoever_is_done_with_what_was_there_is_as_far() {
        let (mut credit, mut level) = (Credit::default(), Level::default());
        assert!((0..3).all(|_| credit.take()));
        assert!(!level.look(&credit, true) && credit.grant(3) && !level.look(&credit, true), "more waits");
        assert!((0..2).all(|_| credit.take()) && !level.look(&credit, false));
        // What comes later has to be done with by nobody.
        assert!((0..5).all(|_| credit.take()) && credit.grant(1) && !level.look(&credit, true));
        assert!(credit.grant(1) && level.look(&credit, true));
        assert!(!level.look(&credit, false), "once");
        assert!(Level::default().look(&Credit::default(), false), "where there was nothing");
    }

    #[test]
    fn an_overstep_is_noticed() {
        let mut receipts = Receipts::default();
        assert!((0..HOP_FRAMES_MAX).all(|_| receipts.received()));
        assert!(!receipts.received());
    }
}
