//! A session waits for a client that has lost its connection, goes on where it was, and lets nobody else take it up.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test is its own driver, and may fail")]

#[expect(dead_code, reason = "some of it is for the other tests")]
mod harness;

use std::time::Duration;

use harness::{CACHES, Test, closes, id, member_as, open, ready, sends, step};
use potluck_core::{
    CacheId, Hidden, LayerRange, Logits, ModelId, Output, SessionId, StageCommand, StageReply, StageShape, StageSpec,
};
use potluck_grant::{Caveats, Gate, Role};
use potluck_peer::{AWAY_MAX, Effect, Event, Peer, PeerConfig, StageSlot, StreamId};
use potluck_wire::{
    AnswerFrame, Codec, Failure, FailureCode, Frame, HOP_FRAMES_MAX, HopOpen, Keep, NeighbourLost, NextHop,
    OpenSession, Prefix, PreviousHop, Reroute, Return, StepFrame,
};

const GRACE_MS: u32 = 60_000;

fn keep() -> Frame {
    Frame::Keep(Keep { grace_ms: GRACE_MS, answered: 0 })
}

/// A session of a middle stage that is ready and is kept.
fn kept() -> Test {
    let mut test = ready();
    assert!(test.frame(1, keep()).is_empty());
    test
}

fn broken(stream: u64) -> Event {
    let failure = Failure::new(FailureCode::PeerLost, "the connection broke");
    Event::Broken { stream: StreamId(stream), failure }
}

fn back(answered: u32) -> Frame {
    Frame::Return(Return { session: SessionId::from_bytes([4; 16]), previous: 0, next: 0, answered })
}

fn whole() -> StageSpec {
    StageSpec { layers: LayerRange::new(0, 4).unwrap(), head: true, tail: true, ..harness::spec() }
}

/// A session of client 9 on stream 1, at a peer that has all layers.
fn alone() -> Test {
    let config = PeerConfig {
        id: id(2),
        sessions_per_client: 2,
        idle_max: Duration::from_secs(60),
        open_timeout: Duration::from_secs(10),
    };
    let mut test = Test { peer: Peer::new(config, Gate::new(harness::root().public())), ..Test::new() };
    test.peer.add_stage(StageShape {
        spec: whole(),
        width: harness::WIDTH,
        vocabulary: 16,
        caches: CACHES,
        context: 256,
        cache_bytes_per_position: 1,
        weight_bytes: 1,
        exact: false,
    });
    let (previous, next) = (PreviousHop::Client, NextHop::Client);
    let opening = OpenSession { stage: whole(), positions: 256, previous, next, codec_in: Codec::Tokens, ..open() };
    test.stream(1, 9, Frame::Open(Box::new(opening)));
    test.frame(1, keep());
    let effects = test.tell(opened(0));
    assert!(sends(&effects, 1, &Frame::Ready), "{effects:?}");
    test
}

fn opened(cache: u16) -> Event {
    Event::Stage { stage: StageSlot(0), reply: StageReply::Opened { cache: CacheId(cache), result: Ok(()) } }
}

/// A token at that position.
fn token(sequence: u32) -> Frame {
    let payload = Codec::encode_tokens(&[3]);
    Frame::Step(StepFrame { codec: Codec::Tokens, payload, top: 1, ..step(sequence, 0, sequence, 1) })
}

/// The stage has run the step of that batch.
fn ran(batch: u64) -> Event {
    let row = Logits::Top { largest: vec![(batch as u32, 1.0)], log_sum_exp: 1.5 };
    let results = vec![Ok(Output::Logits(vec![row]))];
    Event::Stage { stage: StageSlot(0), reply: StageReply::Forwarded { batch, results, compute_us: 1 } }
}

