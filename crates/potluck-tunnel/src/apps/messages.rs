//! Messages in: read, kept until the application takes them, confirmed then, answered where it answers.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use potluck_core::PeerId;
use potluck_grant::Member;
use potluck_net::{RecvStream, SendStream, Tunnel};
use potluck_wire::{MESSAGE_BYTES_MAX, MessageId, NotReached, TunnelFrame};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::debug;

use super::{
    Places,
    queue::{WAITING_MAX, Waiting},
    refuse,
};
use crate::{
    TunnelError,
    copy::Toll,
    frame,
    serve::{FRAME_MAX, Metered},
};

/// Longest that a message's bytes may take to come.
const BODY_MAX: Duration = Duration::from_secs(30);

/// Longest that a reply may take to be received.
const REPLY_MAX: Duration = Duration::from_secs(30);

/// Messages of one topic whose senders may send them again: which they were. The oldest are forgotten.
const KNOWN_MAX: usize = 16_384;

/// Which messages are known of a topic: those that wait, and the last that were taken.
#[derive(Debug, Default)]
struct Known {
    waiting: HashSet<(PeerId, MessageId)>,
    taken: HashSet<(PeerId, MessageId)>,
    order: VecDeque<(PeerId, MessageId)>,
}

/// Where messages of a topic go.
#[derive(Debug, Clone)]
pub(super) struct Inbox {
    queue: mpsc::Sender<Entry>,
    places: Places,
    known: Arc<Mutex<Known>>,
}

/// Messages of one topic, in the order in which they came. While it is kept, they are taken; what was not taken when it
/// is dropped, its sender hears of.
#[derive(Debug)]
pub struct Messages {
    queue: mpsc::Receiver<Entry>,
    known: Arc<Mutex<Known>>,
}

/// A message that waits.
#[derive(Debug)]
struct Entry {
    message: Message,
    named: Named,
    taken: oneshot::Sender<()>,
    _room: Waiting,
}

/// A message's name, which is known for as long as this is kept.
#[derive(Debug)]
struct Named {
    name: (PeerId, MessageId),
    known: Arc<Mutex<Known>>,
}

/// A message from a member.
#[derive(Debug)]
pub struct Message {
    member: Member,
    topic: String,
    body: Bytes,
    reply: oneshot::Sender<Bytes>,
}

impl Message {
    /// Who sent it, as its connection's key has proven.
    pub fn from(&self) -> PeerId {
        self.member.peer()
    }

    /// The same, with its grant.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What it says.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Answers it. False where nobody waits for that any more.
    ///
    /// # Errors
    /// `TooLong`: a reply is no longer than a message.
    pub fn reply(self, body: impl Into<Bytes>) -> Result<bool, TunnelError> {
        let body = body.into();
        if body.len() > MESSAGE_BYTES_MAX {
            return Err(TunnelError::TooLong(body.len()));
        }
        Ok(self.reply.send(body).is_ok())
    }
}

pub(super) fn inbox() -> (Inbox, Messages) {
    let (queue, entries) = mpsc::channel(WAITING_MAX);
    let known = Arc::<Mutex<Known>>::default();
    (Inbox { queue, places: Places::default(), known: known.clone() }, Messages { queue: entries, known })
}

impl Messages {
    /// Whether one waits that is not taken yet.
    pub fn waits(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next one: from then on its sender knows that it arrived. None once the node is closed. It may be given up at
    /// any time.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            let Entry { message, named, taken, _room } = self.queue.recv().await?;
            // Where its sender has given up, it has not arrived, and whoever sends it again does not send it twice.
            if taken.send(()).is_ok() {
                lock(&self.known).take(named.name);
                return Some(message);
            }
        }
    }
}

