//! Numbers at the head of a datagram: 7 bits a byte, the lowest first, one encoding of each.

/// Bytes of the longest one: 63 bits, which no stream's number or length exceeds.
pub(crate) const NUMBER_BYTES_MAX: usize = 9;

pub(crate) fn encode_number(number: u64, out: &mut Vec<u8>) {
    let mut left = number;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

/// The number that some bytes begin with, and where it ends; none where they begin with none.
pub(crate) fn decode_number(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0_u64;
    for (n, &byte) in bytes.iter().take(NUMBER_BYTES_MAX).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return (byte != 0 || n == 0).then_some((number, n + 1));
        }
    }
    None
}
