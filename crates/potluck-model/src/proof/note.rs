//! The note of a proof: a table, and who measured it.

use potluck_core::{ModelId, PeerId, SecretKey};
use potluck_wire::Codec;
use serde::{Deserialize, Serialize};

use super::Table;

/// Bytes of a signed note. A longer file is none.
pub const NOTE_BYTES_MAX: usize = 256 << 10;

/// Characters of a program's version.
pub const PROGRAM_CHARS_MAX: usize = 64;

const CONTEXT: &[u8] = b"potluck codec note 2\0";

/// What a machine has measured of a model's codecs.
///
/// A note counts for the machine that signed it: whoever else reads it has only that machine's word. None travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// The machine that measured: its peer's key.
    pub signer: PeerId,
    /// Of which model.
    pub model: ModelId,
    /// The smallest codec that was without loss. It has to be what the table shows.
    pub codec: Option<Codec>,
    /// What was measured.
    pub table: Table,
    /// The BLAKE3 hash of the text that was scored.
    pub text: [u8; 32],
    /// Layers of each stage that were on a GPU, at most.
    pub gpu_layers: u32,
    /// Positions of the passages that it was cut in: each began with empty caches.
    pub window: u32,
    /// The version of the program that measured.
    pub program: String,
    /// When, in UTC seconds.
    pub made: u64,
}

#[derive(Serialize, Deserialize)]
struct Signed {
    #[serde(with = "serde_bytes")]
    note: Vec<u8>,
    signature: serde_bytes::ByteArray<64>,
}

/// Whoever wrote the note, or changed it: it counts for nothing. Hint: `potluck model prove` makes another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoteError {
    /// Damaged, of another version, or beyond a bound.
    #[error("it is damaged: {0}")]
    Malformed(String),
    /// Not by whom it says, or not as it was signed.
    #[error("it is not signed by {}, as it says", .0.short())]
    Signature(PeerId),
    /// By another machine, or before this one's key was made anew.
    #[error("it is signed by {}, and not by this machine", .0.short())]
    Signer(PeerId),
    /// Of another model.
    #[error("it is about model {}", .0.short())]
    Model(ModelId),
    /// Over another text than this version of the program scores: what it shows is not what others show.
    #[error("another text was scored than is now")]
    Text,
    /// It claims what its table does not show: perhaps by an older criterion.
    #[error("it claims {}, where its table shows {}", name(*.claims), name(*.shows))]
    Claim {
        /// What it claims.
        claims: Option<Codec>,
        /// What follows from the table.
        shows: Option<Codec>,
    },
}

fn name(codec: Option<Codec>) -> String {
    codec.map_or_else(|| "no codec".into(), |codec| codec.to_string())
}

impl Note {
    /// The note as it is kept: signed. `key` must be the signer's.
    pub fn sign(&self, key: &SecretKey) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "writing to memory fails only where memory ends")]
        let encode = |note: &Self| {
            let note = postcard::to_stdvec(note).expect("a note encodes");
            let signature = key.sign(&[CONTEXT, &note].concat()).into();
            postcard::to_stdvec(&Signed { note, signature }).expect("a signed note encodes")
        };
        encode(self)
    }

    /// Reads a note about `model`, measured over the text of that BLAKE3 hash, signed by `signer`. The bytes may be anybody's.
    ///
    /// # Errors
    /// As [`NoteError`] says.
    pub fn read(bytes: &[u8], model: ModelId, text: [u8; 32], signer: PeerId) -> Result<Self, NoteError> {
        let malformed = |what: &dyn ToString| NoteError::Malformed(what.to_string());
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(malformed(&format!("{} bytes; the limit is {NOTE_BYTES_MAX}", bytes.len())));
        }
        let (signed, rest) = postcard::take_from_bytes::<Signed>(bytes).map_err(|e| malformed(&e))?;
        let (note, left) = postcard::take_from_bytes::<Self>(&signed.note).map_err(|e| malformed(&e))?;
        if !rest.is_empty() || !left.is_empty() {
            return Err(malformed(&"it goes on behind its end"));
        }
        if !note.signer.verify(&[CONTEXT, &signed.note].concat(), &signed.signature) {
            return Err(NoteError::Signature(note.signer));
        }
        if note.signer != signer {
            return Err(NoteError::Signer(note.signer));
        }
        if note.model != model {
            return Err(NoteError::Model(note.model));
        }
        if note.text != text {
            return Err(NoteError::Text);
        }
        if !note.table.is_sound() || note.program.chars().count() > PROGRAM_CHARS_MAX {
            return Err(malformed(&"no measurement gives such numbers"));
        }
        let shows = note.table.smallest_without_loss();
        if note.codec != shows {
            return Err(NoteError::Claim { claims: note.codec, shows });
        }
        Ok(note)
    }
}