impl Inbox {
    pub(super) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Takes a message in, until it has been confirmed and answered, or its sender is gone.
    pub(super) async fn take(
        self,
        tunnel: &Tunnel,
        (topic, id, bytes): (String, MessageId, usize),
        by: Member,
        (send, mut recv): (SendStream, RecvStream),
        toll: Metered,
    ) {
        let peer = by.peer();
        let named = match self.name((peer, id)) {
            Ok(named) => named,
            // Its receipt was lost.
            Err(Come::Taken) => return confirm(peer, send, None).await,
            Err(Come::Waits) => return refuse(tunnel, (send, recv), NotReached::Busy).await,
        };
        let Some(room) = self.places.take(peer, bytes) else {
            return refuse(tunnel, (send, recv), NotReached::Busy).await;
        };
        if !toll.pay(bytes) {
            return refuse(tunnel, (send, recv), NotReached::Spent).await;
        }
        let body = match timeout(BODY_MAX, read_body(&mut recv, bytes)).await {
            Ok(Some(body)) => body,
            Ok(None) | Err(_) => return debug!(peer = %peer.short(), "a message did not come"),
        };
        let ((taken, mut is_taken), (reply, replied)) = (oneshot::channel(), oneshot::channel());
        let message = Message { member: by, topic, body, reply };
        // There is a place in the queue for each that has room.
        if self.queue.try_send(Entry { message, named, taken, _room: room }).is_err() {
            return refuse(tunnel, (send, recv), NotReached::NotExposed).await;
        }
        tokio::select! {
            biased;
            listens = &mut is_taken => if listens.is_err() {
                return refuse(tunnel, (send, recv), NotReached::NotExposed).await;
            },
            _ = send.stopped() => {
                is_taken.close();
                if is_taken.try_recv().is_err() {
                    return debug!(peer = %peer.short(), "a message was given up by its sender");
                }
            }
        }
        confirm(peer, send, Some((replied, toll))).await;
    }

    fn name(&self, name: (PeerId, MessageId)) -> Result<Named, Come> {
        let mut known = lock(&self.known);
        if known.taken.contains(&name) {
            return Err(Come::Taken);
        }
        if !known.waiting.insert(name) {
            return Err(Come::Waits);
        }
        Ok(Named { name, known: self.known.clone() })
    }
}

/// Why a message that comes again is not taken in.
enum Come {
    Taken,
    Waits,
}

impl Known {
    fn take(&mut self, name: (PeerId, MessageId)) {
        if self.order.len() >= KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.taken.remove(&oldest);
        }
        if self.taken.insert(name) {
            self.order.push_back(name);
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        lock(&self.known).waiting.remove(&self.name);
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many bytes; none where they do not come. Memory grows with what has come.
pub(super) async fn read_body(recv: &mut RecvStream, bytes: usize) -> Option<Bytes> {
    let mut body = BytesMut::new();
    while body.len() < bytes {
        let chunk = recv.read_chunk(bytes - body.len()).await.ok()??;
        body.extend_from_slice(&chunk);
    }
    Some(body.freeze())
}

/// Says that it has arrived, and what the application replies, where it does.
async fn confirm(peer: PeerId, mut send: SendStream, reply: Option<(oneshot::Receiver<Bytes>, Metered)>) {
    let confirmed = timeout(FRAME_MAX, frame::write(peer, &mut send, &TunnelFrame::Taken)).await;
    if !matches!(confirmed, Ok(Ok(()))) {
        return;
    }
    // What was replied the first time is not known any more.
    let Some((reply, toll)) = reply else {
        let _ = send.finish();
        let _ = timeout(REPLY_MAX, send.stopped()).await;
        return;
    };
    let reply = tokio::select! {
        reply = reply => reply.ok(),
        _ = send.stopped() => return,
    };
    if let Some(body) = reply {
        if !toll.pay(body.len()) {
            let _ = send.reset(super::UNWANTED);
            return;
        }
        let written = timeout(REPLY_MAX, async {
            frame::write(peer, &mut send, &TunnelFrame::Reply(body.len() as u32)).await?;
            send.write_all(&body).await.map_err(|_| TunnelError::Lost(peer))
        });
        if !matches!(written.await, Ok(Ok(()))) {
            let _ = send.reset(super::UNWANTED);
            return;
        }
    }
    let _ = send.finish();
    let _ = timeout(REPLY_MAX, send.stopped()).await;
}
