//! A state in a file: encrypted in parts, so that no part can be read, changed, left out, or taken for another's.
//!
//! STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015) over ChaCha20-Poly1305. The key is made of the client's and of a salt of the file's own:
//! a client that gives the same key twice has two all the same.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
};

use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit as _,
    aead::{
        Payload,
        generic_array::GenericArray,
        stream::{DecryptorBE32, EncryptorBE32},
    },
};
use potluck_core::{STATE_PART_BYTES_MAX, StateKey, StatePart};
use zeroize::Zeroize as _;

const MAGIC: &[u8; 8] = b"potsta 1";

/// Bytes before the first part: magic, salt, when it ends, positions, bytes of the state.
const HEADER_BYTES: usize = 8 + 32 + 8 + 4 + 8;

/// Bytes by which a part is longer in the file.
const TAG_BYTES: usize = 16;

/// What the parts' nonces begin with: no two files have a key in common.
const NONCE: [u8; 7] = [0; 7];

/// What anybody may read of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    salt: [u8; 32],
    /// UTC seconds.
    pub(super) until: u64,
    pub(super) positions: u32,
    /// Bytes of the state.
    pub(super) total: u64,
}

impl Header {
    fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..40].copy_from_slice(&self.salt);
        bytes[40..48].copy_from_slice(&self.until.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.positions.to_le_bytes());
        bytes[52..].copy_from_slice(&self.total.to_le_bytes());
        bytes
    }

    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; HEADER_BYTES];
        from.read_exact(&mut bytes)?;
        let array = |at: usize| -> [u8; 8] { std::array::from_fn(|n| bytes[at + n]) };
        if &array(0) != MAGIC {
            return Err(not_ours());
        }
        let salt = std::array::from_fn(|n| bytes[8 + n]);
        let positions = u32::from_le_bytes(std::array::from_fn(|n| bytes[48 + n]));
        Ok(Self { salt, until: u64::from_le_bytes(array(40)), positions, total: u64::from_le_bytes(array(52)) })
    }

    fn cipher(&self, key: &StateKey) -> ChaCha20Poly1305 {
        let mut material = [key.0, self.salt].concat();
        let mut derived = blake3::derive_key("potluck 2026-12-01 what a session holds", &material);
        let cipher = ChaCha20Poly1305::new(GenericArray::from_slice(&derived));
        material.zeroize();
        derived.zeroize();
        cipher
    }
}

fn not_ours() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no state, or another's")
}

/// What binds the parts to the file and to its place.
fn binding(header: &Header, place: &[u8]) -> Vec<u8> {
    [&header.bytes()[..], place].concat()
}

/// Writes a state.
pub(super) struct Writer<W> {
    file: W,
    encryptor: Option<EncryptorBE32<ChaCha20Poly1305>>,
    binding: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Of so many positions and bytes; it ends at `until`. `place`: what it is of, which the reader has to know as well.
    pub(super) fn begin(
        mut file: W,
        key: &StateKey,
        place: &[u8],
        (positions, total): (u32, u64),
        until: u64,
    ) -> io::Result<Self> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        let header = Header { salt, until, positions, total };
        file.write_all(&header.bytes())?;
        let encryptor = EncryptorBE32::from_aead(header.cipher(key), GenericArray::from_slice(&NONCE));
        Ok(Self { file, encryptor: Some(encryptor), binding: binding(&header, place) })
    }

    /// A part, as long as all others but the last.
    pub(super) fn part(&mut self, part: &StatePart) -> io::Result<()> {
        let payload = Payload { msg: &part.bytes, aad: &self.binding };
        let sealed = match part.is_last() {
            true => self.encryptor.take().map(|encryptor| encryptor.encrypt_last(payload)),
            false => self.encryptor.as_mut().map(|encryptor| encryptor.encrypt_next(payload)),
        };
        let sealed = sealed.and_then(Result::ok).ok_or_else(|| io::Error::other("a part after the last"))?;
        self.file.write_all(&sealed)
    }

    /// The file, once the last part is written.
    pub(super) fn end(self) -> io::Result<W> {
        match self.encryptor {
            None => Ok(self.file),
            Some(_) => Err(io::Error::other("its last part is missing")),
        }
    }
}

/// Reads a state.
pub(super) struct Reader {
    file: BufReader<File>,
    decryptor: Option<DecryptorBE32<ChaCha20Poly1305>>,
    binding: Vec<u8>,
    pub(super) header: Header,
    offset: u64,
}

