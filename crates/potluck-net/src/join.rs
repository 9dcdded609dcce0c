//! How a machine without a grant gets one: it shows an invitation to the peer that wrote it.
//!
//! An invitation is known by a secret; whoever knows it may use it, as often as its writer allows. The peer is the one that
//! the invitation names, as its key proves, and the grants are bound to the newcomer's keys: both were shown by TLS.

use std::{fmt, sync::Arc};

use iroh::endpoint::Connection;
use potluck_core::{PeerId, SignedRevocation};
use potluck_wire::{
    ALPN, CONTROL_BYTES_MAX, FailureCode, Frame, FrameReader, Join, Joined, PeerAddress, Refusal, SUCCESSIONS_MAX,
    VERSIONS,
};
use tokio::time::timeout;

use crate::{
    NetError, Node,
    greet::{close, read_next, refusal_or, utc_now, write_last},
    node::peer_id,
};

/// Says who is let in by an invitation. It may read and write files: it is called on a thread that may wait.
#[derive(Clone)]
pub struct Door(Arc<Answer>);

type Answer = dyn Fn(PeerId, &Join) -> Result<Joined, FailureCode> + Send + Sync;

impl Door {
    /// A door that answers like this. The peer is the one that asks, by the key that its connection has proven.
    pub fn new(answer: impl Fn(PeerId, &Join) -> Result<Joined, FailureCode> + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }

    /// What a newcomer is told. A key that asks for others only is refused: nobody is let in behind their back.
    pub(crate) async fn answer(self, connection: &Connection, asked: Join) -> Frame {
        let peer = peer_id(connection.remote_id());
        let answered = tokio::task::spawn_blocking(move || {
            if asked.keys.contains(&peer) { (self.0)(peer, &asked) } else { Err(FailureCode::Protocol) }
        });
        match answered.await.unwrap_or(Err(FailureCode::Busy)) {
            Ok(joined) => Frame::Joined(joined),
            Err(code) => refused(code),
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Door")
    }
}

/// What a newcomer is told where there is no door, or it stays shut.
pub(crate) fn refused(code: FailureCode) -> Frame {
    Frame::Refused(Refusal { code, version_min: *VERSIONS.start(), version_max: *VERSIONS.end() })
}

impl Node {
    /// Answers newcomers from now on. The first door counts.
    pub fn open_door(&self, door: Door) {
        let _ = self.door.set(door);
    }

    /// Shows an invitation to the peer that wrote it. `keys` are those to be let in, this node's among them.
    ///
    /// # Errors
    /// `Unreachable`; `Refused` with what is wrong with the invitation; `NotMember` where a grant that came is not what this
    /// swarm's root would have given to that key.
    pub async fn join(&self, to: &PeerAddress, secret: [u8; 16], keys: Vec<PeerId>) -> Result<Joined, NetError> {
        let peer = to.peer;
        let (connection, _) = self.shake_hands(to, ALPN).await?;
        let asked = ask(&connection, peer, Join { secret, keys: keys.clone() });
        let asked = timeout(self.deadlines.greet, asked).await;
        close(&connection, FailureCode::Done);
        let seconds = self.deadlines.greet.as_secs_f32();
        let late =
            |_| NetError::Unreachable { peer, reason: format!("no answer to the invitation within {seconds} s") };
        let (successions, joined) = asked.map_err(late)??;
        // Signed by the root that the invitation names, and by those that followed it: or they lead nowhere.
        for succession in successions {
            let heard = self.identity.gate.revoke(succession);
            heard.map_err(|error| NetError::NotMember { peer, error })?;
        }
        if joined.grants.len() != keys.len() {
            return Err(NetError::Unexpected { peer, got: "joined", expected: "a grant for each key" });
        }
        for (grant, &key) in joined.grants.iter().zip(&keys) {
            let member = self.identity.gate.check(grant, key, utc_now());
            member.map_err(|error| NetError::NotMember { peer: key, error })?;
        }
        Ok(joined)
    }
}

/// What leads to the present root, where it is not the one that the swarm is named after, and the answer.
async fn ask(connection: &Connection, peer: PeerId, join: Join) -> Result<(Vec<SignedRevocation>, Joined), NetError> {
    let lost = |error: &dyn fmt::Display| NetError::Lost { peer, reason: error.to_string() };
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| lost(&error))?;
    let written = write_last(&mut send, &Frame::Join(join)).await;
    written.map_err(|error| refusal_or(connection, lost(&error)))?;
    let mut reader = FrameReader::new(CONTROL_BYTES_MAX);
    let mut first = read_next(peer, &mut recv, &mut reader).await.map_err(|error| refusal_or(connection, error))?;
    let mut successions = Vec::new();
    if let Frame::Revocations(said) = first {
        if said.len() > SUCCESSIONS_MAX {
            return Err(NetError::Unexpected { peer, got: "revocations", expected: "what leads to the present root" });
        }
        successions = said;
        first = read_next(peer, &mut recv, &mut reader).await.map_err(|error| refusal_or(connection, error))?;
    }
    match first {
        Frame::Joined(joined) => Ok((successions, joined)),
        Frame::Refused(Refusal { code, .. }) => Err(NetError::Refused { peer, code }),
        other => Err(NetError::Unexpected { peer, got: other.kind(), expected: "joined" }),
    }
}
