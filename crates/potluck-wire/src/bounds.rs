//! The bounds of the wire, each with its unit and what happens beyond it.

use potluck_core::{
    Revocation,
    bounds::{POSITION_BYTES_MAX, STEP_BYTES_MAX, STEP_POSITIONS_MAX, TREE_ROWS_MAX},
};

/// The protocol's name in the TLS handshake. A connection that asks for another is refused there.
pub const ALPN: &[u8] = b"potluck/hop/1";

/// Oldest and newest version of the wire that this build speaks. No overlap: the connection is refused.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 1..=1;

/// Feature bit: a peer keeps accounts of its sessions, and may be asked for them.
pub const FEATURE_ACCOUNTS: u64 = 1;

/// Feature bit: steps and answers may be padded ([`StepFrame::pad`](crate::StepFrame::pad)), parts of a conversation with an
/// upstream, too.
pub const FEATURE_PADDING: u64 = 2;

/// Feature bit: a step may be a tree of drafts, and may fence earlier ones off ([`StepFrame::fence`](crate::StepFrame::fence)).
pub const FEATURE_DRAFTS: u64 = 4;

/// Feature bit: a session outlives the loss of a neighbour, and goes on with another ([`Keep`](crate::Keep),
/// [`Reroute`](crate::Reroute)); a peer stands by for another, and passes on to a standby what it passes on
/// ([`Mirror`](crate::Mirror)); who leaves says so before ([`Frame::Leaving`](crate::Frame::Leaving)). The bits 8 and 16 were those of
/// earlier layouts.
pub const FEATURE_RECOVERY: u64 = 32;

/// Feature bit: what is written to a stream may come once more as datagrams ([`encode_echo`](crate::encode_echo)). It is a
/// connection's, not a session's: each pair of neighbours has it or has it not.
pub const FEATURE_ECHOES: u64 = 64;

/// Feature bit: a session outlives the connection to its client for a while, and is taken up again ([`Return`](crate::Return)). It is a
/// peer's: each of a route has it or has it not.
pub const FEATURE_RETURN: u64 = 128;

/// Feature bit: a step that is sent again may carry a check ([`Frame::Replay`](crate::Frame::Replay)). It is a connection's, as echoes
/// are.
pub const FEATURE_CHECKS: u64 = 256;

/// Feature bit: what a session holds may be kept, and begun with later ([`Save`](crate::Save), [`Restore`](crate::Restore)). It is a
/// peer's: each of a route has it or has it not.
pub const FEATURE_SAVING: u64 = 512;

/// All features that this program knows. A greeting agrees on those that both know.
pub const FEATURES: u64 = FEATURE_ACCOUNTS
    | FEATURE_PADDING
    | FEATURE_DRAFTS
    | FEATURE_RECOVERY
    | FEATURE_ECHOES
    | FEATURE_RETURN
    | FEATURE_CHECKS
    | FEATURE_SAVING;

/// Bytes of the shortest padded answer, and of the shortest padded part of a conversation: longer ones are a power of two.
pub const PADDED_BYTES_MIN: usize = 1 << 10;

/// Bytes of the header of a step or an answer, length and kind included.
pub const HEADER_BYTES: usize = 24;

/// Bytes of the header of a step that is sent again: its check and which number was due come first. One without a check has four less.
pub const REPLAY_HEADER_BYTES: usize = HEADER_BYTES + 2 * size_of::<u32>();

/// Bytes of any frame whose body is not a payload (hello, open, failure, ...). A longer one closes the stream,
/// unallocated.
pub const CONTROL_BYTES_MAX: usize = 64 << 10;

/// Bytes of the longest frame of all: a full step of the widest model in `f32`. A stream's own limit follows from
/// its session's model ([`step_frame_bytes_max`]) and is far smaller.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + TREE_ROWS_MAX + STEP_BYTES_MAX;

/// Bytes of a grant in a message.
pub const GRANT_BYTES_MAX: usize = 8 << 10;

/// Characters of a text in a message (a failure's detail, a program's name). Longer ones are cut by the sender and
/// refused by the receiver.
pub const TEXT_BYTES_MAX: usize = 512;

/// Addresses of one peer in a message.
pub const ADDRESSES_MAX: usize = 16;

/// Keys that one use of an invitation brings in: what one machine serves and asks with.
pub const JOIN_KEYS_MAX: usize = 2;

/// Members that a newcomer is told of.
pub const CONTACTS_MAX: usize = 3;

/// Offers in one message.
pub const OFFERS_MAX: usize = 12;

/// Models in one message: what a peer shares.
pub const MODELS_MAX: usize = 128;

/// Bytes of a model's name in a message.
pub const NAME_BYTES_MAX: usize = 128;

/// Bytes of one part of a model in a message: a piece of a tensor.
pub const PART_BYTES_MAX: usize = potluck_core::PIECE_BYTES;

/// Hashes of pieces in one message.
pub const PIECE_HASHES_MAX: usize = 1_024;

/// Bytes of the longest frame that carries a part of a model. Only whoever asked for one reads frames as long as this.
pub const PART_FRAME_BYTES_MAX: usize = PART_BYTES_MAX + 16;

/// Models of one upstream in a message.
pub const UPSTREAM_MODELS_MAX: usize = 128;

