//! What a session holds is kept, and another begins with it: of the same client, at rest, and never in the way of a step.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test is its own driver, and may fail")]

#[expect(dead_code, reason = "some of it is for the other tests")]
mod harness;

use harness::{Test, closes, id, ready, sends, step};
use potluck_core::{CacheId, Hidden, Output, SessionId, SessionKey, StageCommand, StageError, StageReply, StateKey};
use potluck_peer::{DialId, Effect, Event, StageSlot, StreamId};
use potluck_wire::{Failure, FailureCode, Frame, Keep, NextHop, PeerAddress, Reroute, Restore, Save};

const KEY: StateKey = StateKey([9; 32]);
const EARLIER: SessionId = SessionId::from_bytes([8; 16]);

fn save() -> Frame {
    Frame::Save(Save { key: KEY, seconds: 60 })
}

fn restore() -> Frame {
    Frame::Restore(Restore { session: EARLIER, key: KEY })
}

fn session(n: SessionId) -> SessionKey {
    SessionKey { client: id(9), id: n }
}

fn stage(reply: StageReply) -> Event {
    Event::Stage { stage: StageSlot(0), reply }
}

fn restored(result: Result<u32, StageError>) -> Event {
    stage(StageReply::Restored { cache: CacheId(0), result })
}

fn asks(effects: &[Effect]) -> Vec<StageCommand> {
    let asked = |effect: &Effect| match effect {
        Effect::Stage { command: command @ (StageCommand::Save { .. } | StageCommand::Restore { .. }), .. } => {
            Some(command.clone())
        }
        _ => None,
    };
    effects.iter().filter_map(asked).collect()
}

/// A step of four positions came, and was computed and passed on.
fn stepped(test: &mut Test) {
    let effects = test.frame(2, Frame::Step(step(0, 0, 0, 4)));
    let batch = effects.iter().find_map(|effect| match effect {
        Effect::Stage { command: StageCommand::Forward { batch, .. }, .. } => Some(*batch),
        _ => None,
    });
    let results = vec![Ok(Output::Hidden(Hidden(vec![1.0; 16])))];
    test.tell(stage(StageReply::Forwarded { batch: batch.unwrap(), results, compute_us: 1 }));
}

#[test]
fn what_a_session_at_rest_holds_is_kept() {
    let mut test = ready();
    assert!(sends(&test.frame(1, save()), 1, &Frame::Saved { positions: 0, bytes: 0 }), "it holds nothing");
    let effects = test.frame(2, Frame::Step(step(0, 0, 0, 4)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Stage { .. })));
    assert!(sends(&test.frame(1, save()), 1, &Frame::Saved { positions: 0, bytes: 0 }), "a step is under way");
    let mut test = ready();
    stepped(&mut test);
    let command = StageCommand::Save {
        cache: CacheId(0),
        session: session(SessionId::from_bytes([4; 16])),
        positions: 4,
        bytes: 4,
        key: KEY,
        seconds: 60,
    };
    assert_eq!(asks(&test.frame(1, save())), [command]);
    // It goes on meanwhile: what is kept is of the moment when it was asked.
    let effects = test.frame(2, Frame::Step(step(1, 0, 4, 2)));
    assert!(closes(&effects, 1).is_none(), "{effects:?}");
    let effects = test.tell(stage(StageReply::Saved { cache: CacheId(0), result: Ok(77) }));
    assert!(sends(&effects, 1, &Frame::Saved { positions: 4, bytes: 77 }), "{effects:?}");
    assert!(test.tell(stage(StageReply::Saved { cache: CacheId(0), result: Ok(77) })).is_empty(), "nobody has asked");
}

#[test]
fn it_is_all_written_down_now_and_then_only() {
    let mut test = ready();
    stepped(&mut test);
    assert_eq!(asks(&test.frame(1, save())).len(), 1);
    test.tell(stage(StageReply::Saved { cache: CacheId(0), result: Ok(77) }));
    let effects = test.frame(1, save());
    assert!(sends(&effects, 1, &Frame::Saved { positions: 0, bytes: 0 }) && asks(&effects).is_empty());
    test.seconds += 10;
    assert_eq!(asks(&test.frame(1, save())).len(), 1);
}