/// Whose answers are sent on that stream, by number, and the token of each.
fn answers(effects: &[Effect], on: u64) -> Vec<(u32, u32)> {
    let of = |effect: &Effect| match effect {
        Effect::Send { stream: StreamId(stream), frame: Frame::Answer(AnswerFrame { sequence, rows, .. }) }
            if *stream == on =>
        {
            let Logits::Top { largest, .. } = &rows[0] else { return None };
            Some((*sequence, largest[0].0))
        }
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn a_client_that_comes_back_is_sent_what_it_has_not_had_and_nothing_is_computed_again() {
    let mut test = alone();
    (0..3).for_each(|sequence| drop(test.frame(1, token(sequence))));
    assert_eq!(answers(&test.tell(ran(1)), 1), [(0, 1)]);
    assert_eq!(answers(&test.tell(ran(2)), 1), [(1, 2)], "which is on its way when the connection is lost");
    assert!(test.tell(broken(1)).is_empty());
    // What is under way is computed, and waits.
    assert!(test.tell(ran(3)).is_empty());
    let effects = test.stream(4, 9, back(1));
    assert!(sends(&effects, 4, &Frame::Returned { expected: 3 }), "{effects:?}");
    assert_eq!(answers(&effects, 4), [(1, 2), (2, 3)]);
    assert_eq!(harness::runs(&effects), 0);
    // Both begin with all credit again.
    for sequence in 3..3 + HOP_FRAMES_MAX {
        assert!(closes(&test.frame(4, token(sequence)), 4).is_none());
    }
    assert_eq!(answers(&test.tell(ran(4)), 4), [(3, 4)]);
}

#[test]
fn who_comes_back_before_it_was_missed_is_followed_to_its_new_stream() {
    let mut test = alone();
    test.frame(1, token(0));
    assert_eq!(answers(&test.tell(ran(1)), 1), [(0, 1)]);
    let effects = test.stream(4, 9, back(0));
    assert_eq!(closes(&effects, 1).map(|failure| failure.code), Some(FailureCode::Done));
    assert_eq!(answers(&effects, 4), [(0, 1)]);
    // Once more, before anything was said; not all the time.
    assert_eq!(closes(&test.stream(6, 9, back(0)), 6).map(|failure| failure.code), Some(FailureCode::Busy));
    test.seconds += 1;
    let effects = test.stream(5, 9, back(0));
    assert_eq!(answers(&effects, 5), [(0, 1)]);
    // What the old connection's end says is nobody's business any more.
    assert!(test.tell(broken(4)).is_empty());
    test.frame(5, token(1));
    assert_eq!(answers(&test.tell(ran(2)), 5), [(1, 2)]);
}

#[test]
fn a_row_that_was_under_way_is_given_to_who_asks_again() {
    let mut test = alone();
    test.frame(1, token(0));
    test.tell(ran(1));
    let asked = |effects: &[Effect]| {
        let rows = |effect: &&Effect| matches!(effect, Effect::Stage { command: StageCommand::Row { row: 0, .. }, .. });
        effects.iter().filter(rows).count()
    };
    assert_eq!(asked(&test.frame(1, Frame::RowRequest { sequence: 0, row: 0 })), 1);
    test.tell(broken(1));
    let came = || StageReply::Row { cache: CacheId(0), row: 0, result: Ok(Hidden(vec![0.5; 16])) };
    assert!(test.tell(Event::Stage { stage: StageSlot(0), reply: came() }).is_empty());
    test.stream(4, 9, back(1));
    assert_eq!(asked(&test.frame(4, Frame::RowRequest { sequence: 0, row: 0 })), 1);
    let effects = test.tell(Event::Stage { stage: StageSlot(0), reply: came() });
    assert!(matches!(&effects[..], [Effect::Send { stream: StreamId(4), frame: Frame::Row { .. } }]), "{effects:?}");
}

#[test]
fn a_client_is_waited_for_no_longer_than_a_while() {
    let mut test = kept();
    test.tell(broken(1));
    test.seconds += AWAY_MAX.as_secs() - 1;
    // Steps of its neighbours do not make it stay.
    test.frame(2, Frame::Step(step(0, 0, 0, 1)));
    assert_eq!(test.peer.status().sessions, 1);
    test.seconds += 1;
    let effects = test.tell(Event::Timeout);
    assert_eq!(closes(&effects, 3).map(|failure| failure.code), Some(FailureCode::Cancelled));
    test.assert_empty();
    let effects = test.stream(4, 9, back(0));
    assert_eq!(closes(&effects, 4).map(|failure| failure.code), Some(FailureCode::UnknownSession));
}

#[test]
fn who_says_that_it_is_over_is_not_waited_for() {
    let done = || Failure::new(FailureCode::Done, "");
    let ends: [fn(&mut Test); 3] = [
        |test| drop(test.tell(Event::Closed { stream: StreamId(1), failure: Failure::new(FailureCode::Done, "") })),
        |test| drop(test.frame(1, Frame::Failed(Failure::new(FailureCode::Cancelled, "")))),
        // It, too, may say so in this way.
        |test| drop(test.frame(1, Frame::Failed(Failure::new(FailureCode::PeerLost, "")))),
    ];
    for end in ends {
        let mut test = kept();
        end(&mut test);
        test.tell(Event::Closed { stream: StreamId(2), failure: done() });
        test.assert_empty();
    }
    // Nor who never wanted to be.
    let mut test = ready();
    test.tell(broken(1));
    test.assert_empty();
}

#[test]
fn nobody_else_takes_up_a_session_nor_comes_back_to_another_place() {
    let refused = |from: u8, back: Frame| {
        let mut test = kept();
        test.tell(broken(1));
        let effects = test.stream(4, from, back);
        assert_eq!(test.peer.status().sessions, 1);
        closes(&effects, 4).map(|failure| failure.code)
    };
    assert_eq!(refused(9, back(0)), None);
    assert_eq!(refused(8, back(0)), Some(FailureCode::UnknownSession), "another client");
    let Frame::Return(right) = back(0) else { unreachable!() };
    for wrong in [Return { previous: 1, ..right }, Return { next: 1, ..right }] {
        assert_eq!(refused(9, Frame::Return(wrong)), Some(FailureCode::Epoch));
    }
    // Not kept.
    let effects = ready().stream(4, 9, back(0));
    assert_eq!(closes(&effects, 4).map(|failure| failure.code), Some(FailureCode::UnknownSession));
    // A neighbour has no session of its own.
    let mut test = kept();
    let effects = test.stream(4, 1, back(0));
    assert_eq!(closes(&effects, 4).map(|failure| failure.code), Some(FailureCode::UnknownSession));
    // It is a first word.
    let effects = test.frame(1, back(0));
    assert_eq!(closes(&effects, 1).map(|failure| failure.code), Some(FailureCode::Protocol));
}

#[test]
fn who_comes_back_is_told_what_it_has_missed() {
    let mut test = kept();
    test.tell(broken(1));
    assert!(test.tell(broken(3)).is_empty(), "there is nobody to tell");
    test.peer.drain();
    assert!(test.tell(Event::Timeout).is_empty());
    let effects = test.stream(4, 9, back(0));
    let is_told = |effect: &Effect| {
        matches!(effect, Effect::Send { stream: StreamId(4), frame: Frame::NeighbourLost(NeighbourLost { epoch: 0, failure }) }
            if failure.peer == Some(id(3)))
    };
    assert!(effects.iter().any(is_told), "{effects:?}");
    assert!(sends(&effects, 4, &Frame::Leaving), "{effects:?}");
}

#[test]
fn what_was_told_of_a_neighbour_is_over_with_another_in_its_place() {
    let mut test = kept();
    test.tell(broken(2));
    test.frame(
        1,
        Frame::Reroute(Box::new(Reroute {
            epoch: 1,
            previous: Some(PreviousHop::Peer(id(6))),
            next: None,
            answered: 0,
            merges: false,
        })),
    );
    test.stream(5, 6, Frame::HopOpen(HopOpen { epoch: 1, ..harness::hop(0) }));
    test.tell(broken(1));
    let right = Return { session: SessionId::from_bytes([4; 16]), previous: 1, next: 0, answered: 0 };
    let effects = test.stream(4, 9, Frame::Return(right));
    let is_told = |effect: &Effect| matches!(effect, Effect::Send { frame: Frame::NeighbourLost(_), .. });
    assert!(sends(&effects, 4, &Frame::Returned { expected: 0 }) && !effects.iter().any(is_told), "{effects:?}");
}

#[test]
fn what_was_let_go_of_ends_the_session_of_who_has_not_had_it() {
    // More answers than a client may wait for; or more bytes of them than are kept.
    let many = |rows: fn(u64) -> Event, steps: u32, answered: u32| {
        let mut test = alone();
        for sequence in 0..steps {
            test.frame(1, token(sequence));
            test.tell(rows(u64::from(sequence) + 1));
        }
        test.tell(broken(1));
        let effects = test.stream(4, 9, back(answered));
        let sent = effects.iter().filter(|e| matches!(e, Effect::Send { frame: Frame::Answer(_), .. })).count();
        (closes(&effects, 4).map(|failure| failure.code), sent, test.peer.status().sessions)
    };
    let wide = |batch| {
        let results = vec![Ok(Output::Logits(vec![Logits::Whole(Hidden(vec![0.5; 1 << 20]))]))];
        Event::Stage { stage: StageSlot(0), reply: StageReply::Forwarded { batch, results, compute_us: 1 } }
    };
    let forgotten = (Some(FailureCode::Forgotten), 0, 0);
    assert_eq!(many(ran, 70, 6), (None, 64, 1));
    assert_eq!(many(ran, 70, 5), forgotten);
    assert_eq!(many(wide, 3, 2), (None, 1, 1));
    assert_eq!(many(wide, 3, 1), forgotten);
}

#[test]
fn a_session_that_is_forked_is_not_the_one_that_makes_room() {
    let mut test = kept();
    test.frame(2, Frame::Step(step(0, 0, 0, 2)));
    let results = vec![Ok(Output::Hidden(Hidden(vec![1.0; 2 * harness::WIDTH as usize])))];
    let ran = StageReply::Forwarded { batch: 1, results, compute_us: 1 };
    test.tell(Event::Stage { stage: StageSlot(0), reply: ran });
    let own = |n: u8| OpenSession { session: SessionId::from_bytes([n; 16]), ..open() };
    test.stream(10, 8, Frame::Open(Box::new(own(10))));
    test.stream(11, 8, Frame::Open(Box::new(own(11))));
    test.tell(broken(1));
    let prefix = Some(Prefix { session: open().session, positions: 2 });
    let effects = test.stream(12, 9, Frame::Open(Box::new(OpenSession { prefix, ..own(12) })));
    assert_eq!(closes(&effects, 12).map(|failure| failure.code), Some(FailureCode::UnknownSession), "{effects:?}");
}

#[test]
fn who_is_away_makes_room_for_who_is_there() {
    let mut test = kept();
    let own = |n: u8| Frame::Open(Box::new(OpenSession { session: SessionId::from_bytes([n; 16]), ..open() }));
    // The limit of one client, with the first of these; another takes the last cache.
    test.stream(10, 9, own(10));
    test.stream(11, 8, own(11));
    let room = |test: &Test| (test.peer.status().free_caches, test.peer.status().away);
    assert_eq!((room(&test), test.peer.status().sessions), ((0, 0), 3));
    let busy = |effects: &[Effect], on| closes(effects, on).map(|failure| failure.code) == Some(FailureCode::Busy);
    assert!(busy(&test.stream(12, 9, own(12)), 12));
    test.tell(broken(1));
    assert_eq!(room(&test), (0, 1), "which is offered");
    let effects = test.stream(13, 9, own(13));
    assert!(closes(&effects, 13).is_none(), "{effects:?}");
    // Its neighbours go on with another, if it is there again.
    assert_eq!(closes(&effects, 3).map(|failure| failure.code), Some(FailureCode::Cancelled));
    let effects = test.stream(14, 9, back(0));
    assert_eq!(closes(&effects, 14).map(|failure| failure.code), Some(FailureCode::UnknownSession));
}

#[test]
fn nobody_has_more_sessions_for_having_been_away() {
    let mut test = kept();
    let own = |n: u8| Frame::Open(Box::new(OpenSession { session: SessionId::from_bytes([n; 16]), ..open() }));
    test.tell(broken(1));
    test.stream(10, 9, own(10));
    test.stream(11, 9, own(11));
    assert_eq!(test.peer.status().sessions, 3);
    let effects = test.stream(12, 9, back(0));
    assert_eq!(closes(&effects, 12).map(|failure| failure.code), Some(FailureCode::Busy));
    test.tell(Event::Closed { stream: StreamId(10), failure: Failure::new(FailureCode::Done, "") });
    let effects = test.stream(13, 9, back(0));
    assert!(sends(&effects, 13, &Frame::Returned { expected: 0 }), "{effects:?}");
}

#[test]
fn who_opens_its_session_anew_does_not_come_back_to_it() {
    let mut test = kept();
    test.tell(broken(1));
    let effects = test.stream(4, 9, Frame::Open(Box::new(open())));
    assert!(closes(&effects, 4).is_none(), "{effects:?}");
    assert_eq!(closes(&effects, 3).map(|failure| failure.code), Some(FailureCode::Epoch));
    assert_eq!(test.peer.status().sessions, 1);
}

#[test]
fn a_grant_that_was_taken_back_takes_nothing_up() {
    let mut test = kept();
    test.tell(broken(1));
    let models = [ModelId::from_bytes([6; 32])].into();
    let other = member_as(9, Role::Guest, Caveats { models, ..Caveats::default() });
    test.tell(Event::StreamOpened { stream: StreamId(4), from: other });
    let effects = test.frame(4, back(0));
    assert_eq!(closes(&effects, 4).map(|failure| failure.code), Some(FailureCode::NotAllowed));
    let effects = test.stream(5, 9, back(0));
    assert!(sends(&effects, 5, &Frame::Returned { expected: 0 }), "{effects:?}");
}

#[test]
fn a_hop_that_breaks_off_is_a_neighbour_lost() {
    let mut test = kept();
    let effects = test.tell(broken(2));
    let told = |effect: &Effect| matches!(effect, Effect::Send { stream: StreamId(1), frame: Frame::NeighbourLost(_) });
    assert!(effects.iter().any(told), "{effects:?}");
}