/// Lenders of upstreams in one message: a page.
pub const LENDERS_MAX: usize = 12;

/// Bytes of a grant beside a lender's address.
pub const LENDER_GRANT_BYTES_MAX: usize = potluck_core::Offer::GRANT_BYTES_MAX;

/// Characters of each address of a lender.
pub const LENDER_ADDRESS_BYTES_MAX: usize = potluck_core::Offer::ADDRESS_CHARS_MAX;

/// Characters of the URL of a lender's relay.
pub const LENDER_RELAY_BYTES_MAX: usize = 256;

/// Bytes of a request to an upstream, all its parts together.
pub const ASK_BYTES_MAX: u32 = 20 << 20;

/// Frames that a sender may have unacknowledged on a session's stream before the first credit. Beyond what was
/// credited the receiver ends the session with `Protocol`: so a session's queue is bounded by this number of frames.
pub const HOP_FRAMES_MAX: u32 = 16;

/// Bytes of the longest frame of a session whose model is `width` wide.
pub const fn step_frame_bytes_max(width: u32) -> usize {
    HEADER_BYTES + TREE_ROWS_MAX + STEP_POSITIONS_MAX * width as usize * size_of::<f32>()
}

/// Bytes of the longest answer of a session whose vocabulary holds `vocabulary` tokens: whole rows as long as they
/// fit a full step's worth of the widest codec, and one row at least.
pub const fn answer_frame_bytes_max(width: u32, vocabulary: u32) -> usize {
    let step = step_frame_bytes_max(width);
    let row = HEADER_BYTES + 64 + vocabulary as usize * size_of::<f32>();
    if step > row { step } else { row }
}

/// Rows of `top` largest logits each, or whole ones where it is 0, that fit the longest answer.
pub const fn answer_rows_max(width: u32, vocabulary: u32, top: u16) -> usize {
    // Upper bounds of the encoding: 10 bytes a largest logit, 4 a whole row's value, 16 a row, 16 for all.
    let row = 16 + if top == 0 { size_of::<f32>() * vocabulary as usize } else { 10 * top as usize };
    (answer_frame_bytes_max(width, vocabulary) - HEADER_BYTES - 16) / row
}

/// Positions that a padded step of `count` positions looks like: the next power of two.
pub const fn padded_positions(count: usize) -> usize {
    count.next_power_of_two()
}

/// Bytes of a padded frame of which `bytes` are its own.
pub const fn padded_bytes(bytes: usize) -> usize {
    if bytes > PADDED_BYTES_MIN { bytes.next_power_of_two() } else { PADDED_BYTES_MIN }
}

const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize, "a frame's length fits its field");
/// Bytes of a lender in a message: its key, its grant, where it is, and the lengths.
const LENDER_BYTES: usize =
    LENDER_GRANT_BYTES_MAX + ADDRESSES_MAX * (LENDER_ADDRESS_BYTES_MAX + 2) + LENDER_RELAY_BYTES_MAX + 64;

/// Bytes of a signed offer in a message: the offer, its grant, the signature and the lengths.
const OFFER_BYTES: usize = potluck_core::Offer::BYTES_MAX + potluck_core::Offer::GRANT_BYTES_MAX + 128;

const _: () = assert!(
    CONTROL_BYTES_MAX
        >= JOIN_KEYS_MAX * GRANT_BYTES_MAX + CONTACTS_MAX * (ADDRESSES_MAX + 1) * (TEXT_BYTES_MAX + 2) + 256,
    "an answer to a newcomer fits"
);
const _: () = assert!(CONTROL_BYTES_MAX >= MODELS_MAX * (NAME_BYTES_MAX + 96), "a list of models fits");
const _: () = assert!(
    CONTROL_BYTES_MAX >= UPSTREAM_MODELS_MAX * (NAME_BYTES_MAX + 8) + LENDERS_MAX * LENDER_BYTES + TEXT_BYTES_MAX + 32,
    "an upstream's models and a page of lenders fit"
);
const _: () = assert!(PIECE_HASHES_MAX * size_of::<potluck_core::PieceHash>() <= PART_BYTES_MAX, "hashes fit a part");
/// How often a swarm's root may be followed by another. A further succession is refused.
pub const SUCCESSIONS_MAX: usize = 8;

/// Revocations in one message.
pub const REVOCATIONS_PAGE_MAX: usize = 24;

const _: () = assert!(
    CONTROL_BYTES_MAX >= REVOCATIONS_PAGE_MAX * (LENDER_GRANT_BYTES_MAX + Revocation::BYTES_MAX + 80),
    "a page of revocations fits"
);
const _: () = assert!(SUCCESSIONS_MAX <= REVOCATIONS_PAGE_MAX, "what leads a newcomer to the present root fits a page");
const _: () = assert!(CONTROL_BYTES_MAX >= OFFERS_MAX * OFFER_BYTES, "a page of offers fits");
const _: () = assert!(potluck_core::Offer::GRANT_BYTES_MAX <= GRANT_BYTES_MAX, "a grant beside an offer is a grant");
const _: () = assert!(POSITION_BYTES_MAX <= CONTROL_BYTES_MAX * 2, "one position of the widest model is a small frame");