#[test]
fn that_nothing_is_kept_ends_no_session() {
    let mut test = ready();
    stepped(&mut test);
    test.frame(1, save());
    let full = Err(StageError::Engine("the disk is full".into()));
    let effects = test.tell(stage(StageReply::Saved { cache: CacheId(0), result: full }));
    assert!(sends(&effects, 1, &Frame::Saved { positions: 0, bytes: 0 }), "{effects:?}");
    assert!(closes(&test.frame(2, Frame::Step(step(1, 0, 4, 2))), 1).is_none());
    // One question at a time.
    let mut test = ready();
    stepped(&mut test);
    test.frame(1, save());
    assert_eq!(closes(&test.frame(1, save()), 1).unwrap().code, FailureCode::Protocol);
    // Whoever hears of it after the session has ended does nothing.
    assert!(test.tell(stage(StageReply::Saved { cache: CacheId(0), result: Ok(1) })).is_empty());
}

#[test]
fn a_session_begins_with_what_was_kept_of_another_of_the_same_client() {
    let mut test = ready();
    let command = StageCommand::Restore { cache: CacheId(0), session: session(EARLIER), key: KEY };
    assert_eq!(asks(&test.frame(1, restore())), [command]);
    let effects = test.tell(restored(Ok(10)));
    assert!(sends(&effects, 1, &Frame::Restored { positions: 10 }), "{effects:?}");
    let effects = test.frame(2, Frame::Step(step(0, 0, 10, 2)));
    assert!(closes(&effects, 1).is_none() && harness::runs(&effects) == 1, "{effects:?}");
    let mut test = ready();
    test.frame(1, restore());
    assert!(sends(&test.tell(restored(Ok(10))), 1, &Frame::Restored { positions: 10 }));
    // Behind it there is nothing.
    assert_eq!(closes(&test.frame(2, Frame::Step(step(0, 0, 11, 1))), 1).unwrap().code, FailureCode::Protocol);
}

#[test]
fn what_does_not_come_back_is_computed() {
    let mut test = ready();
    test.frame(1, restore());
    let gone = Err(StageError::Engine("its time is over".into()));
    assert!(sends(&test.tell(restored(gone)), 1, &Frame::Restored { positions: 0 }));
    stepped(&mut test);
    assert!(sends(&test.frame(1, restore()), 1, &Frame::Restored { positions: 0 }), "it has begun otherwise");
}

#[test]
fn nothing_is_computed_in_a_cache_that_is_being_given_something() {
    let mut test = ready();
    test.frame(1, restore());
    assert_eq!(closes(&test.frame(2, Frame::Step(step(0, 0, 0, 4))), 1).unwrap().code, FailureCode::Protocol);
    assert!(test.tell(restored(Ok(10))).is_empty(), "it has ended");
}

#[test]
fn nobody_can_be_sent_what_came_back() {
    let mut test = ready();
    test.frame(1, Frame::Keep(Keep { grace_ms: 60_000, answered: 0 }));
    test.frame(1, restore());
    test.tell(restored(Ok(10)));
    let effects = test.frame(2, Frame::Step(step(0, 0, 10, 1)));
    assert!(closes(&effects, 1).is_none());
    test.tell(Event::Closed { stream: StreamId(3), failure: Failure::new(FailureCode::PeerLost, "gone") });
    let address = PeerAddress { peer: id(4), addresses: vec![], relay: None };
    let next = Some(NextHop::Peer { address, grant: harness::grant(4) });
    let reroute = Reroute { epoch: 1, previous: None, next, answered: 0, merges: false };
    test.frame(1, Frame::Reroute(Box::new(reroute)));
    test.tell(Event::Dialed { dial: DialId(1), result: Ok(StreamId(5)) });
    let effects = test.frame(5, Frame::HopReady);
    assert_eq!(closes(&effects, 1).unwrap().code, FailureCode::Forgotten, "{effects:?}");
}
