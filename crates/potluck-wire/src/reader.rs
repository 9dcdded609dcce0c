//! From a stream's bytes to frames.

use potluck_core::Defence;

use crate::{Frame, WireError};

/// Bytes of a frame's length field.
const LENGTH_BYTES: usize = 4;

/// Room that is made for a payload when it begins to come, at most: enough for a token's step. The room of longer ones
/// grows with what comes: announcing something makes none.
const ROOM_BYTES: usize = 64 << 10;

/// Cuts a stream's bytes into frames, and holds no more than one frame's bytes plus what was pushed last.
///
/// A step's payload is copied once, from [`read`](Self::read)'s bytes to where it stays.
///
/// After an error the stream is out of step and is to be closed: every further call returns the error again.
#[derive(Debug)]
pub struct FrameReader {
    /// What was pushed, and how much of it was read.
    pushed: Vec<u8>,
    taken: usize,
    /// Of a frame that has begun to come: its length, and what comes before its payload.
    lead: Vec<u8>,
    /// What has come of its payload.
    payload: Vec<u8>,
    frame_bytes_max: usize,
    failed: Option<WireError>,
}

impl FrameReader {
    /// A reader that refuses frames of more than `frame_bytes_max` bytes.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { pushed: Vec::new(), taken: 0, lead: Vec::new(), payload: Vec::new(), frame_bytes_max, failed: None }
    }

    /// Changes the limit: a stream starts with the one for control frames, and its session may raise it.
    pub fn set_limit(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Adds bytes that arrived, for [`next`](Self::next).
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.pushed.drain(..self.taken);
            self.taken = 0;
        }
        if self.failed.is_none() {
            self.pushed.extend_from_slice(bytes);
        }
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// `TooLong` as soon as the length is known, before anything of that size is kept; else what
    /// [`Frame::decode`] says.
    #[expect(clippy::should_implement_trait, reason = "an iterator would end; this one waits")]
    pub fn next(&mut self) -> Result<Option<Frame>, WireError> {
        let pushed = std::mem::take(&mut self.pushed);
        let mut rest = &pushed[self.taken..];
        let frame = self.read(&mut rest)?;
        self.taken = pushed.len() - rest.len();
        self.pushed = pushed;
        Ok(frame)
    }

    /// As [`next`](Self::next), straight out of bytes that arrived and were not pushed: those that were read are taken
    /// from their front. All of them were once it says `None`. Before they are, nothing may be pushed.
    ///
    /// # Errors
    /// As there.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.take(bytes).inspect_err(|error| {
            self.failed = Some(error.clone());
            (self.pushed, self.taken) = (Vec::new(), 0);
            (self.lead, self.payload) = (Vec::new(), Vec::new());
        })
    }

    fn take(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, WireError> {
        if self.lead.is_empty()
            && let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>()
        {
            let len = self.check(*length)?;
            if let Some((body, rest)) = rest.split_at_checked(len) {
                let frame = Frame::decode(body)?;
                *bytes = rest;
                return Ok(Some(frame));
            }
        }
        if !fill(&mut self.lead, LENGTH_BYTES, bytes) {
            return Ok(None);
        }
        let Some(length) = self.lead.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let len = self.check(*length)?;
        // Each part of it says how long the next one is.
        loop {
            let lead = LENGTH_BYTES + Frame::lead(&self.lead[LENGTH_BYTES..]).min(len);
            if self.lead.len() >= lead {
                break;
            }
            if !fill(&mut self.lead, lead, bytes) {
                return Ok(None);
            }
        }
        let payload = LENGTH_BYTES + len - self.lead.len();
        if self.payload.is_empty() && !bytes.is_empty() {
            self.payload.reserve_exact(payload.min(ROOM_BYTES));
        }
        if !fill(&mut self.payload, payload, bytes) {
            return Ok(None);
        }
        let frame = Frame::decode_cut(&self.lead[LENGTH_BYTES..], std::mem::take(&mut self.payload))?;
        self.lead.clear();
        Ok(Some(frame))
    }

    /// The bytes that a frame's length field announces.
    fn check(&self, length: [u8; LENGTH_BYTES]) -> Result<usize, WireError> {
        let len = u32::from_le_bytes(length) as usize;
        if len + LENGTH_BYTES > self.frame_bytes_max && Defence::FrameBytes.stands() {
            return Err(WireError::TooLong { len: len + LENGTH_BYTES, max: self.frame_bytes_max });
        }
        Ok(len)
    }

    /// The stream ended: fine between frames.
    ///
    /// # Errors
    /// `Truncated` where it ended within a frame.
    pub fn finish(&self) -> Result<(), WireError> {
        let rest = &self.pushed[self.taken..];
        let came = self.lead.len() + self.payload.len() + rest.len();
        if came == 0 {
            return Ok(());
        }
        let begun: Vec<u8> = self.lead.iter().chain(rest).take(LENGTH_BYTES).copied().collect();
        let len = begun.first_chunk().map_or(0, |b| u32::from_le_bytes(*b) as usize);
        Err(WireError::Truncated { missing: (LENGTH_BYTES + len).saturating_sub(came).max(1) })
    }
}

/// Moves bytes from the front of `from` until `to` holds `len`; whether it does.
fn fill(to: &mut Vec<u8>, len: usize, from: &mut &[u8]) -> bool {
    let (moved, rest) = from.split_at(len.saturating_sub(to.len()).min(from.len()));
    to.extend_from_slice(moved);
    *from = rest;
    to.len() >= len
}
