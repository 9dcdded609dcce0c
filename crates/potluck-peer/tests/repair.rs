//! A session outlives its neighbours: what a peer that is still there does, and what it does not let itself be told.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test is its own driver, and may fail")]

#[expect(dead_code, reason = "some of it is for the other tests")]
mod harness;

use harness::{Test, closes, grant, hop, id, open, ready, sends, step};
use potluck_core::{CacheId, Hidden, Output, PeerId, SessionId, SessionKey, StageReply};
use potluck_peer::{DialId, Effect, Event, StageSlot, StreamId};
use potluck_wire::{
    Failure, FailureCode, Frame, HopOpen, Keep, Mirror, NextHop, OpenSession, PeerAddress, Prefix, PreviousHop,
    Reroute, StepFrame,
};

const WIDTH: usize = harness::WIDTH as usize;

/// A session that is ready and outlives its neighbours.
fn kept() -> Test {
    let mut test = ready();
    assert!(test.frame(1, keep(0)).is_empty());
    test
}

fn keep(answered: u32) -> Frame {
    Frame::Keep(Keep { grace_ms: 5_000, answered })
}

fn reroute(epoch: u32, previous: Option<u8>, next: Option<u8>) -> Frame {
    let address = |n| PeerAddress { peer: id(n), addresses: vec![], relay: None };
    let next = next.map(|n| NextHop::Peer { address: address(n), grant: grant(n) });
    Frame::Reroute(Box::new(Reroute {
        epoch,
        previous: previous.map(|n| PreviousHop::Peer(id(n))),
        next,
        answered: 0,
        merges: false,
    }))
}

fn lost(stream: u64) -> Event {
    let failure = Failure::new(FailureCode::PeerLost, "the connection broke");
    Event::Closed { stream: StreamId(stream), failure }
}

/// The stage has run the step of that batch, which had so many rows.
fn ran(batch: u64, rows: usize) -> Event {
    let results = vec![Ok(Output::Hidden(Hidden(vec![1.0; rows * WIDTH])))];
    Event::Stage { stage: StageSlot(0), reply: StageReply::Forwarded { batch, results, compute_us: 1 } }
}

/// A step that is sent again, behind those before number `due`.
fn again(due: u32, step: StepFrame) -> Frame {
    Frame::Replay { due, step, checked: true }
}

