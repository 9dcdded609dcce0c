//! What was proven of a model on this machine, and how its hidden states are to travel therefore.

use potluck_core::ModelId;
use potluck_engine::codecs;
use potluck_model::proof::{NOTE_BYTES_MAX, Note, NoteError};
use potluck_store::{Catalogue, Entry};
use potluck_wire::Codec;

use crate::{
    args::EngineArgs,
    failure::Failure,
    home::{Home, Identity, Role},
    screen::Screen,
};

/// How hidden states travel where nothing is proven, and where a peer does not know what is.
const DEFAULT: Codec = Codec::F16;

/// The BLAKE3 hash of the text that this version of the program scores.
pub(crate) fn scored() -> [u8; 32] {
    *blake3::hash(codecs::TEXT.as_bytes()).as_bytes()
}

/// What this machine's catalogue has of a proof.
#[derive(Debug)]
pub(crate) enum Proven {
    /// Nobody has tried.
    Untried,
    /// This machine has measured it.
    Noted(Box<Note>),
    /// There is a note, and it counts for nothing.
    Void(NoteError),
}

impl Proven {
    /// As the catalogue has it.
    pub(crate) fn of(home: &Home, model: ModelId) -> Result<Self, Failure> {
        let Some(bytes) = Catalogue::open(home.models())?.proof(model, NOTE_BYTES_MAX)? else {
            return Ok(Self::Untried);
        };
        let signer = Identity::open(home, Role::Peer)?.key.peer_id();
        Ok(Note::read(&bytes, model, scored(), signer).map_or_else(Self::Void, |note| Self::Noted(Box::new(note))))
    }

    /// The smallest codec that was proven to be without loss.
    pub(crate) fn codec(&self) -> Option<Codec> {
        match self {
            Self::Noted(note) => note.codec,
            Self::Untried | Self::Void(_) => None,
        }
    }

    /// In a sentence.
    pub(crate) fn words(&self, model: &str) -> String {
        let again = format!("potluck model prove {model}");
        match self {
            Self::Untried => format!("{DEFAULT}: nothing smaller was tried ({again})"),
            Self::Void(error) => format!("{DEFAULT}: the note of a proof counts for nothing: {error} ({again})"),
            Self::Noted(note) => {
                let scored = note.table.positions;
                match note.codec {
                    Some(codec) => format!(
                        "{codec}, {:.2} bytes a value: without loss over {scored} positions and {} cuts",
                        note.table.bytes_per_value(codec),
                        note.table.cuts.len(),
                    ),
                    None => format!("{DEFAULT}: {scored} positions were scored, and nothing was proven ({again})"),
                }
            }
        }
    }
}

/// How hidden states are to travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CodecChoice {
    codec: Codec,
    /// Hops that it is proven for, where that is why; none: the user said so, or it is the default.
    hops: Option<usize>,
}

impl CodecChoice {
    /// As the user says; else as is proven of the model on this machine; else the default. A note that counts for nothing is told.
    pub(crate) fn of(home: &Home, screen: Screen, entry: &Entry, engine: &EngineArgs) -> Self {
        let (choice, void) = Self::choose(home, entry, engine);
        if let Some(why) = void {
            tracing::info!(model = entry.name, %why, "the note of a proof counts for nothing");
            screen.note(format!(
                "the note of what was proven of {} counts for nothing: {why}; potluck model prove {} makes another",
                entry.name, entry.name
            ));
        }
        choice
    }

    /// The same, for a command that tells of notes in its own words.
    pub(crate) fn quietly(home: &Home, entry: &Entry, engine: &EngineArgs) -> Self {
        Self::choose(home, entry, engine).0
    }

    fn choose(home: &Home, entry: &Entry, engine: &EngineArgs) -> (Self, Option<String>) {
        if let Some(codec) = engine.codec() {
            return (Self { codec, hops: None }, None);
        }
        let otherwise = Self { codec: DEFAULT, hops: None };
        match Proven::of(home, entry.id) {
            Ok(Proven::Noted(note)) => match note.codec {
                Some(codec) => (Self { codec, hops: Some(note.table.cuts.len()) }, None),
                None => (otherwise, None),
            },
            Ok(Proven::Untried) => (otherwise, None),
            Ok(Proven::Void(error)) => (otherwise, Some(error.to_string())),
            Err(failure) => (otherwise, Some(failure.message)),
        }
    }

    /// What is wished for, whatever the route turns out to be.
    pub(crate) fn first(self) -> Codec {
        self.codec
    }

    /// For a route of so many stages: the codec, and the one to use where a peer does not know it.
    pub(crate) fn over(self, stages: usize) -> (Codec, Option<Codec>) {
        match self.hops {
            None => (self.codec, None),
            // Each hop adds its own error: more of them were not measured.
            Some(hops) if stages.saturating_sub(1) > hops => (DEFAULT, None),
            Some(_) => (self.codec, Some(DEFAULT)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_proven_holds_for_the_hops_that_were_measured() {
        let proven = CodecChoice { codec: Codec::Mixed6, hops: Some(4) };
        assert_eq!(proven.over(1), (Codec::Mixed6, Some(Codec::F16)));
        assert_eq!(proven.over(5), (Codec::Mixed6, Some(Codec::F16)));
        assert_eq!(proven.over(6), (Codec::F16, None));
    }

    #[test]
    fn what_the_user_says_is_never_replaced() {
        let said = CodecChoice { codec: Codec::Mixed4, hops: None };
        assert_eq!(said.over(64), (Codec::Mixed4, None));
    }
}
