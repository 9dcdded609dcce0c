//! From a stream's bytes to frames.

use potluck_core::Defence;

use crate::{Frame, WireError};

/// Bytes of a frame's length field.
const LENGTH_BYTES: usize = 4;

/// Cuts a stream's bytes into frames, and holds no more than one frame's bytes plus what was pushed last.
///
/// After an error the stream is out of step and is to be closed: every further call returns the error again.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    taken: usize,
    frame_bytes_max: usize,
    failed: Option<WireError>,
}

impl FrameReader {
    /// A reader that refuses frames of more than `frame_bytes_max` bytes.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { buffer: Vec::new(), taken: 0, frame_bytes_max, failed: None }
    }

    /// Changes the limit: a stream starts with the one for control frames, and its session may raise it.
    pub fn set_limit(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// `TooLong` as soon as the length is known, before anything of that size is kept; else what
    /// [`Frame::decode`] says.
    #[expect(clippy::should_implement_trait, reason = "an iterator would end; this one waits")]
    pub fn next(&mut self) -> Result<Option<Frame>, WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.take().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.buffer = Vec::new();
            self.taken = 0;
        })
    }

    fn take(&mut self) -> Result<Option<Frame>, WireError> {
        let rest = &self.buffer[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let len = u32::from_le_bytes(*length) as usize;
        if len + LENGTH_BYTES > self.frame_bytes_max && Defence::FrameBytes.stands() {
            return Err(WireError::TooLong { len: len + LENGTH_BYTES, max: self.frame_bytes_max });
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let frame = Frame::decode(body)?;
        self.taken += LENGTH_BYTES + len;
        Ok(Some(frame))
    }

    /// The stream ended: fine between frames.
    ///
    /// # Errors
    /// `Truncated` where it ended within a frame.
    pub fn finish(&self) -> Result<(), WireError> {
        let rest = &self.buffer[self.taken..];
        if rest.is_empty() {
            return Ok(());
        }
        let len = rest.first_chunk().map_or(0, |b| u32::from_le_bytes(*b) as usize);
        Err(WireError::Truncated { missing: (LENGTH_BYTES + len).saturating_sub(rest.len()).max(1) })
    }
}