/// Numbers and epochs of the steps that are sent on that stream, and whether they are sent again.
fn sent(effects: &[Effect], on: u64) -> Vec<(u32, u32, bool)> {
    let of = |effect: &Effect| match effect {
        Effect::Send { stream: StreamId(stream), frame } if *stream == on => match frame {
            Frame::Step(StepFrame { sequence, epoch, .. }) => Some((*sequence, *epoch, false)),
            Frame::Replay { step: StepFrame { sequence, epoch, .. }, .. } => Some((*sequence, *epoch, true)),
            _ => None,
        },
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn a_lost_next_peer_is_told_and_its_substitute_is_sent_what_it_had() {
    let mut test = kept();
    test.frame(2, Frame::Step(step(0, 0, 0, 2)));
    assert_eq!(sent(&test.tell(ran(1, 2)), 3), [(0, 0, false)]);
    let effects = test.tell(lost(3));
    let told = |effect: &Effect| match effect {
        Effect::Send { stream: StreamId(1), frame: Frame::NeighbourLost(lost) } => {
            Some((lost.epoch, lost.failure.peer))
        }
        _ => None,
    };
    assert_eq!(effects.iter().filter_map(told).collect::<Vec<_>>(), [(0, Some(id(3)))]);
    // Steps are computed meanwhile, and wait.
    test.frame(2, Frame::Step(step(1, 0, 2, 1)));
    assert_eq!(sent(&test.tell(ran(2, 1)), 3), []);
    let effects = test.frame(1, reroute(1, None, Some(4)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Dial { to, .. } if to.peer == id(4))), "{effects:?}");
    let effects = test.tell(Event::Dialed { dial: DialId(1), result: Ok(StreamId(7)) });
    assert!(sends(&effects, 7, &Frame::HopOpen(hop(1))), "{effects:?}");
    let effects = test.frame(7, Frame::HopReady);
    assert_eq!(sent(&effects, 7), [(0, 1, true), (1, 1, false)]);
    assert!(sends(&effects, 1, &Frame::Ready), "{effects:?}");
}

#[test]
fn a_new_previous_peer_is_told_what_was_had_and_the_old_one_finds_no_way_in() {
    let mut test = kept();
    test.frame(2, Frame::Step(step(0, 0, 0, 2)));
    test.tell(ran(1, 2));
    test.tell(lost(2));
    // Whoever takes the place may come before the client's word.
    assert!(test.stream(5, 6, Frame::HopOpen(hop(1))).is_empty());
    let effects = test.frame(1, reroute(1, Some(6), None));
    assert!(sends(&effects, 5, &Frame::HopResumed { expected: 1 }), "{effects:?}");
    assert!(sends(&effects, 1, &Frame::Ready), "{effects:?}");
    // It was only asleep.
    let effects = test.stream(8, 1, Frame::HopOpen(hop(0)));
    assert_eq!(closes(&effects, 8).map(|failure| failure.code), Some(FailureCode::Epoch));
    // What the new one is sent again itself is a twin where it was had.
    assert!(test.frame(5, again(0, step(0, 1, 0, 2))).is_empty());
    assert_eq!(test.peer.status().stale_frames, 1);
    test.frame(5, Frame::Step(step(1, 1, 2, 1)));
    assert_eq!(sent(&test.tell(ran(2, 1)), 3), [(1, 0, false)]);
}

#[test]
fn a_substitute_passes_on_what_its_next_peer_has_not_had() {
    let mut test = Test::new();
    test.stream(1, 9, Frame::Open(Box::new(open())));
    test.frame(1, keep(0));
    test.stream(2, 1, Frame::HopOpen(hop(0)));
    test.tell(Event::Stage { stage: StageSlot(0), reply: StageReply::Opened { cache: CacheId(0), result: Ok(()) } });
    // Steps come while its next peer is still dialled; one in between was written again since.
    for (due, sequence, start) in [(0, 0, 0), (1, 2, 2), (3, 3, 3)] {
        let frame = again(due, step(sequence, 0, start, 1 + u16::from(start == 0)));
        assert!(closes(&test.frame(2, frame), 1).is_none());
    }
    (1..=3).for_each(|batch| drop(test.tell(ran(batch, if batch == 1 { 2 } else { 1 }))));
    test.tell(Event::Dialed { dial: DialId(0), result: Ok(StreamId(3)) });
    let effects = test.frame(3, Frame::HopResumed { expected: 3 });
    assert_eq!(sent(&effects, 3), [(3, 0, true)]);
    // Numbers are left out before what is sent again, and nowhere else.
    let effects = test.frame(2, Frame::Step(step(5, 0, 4, 1)));
    assert_eq!(closes(&effects, 1).map(|failure| failure.code), Some(FailureCode::Gap));
}

#[test]
fn what_is_sent_again_before_the_client_has_said_that_the_session_is_kept_waits_for_that() {
    let mut test = ready();
    assert!(test.frame(2, again(0, step(0, 0, 0, 2))).is_empty());
    assert!(test.frame(2, again(1, step(1, 0, 2, 1))).is_empty());
    let effects = test.frame(1, keep(0));
    assert_eq!(harness::runs(&effects), 1, "{effects:?}");
    assert_eq!(sent(&test.tell(ran(1, 2)), 3), [(0, 0, true)]);
    assert_eq!(sent(&test.tell(ran(2, 1)), 3), [(1, 0, true)]);
    // Not for ever, and no more than there is credit for.
    let mut test = ready();
    for sequence in 0..16 {
        assert!(test.frame(2, again(sequence, step(sequence, 0, 0, 1))).is_empty());
    }
    let effects = test.frame(2, again(16, step(16, 0, 0, 1)));
    assert_eq!(closes(&effects, 1).map(|failure| failure.code), Some(FailureCode::Protocol));
    test.assert_empty();
}

#[test]
fn a_session_waits_for_another_neighbour_no_longer_than_its_grace() {
    let mut test = kept();
    test.tell(lost(2));
    test.seconds += 4;
    assert!(test.tell(Event::Timeout).is_empty());
    test.seconds += 1;
    let effects = test.tell(Event::Timeout);
    assert_eq!(closes(&effects, 1).map(|failure| failure.code), Some(FailureCode::PeerLost));
    test.assert_empty();
}

#[test]
fn who_was_not_asked_to_outlive_a_neighbour_ends_with_it() {
    let mut test = ready();
    let effects = test.tell(lost(3));
    assert_eq!(closes(&effects, 1).map(|failure| failure.code), Some(FailureCode::PeerLost));
    test.assert_empty();
}

#[test]
fn what_a_client_may_not_say_of_neighbours_ends_its_session() {
    let code = |mut test: Test, frame: Frame| {
        let effects = test.frame(1, frame);
        let code = closes(&effects, 1).map(|failure| failure.code);
        test.assert_empty();
        code
    };
    let protocol = Some(FailureCode::Protocol);
    assert_eq!(code(ready(), reroute(1, None, Some(4))), protocol, "it was not asked to outlive any");
    assert_eq!(code(kept(), keep(0)), protocol, "twice");
    assert_eq!(code(kept(), reroute(0, None, Some(4))), protocol, "no newer epoch");
    assert_eq!(code(kept(), reroute(1, None, Some(2))), protocol, "itself");
    let mut begun = ready();
    begun.frame(2, Frame::Step(step(0, 0, 0, 1)));
    begun.tell(ran(1, 1));
    assert_eq!(code(begun, keep(0)), protocol, "after its beginning");
    let stranger = Reroute {
        epoch: 1,
        previous: None,
        next: Some(NextHop::Peer {
            address: PeerAddress { peer: id(4), addresses: vec![], relay: None },
            grant: vec![1, 2, 3],
        }),
        answered: 0,
        merges: false,
    };
    assert_eq!(code(kept(), Frame::Reroute(Box::new(stranger))), Some(FailureCode::NotAdmitted));
    let (answered, merges) = (0, false);
    let client = Reroute { epoch: 1, previous: Some(PreviousHop::Client), next: None, answered, merges };
    assert_eq!(code(kept(), Frame::Reroute(Box::new(client))), protocol);
}

#[test]
fn a_step_that_is_missing_among_those_sent_again_ends_the_session() {
    for (due, sequence) in [(2, 3), (4, 4), (0, 3)] {
        let mut test = kept();
        test.frame(2, again(0, step(0, 0, 0, 2)));
        // Of the steps 1 and 2 at least the last was sent, or this one's sender counts from elsewhere.
        let effects = test.frame(2, again(due, step(sequence, 0, 2, 1)));
        let code = closes(&effects, 1).map(|failure| failure.code);
        assert_eq!(code, Some(FailureCode::Gap), "step {sequence} behind {due}: {effects:?}");
    }
}

#[test]
fn a_step_that_comes_again_where_none_may_ends_the_session() {
    let mut test = ready();
    // The client's word that the session is kept would have come before any other step.
    test.frame(2, Frame::Step(step(0, 0, 0, 1)));
    let effects = test.frame(2, again(1, step(3, 0, 1, 1)));
    assert_eq!(closes(&effects, 1).map(|failure| failure.code), Some(FailureCode::Protocol));
    // A client that says nothing of the kind is not waited for any longer than one that says nothing.
    let mut test = ready();
    assert!(test.frame(2, again(0, step(3, 0, 0, 1))).is_empty());
    test.seconds += 30;
    let effects = test.tell(Event::Timeout);
    assert_eq!(closes(&effects, 1).map(|failure| failure.code), Some(FailureCode::Idle));
    test.assert_empty();
}

#[test]
fn a_session_that_began_with_anothers_positions_opens_and_cannot_be_sent_again() {
    let mut test = ready();
    test.frame(2, Frame::Step(step(0, 0, 0, 4)));
    test.tell(ran(1, 4));
    let (session, prefix) = (SessionId::from_bytes([6; 16]), Prefix { session: open().session, positions: 3 });
    test.stream(11, 9, Frame::Open(Box::new(OpenSession { session, prefix: Some(prefix), ..open() })));
    test.frame(11, keep(0));
    let key = SessionKey { client: id(9), id: session };
    test.stream(12, 1, Frame::HopOpen(HopOpen { session: key, epoch: 0 }));
    test.tell(Event::Stage { stage: StageSlot(0), reply: StageReply::Opened { cache: CacheId(1), result: Ok(()) } });
    test.tell(Event::Dialed { dial: DialId(1), result: Ok(StreamId(13)) });
    let effects = test.frame(13, Frame::HopReady);
    assert!(sends(&effects, 11, &Frame::Ready), "{effects:?}");
    // What another would have to be sent of the first three positions is in no record of this session's.
    test.tell(lost(13));
    test.frame(11, reroute(1, None, Some(4)));
    test.tell(Event::Dialed { dial: DialId(2), result: Ok(StreamId(14)) });
    let effects = test.frame(14, Frame::HopReady);
    assert_eq!(closes(&effects, 11).map(|failure| failure.code), Some(FailureCode::Forgotten));
}

#[test]
fn a_number_that_none_can_follow_ends_the_session() {
    let mut test = kept();
    let effects = test.frame(2, again(0, step(u32::MAX, 0, 0, 1)));
    assert_eq!(closes(&effects, 1).map(|failure| failure.code), Some(FailureCode::Protocol));
    test.assert_empty();
}

#[test]
fn what_waits_for_a_next_peer_is_bounded_however_often_the_previous_one_changes() {
    let mut test = kept();
    test.tell(lost(3));
    let (mut sequence, mut batch, mut ended) = (0, 0, None);
    for round in 1..12 {
        test.frame(1, reroute(round, Some(if round % 2 == 0 { 6 } else { 7 }), None));
        let stream = 20 + u64::from(round);
        test.stream(stream, if round % 2 == 0 { 6 } else { 7 }, Frame::HopOpen(hop(round)));
        for _ in 0..16 {
            let effects = test.frame(stream, Frame::Step(step(sequence, round, 0, 1)));
            ended = ended.or(closes(&effects, 1));
            (sequence, batch) = (sequence + 1, batch + 1);
            test.tell(ran(batch, 1));
        }
    }
    assert_eq!(ended.map(|failure| failure.code), Some(FailureCode::OverBudget));
    test.assert_empty();
}

fn mirror(epoch: u32, standby: Option<u8>) -> Frame {
    let address = |n| PeerAddress { peer: id(n), addresses: vec![], relay: None };
    let standby = standby.map(|n| NextHop::Peer { address: address(n), grant: grant(n) });
    Frame::Mirror(Box::new(Mirror { epoch, standby, answered: 0, merges: false }))
}

/// What the client is told of a lost neighbour: the epoch and who it was.
fn told_lost(effects: &[Effect]) -> Vec<(u32, Option<PeerId>)> {
    let told = |effect: &Effect| match effect {
        Effect::Send { stream: StreamId(1), frame: Frame::NeighbourLost(lost) } => {
            Some((lost.epoch, lost.failure.peer))
        }
        _ => None,
    };
    effects.iter().filter_map(told).collect()
}

/// A session of which one step has passed, and peer 4 stands by for peer 3, over stream 7.
fn stood_by() -> Test {
    let mut test = kept();
    test.frame(2, Frame::Step(step(0, 0, 0, 2)));
    assert_eq!(sent(&test.tell(ran(1, 2)), 3), [(0, 0, false)]);
    let effects = test.frame(1, mirror(1, Some(4)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Dial { to, .. } if to.peer == id(4))), "{effects:?}");
    let effects = test.tell(Event::Dialed { dial: DialId(1), result: Ok(StreamId(7)) });
    assert!(sends(&effects, 7, &Frame::HopOpen(hop(1))), "{effects:?}");
    assert_eq!(sent(&test.frame(7, Frame::HopReady), 7), [(0, 1, true)]);
    test
}

