//! What a peer does with frames that it should not have been sent: a typed end, and nothing left behind.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test is its own driver, and may fail")]

mod harness;

use harness::{
    Test, UTC, WIDTH, closes, ends_with, grant, hop, id, member, member_as, open, ready, root, runs, sends, spec, step,
};
use potluck_core::{
    Account, CacheId, Hidden, LayerRange, ModelId, Output, SessionId, SessionKey, StageCommand, StageReply, StageShape,
    StageSpec,
};
use potluck_grant::{Caveats, Role, Root};
use potluck_peer::{DRAIN_REST, DialId, Effect, Event, PeerConfig, StageSlot, StreamId};
use potluck_wire::{
    Codec, Failure, FailureCode, Frame, HOP_FRAMES_MAX, HopOpen, NextHop, OpenSession, PeerAddress, PreviousHop,
    StepFrame,
};

#[test]
fn who_may_not_opens_nothing() {
    let elsewhere = Caveats { peers: [id(7)].into(), ..Caveats::default() };
    let another = Caveats { models: [ModelId::from_bytes([6; 32])].into(), ..Caveats::default() };
    let none = Caveats::default();
    for (role, caveats) in [(Role::Auditor, none.clone()), (Role::Owner, elsewhere), (Role::Member, another)] {
        let mut test = Test::new();
        test.tell(Event::StreamOpened { stream: StreamId(1), from: member_as(9, role, caveats) });
        let effects = test.frame(1, Frame::Open(Box::new(open())));
        assert_eq!(closes(&effects, 1).unwrap().code, FailureCode::NotAllowed, "{role}: {effects:?}");
        assert_eq!(effects.len(), 1, "no cache, no dial: {effects:?}");
        test.assert_empty();
    }
    // A guest has work done, and is nobody's neighbour: neither before this peer nor after it.
    let mut test = Test::new();
    test.tell(Event::StreamOpened { stream: StreamId(2), from: member_as(1, Role::Guest, none) });
    let effects = test.frame(2, Frame::HopOpen(hop(0)));
    assert_eq!(closes(&effects, 2).unwrap().code, FailureCode::NotAllowed, "{effects:?}");
    let caveats = Caveats { role: Some(Role::Guest), until: Some(UTC + 1_000), ..Caveats::default() };
    let grant = root().grant_as(id(3), &caveats).unwrap().into_bytes();
    let address = PeerAddress { peer: id(3), addresses: vec![], relay: None };
    let next = NextHop::Peer { address, grant };
    let effects = test.stream(1, 9, Frame::Open(Box::new(OpenSession { next, ..open() })));
    assert_eq!(closes(&effects, 1).unwrap().code, FailureCode::NotAdmitted, "{effects:?}");
    test.assert_empty();
}

#[test]
fn a_grant_of_so_many_tokens_a_day_gives_so_many() {
    let mut test = Test::new();
    let limited = Caveats { tokens_per_day: Some(3), ..Caveats::default() };
    test.tell(Event::StreamOpened { stream: StreamId(1), from: member_as(9, Role::Guest, limited) });
    test.frame(1, Frame::Open(Box::new(open())));
    test.stream(2, 1, Frame::HopOpen(hop(0)));
    let opened = StageReply::Opened { cache: CacheId(0), result: Ok(()) };
    test.tell(Event::Stage { stage: StageSlot(0), reply: opened });
    test.tell(Event::Dialed { dial: DialId(0), result: Ok(StreamId(3)) });
    test.frame(3, Frame::HopReady);
    assert_eq!(runs(&test.frame(2, Frame::Step(step(0, 0, 0, 2)))), 1);
    ends_with(test, step(1, 0, 2, 2), FailureCode::Spent);
}

#[test]
fn a_step_goes_to_the_stage_and_its_output_to_the_next_peer() {
    let mut test = ready();
    assert_eq!(runs(&test.frame(2, Frame::Step(step(0, 0, 0, 2)))), 1);
    let results = vec![Ok(Output::Hidden(Hidden(vec![2.0; 8])))];
    let effects = test
        .tell(Event::Stage { stage: StageSlot(0), reply: StageReply::Forwarded { batch: 1, results, compute_us: 1 } });
    let mut out = step(0, 0, 0, 2);
    out.payload = vec![0; 0];
    Codec::F32.encode(&[2.0; 8], 4, &mut out.payload).unwrap();
    assert!(sends(&effects, 3, &Frame::Step(out)), "{effects:?}");
}

