//! How many frames may be under way between two neighbours.

use potluck_wire::HOP_FRAMES_MAX;

/// The sender's side: what it may still send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit(u32);

impl Default for Credit {
    fn default() -> Self {
        Self(HOP_FRAMES_MAX)
    }
}

impl Credit {
    /// Takes one frame's worth; false where none is left and the frame has to wait.
    pub fn take(&mut self) -> bool {
        let left = self.0.checked_sub(1);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }

    /// The receiver granted more. A receiver that grants beyond the window is at fault: false.
    #[must_use]
    pub fn grant(&mut self, frames: u32) -> bool {
        match self.0.checked_add(frames) {
            Some(total) if total <= HOP_FRAMES_MAX => {
                self.0 = total;
                true
            }
            _ => false,
        }
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
        (self.done >= Self::BATCH).then(|| std::mem::take(&mut self.done))
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
    }

    #[test]
    fn an_overstep_is_noticed() {
        let mut receipts = Receipts::default();
        assert!((0..HOP_FRAMES_MAX).all(|_| receipts.received()));
        assert!(!receipts.received());
    }
}