#[test]
fn a_standby_is_sent_all_steps_and_takes_the_place_of_a_lost_peer() {
    let mut test = stood_by();
    test.frame(2, Frame::Step(step(1, 0, 2, 1)));
    let effects = test.tell(ran(2, 1));
    assert_eq!((sent(&effects, 3), sent(&effects, 7)), (vec![(1, 0, false)], vec![(1, 1, true)]));
    assert_eq!(told_lost(&test.tell(lost(3))), [(0, Some(id(3)))]);
    test.frame(2, Frame::Step(step(2, 0, 3, 1)));
    assert_eq!(sent(&test.tell(ran(3, 1)), 7), [(2, 1, true)], "it goes on meanwhile");
    let effects = test.frame(1, reroute(2, None, Some(4)));
    assert!(sends(&effects, 1, &Frame::Ready) && sent(&effects, 7).is_empty(), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Dial { .. })), "it is there: {effects:?}");
    test.frame(2, Frame::Step(step(3, 0, 4, 1)));
    assert_eq!(sent(&test.tell(ran(4, 1)), 7), [(3, 1, false)]);
    // It is a next peer like any other now.
    assert_eq!(told_lost(&test.tell(lost(7))), [(1, Some(id(4)))]);
}

/// How a standby ends.
type End<'a> = &'a dyn Fn(&mut Test) -> Vec<Effect>;