#[test]
fn an_account_is_the_clients_to_ask_for_and_tells_waiting_from_computing() {
    let mut test = ready();
    test.frame(2, Frame::Step(step(0, 0, 0, 2)));
    test.frame(2, Frame::Step(step(1, 0, 2, 3)));
    for batch in 1..=2 {
        test.seconds += 2;
        let results = vec![Ok(Output::Hidden(Hidden(vec![2.0; if batch == 1 { 8 } else { 12 }])))];
        let reply = StageReply::Forwarded { batch, results, compute_us: 1_500_000 };
        test.tell(Event::Stage { stage: StageSlot(0), reply });
    }
    let effects = test.frame(1, Frame::AskAccount);
    let [Effect::Account { stream: StreamId(1), account, next }] = &effects[..] else { panic!("{effects:?}") };
    let expected = Account {
        steps: 2,
        positions: 5,
        // The second step came with the first, and waited for as long as that was away.
        queue_us: 2_000_000,
        compute_us: 3_000_000,
        handover_us: 1_000_000,
        codec_us: 0,
        bytes_in: 2 * 24 + 5 * 4 * 4,
        bytes_out: 2 * 24 + 5 * 4 * 4,
        next_rtt_us: None,
    };
    assert_eq!((account, next), (&expected, &Some(id(3))));
    let effects = test.frame(2, Frame::AskAccount);
    assert_eq!(closes(&effects, 2).unwrap().code, FailureCode::Protocol, "a neighbour has no business with it");
}

#[test]
fn a_peer_that_is_drained_takes_no_new_session_and_ends_none() {
    let mut test = ready();
    test.peer.drain();
    let other = OpenSession { session: SessionId::from_bytes([7; 16]), ..open() };
    let refused = test.stream(9, 8, Frame::Open(Box::new(other)));
    assert_eq!(closes(&refused, 9).unwrap().code, FailureCode::NotServed);
    assert_eq!(test.peer.status().sessions, 1);
    assert_eq!(runs(&test.frame(2, Frame::Step(step(0, 0, 0, 2)))), 1, "who is here goes on");
    test.seconds = DRAIN_REST.as_secs() + 1;
    test.tell(Event::Timeout);
    assert_eq!(test.peer.status().sessions, 1, "a step is under way: it is waited for");
    let results = vec![Ok(Output::Hidden(Hidden(vec![2.0; 8])))];
    test.tell(Event::Stage { stage: StageSlot(0), reply: StageReply::Forwarded { batch: 1, results, compute_us: 1 } });
    test.seconds += DRAIN_REST.as_secs() + 1;
    let ended = test.tell(Event::Timeout);
    assert_eq!(closes(&ended, 1).unwrap().code, FailureCode::NotServed, "who rests opens its session elsewhere");
    assert_eq!(test.peer.status().sessions, 0);
}

#[test]
fn a_newer_epoch_and_a_gap_end_the_session() {
    ends_with(ready(), step(0, 1, 0, 1), FailureCode::Epoch);
    ends_with(ready(), step(1, 0, 0, 1), FailureCode::Gap);
}

#[test]
fn a_repeated_older_step_and_an_older_epoch_are_dropped() {
    let mut test = ready();
    assert_eq!(runs(&test.frame(2, Frame::Step(step(0, 0, 0, 1)))), 1);
    for _ in 0..1_000 {
        assert!(test.frame(2, Frame::Step(step(0, 0, 0, 1))).is_empty());
    }
    assert_eq!((test.peer.status().stale_frames, test.peer.status().steps_waiting), (1_000, 0));
}

