//! Models that travel: what a peer shares, and how another asks for a part of it.
//!
//! One stream a question, one frame an answer; a part is a megabyte at most, so that a peer that is asked for much answers
//! many in turn. What is on the shelf is another's business, like what is behind a [`Door`](crate::Door).

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use potluck_core::{ModelId, PeerId};
use potluck_wire::{
    CONTROL_BYTES_MAX, Failure, FailureCode, Fetch, Frame, FrameReader, Held, PART_FRAME_BYTES_MAX, Part, PeerAddress,
    SharedModel,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{NetError, Node};

/// Parts that are read from the disk or under way to others at once. Whoever asks for more waits.
const UPLOADS_MAX: usize = 64;

/// The same where the owner limits what is sent: steps take turns with them.
const LIMITED_UPLOADS_MAX: usize = 2;

/// The same for one member: who reads slowly holds up itself.
const MEMBER_UPLOADS_MAX: usize = 8;

/// Questions of one member that may wait. A further one is refused with `Busy`.
const MEMBER_QUESTIONS_MAX: usize = 64;

/// Longest wait for a part of a model, all of it.
const PART_PATIENCE: Duration = Duration::from_secs(60);

/// Says what a peer shares. It may read files: it is called on a thread that may wait.
#[derive(Clone)]
pub struct Shelf(Arc<Answer>);

type Answer = dyn Fn(Question) -> Result<Frame, Failure> + Send + Sync;

/// What a member asks a shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Which models it has: answered with [`Frame::Models`].
    Models,
    /// A part of one: answered with [`Frame::Held`] or [`Frame::Part`], as [`Part`] says.
    Part(Fetch),
}

impl Shelf {
    /// A shelf that answers like this.
    pub fn new(answer: impl Fn(Question) -> Result<Frame, Failure> + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }

    /// What it answers.
    ///
    /// # Errors
    /// Why it does not.
    pub fn ask(&self, question: Question) -> Result<Frame, Failure> {
        (self.0)(question)
    }
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shelf")
    }
}

/// Whose turn it is to be given something from the shelf.
#[derive(Debug, Clone)]
pub(crate) struct Uploads {
    all: Arc<Semaphore>,
    members: Arc<Mutex<HashMap<PeerId, Member>>>,
}

#[derive(Debug, Clone)]
struct Member {
    turns: Arc<Semaphore>,
    questions: Arc<()>,
}

/// Held until an answer has been taken, or its stream is gone.
#[derive(Debug)]
pub(crate) struct Turn {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
    /// The member is remembered for as long as it has turns: its share is not given out anew.
    _member: Member,
}

impl Default for Uploads {
    fn default() -> Self {
        Self::at_once(UPLOADS_MAX)
    }
}

impl Uploads {
    /// Of that node.
    pub(crate) fn of(node: &Node) -> Self {
        if node.upload.get().is_some() { Self::at_once(LIMITED_UPLOADS_MAX) } else { Self::default() }
    }

    fn at_once(uploads: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(uploads)), members: Arc::default() }
    }

    /// What the shelf answers to a member, when it is its turn.
    pub(crate) async fn answer(self, shelf: Shelf, by: PeerId, question: Question) -> Result<(Frame, Turn), Failure> {
        let member = self.member(by);
        // This question, and what the map itself holds.
        if Arc::strong_count(&member.questions) > MEMBER_QUESTIONS_MAX + 1 {
            return Err(Failure::new(FailureCode::Busy, "too many questions wait"));
        }
        let gone = |_| Failure::new(FailureCode::Leaving, "the peer is shutting down");
        // First the member's own: whoever waits for itself holds up nobody else.
        let own = member.turns.clone().acquire_owned().await.map_err(gone)?;
        let turn = Turn { _own: own, _all: self.all.acquire_owned().await.map_err(gone)?, _member: member };
        let answered = tokio::task::spawn_blocking(move || shelf.ask(question)).await;
        let failed = |_| Failure::new(FailureCode::Busy, "the shelf did not answer");
        Ok((answered.map_err(failed)??, turn))
    }

    fn member(&self, peer: PeerId) -> Member {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|_, member| Arc::strong_count(&member.questions) > 1);
        let new = || Member { turns: Arc::new(Semaphore::new(MEMBER_UPLOADS_MAX)), questions: Arc::default() };
        members.entry(peer).or_insert_with(new).clone()
    }
}

impl Node {
    /// Shares models from now on. The first shelf counts.
    pub fn open_shelf(&self, shelf: Shelf) {
        let _ = self.shelf.set(shelf);
    }