#[test]
fn what_becomes_of_a_standby_changes_nothing_else() {
    let failure = || Failure::new(FailureCode::PeerLost, "no answer");
    let ends: [End; 4] = [
        &|test| test.tell(lost(7)),
        &|test| test.frame(7, Frame::Credit { frames: 100 }),
        &|test| test.frame(7, Frame::Failed(failure())),
        &|test| test.frame(7, Frame::Step(step(0, 1, 0, 1))),
    ];
    for end in ends {
        let mut test = stood_by();
        assert_eq!(told_lost(&end(&mut test)), [(1, Some(id(4)))]);
        test.frame(2, Frame::Step(step(1, 0, 2, 1)));
        assert_eq!(sent(&test.tell(ran(2, 1)), 3), [(1, 0, false)]);
        // Another may stand by; and one that is not reached is told as well.
        test.frame(1, mirror(2, Some(5)));
        let dial = DialId(2);
        assert_eq!(told_lost(&test.tell(Event::Dialed { dial, result: Err(failure()) })), [(2, Some(id(5)))]);
        test.frame(1, Frame::Failed(Failure::new(FailureCode::Done, "")));
        test.assert_empty();
    }
    let mut test = stood_by();
    let effects = test.frame(1, mirror(2, None));
    assert!(closes(&effects, 7).is_some() && told_lost(&effects).is_empty(), "{effects:?}");
}