#[test]
fn hidden_states_of_the_wrong_shape_place_or_kind_end_the_session() {
    ends_with(ready(), step(0, 0, 1, 1), FailureCode::Protocol);
    ends_with(ready(), step(0, 0, 0, 33), FailureCode::ContextFull);
    ends_with(ready(), StepFrame { payload: vec![0; 15], ..step(0, 0, 0, 1) }, FailureCode::Protocol);
    ends_with(ready(), StepFrame { codec: Codec::F16, ..step(0, 0, 0, 1) }, FailureCode::Protocol);
    ends_with(
        ready(),
        StepFrame { codec: Codec::Tokens, payload: vec![0; 4], ..step(0, 0, 0, 1) },
        FailureCode::Protocol,
    );
    ends_with(ready(), StepFrame { top: u16::MAX, ..step(0, 0, 0, 1) }, FailureCode::Protocol);
    let infinite = f32::INFINITY.to_le_bytes().repeat(4);
    ends_with(ready(), StepFrame { payload: infinite, ..step(0, 0, 0, 1) }, FailureCode::Protocol);
}

#[test]
fn steps_beyond_the_credit_end_the_session() {
    let mut test = ready();
    for sequence in 0..HOP_FRAMES_MAX {
        test.frame(2, Frame::Step(step(sequence, 0, 0, 1)));
    }
    ends_with(test, step(HOP_FRAMES_MAX, 0, 0, 1), FailureCode::OverBudget);
}

#[test]
fn a_step_that_is_fenced_off_is_passed_on_without_being_run() {
    let mut test = ready();
    assert_eq!(runs(&test.frame(2, Frame::Step(step(0, 0, 0, 2)))), 1);
    for (sequence, start) in [(1, 2), (2, 4)] {
        assert!(test.frame(2, Frame::Step(step(sequence, 0, start, 2))).is_empty(), "the stage is busy");
    }
    // What follows the first step was another token: the second and the third are in vain.
    assert!(test.frame(2, Frame::Step(StepFrame { fence: true, ..step(3, 0, 2, 1) })).is_empty());
    let ran = |batch, rows: usize| {
        let results = vec![Ok(Output::Hidden(Hidden(vec![1.0; rows * WIDTH as usize])))];
        Event::Stage { stage: StageSlot(0), reply: StageReply::Forwarded { batch, results, compute_us: 1 } }
    };
    let effects = test.tell(ran(1, 2));
    let sent: Vec<(u32, bool)> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { stream: StreamId(3), frame: Frame::Step(step) } => Some((step.sequence, step.skipped)),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [(0, false), (1, true), (2, true)], "in order, and nothing is left out");
    let next = effects.iter().find_map(|effect| match effect {
        Effect::Stage { command: StageCommand::Forward { batch, steps }, .. } => Some((*batch, steps[0].start)),
        _ => None,
    });
    assert_eq!(next, Some((2, 2)), "the one that fences is run at once");
    let effects = test.tell(ran(2, 1));
    let fences = |effect: &Effect| matches!(effect, Effect::Send { frame: Frame::Step(step), .. } if step.sequence == 3 && step.fence && !step.skipped);
    assert!(effects.iter().any(fences), "those behind are told, too: {effects:?}");

    // One that comes skipped is passed on as it came.
    let effects = test.frame(2, Frame::Step(StepFrame::skipped(4, 0, 3, 2)));
    assert!(sends(&effects, 3, &Frame::Step(StepFrame::skipped(4, 0, 3, 2))), "{effects:?}");
    assert_eq!(runs(&effects), 0);
}

#[test]
fn steps_are_taken_from_the_named_previous_peer_alone() {
    let mut test = ready();
    // The client itself, on its own stream.
    let effects = test.frame(1, Frame::Step(step(0, 0, 0, 1)));
    assert_eq!(closes(&effects, 1).unwrap().code, FailureCode::Protocol);
    // A member that learnt the session's name.
    let mut test = Test::new();
    test.stream(1, 9, Frame::Open(Box::new(open())));
    let effects = test.stream(5, 7, Frame::HopOpen(hop(0)));
    assert_eq!(closes(&effects, 5).unwrap().code, FailureCode::UnknownSession);
    assert_eq!(test.peer.status().sessions, 1, "the session itself is untouched");
    // The same name, opened by another client, is another session.
    let other = HopOpen { session: SessionKey { client: id(8), ..hop(0).session }, epoch: 0 };
    assert!(test.stream(6, 1, Frame::HopOpen(other)).is_empty(), "it waits for its own client");
    assert_eq!(test.peer.status().parked, 1);
}

