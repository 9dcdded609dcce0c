//! How a client comes back to peers that it has lost only the connection to.

use super::{
    repair::{kept, lost, missed, misses, replaced},
    *,
};

fn broke_off(hop: usize) -> Event {
    Event::Broken { hop, failure: Failure::new(FailureCode::PeerLost, "the connection broke") }
}

/// What each of these peers is asked when the client comes back.
fn asked_back(test: &mut Test) -> Vec<(usize, Return)> {
    test.session.come_back(test.now).unwrap();
    let asked = test.drain().into_iter().filter_map(|effect| match effect {
        Effect::Send { hop, frame: Frame::Return(back) } => Some((hop, back)),
        Effect::Send { frame, .. } => panic!("nothing else is said: {frame:?}"),
        _ => None,
    });
    asked.collect()
}

fn returned(hop: usize, expected: u32) -> Event {
    Event::Frame { hop, frame: Frame::Returned { expected } }
}

#[test]
fn a_client_comes_back_to_peers_that_have_its_session_still() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    for start in 0..3 {
        assert_eq!(test.submit(start, 1), Ok(start));
    }
    test.drain();
    let one = |sequence| AnswerFrame { start: sequence, count: 1, ..answer(sequence, good().rows) };
    assert_eq!(test.tell(Event::Frame { hop: 2, frame: Frame::Answer(one(0)) }).len(), 1);
    (0..3).for_each(|hop| drop(test.tell(broke_off(hop))));
    assert_eq!(test.session.broken_off(), Some(vec![0, 1, 2]));
    // A step that is submitted meanwhile waits.
    test.submit(3, 1).unwrap();
    assert!(test.drain().is_empty());
    let session = SessionId::from_bytes([1; 16]);
    let back = |answered| Return { session, previous: 3, next: 3, answered };
    assert_eq!(asked_back(&mut test), [(0, back(0)), (1, back(0)), (2, back(1))]);
    assert!(test.tell(returned(1, 3)).is_empty());
    // The first peer is sent what it has not had: the third step once more, the fourth for the first time.
    let effects = test.tell(returned(0, 2));
    let sent: Vec<(u32, bool)> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { hop: 0, frame: Frame::Replay { due, step, .. } } if *due == step.sequence => {
                Some((step.sequence, true))
            }
            Effect::Send { hop: 0, frame: Frame::Step(step) } => Some((step.sequence, false)),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [(2, true), (3, false)], "{effects:?}");
    assert!(matches!(test.tell(returned(2, 3))[..], [Effect::Repaired]));
    for sequence in 1..4 {
        let effects = test.tell(Event::Frame { hop: 2, frame: Frame::Answer(one(sequence)) });
        assert!(matches!(&effects[..], [Effect::Answer(answer)] if answer.sequence == sequence), "{effects:?}");
    }
    // Nor is anything left of it.
    assert_eq!(test.session.broken_off(), None);
    assert!(test.session.come_back(test.now).is_err());
}

#[test]
fn nobody_is_come_back_to_whom_others_have_lost_or_who_has_said_so() {
    let route = || vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)];
    let mut test = kept(route(), &[]);
    test.tell(broke_off(1));
    assert_eq!(test.session.broken_off(), Some(vec![1]));
    // Another has lost it as well.
    test.tell(Event::Frame { hop: 0, frame: missed(3, 2) });
    assert_eq!(test.session.broken_off(), None);
    let mut test = kept(route(), &[]);
    test.tell(Event::Frame { hop: 0, frame: missed(3, 2) });
    test.tell(broke_off(1));
    assert_eq!(test.session.broken_off(), None);
    let mut test = kept(route(), &[]);
    test.tell(lost(1));
    test.tell(broke_off(0));
    assert_eq!(test.session.broken_off(), None, "one that has ended its stream is among them");
    // Who is lost is not heard any more, whatever it says.
    assert!(test.tell(Event::Frame { hop: 0, frame: Frame::Failed(Failure::new(FailureCode::Busy, "")) }).is_empty());
    // A session that was not to outlive its peers ends.
    let mut test = Test::remote();
    test.error(broke_off(1));
}