#[test]
fn a_standby_that_nobody_may_be_ends_no_session_and_one_that_makes_no_sense_does() {
    let mut test = stood_by();
    let stranger = NextHop::Peer {
        address: PeerAddress { peer: id(5), addresses: vec![], relay: None },
        grant: b"no grant".to_vec(),
    };
    let (standby, answered, merges) = (Some(stranger), 0, false);
    let effects = test.frame(1, Frame::Mirror(Box::new(Mirror { epoch: 2, standby, answered, merges })));
    assert_eq!(told_lost(&effects), [(2, Some(id(5)))]);
    // An epoch that has been, and the peer that it would stand by for.
    for frame in [mirror(2, Some(5)), mirror(9, Some(3))] {
        let mut test = stood_by();
        test.frame(1, mirror(2, Some(4)));
        let effects = test.frame(1, frame.clone());
        let code = closes(&effects, 1).map(|failure| failure.code);
        assert_eq!(code, Some(FailureCode::Protocol), "{frame:?}: {effects:?}");
    }
}

#[test]
fn a_peer_that_stands_by_keeps_what_it_computes_until_it_is_told_for_whom() {
    let mut test = Test::new();
    let nobody = OpenSession { next: NextHop::Nobody, ..open() };
    assert!(!test.stream(1, 9, Frame::Open(Box::new(nobody))).iter().any(|e| matches!(e, Effect::Dial { .. })));
    test.frame(1, keep(0));
    test.stream(2, 1, Frame::HopOpen(hop(0)));
    let opened = StageReply::Opened { cache: CacheId(0), result: Ok(()) };
    let effects = test.tell(Event::Stage { stage: StageSlot(0), reply: opened });
    assert!(sends(&effects, 1, &Frame::Ready), "{effects:?}");
    let mut credit = 0;
    for n in 0..100 {
        test.frame(2, again(n, step(n, 0, n.min(20), 1)));
        let effects = test.tell(ran(u64::from(n) + 1, 1));
        assert!(effects.iter().all(|effect| matches!(effect, Effect::Send { stream: StreamId(2), .. })), "{effects:?}");
        credit += effects.len();
    }
    assert!(credit >= 20, "whoever sends is not held up by nobody's being there: {credit}");
    let effects = test.frame(1, reroute(1, None, Some(3)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Dial { to, .. } if to.peer == id(3))), "{effects:?}");
    test.tell(Event::Dialed { dial: DialId(0), result: Ok(StreamId(3)) });
    let effects = test.frame(3, Frame::HopResumed { expected: 97 });
    assert_eq!(sent(&effects, 3), [(97, 1, true), (98, 1, true), (99, 1, true)]);
    assert!(sends(&effects, 1, &Frame::Ready), "{effects:?}");
}