    /// Asks a peer which models it shares.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Failed` where it refuses; `Lost` where it falls silent.
    pub async fn models(&self, from: &PeerAddress) -> Result<Vec<SharedModel>, NetError> {
        match self.in_time(from, self.question(from, Frame::ListModels, CONTROL_BYTES_MAX, &mut |_| {})).await? {
            Frame::Models(models) => Ok(models),
            other => Err(unexpected(from, &other, "models")),
        }
    }

    /// Asks a peer what it has of a model.
    ///
    /// # Errors
    /// As [`models`](Self::models); `Failed` with `NotServed` where it has nothing of it.
    pub async fn held(&self, from: &PeerAddress, model: ModelId) -> Result<Held, NetError> {
        let fetch = Frame::Fetch(Fetch { model, part: Part::Held });
        match self.in_time(from, self.question(from, fetch, CONTROL_BYTES_MAX, &mut |_| {})).await? {
            Frame::Held(held) => Ok(held),
            other => Err(unexpected(from, &other, "held")),
        }
    }

    /// Asks a peer for a part of a model; `arrived` is told of bytes as they come. Nothing is known of them yet: whoever asked
    /// checks them. Dropped, it stops the peer from sending.
    ///
    /// # Errors
    /// As [`models`](Self::models).
    pub async fn part(
        &self,
        from: &PeerAddress,
        fetch: Fetch,
        arrived: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Vec<u8>, NetError> {
        let peer = from.peer;
        let asked = self.question(from, Frame::Fetch(fetch), PART_FRAME_BYTES_MAX, arrived);
        // Who sends a byte now and then is no better than who sends none.
        let late = |_| NetError::Lost { peer, reason: format!("no part within {} s", PART_PATIENCE.as_secs()) };
        match timeout(PART_PATIENCE, asked).await.map_err(late)?? {
            Frame::Part(bytes) => Ok(bytes),
            other => Err(unexpected(from, &other, "part")),
        }
    }

    async fn question(
        &self,
        to: &PeerAddress,
        question: Frame,
        answer_bytes_max: usize,
        arrived: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Frame, NetError> {
        let peer = to.peer;
        let hashes = matches!(question, Frame::Fetch(Fetch { part: Part::Hashes(..), .. }));
        let mut recv = self.ask(to, question).await?;
        let mut reader = FrameReader::new(answer_bytes_max);
        loop {
            if let Some(frame) = reader.next().map_err(|error| NetError::Protocol { peer, error })? {
                return match frame {
                    Frame::Failed(failure) => Err(NetError::Failed { peer, failure }),
                    frame => Ok(frame),
                };
            }
            // Silence ends it, not a slow line; a tensor that is hashed first may keep us waiting.
            let stall = if hashes { PART_PATIENCE } else { self.deadlines.stall };
            let seconds = stall.as_secs_f32();
            let chunk = timeout(stall, recv.read_chunk(answer_bytes_max)).await;
            let lost = |reason: String| NetError::Lost { peer, reason };
            match chunk.map_err(|_| lost(format!("nothing came for {seconds} s")))? {
                Ok(Some(bytes)) => {
                    arrived(bytes.len() as u64);
                    reader.push(&bytes);
                }
                Ok(None) => return Err(lost("the stream ended".into())),
                Err(error) => return Err(lost(error.to_string())),
            }
        }
    }
}

fn unexpected(from: &PeerAddress, got: &Frame, expected: &'static str) -> NetError {
    NetError::Unexpected { peer: from.peer, got: got.kind(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_member_that_does_not_read_holds_up_itself_alone() {
        let (uploads, shelf) = (Uploads::default(), Shelf::new(|_| Ok(Frame::Part(vec![1]))));
        let [slow, other] = [1, 2].map(|n| potluck_core::SecretKey::from_bytes(&[n; 32]).peer_id());
        let ask = |by| uploads.clone().answer(shelf.clone(), by, Question::Models);
        let mut unread = Vec::new();
        for _ in 0..MEMBER_UPLOADS_MAX {
            unread.push(ask(slow).await.unwrap());
        }
        // Its answers are made, but not taken: it gets no further turn, however often it asks.
        tokio::select! {
            biased;
            _ = ask(slow) => panic!("a ninth turn"),
            () = async { for _ in 0..100 { tokio::task::yield_now().await } } => {}
        }
        assert!(ask(other).await.is_ok(), "others are served");
        unread.pop();
        assert!(ask(slow).await.is_ok(), "a turn that is over comes back");
    }
}