#[test]
fn a_second_hop_and_an_old_epoch_do_not_take_over() {
    let mut test = ready();
    let effects = test.stream(5, 1, Frame::HopOpen(hop(0)));
    assert_eq!(closes(&effects, 5).unwrap().code, FailureCode::UnknownSession);
    let mut again = open();
    again.epoch = 0;
    let effects = test.stream(6, 9, Frame::Open(Box::new(again)));
    assert_eq!(closes(&effects, 6).unwrap().code, FailureCode::Epoch);
    assert_eq!(test.peer.status().sessions, 1);
}

#[test]
fn a_newer_epoch_takes_over_and_late_results_of_the_old_one_are_lost() {
    let mut test = ready();
    test.frame(2, Frame::Step(step(0, 0, 0, 1)));
    let effects = test.stream(6, 9, Frame::Open(Box::new(OpenSession { epoch: 1, ..open() })));
    assert_eq!(closes(&effects, 1).unwrap().code, FailureCode::Epoch);
    test.tell(Event::Stage { stage: StageSlot(0), reply: StageReply::Opened { cache: CacheId(0), result: Ok(()) } });
    test.stream(7, 1, Frame::HopOpen(hop(1)));
    test.tell(Event::Dialed { dial: DialId(1), result: Ok(StreamId(8)) });
    assert!(sends(&test.frame(8, Frame::HopReady), 6, &Frame::Ready));
    let results = vec![Ok(Output::Hidden(Hidden(vec![9.0; 4])))];
    let late = StageReply::Forwarded { batch: 1, results, compute_us: 1 };
    assert!(test.tell(Event::Stage { stage: StageSlot(0), reply: late }).is_empty(), "epoch 0's result goes nowhere");
}

#[test]
fn a_session_of_the_same_name_does_not_get_what_was_owed_to_the_one_before() {
    let mut test = ready();
    test.frame(2, Frame::Step(step(0, 0, 0, 1)));
    test.tell(Event::Closed { stream: StreamId(1), failure: Failure::new(FailureCode::Done, "") });
    test.stream(11, 9, Frame::Open(Box::new(open())));
    test.stream(12, 1, Frame::HopOpen(hop(0)));
    test.tell(Event::Stage { stage: StageSlot(0), reply: StageReply::Opened { cache: CacheId(0), result: Ok(()) } });
    test.tell(Event::Dialed { dial: DialId(1), result: Ok(StreamId(13)) });
    assert!(sends(&test.frame(13, Frame::HopReady), 11, &Frame::Ready));
    assert_eq!(runs(&test.frame(12, Frame::Step(step(0, 0, 0, 1)))), 0, "the old step still runs");
    let results = vec![Ok(Output::Hidden(Hidden(vec![9.0; 4])))];
    let late = StageReply::Forwarded { batch: 1, results, compute_us: 1 };
    let effects = test.tell(Event::Stage { stage: StageSlot(0), reply: late });
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Send { .. })), "{effects:?}");
    assert_eq!(runs(&effects), 1, "the new step's turn has come");
}

#[test]
fn an_opening_that_is_answered_late_counts_for_nobody_else() {
    let mut test = Test::new();
    test.stream(1, 9, Frame::Open(Box::new(open())));
    test.tell(Event::Closed { stream: StreamId(1), failure: Failure::new(FailureCode::Done, "") });
    assert_eq!(test.peer.status().free_caches, 2, "its cache is still owed");
    let other = OpenSession { session: SessionId::from_bytes([1; 16]), ..open() };
    let effects = test.stream(2, 8, Frame::Open(Box::new(other)));
    let takes = |e: &Effect| matches!(e, Effect::Stage { command: StageCommand::Open { cache: CacheId(1), .. }, .. });
    assert!(effects.iter().any(takes), "{effects:?}");
    let late = StageReply::Opened { cache: CacheId(0), result: Err(potluck_core::StageError::Busy { caches: 3 }) };
    assert!(test.tell(Event::Stage { stage: StageSlot(0), reply: late }).is_empty());
    assert_eq!((test.peer.status().free_caches, test.peer.status().sessions), (2, 1));
}

