//! The first words on a connection: who may, which version, which codecs.

use std::time::{SystemTime, UNIX_EPOCH};

use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use potluck_core::{Defence, PeerId, bounds::STEP_POSITIONS_MAX};
use potluck_grant::Member;
use potluck_wire::{
    Bounds, CONTROL_BYTES_MAX, CodecSet, FEATURES, FailureCode, Frame, FrameReader, HOP_FRAMES_MAX, Hello, Refusal,
    VERSIONS, Welcome,
};

use crate::{Identity, NetError, Node, join::refused, node::peer_id};

/// Sessions of one client that a peer allows at once, unless its own configuration says less.
pub(crate) const SESSIONS_PER_CLIENT: u16 = 64;

/// The name by which this program introduces itself.
const AGENT: &str = concat!("potluck/", env!("CARGO_PKG_VERSION"));

/// UTC seconds by this machine's clock.
pub(crate) fn utc_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The dialer's side: introduces itself and checks that the other side is a member.
pub(crate) async fn greet(connection: &Connection, identity: &Identity) -> Result<(Welcome, Member), NetError> {
    let peer = peer_id(connection.remote_id());
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| lost(peer, &error))?;
    let hello = Frame::Hello(Hello {
        version_min: *VERSIONS.start(),
        version_max: *VERSIONS.end(),
        features: FEATURES,
        codecs: CodecSet::all(),
        grant: identity.grant.clone(),
        agent: AGENT.into(),
    });
    write_last(&mut send, &hello).await.map_err(|error| refusal_or(connection, lost(peer, &error)))?;
    match read_one(peer, &mut recv).await.map_err(|error| refusal_or(connection, error))? {
        Frame::Welcome(welcome) => {
            let lender = identity.gate.check_lender(&welcome.grant, peer, utc_now());
            let lender = match lender {
                // Whoever it is passes for this side itself.
                Err(_) if !Defence::WelcomeGrant.stands() => {
                    identity.gate.check_lender(&identity.grant, identity.key.peer_id(), utc_now())
                }
                lender => lender,
            };
            let (_, member) = lender.map_err(|error| NetError::NotMember { peer, error })?.into_parts();
            let offered = welcome.features & !FEATURES == 0 && welcome.codecs == welcome.codecs.common(CodecSet::all());
            if VERSIONS.contains(&welcome.version) && offered {
                Ok((welcome, member))
            } else {
                Err(NetError::Refused { peer, code: FailureCode::Version })
            }
        }
        Frame::Refused(Refusal { code, .. }) => Err(NetError::Refused { peer, code }),
        other => Err(NetError::Unexpected { peer, got: other.kind(), expected: "welcome" }),
    }
}

/// The acceptor's side: lets in who shows a valid grant, and tells nobody else more than a code. Who shows an invitation gets
/// its answer, and comes again with the grant: none. With the features that both know.
pub(crate) async fn admit(connection: &Connection, node: &Node) -> Result<Option<(Member, u64)>, NetError> {
    let peer = peer_id(connection.remote_id());
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|error| lost(peer, &error))?;
    let hello = match read_one(peer, &mut recv).await {
        Ok(Frame::Hello(hello)) => Ok(hello),
        Ok(Frame::Join(join)) => {
            let answer = match node.door.get() {
                Some(door) => door.clone().answer(connection, join).await,
                None => refused(FailureCode::InvitationUnknown),
            };
            // Who knows the root that the swarm is named after is led to the present one, which has signed the grants.
            let successions = node.identity.gate.successions();
            if matches!(answer, Frame::Joined(_)) && !successions.is_empty() {
                write_on(&mut send, &Frame::Revocations(successions)).await.map_err(|error| lost(peer, &error))?;
            }
            write_last(&mut send, &answer).await.map_err(|error| lost(peer, &error))?;
            // The newcomer closes once it has read the answer; what ends the wait otherwise is the greeting's deadline.
            connection.closed().await;
            return Ok(None);
        }
        Ok(other) => Err(NetError::Unexpected { peer, got: other.kind(), expected: "hello" }),
        Err(error) => Err(error),
    };
    let admitted = hello.and_then(|hello| judge(peer, &node.identity, hello));
    let frame = match &admitted {
        Ok((_, welcome)) => Frame::Welcome(welcome.clone()),
        Err(error) => refused(error.failure().code),
    };
    let written = write_last(&mut send, &frame).await.map_err(|error| lost(peer, &error));
    if admitted.is_err() {
        // The refusal is only of use if it arrives before the connection ends.
        let _ = send.stopped().await;
    }
    let (member, welcome) = admitted?;
    written.map(|()| Some((member, welcome.features)))
}

fn judge(peer: PeerId, identity: &Identity, hello: Hello) -> Result<(Member, Welcome), NetError> {
    let version = hello.version_max.min(*VERSIONS.end());
    if version < hello.version_min.max(*VERSIONS.start()) {
        return Err(NetError::Refused { peer, code: FailureCode::Version });
    }
    let member = identity.gate.check(&hello.grant, peer, utc_now());
    let member = member.map_err(|error| NetError::NotMember { peer, error })?;
    let bounds =
        Bounds { step_positions: STEP_POSITIONS_MAX as u16, hop_frames: HOP_FRAMES_MAX, sessions: SESSIONS_PER_CLIENT };
    let codecs = CodecSet::all().common(hello.codecs);
    let welcome =
        Welcome { version, features: hello.features & FEATURES, codecs, bounds, grant: identity.grant.clone() };
    Ok((member, welcome))
}

/// Closes a connection for a reason that the other side may know.
pub(crate) fn close(connection: &Connection, code: FailureCode) {
    connection.close(VarInt::from_u32(code.number()), code.to_string().as_bytes());
}

pub(crate) async fn write_last(send: &mut SendStream, frame: &Frame) -> Result<(), iroh::endpoint::WriteError> {
    write_on(send, frame).await?;
    let _ = send.finish();
    Ok(())
}

async fn write_on(send: &mut SendStream, frame: &Frame) -> Result<(), iroh::endpoint::WriteError> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    send.write_all(&bytes).await
}

/// The only frame of a stream.
pub(crate) async fn read_one(peer: PeerId, recv: &mut RecvStream) -> Result<Frame, NetError> {
    read_next(peer, recv, &mut FrameReader::new(CONTROL_BYTES_MAX)).await
}

/// The same, where others may follow: `reader` keeps what has come of them.
pub(crate) async fn read_next(
    peer: PeerId,
    recv: &mut RecvStream,
    reader: &mut FrameReader,
) -> Result<Frame, NetError> {
    loop {
        if let Some(frame) = reader.next().map_err(|error| NetError::Protocol { peer, error })? {
            return Ok(frame);
        }
        match recv.read_chunk(CONTROL_BYTES_MAX).await {
            Ok(Some(bytes)) => reader.push(&bytes),
            Ok(None) => return Err(NetError::Lost { peer, reason: "the stream ended".into() }),
            Err(error) => return Err(NetError::Lost { peer, reason: error.to_string() }),
        }
    }
}

fn lost(peer: PeerId, error: &dyn std::fmt::Display) -> NetError {
    NetError::Lost { peer, reason: error.to_string() }
}

/// A connection that was closed with a code was refused with it.
pub(crate) fn refusal_or(connection: &Connection, error: NetError) -> NetError {
    let peer = peer_id(connection.remote_id());
    match connection.close_reason() {
        Some(iroh::endpoint::ConnectionError::ApplicationClosed(close)) => {
            let code = FailureCode::from_number(close.error_code.into_inner());
            code.map_or(error, |code| NetError::Refused { peer, code })
        }
        _ => error,
    }
}