impl Reader {
    pub(super) fn begin(file: File, key: &StateKey, place: &[u8]) -> io::Result<Self> {
        let mut file = BufReader::new(file);
        let header = Header::read(&mut file)?;
        let decryptor = DecryptorBE32::from_aead(header.cipher(key), GenericArray::from_slice(&NONCE));
        Ok(Self { file, decryptor: Some(decryptor), binding: binding(&header, place), header, offset: 0 })
    }

    /// The next part; it has not been changed.
    pub(super) fn part(&mut self) -> io::Result<StatePart> {
        let Header { positions, total, .. } = self.header;
        let left = total.saturating_sub(self.offset);
        let length = left.min(STATE_PART_BYTES_MAX as u64) as usize;
        let mut sealed = vec![0; length + TAG_BYTES];
        self.file.read_exact(&mut sealed)?;
        let payload = Payload { msg: &sealed, aad: &self.binding };
        let opened = match left == length as u64 {
            true => self.decryptor.take().map(|decryptor| decryptor.decrypt_last(payload)),
            false => self.decryptor.as_mut().map(|decryptor| decryptor.decrypt_next(payload)),
        };
        let bytes = opened.and_then(Result::ok).ok_or_else(not_ours)?;
        let part = StatePart { positions, total, offset: self.offset, bytes };
        self.offset += length as u64;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom};

    use super::*;

    const KEY: StateKey = StateKey([7; 32]);

    /// As an engine gives it.
    fn parts(total: usize) -> Vec<StatePart> {
        let all: Vec<u8> = (0..total).map(|n| (n % 251) as u8).collect();
        let chunks = all.chunks(STATE_PART_BYTES_MAX).enumerate();
        let part = |(n, bytes): (usize, &[u8])| StatePart {
            positions: 90,
            total: total as u64,
            offset: (n * STATE_PART_BYTES_MAX) as u64,
            bytes: bytes.to_vec(),
        };
        chunks.map(part).collect()
    }

    fn sealed(total: usize) -> Vec<u8> {
        let mut writer = Writer::begin(Vec::new(), &KEY, b"here", (90, total as u64), 5).unwrap();
        parts(total).iter().for_each(|part| writer.part(part).unwrap());
        writer.end().unwrap()
    }

    fn read(bytes: &[u8], key: &StateKey, place: &[u8]) -> io::Result<Vec<StatePart>> {
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        file.seek(SeekFrom::Start(0))?;
        let mut reader = Reader::begin(file, key, place)?;
        let mut parts = Vec::new();
        while parts.last().is_none_or(|part: &StatePart| !part.is_last()) {
            parts.push(reader.part()?);
        }
        Ok(parts)
    }

    #[test]
    fn what_is_written_is_read_by_whoever_has_the_key_and_by_nobody_else() {
        for total in [1, 1000, STATE_PART_BYTES_MAX, 2 * STATE_PART_BYTES_MAX + 17] {
            let bytes = sealed(total);
            assert_eq!(read(&bytes, &KEY, b"here").unwrap(), parts(total));
            assert!(read(&bytes, &StateKey([8; 32]), b"here").is_err());
            assert!(read(&bytes, &KEY, b"there").is_err(), "another session's, or another stage's");
        }
        let (first, second) = (sealed(1000), sealed(1000));
        assert_ne!(first[HEADER_BYTES..], second[HEADER_BYTES..], "a key that is given twice is two");
        assert!(!first.windows(8).any(|window| window == &parts(1000)[0].bytes[..8]), "it is not in the clear");
    }

    #[test]
    fn whatever_is_changed_or_left_out_is_noticed() {
        let bytes = sealed(2 * STATE_PART_BYTES_MAX + 17);
        for at in [9, 41, 48, 52, HEADER_BYTES, HEADER_BYTES + STATE_PART_BYTES_MAX + 20, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(read(&changed, &KEY, b"here").is_err(), "byte {at}");
        }
        assert!(read(&bytes[..bytes.len() - 1], &KEY, b"here").is_err());
        let sealed_part = STATE_PART_BYTES_MAX + TAG_BYTES;
        let swapped = [
            &bytes[..HEADER_BYTES],
            &bytes[HEADER_BYTES + sealed_part..HEADER_BYTES + 2 * sealed_part],
            &bytes[HEADER_BYTES..HEADER_BYTES + sealed_part],
            &bytes[HEADER_BYTES + 2 * sealed_part..],
        ];
        assert!(read(&swapped.concat(), &KEY, b"here").is_err());
    }
}
