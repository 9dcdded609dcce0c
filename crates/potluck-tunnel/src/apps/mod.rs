//! Applications of a peer: they listen for topics, and members send them messages and open streams to them.

mod messages;
mod queue;
mod send;
mod streams;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use potluck_net::{RecvStream, SendStream, Tunnel, VarInt};
use potluck_wire::{Call, NotReached, TunnelFrame, Way, is_topic};
use tokio::time::timeout;
use tracing::info;

use crate::{
    TunnelError, frame,
    serve::{FRAME_MAX, Metered, Room},
};

use messages::Inbox;
use queue::Places;
use streams::Callers;

pub use messages::{Message, Messages};
pub use queue::{WAITING_BYTES_MAX, WAITING_MAX, WAITING_OF_MEMBER_MAX};
pub use send::Receipt;
pub use streams::{Arriving, PeerStream};

/// Topics that one program may listen for. The next one is refused with `Listening`.
const TOPICS_MAX: usize = 1_024;

/// With which code a stream is stopped that is not wanted, and reset that was cut short.
const UNWANTED: VarInt = VarInt::from_u32(1);

/// The applications of a node, by what they listen for. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Apps(Arc<Mutex<HashMap<String, Slot>>>);

/// Who listens for a topic.
#[derive(Debug, Default)]
struct Slot {
    messages: Option<Inbox>,
    streams: Option<Callers>,
}

impl Apps {
    /// Takes messages of that topic, for as long as what it returns is kept.
    ///
    /// # Errors
    /// `Topic`; `Listening`.
    pub fn listen(&self, topic: &str) -> Result<Messages, TunnelError> {
        self.claim(topic, |slot| {
            let free = slot.messages.as_ref().is_none_or(Inbox::is_closed);
            free.then(|| {
                let (inbox, messages) = messages::inbox();
                slot.messages = Some(inbox);
                messages
            })
        })
    }

    /// Takes streams of that topic, for as long as what it returns is kept.
    ///
    /// # Errors
    /// `Topic`; `Listening`.
    pub fn accept(&self, topic: &str) -> Result<Arriving, TunnelError> {
        self.claim(topic, |slot| {
            let free = slot.streams.as_ref().is_none_or(Callers::is_closed);
            free.then(|| {
                let (callers, arriving) = streams::callers();
                slot.streams = Some(callers);
                arriving
            })
        })
    }

    fn claim<T>(&self, topic: &str, claim: impl FnOnce(&mut Slot) -> Option<T>) -> Result<T, TunnelError> {
        if !is_topic(topic) {
            return Err(TunnelError::Topic);
        }
        let mut slots = self.slots();
        slots.retain(|_, slot| !slot.is_over());
        if slots.len() >= TOPICS_MAX && !slots.contains_key(topic) {
            return Err(TunnelError::Listening(format!("{TOPICS_MAX} other topics")));
        }
        claim(slots.entry(topic.to_owned()).or_default()).ok_or_else(|| TunnelError::Listening(topic.to_owned()))
    }

    fn inbox(&self, topic: &str) -> Option<Inbox> {
        self.slots().get(topic)?.messages.clone().filter(|inbox| !inbox.is_closed())
    }

    fn callers(&self, topic: &str) -> Option<Callers> {
        self.slots().get(topic)?.streams.clone().filter(|callers| !callers.is_closed())
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn is_over(&self) -> bool {
        self.messages.as_ref().is_none_or(Inbox::is_closed) && self.streams.as_ref().is_none_or(Callers::is_closed)
    }
}

/// A member's call, from its first frame to its end.
pub(crate) async fn answer(
    apps: &Apps,
    tunnel: &Tunnel,
    call: Call,
    halves: (SendStream, RecvStream),
    toll: Metered,
    room: Option<Room>,
) {
    let peer = tunnel.peer().short();
    let (Call { topic, way }, by) = match tunnel.authorize(call) {
        Ok(call) => call.into_parts(),
        Err(error) => {
            info!(%peer, %error, "a member called an application that it may not reach");
            return refuse(tunnel, halves, NotReached::NotAllowed).await;
        }
    };
    let Some(room) = room else { return refuse(tunnel, halves, NotReached::Busy).await };
    match way {
        Way::Message { id, bytes } => match apps.inbox(&topic) {
            Some(inbox) => inbox.take(tunnel, (topic, id, bytes as usize), by, halves, toll).await,
            None => refuse(tunnel, halves, NotReached::NotExposed).await,
        },
        Way::Stream => match apps.callers(&topic) {
            Some(callers) => callers.take(tunnel, topic, by, halves, (toll, room)).await,
            None => refuse(tunnel, halves, NotReached::NotExposed).await,
        },
    }
}

/// Tells why not, and waits for as long as a frame may take until that is there.
async fn refuse(tunnel: &Tunnel, (mut send, mut recv): (SendStream, RecvStream), why: NotReached) {
    let _ = recv.stop(UNWANTED);
    let told = async {
        frame::write(tunnel.peer(), &mut send, &TunnelFrame::NotReached(why)).await?;
        let _ = send.finish();
        let _ = send.stopped().await;
        Ok::<_, TunnelError>(())
    };
    // Whoever does not take it knows by the connection's end.
    let _ = timeout(FRAME_MAX, told).await;
}