#[test]
fn what_a_standby_alone_was_sent_is_given_credit_for_once_it_takes_over() {
    let mut test = stood_by();
    test.tell(lost(3));
    for n in 1..=8 {
        test.frame(2, Frame::Step(step(n, 0, 1 + n, 1)));
        let effects = test.tell(ran(u64::from(n) + 1, 1));
        assert_eq!(sent(&effects, 7), [(n, 1, true)]);
    }
    let effects = test.frame(1, reroute(2, None, Some(4)));
    let granted = |effect: &Effect| match effect {
        Effect::Send { stream: StreamId(2), frame: Frame::Credit { frames } } => *frames,
        _ => 0,
    };
    // One of the nine steps is left over: credit comes in fours.
    assert_eq!(effects.iter().map(granted).sum::<u32>(), 8, "{effects:?}");
}

#[test]
fn what_rests_on_a_step_that_was_skipped_is_skipped() {
    let mut test = kept();
    test.frame(2, Frame::Step(step(0, 0, 0, 2)));
    test.tell(ran(1, 2));
    let skipped = |effects: &[Effect]| -> Vec<u32> {
        let of = |effect: &Effect| match effect {
            Effect::Send { stream: StreamId(3), frame: Frame::Step(step) } if step.skipped => Some(step.sequence),
            _ => None,
        };
        effects.iter().filter_map(of).collect()
    };
    assert_eq!(skipped(&test.frame(2, Frame::Step(StepFrame::skipped(1, 0, 2, 3)))), [1]);
    // Whoever took a lost peer's place has computed it, which the lost one had not.
    let effects = test.frame(2, Frame::Step(step(2, 0, 5, 1)));
    assert_eq!((skipped(&effects), harness::runs(&effects)), (vec![2], 0));
    // What follows starts at what is there.
    assert_eq!(harness::runs(&test.frame(2, Frame::Step(step(3, 0, 2, 1)))), 1);
}

#[test]
fn a_client_is_told_once_that_a_standby_is_as_far() {
    let caught_up = |effects: &[Effect]| sends(effects, 1, &Frame::CaughtUp { epoch: 1 });
    let mut test = stood_by();
    let told = |effects: &[Effect]| {
        let of = |effect: &&Effect| matches!(effect, Effect::Send { frame: Frame::CaughtUp { .. }, .. });
        effects.iter().filter(of).count()
    };
    // It was sent the one step that there was. What comes later it need not be done with.
    for n in 1..=2 {
        test.frame(2, Frame::Step(step(n, 0, 1 + n, 1)));
        assert_eq!(told(&test.tell(ran(u64::from(n) + 1, 1))), 0);
    }
    assert!(caught_up(&test.frame(7, Frame::Credit { frames: 1 })));
    assert_eq!(told(&test.frame(7, Frame::Credit { frames: 2 })), 0);
}

#[test]
fn whoever_drains_tells_those_whose_sessions_can_go_elsewhere() {
    let leaving = |effects: &[Effect]| sends(effects, 1, &Frame::Leaving);
    let mut test = kept();
    test.peer.drain();
    let effects: Vec<_> = std::iter::from_fn(|| test.peer.poll()).collect();
    assert!(leaving(&effects), "{effects:?}");
    test.peer.drain();
    assert!(test.peer.poll().is_none(), "once");
    let mut test = ready();
    test.peer.drain();
    assert!(test.peer.poll().is_none(), "who cannot go on elsewhere stays");
    // Who says after the opening that it can is told then.
    let mut test = Test::new();
    test.stream(1, 9, Frame::Open(Box::new(open())));
    test.peer.drain();
    assert!(leaving(&test.frame(1, keep(0))));
}