#[test]
fn one_member_cannot_park_or_dial_without_end() {
    let mut test = Test::new();
    let busy = |effects: &[Effect], on| closes(effects, on).is_some_and(|failure| failure.code == FailureCode::Busy);
    let refused = (0..1_000u64).filter(|&n| {
        let session = SessionKey { client: id(9), id: SessionId::from_bytes(u128::from(n).to_le_bytes()) };
        busy(&test.stream(n, 1, Frame::HopOpen(HopOpen { session, epoch: 0 })), n)
    });
    assert_eq!(refused.count(), 1_000 - 32);
    assert_eq!(test.peer.status().parked, 32);
    let mut test = Test::new();
    let mut refused = 0;
    for n in 0..1_000u64 {
        let session = SessionId::from_bytes(u128::from(n).to_le_bytes());
        let effects = test.stream(n, 9, Frame::Open(Box::new(OpenSession { session, ..open() })));
        refused += u64::from(busy(&effects, n));
        test.tell(Event::Closed { stream: StreamId(n), failure: Failure::new(FailureCode::Done, "") });
        test.tell(Event::Stage {
            stage: StageSlot(0),
            reply: StageReply::Opened { cache: CacheId(0), result: Ok(()) },
        });
    }
    assert_eq!((refused, test.peer.status().dials), (1_000 - 32, 32));
}

#[test]
fn a_client_cannot_make_us_knock_at_a_strangers_door() {
    let victim = PeerAddress { peer: id(66), addresses: vec!["192.0.2.1:80".into()], relay: None };
    let forged = Root::from_bytes(&[2; 32]).grant(id(66), UTC + 1_000).unwrap().into_bytes();
    for grant in [vec![], forged, grant(3)] {
        let mut test = Test::new();
        let next = NextHop::Peer { address: victim.clone(), grant };
        let effects = test.stream(1, 9, Frame::Open(Box::new(OpenSession { next, ..open() })));
        assert_eq!(closes(&effects, 1).unwrap().code, FailureCode::NotAdmitted);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Dial { .. })));
        test.assert_empty();
    }
}

#[test]
fn an_opening_that_makes_no_sense_is_refused() {
    let refused = |open: OpenSession, code| {
        let mut test = Test::new();
        let effects = test.stream(1, 9, Frame::Open(Box::new(open)));
        assert_eq!(closes(&effects, 1).unwrap().code, code, "{effects:?}");
        test.assert_empty();
    };
    let other = StageSpec { layers: LayerRange::new(2, 5).unwrap(), ..spec() };
    refused(OpenSession { stage: other, ..open() }, FailureCode::NotServed);
    refused(OpenSession { positions: 65, ..open() }, FailureCode::ContextFull);
    refused(OpenSession { positions: 0, ..open() }, FailureCode::Protocol);
    refused(OpenSession { codec_in: Codec::Tokens, ..open() }, FailureCode::Protocol);
    refused(OpenSession { codec_out: Codec::Tokens, ..open() }, FailureCode::Protocol);
    refused(OpenSession { previous: PreviousHop::Peer(id(2)), ..open() }, FailureCode::Protocol);
    let prefix = potluck_wire::Prefix { session: SessionId::from_bytes([8; 16]), positions: 1 };
    refused(OpenSession { prefix: Some(prefix), ..open() }, FailureCode::UnknownSession);
}

#[test]
fn one_client_cannot_take_every_cache() {
    let mut test = Test::new();
    for n in 0..3u8 {
        let session = SessionId::from_bytes([n; 16]);
        let effects = test.stream(n.into(), 9, Frame::Open(Box::new(OpenSession { session, ..open() })));
        let refused = closes(&effects, n.into()).map(|failure| failure.code);
        assert_eq!(refused, (n == 2).then_some(FailureCode::Busy), "session {n}");
    }
    assert_eq!(test.peer.status().free_caches, 1);
    let effects = test.stream(7, 8, Frame::Open(Box::new(open())));
    assert!(closes(&effects, 7).is_none(), "the last one is another client's: {effects:?}");
    let shares = [1, 2, 3, 8].map(PeerConfig::fair_share);
    assert_eq!(shares, [1, 1, 2, 7], "where there is one cache, whoever comes first has it");
}

