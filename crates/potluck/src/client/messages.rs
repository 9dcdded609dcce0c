//! Messages, and what comes back.

use bytes::Bytes;
use potluck_core::PeerId;
use potluck_grant::Member;

use super::{ClientError, PeerStream, worker::Worker};

/// Messages of one topic, in the order in which they came ([`Client::listen`](super::Client::listen)). Dropped, nobody
/// listens any more, and whoever sent what was not taken is told.
#[derive(Debug)]
pub struct Messages(pub(super) potluck_tunnel::Messages);

/// A message from a member.
#[derive(Debug)]
pub struct Message(potluck_tunnel::Message);

/// Streams of one topic that members open ([`Client::accept`](super::Client::accept)).
#[derive(Debug)]
pub struct Streams(pub(super) potluck_tunnel::Arriving);

/// A message has arrived: the program there has taken it.
#[derive(Debug)]
pub struct Receipt {
    pub(super) receipt: potluck_tunnel::Receipt,
    pub(super) worker: Worker,
}

impl Messages {
    /// The next one. From then on it counts as arrived: its sender is told so. None once the client is closed. The
    /// future may be dropped at any time; no message is lost by it.
    pub async fn next(&mut self) -> Option<Message> {
        self.0.next().await.map(Message)
    }
}

impl Message {
    /// Who sent it: the key that its connection has proven.
    pub fn from(&self) -> PeerId {
        self.0.from()
    }

    /// The sender's role in the swarm: `owner`, `operator`, `member`, `guest` or `auditor`.
    pub fn role(&self) -> &'static str {
        role(self.0.member())
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        self.0.topic()
    }

    /// What it says.
    pub fn body(&self) -> &[u8] {
        self.0.body()
    }

    /// The same, as bytes that can be kept.
    pub fn into_body(self) -> Bytes {
        self.0.body().clone()
    }

    /// Answers it. False where its sender waits no longer.
    ///
    /// # Errors
    /// `TooLong`.
    pub fn reply(self, body: impl Into<Bytes>) -> Result<bool, ClientError> {
        Ok(self.0.reply(body)?)
    }
}

/// What a grant's last link that names a role says.
pub(super) fn role(member: &Member) -> &'static str {
    let named = member.chain().links().iter().rev().find_map(|link| link.caveats.role);
    named.map_or("member", potluck_grant::Role::name)
}

impl Streams {
    /// The next one. None once the client is closed. The future may be dropped at any time; no stream is lost by it.
    pub async fn next(&mut self) -> Option<PeerStream> {
        self.0.next().await
    }
}

impl Receipt {
    /// Who has the message.
    pub fn peer(&self) -> PeerId {
        self.receipt.peer()
    }

    /// What the program there replies, in what is left of the deadline; none where it dropped the message without a
    /// reply.
    ///
    /// # Errors
    /// `Unconfirmed`: no reply in time. `Away`: the connection was lost. `Closed`.
    pub async fn reply(self) -> Result<Option<Bytes>, ClientError> {
        Ok(self.worker.run(self.receipt.reply()).await??)
    }
}
