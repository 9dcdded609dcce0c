//! The massive channels of a row: the few values that are far larger than all others, sent by themselves in 24 bits.
//!
//! Models keep a handful of channels with values hundreds of times the others' (Sun et al., "Massive Activations in Large Language
//! Models", arXiv:2402.17762); one step for both would leave little of the others. A row always has the same number of them,
//! whether they are massive or not: its length says nothing of its values.
//!
//! A value is sent as an f32 without its eight lowest bits: there is no overflow to provide for, and what is left of it is small even
//! beside ordinary values. An f16 leaves of Gemma 3's 103,772 up to 32, which is more than most channels hold.

use super::{
    Fault,
    step::{TINY, absmax},
};

/// Massive channels of a row that is wide enough for as many.
pub(super) const CHANNELS_MAX: usize = 4;

/// Values of a row for each massive channel. Narrower rows have fewer, so that no codec takes more bytes than `f32`.
const WIDTH_PER_CHANNEL: usize = 64;

/// Bytes of a channel: its number, and the three upper bytes of its value.
const CHANNEL_BYTES: usize = 5;

/// Bits of a value that are left to the rest of the row.
const REST: u32 = 0xff;

/// Massive channels, ascending, with what is sent of their values.
#[derive(Clone, Copy)]
pub(super) struct Massive {
    channels: [(u16, f32); CHANNELS_MAX],
    count: usize,
}

/// Massive channels of a row of `width` values.
pub(super) const fn count(width: usize) -> usize {
    let count = width / WIDTH_PER_CHANNEL;
    if count < CHANNELS_MAX { count } else { CHANNELS_MAX }
}

/// Bytes of the massive channels of a row.
pub(super) const fn row_bytes(width: usize) -> usize {
    count(width) * CHANNEL_BYTES
}

impl Massive {
    /// The massive channels of a finite row: those of the largest magnitudes, of equals the first. In the place of one that is as
    /// good as zero stands the lowest channel that is free, and zero.
    pub(super) fn of(row: &[f32]) -> Self {
        let mut massive = Self { channels: [(0, 0.0); CHANNELS_MAX], count: count(row.len()) };
        let mut used = 0;
        for &channel in &largest(row, massive.count)[..massive.count] {
            let value = row[usize::from(channel)];
            if value.abs() >= TINY {
                massive.channels[used] = (channel, f32::from_bits(value.to_bits() & !REST));
                used += 1;
            }
        }
        let mut next = 0;
        for place in used..massive.count {
            while massive.channels[..used].iter().any(|(channel, _)| *channel == next) {
                next += 1;
            }
            massive.channels[place] = (next, 0.0);
            next += 1;
        }
        massive.channels[..massive.count].sort_unstable_by_key(|(channel, _)| *channel);
        massive
    }

    /// The channels and the values that are sent for them.
    pub(super) fn values(&self) -> impl Iterator<Item = (usize, f32)> {
        self.channels[..self.count].iter().map(|(channel, value)| (usize::from(*channel), *value))
    }

    /// Appends them.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for (channel, value) in &self.channels[..self.count] {
            out.extend_from_slice(&channel.to_le_bytes());
            out.extend_from_slice(&value.to_le_bytes()[1..]);
        }
    }

    /// The massive channels of a row of `width` values, from their bytes.
    pub(super) fn decode(encoded: &[u8], width: usize) -> Result<Self, Fault> {
        let mut massive = Self { channels: [(0, 0.0); CHANNELS_MAX], count: count(width) };
        let mut after = 0;
        for (slot, b) in massive.channels.iter_mut().zip(encoded.as_chunks::<CHANNEL_BYTES>().0) {
            let (channel, value) = (u16::from_le_bytes([b[0], b[1]]), f32::from_le_bytes([0, b[2], b[3], b[4]]));
            if usize::from(channel) < after || usize::from(channel) >= width {
                return Err(Fault::Twin("massive channels do not ascend"));
            }
            if !value.is_finite() {
                return Err(Fault::NotFinite);
            }
            if value.abs() < TINY && value.to_bits() != 0 {
                return Err(Fault::Twin("a massive channel is as good as zero"));
            }
            after = usize::from(channel) + 1;
            *slot = (channel, value);
        }
        massive.check_zeros()?;
        Ok(massive)
    }

    /// Whether zeros have the lowest free channels.
    fn check_zeros(&self) -> Result<(), Fault> {
        let channels = &self.channels[..self.count];
        let taken = |at: u16| channels.iter().any(|(channel, value)| *channel == at && *value != 0.0);
        let mut free = (0..=u16::MAX).filter(|at| !taken(*at));
        let mut zeros = channels.iter().filter(|(_, value)| *value == 0.0);
        if zeros.any(|(channel, _)| free.next() != Some(*channel)) {
            return Err(Fault::Twin("a massive channel without a value is not the first"));
        }
        Ok(())
    }
}

/// The places of the `count` largest magnitudes, largest first, of equals the first; what is beyond `count` means nothing.
fn largest(row: &[f32], count: usize) -> [u16; CHANNELS_MAX] {
    /// Values that are looked at together: most blocks hold none of the largest.
    const BLOCK: usize = 64;
    let mut places = [0; CHANNELS_MAX];
    let mut magnitudes = [0u32; CHANNELS_MAX];
    let Some(last) = count.checked_sub(1) else { return places };
    let mut found = 0;
    for (block, values) in row.chunks(BLOCK).enumerate() {
        if found == count && absmax(values).to_bits() <= magnitudes[last] {
            continue;
        }
        for (at, value) in values.iter().enumerate() {
            let magnitude = value.to_bits() & 0x7fff_ffff;
            if found == count && magnitude <= magnitudes[last] {
                continue;
            }
            found = count.min(found + 1);
            let mut place = found - 1;
            while place > 0 && magnitudes[place - 1] < magnitude {
                (magnitudes[place], places[place]) = (magnitudes[place - 1], places[place - 1]);
                place -= 1;
            }
            (magnitudes[place], places[place]) = (magnitude, (block * BLOCK + at) as u16);
        }
    }
    places
}