#[test]
fn what_waits_has_a_deadline() {
    let mut test = Test::new();
    test.tell(Event::StreamOpened { stream: StreamId(1), from: member(9) });
    test.stream(2, 1, Frame::HopOpen(hop(0)));
    let other = OpenSession { session: SessionId::from_bytes([1; 16]), ..open() };
    test.stream(3, 8, Frame::Open(Box::new(other)));
    test.seconds = 9;
    assert!(test.tell(Event::Timeout).is_empty());
    test.seconds = 10;
    let effects = test.tell(Event::Timeout);
    for stream in [1, 2, 3] {
        assert_eq!(closes(&effects, stream).unwrap().code, FailureCode::Deadline);
    }
    // What the driver and the engine still owe comes, and goes nowhere.
    assert_eq!((test.peer.status().dials, test.peer.status().free_caches), (1, 2));
    let failure = Failure::new(FailureCode::PeerLost, "no answer");
    assert!(test.tell(Event::Dialed { dial: DialId(0), result: Err(failure) }).is_empty());
    let opened = StageReply::Opened { cache: CacheId(0), result: Ok(()) };
    assert!(test.tell(Event::Stage { stage: StageSlot(0), reply: opened }).is_empty());
    test.assert_empty();
}

#[test]
fn an_idle_session_ends_when_its_client_said_so_at_the_latest() {
    let mut test = ready();
    test.seconds = 29;
    assert!(test.tell(Event::Timeout).is_empty());
    test.seconds = 30;
    assert_eq!(closes(&test.tell(Event::Timeout), 1).unwrap().code, FailureCode::Idle);
    test.assert_empty();
}

#[test]
fn credit_that_was_not_due_and_frames_out_of_place_end_the_session() {
    for (stream, frame) in [
        (3, Frame::Credit { frames: 1 }),
        (3, Frame::Credit { frames: u32::MAX }),
        (3, Frame::Credit { frames: 0 }),
        (2, Frame::Credit { frames: 1 }),
        (3, Frame::Step(step(0, 0, 0, 1))),
        (1, Frame::RowRequest { sequence: 0, row: 0 }),
        (1, Frame::Ready),
        (2, Frame::HopReady),
        (1, Frame::ListOffers),
    ] {
        let mut test = ready();
        let what = frame.kind();
        let effects = test.frame(stream, frame);
        assert_eq!(closes(&effects, 1).unwrap().code, FailureCode::Protocol, "{what} on stream {stream}");
        test.assert_empty();
    }
}

#[test]
fn the_loss_of_the_engine_is_told_and_the_stage_comes_back() {
    let mut test = ready();
    test.frame(2, Frame::Step(step(0, 0, 0, 1)));
    let lost = StageReply::Lost { reason: "killed by signal 9".into() };
    let effects = test.tell(Event::Stage { stage: StageSlot(0), reply: lost });
    assert_eq!(closes(&effects, 1).unwrap().code, FailureCode::EngineLost);
    let refused = test.stream(5, 9, Frame::Open(Box::new(open())));
    assert_eq!(closes(&refused, 5).unwrap().code, FailureCode::EngineLost);
    test.assert_empty();
    let shape = StageShape {
        spec: spec(),
        width: WIDTH,
        vocabulary: 16,
        caches: 3,
        context: 64,
        cache_bytes_per_position: 1,
        weight_bytes: 1,
        exact: false,
    };
    test.tell(Event::Stage { stage: StageSlot(0), reply: StageReply::Ready(shape) });
    let opened = test.stream(6, 9, Frame::Open(Box::new(open())));
    assert!(closes(&opened, 6).is_none(), "{opened:?}");
}

#[test]
fn a_lost_neighbour_is_named_to_the_client() {
    for (stream, peer) in [(2, id(1)), (3, id(3))] {
        let mut test = ready();
        let failure = Failure::new(FailureCode::PeerLost, "timed out");
        let effects = test.tell(Event::Closed { stream: StreamId(stream), failure });
        let told = closes(&effects, 1).unwrap();
        assert_eq!((told.code, told.peer), (FailureCode::PeerLost, Some(peer)));
        test.assert_empty();
    }
}