#[test]
fn a_peer_that_has_let_go_of_the_session_is_replaced() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    test.submit(0, 2).unwrap();
    test.drain();
    test.tell(broke_off(0));
    test.tell(broke_off(1));
    assert_eq!(asked_back(&mut test).len(), 2);
    test.tell(returned(0, 1));
    let unknown = Frame::Failed(Failure::new(FailureCode::UnknownSession, "no such session is kept here"));
    assert!(matches!(test.tell(Event::Frame { hop: 1, frame: unknown })[..], [Effect::Lost { hop: 1, .. }]));
    assert_eq!(test.session.broken_off(), None, "it was reached");
    let effects = replaced(&mut test, 1, 5);
    assert!(effects.iter().any(|e| matches!(e, Effect::Send { hop: 0, frame: Frame::Reroute(_) })), "{effects:?}");
    // A neighbour has said that it is lost, and it says that it goes on: both were under way at once.
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    test.tell(broke_off(0));
    test.tell(broke_off(1));
    asked_back(&mut test);
    test.tell(returned(0, 0));
    assert!(matches!(misses(&mut test, 0, missed(3, 2))[..], [Effect::Lost { hop: 1, .. }]));
    assert!(test.tell(returned(1, 0)).is_empty());
    assert!(!test.session.is_over());
    // One that was asked to go on, and is given up, is opened anew.
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    test.tell(broke_off(1));
    asked_back(&mut test);
    let effects = replaced(&mut test, 1, 5);
    assert!(effects.iter().any(|e| matches!(e, Effect::Send { hop: 1, frame: Frame::Open(_) })), "{effects:?}");
    let error = test.error(returned(1, 0));
    assert!(matches!(error, SessionError::Protocol { .. }), "{error:?}");
}

#[test]
fn what_a_peer_may_not_say_when_it_is_come_back_to_ends_the_session() {
    let asked = || {
        let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
        test.tell(broke_off(0));
        asked_back(&mut test);
        test
    };
    for frame in [Frame::Returned { expected: 1 }, Frame::Ready, Frame::Credit { frames: 1 }] {
        let kind = frame.kind();
        let error = asked().error(Event::Frame { hop: 0, frame });
        assert!(matches!(error, SessionError::Protocol { peer: p, .. } if p == peer(1)), "{kind}: {error:?}");
    }
    // Nor where nobody asked.
    let error = asked().error(returned(1, 0));
    assert!(matches!(error, SessionError::Protocol { peer: p, .. } if p == peer(2)), "{error:?}");
}

#[test]
fn an_own_tail_is_sent_again_what_it_has_not_had() {
    let mut test = kept(vec![own(0, 3), remote(2, 3, 6), own(6, 9)], &[0, 2]);
    for start in 0..3 {
        test.submit(start, 1).unwrap();
        let hidden = Output::Hidden(Hidden(vec![1.0; 2]));
        let reply = StageReply::Forwarded { batch: start.into(), results: vec![Ok(hidden)], compute_us: 1 };
        test.tell(Event::Own { hop: 0, reply });
    }
    let step = |sequence: u32| {
        let mut payload = Vec::new();
        Codec::F32.encode(&[1.0; 2], 2, &mut payload).unwrap();
        let (rows, tree) = (Rows::Last, Tree::chain());
        let (start, count, codec) = (sequence, 1, Codec::F32);
        let (pad, fence, skipped) = (false, false, false);
        StepFrame { sequence, epoch: 3, start, count, rows, top: 2, codec, payload, pad, tree, fence, skipped }
    };
    test.tell(Event::Frame { hop: 1, frame: Frame::Step(step(0)) });
    test.tell(broke_off(1));
    let asked = asked_back(&mut test);
    assert_eq!(asked.iter().map(|(hop, back)| (*hop, back.answered)).collect::<Vec<_>>(), [(1, 1)]);
    assert!(matches!(test.tell(returned(1, 3))[..], [Effect::Repaired]));
    for sequence in 1..3 {
        let effects = test
            .tell(Event::Frame { hop: 1, frame: Frame::Replay { due: sequence, step: step(sequence), checked: true } });
        let runs = |effect: &Effect| matches!(effect, Effect::Own { hop: 2, command: StageCommand::Forward { .. } });
        assert!(effects.iter().any(runs), "{effects:?}");
    }
}

#[test]
fn what_stood_by_and_comes_back_is_sent_what_it_has_not_had_with_all_credit() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    let Hop::Remote(standby) = remote(7, 0, 3) else { unreachable!() };
    test.session.stand_by(test.now, 0, standby).unwrap();
    test.drain();
    test.tell(Event::Frame { hop: 3, frame: Frame::Ready });
    for start in 0..20 {
        test.submit(start, 1).unwrap();
    }
    test.drain();
    // It takes the place, and is cut off before it has said so.
    test.tell(broke_off(0));
    assert!(matches!(test.tell(broke_off(0))[..], [Effect::Lost { hop: 0, .. }]));
    test.session.come_back(test.now).unwrap();
    test.drain();
    let effects = test.tell(returned(0, 0));
    let sent = effects.iter().filter(|e| matches!(e, Effect::Send { hop: 0, frame: Frame::Replay { .. } })).count();
    assert_eq!(sent, HOP_FRAMES_MAX as usize, "{effects:?}");
}
