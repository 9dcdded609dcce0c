//! How a session outlives its peers, and who stands by for them.

use super::*;

/// A session that waits for others in the places of lost peers.
pub(crate) fn kept(route: Vec<Hop>, own: &[usize]) -> Test {
    let now = Instant::now();
    let config = config(route);
    let deadlines = Deadlines { grace: Some(Duration::from_secs(5)), ..config.deadlines };
    Test { session: ClientSession::new(now, SessionConfig { deadlines, ..config }).unwrap(), now }.ready(own)
}

pub(crate) fn lost(hop: usize) -> Event {
    Event::Closed { hop, failure: Failure::new(FailureCode::PeerLost, "the connection broke") }
}

pub(crate) fn missed(epoch: u32, whom: u8) -> Frame {
    let failure = Failure::new(FailureCode::PeerLost, "gone").of(peer(whom));
    Frame::NeighbourLost(NeighbourLost { epoch, failure })
}

/// A peer says that it misses a neighbour, and hears when it is asked whether it does.
pub(crate) fn misses(test: &mut Test, hop: usize, frame: Frame) -> Vec<Effect> {
    let asked = test.tell(Event::Frame { hop, frame });
    assert!(matches!(asked[..], [Effect::Send { hop: at, frame: Frame::AskAccount }] if at == hop), "{asked:?}");
    test.tell(Event::Frame { hop, frame: Frame::Account(Account::default()) })
}

/// Peer `n` takes the place of the one at `hop`.
pub(crate) fn replaced(test: &mut Test, hop: usize, n: u8) -> Vec<Effect> {
    let layers = test.session.route()[hop].layers();
    let Hop::Remote(other) = remote(n, layers.start(), layers.end()) else { unreachable!() };
    test.session.replace(test.now, vec![(hop, other)]).unwrap();
    test.drain()
}

#[test]
fn another_is_opened_anew_and_its_neighbours_are_told_of_it() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    assert!(matches!(&test.tell(lost(1))[..], [Effect::Lost { hop: 1, error: SessionError::PeerLost { .. } }]));
    let effects = replaced(&mut test, 1, 5);
    let told: Vec<(usize, &str)> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Reopen { hop } => Some((*hop, "reopen")),
            Effect::Send { hop, frame } => Some((*hop, frame.kind())),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(1, "reopen"), (0, "reroute"), (1, "open"), (1, "keep"), (2, "reroute")]);
    for hop in 0..3 {
        let effects = test.tell(Event::Frame { hop, frame: Frame::Ready });
        assert_eq!(effects.iter().any(|effect| matches!(effect, Effect::Repaired)), hop == 2, "{effects:?}");
    }
}

#[test]
fn who_is_lost_itself_misses_nobody_and_nobody_misses_what_has_not_been() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    test.tell(lost(1));
    // Both ends of a link that broke say so: one of them is enough.
    assert!(test.tell(Event::Frame { hop: 1, frame: missed(3, 1) }).is_empty());
    replaced(&mut test, 1, 5);
    // What was noticed before the change is old.
    assert!(test.tell(Event::Frame { hop: 0, frame: missed(3, 5) }).is_empty());
    assert!(matches!(&misses(&mut test, 0, missed(4, 5))[..], [Effect::Lost { hop: 1, .. }]));
    let error = test.error(Event::Frame { hop: 2, frame: missed(5, 5) });
    assert!(matches!(error, SessionError::Protocol { peer: p, .. } if p == peer(3)), "{error:?}");
}

fn are_lost(effects: &[Effect]) -> Vec<usize> {
    let of = |effect: &Effect| match effect {
        Effect::Lost { hop, .. } => Some(*hop),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn who_misses_a_neighbour_and_hears_nothing_is_itself_the_one_that_is_lost() {
    let three = || kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    let account = |hop| Event::Frame { hop, frame: Frame::Account(Account::default()) };
    let says = |hop, whom| Event::Frame { hop, frame: missed(3, whom) };
    let mut test = three();
    assert_eq!(told(&test.tell(says(1, 1))), [(1, "ask-account")]);
    // It is asked once, for all that it misses.
    assert!(test.tell(says(1, 3)).is_empty() && test.tell(says(1, 3)).is_empty());
    test.now = test.session.poll_timeout().unwrap();
    assert_eq!(are_lost(&test.tell(Event::Timeout)), [1]);
    // It was slow, and is heard no more.
    assert!(test.tell(account(1)).is_empty());
    assert!(test.session.broken_off().is_none());

    let mut test = three();
    test.tell(says(1, 1));
    test.tell(says(1, 3));
    assert_eq!(are_lost(&test.tell(account(1))), [0, 2]);

    // The line between two of them is cut: whoever hears first is believed, and the other is not asked any more.
    let mut test = three();
    test.tell(says(0, 2));
    test.tell(says(1, 1));
    assert_eq!(are_lost(&test.tell(account(1))), [0]);
    assert!(test.tell(account(0)).is_empty());

    // This client loses it as well: it is gone, and not this client's own connection alone.
    let mut test = three();
    test.tell(says(0, 2));
    let failure = Failure::new(FailureCode::PeerLost, "timed out");
    assert_eq!(are_lost(&test.tell(Event::Broken { hop: 1, failure })), [1]);
    assert!(test.session.broken_off().is_none());
    assert!(test.tell(account(0)).is_empty());

    // What is more than silence it has from there.
    let mut test = three();
    let failure = Failure::new(FailureCode::EngineLost, "gone").of(peer(2));
    let frame = Frame::NeighbourLost(NeighbourLost { epoch: 3, failure });
    assert_eq!(are_lost(&test.tell(Event::Frame { hop: 0, frame })), [1]);

    // Its answer is behind much else: its machine has acknowledged something, which is enough. The answer comes when it comes.
    let mut test = three();
    test.tell(says(0, 2));
    assert_eq!(test.session.doubted().collect::<Vec<_>>(), [0]);
    assert_eq!(are_lost(&test.tell(Event::Heard { hop: 0 })), [1]);
    assert_eq!(test.session.doubted().count(), 0);
    assert!(test.tell(account(0)).is_empty());

    // Nobody asked.
    assert!(matches!(three().error(account(1)), SessionError::Protocol { .. }));
    assert!(matches!(test.error(account(0)), SessionError::Protocol { .. }), "once is enough");
}

#[test]
fn accounts_that_are_asked_for_and_whether_somebody_hears_are_two_questions() {
    let three = || kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    let account = |steps| Frame::Account(Account { steps, ..Account::default() });
    let told_all = |effects: &[Effect]| -> Option<Vec<u64>> {
        effects.iter().find_map(|effect| match effect {
            Effect::Accounts(all) => Some(all.iter().map(|account| account.steps).collect()),
            _ => None,
        })
    };
    for asked_first in [true, false] {
        let mut test = three();
        if asked_first {
            test.session.ask_accounts(test.now).unwrap();
        }
        test.tell(Event::Frame { hop: 0, frame: missed(3, 2) });
        if !asked_first {
            test.session.ask_accounts(test.now).unwrap();
        }
        test.drain();
        // Two come, and either says that it hears.
        assert_eq!(are_lost(&test.tell(Event::Frame { hop: 0, frame: account(7) })), [1]);
        assert!(test.tell(Event::Frame { hop: 0, frame: account(7) }).is_empty());
        replaced(&mut test, 1, 5);
        // Who takes the place cannot reach the next one, and is not ready: it hears, and its account is asked for when it is.
        assert_eq!(told(&test.tell(Event::Frame { hop: 1, frame: missed(4, 3) })), [(1, "ask-account")]);
        assert_eq!(are_lost(&test.tell(Event::Frame { hop: 1, frame: account(1) })), [2]);
        replaced(&mut test, 2, 6);
        let ready = |hop| Event::Frame { hop, frame: Frame::Ready };
        assert_eq!(told(&test.tell(ready(1))), [(1, "ask-account")]);
        assert!(told_all(&test.tell(Event::Frame { hop: 1, frame: account(8) })).is_none());
        test.tell(ready(0));
        test.tell(ready(2));
        assert_eq!(told_all(&test.tell(Event::Frame { hop: 2, frame: account(9) })), Some(vec![7, 8, 9]));
    }
}

#[test]
fn an_own_tail_owes_a_new_peer_no_credit_for_what_a_lost_one_sent() {
    let mut test = kept(vec![own(0, 3), remote(2, 3, 6), own(6, 9)], &[0, 2]);
    let forwarded = |batch, output| StageReply::Forwarded { batch, results: vec![Ok(output)], compute_us: 1 };
    let mut steps = Vec::new();
    for start in 0..5 {
        test.submit(start, 1).unwrap();
        let hidden = Output::Hidden(Hidden(vec![1.0; 2]));
        let effects = test.tell(Event::Own { hop: 0, reply: forwarded(start.into(), hidden) });
        steps.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::Send { hop: 1, frame: Frame::Step(step) } => Some(step),
            _ => None,
        }));
    }
    for step in &steps[..4] {
        test.tell(Event::Frame { hop: 1, frame: Frame::Step(step.clone()) });
    }
    test.tell(lost(1));
    replaced(&mut test, 1, 5);
    let mut effects = Vec::new();
    for batch in 0..4 {
        let rows = Output::Logits(vec![top(&[(4, 2.0), (1, 1.0)])]);
        effects.extend(test.tell(Event::Own { hop: 2, reply: forwarded(batch, rows) }));
    }
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Answer(_))).count(), 4);
    let credits = effects.iter().any(|effect| matches!(effect, Effect::Send { frame: Frame::Credit { .. }, .. }));
    assert!(!credits, "{effects:?}");
}

#[test]
fn what_takes_too_long_to_do_again_may_be_sent_anew_elsewhere() {
    for answered in [false, true] {
        let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
        for start in [0, 2] {
            test.submit(start, 2).unwrap();
        }
        test.tell(lost(1));
        replaced(&mut test, 1, 5);
        (0..3).for_each(|hop| drop(test.tell(Event::Frame { hop, frame: Frame::Ready })));
        if answered {
            test.tell(Event::Frame { hop: 2, frame: Frame::Answer(good()) });
        }
        test.now += Duration::from_secs(10);
        assert_eq!(test.error(Event::Timeout).is_loss(), !answered);
    }
}

/// Peer `n` stands by for the one at `hop`; the epoch in which it was opened.
pub(crate) fn stands_by(test: &mut Test, hop: usize, n: u8) -> u32 {
    let layers = test.session.route()[hop].layers();
    let Hop::Remote(other) = remote(n, layers.start(), layers.end()) else { unreachable!() };
    test.session.stand_by(test.now, hop, other).unwrap();
    let at = test.session.route().len() + hop;
    let opened = test.drain().into_iter().find_map(|effect| match effect {
        Effect::Send { hop, frame: Frame::Open(open) } if hop == at => Some(open.epoch),
        _ => None,
    });
    let effects = test.tell(Event::Frame { hop: at, frame: Frame::Ready });
    assert!(matches!(effects[0], Effect::StandsBy { hop: ready } if ready == hop), "{effects:?}");
    opened.unwrap()
}

/// What is sent to whom, by its name.
fn told(effects: &[Effect]) -> Vec<(usize, &'static str)> {
    let of = |effect: &Effect| match effect {
        Effect::Send { hop, frame } => Some((*hop, frame.kind())),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn who_stands_by_takes_a_lost_peers_place_unasked() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    assert_eq!(stands_by(&mut test, 1, 5), 4);
    let effects = test.tell(lost(1));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Promoted { hop: 1 })), "{effects:?}");
    assert_eq!(told(&effects), [(1, "reroute"), (0, "reroute"), (2, "reroute")]);
    for hop in 0..3 {
        let effects = test.tell(Event::Frame { hop, frame: Frame::Ready });
        assert_eq!(effects.iter().any(|effect| matches!(effect, Effect::Repaired)), hop == 2, "{effects:?}");
    }
    assert_eq!(test.session.route()[1].peer(), Some(peer(5)));
    // Its stream from the first peer has the epoch of its own opening, the one to the last peer that of the change.
    assert!(test.tell(Event::Frame { hop: 0, frame: missed(3, 5) }).is_empty());
    assert!(test.tell(Event::Frame { hop: 2, frame: missed(4, 5) }).is_empty());
    assert!(matches!(&misses(&mut test, 0, missed(4, 5))[..], [Effect::Lost { hop: 1, .. }]));
}

#[test]
fn the_first_peers_standby_is_sent_everything_by_the_client() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    test.submit(0, 2).unwrap();
    test.drain();
    stands_by(&mut test, 1, 5);
    stands_by(&mut test, 0, 4);
    test.submit(2, 1).unwrap();
    let sent = |effects: &[Effect]| -> Vec<(usize, u32, u32)> {
        let of = |effect: &Effect| match effect {
            Effect::Send { hop, frame: Frame::Step(step) | Frame::Replay { step, .. } } => {
                Some((*hop, step.sequence, step.epoch))
            }
            _ => None,
        };
        effects.iter().filter_map(of).collect()
    };
    assert_eq!(sent(&test.drain()), [(0, 1, 3), (3, 1, 5)], "the first step came with its word that it is ready");
    let effects = test.tell(lost(0));
    // Who stood by for the second was fed by the first.
    assert_eq!(told(&effects), [(0, "reroute"), (1, "reroute")]);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::StandbyLost { hop: 1, .. })), "{effects:?}");
    test.submit(3, 1).unwrap();
    assert!(sent(&test.drain()).is_empty());
    test.tell(Event::Frame { hop: 1, frame: Frame::Ready });
    assert_eq!(sent(&test.tell(Event::Frame { hop: 0, frame: Frame::Ready })), [(0, 2, 5)]);
}

#[test]
fn whoever_is_about_to_go_is_followed_by_a_standby_that_is_as_far() {
    let promoted = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Promoted { hop: 1 }));
    let caught_up = |hop, epoch| Event::Frame { hop, frame: Frame::CaughtUp { epoch } };
    for leaves_first in [true, false] {
        let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
        let leaving = Event::Frame { hop: 1, frame: Frame::Leaving };
        if leaves_first {
            assert!(matches!(&test.tell(leaving)[..], [Effect::Leaving { hop: 1 }]));
            assert!(test.session.is_leaving(1));
            // It may say so again.
            assert!(test.tell(Event::Frame { hop: 1, frame: Frame::Leaving }).is_empty());
            let epoch = stands_by(&mut test, 1, 5);
            assert!(!promoted(&test.tell(caught_up(0, epoch - 1))), "an older one had");
            assert!(!promoted(&test.tell(caught_up(1, epoch))), "who stands by for another");
            let effects = test.tell(caught_up(0, epoch));
            assert!(promoted(&effects), "{effects:?}");
            assert_eq!(told(&effects), [(1, "reroute"), (0, "reroute"), (2, "reroute")]);
        } else {
            let epoch = stands_by(&mut test, 1, 5);
            assert!(test.tell(caught_up(0, epoch)).is_empty());
            let effects = test.tell(leaving);
            assert!(matches!(effects[0], Effect::Leaving { hop: 1 }) && promoted(&effects), "{effects:?}");
        }
        assert!(!test.session.is_leaving(1), "it is another's place now");
        let effects: Vec<_> = (0..3).flat_map(|hop| test.tell(Event::Frame { hop, frame: Frame::Ready })).collect();
        assert!(matches!(&effects[..], [Effect::Repaired]), "nothing was lost: {effects:?}");
    }
}

#[test]
fn the_client_sees_for_itself_when_the_first_peers_standby_is_as_far() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    for start in 0..8 {
        test.submit(start, 1).unwrap();
    }
    test.drain();
    test.tell(Event::Frame { hop: 0, frame: Frame::Leaving });
    stands_by(&mut test, 0, 4);
    let promoted = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Promoted { hop: 0 }));
    test.submit(8, 1).unwrap();
    test.drain();
    assert!(!promoted(&test.tell(Event::Frame { hop: 3, frame: Frame::Credit { frames: 7 } })), "one more was there");
    assert!(promoted(&test.tell(Event::Frame { hop: 3, frame: Frame::Credit { frames: 1 } })), "not the one since");
}

#[test]
fn whoever_stands_by_and_is_never_as_far_makes_room_for_another() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    stands_by(&mut test, 1, 5);
    test.now += Duration::from_secs(60);
    assert_eq!(test.session.poll_timeout(), None, "there is no haste");
    test.tell(Event::Frame { hop: 1, frame: Frame::Leaving });
    test.now = test.session.poll_timeout().unwrap();
    let effects = test.tell(Event::Timeout);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::StandbyLost { hop: 1, .. })), "{effects:?}");
    let epoch = stands_by(&mut test, 1, 6);
    test.tell(Event::Frame { hop: 0, frame: Frame::CaughtUp { epoch } });
    assert_eq!(test.session.route()[1].peer(), Some(peer(6)));
}

#[test]
fn a_word_that_is_said_for_ever_ends_the_session() {
    for frame in [Frame::Leaving, Frame::CaughtUp { epoch: 9 }] {
        let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
        let mut times = 0;
        while !test.session.is_over() {
            test.tell(Event::Frame { hop: 1, frame: frame.clone() });
            times += 1;
            assert!(times < 5_000, "{frame:?}");
        }
    }
}

#[test]
fn whoever_stands_by_and_is_about_to_go_itself_is_let_go_of() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    stands_by(&mut test, 1, 5);
    let effects = test.tell(Event::Frame { hop: 4, frame: Frame::Leaving });
    let leaves = |effect: &Effect| match effect {
        Effect::StandbyLost { hop: 1, error: SessionError::Peer { failure, .. } } => {
            failure.code == FailureCode::Leaving
        }
        _ => false,
    };
    assert!(effects.iter().any(leaves), "{effects:?}");
}

#[test]
fn whoever_is_about_to_go_takes_a_session_with_it_that_was_not_to_outlive_it() {
    let mut test = Test::remote();
    assert!(test.tell(Event::Frame { hop: 1, frame: Frame::Leaving }).is_empty());
    assert!(!test.session.is_leaving(1));
}

#[test]
fn a_loss_comes_before_a_hand_over() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    let epoch = stands_by(&mut test, 1, 5);
    test.tell(Event::Frame { hop: 0, frame: Frame::CaughtUp { epoch } });
    test.tell(lost(2));
    let effects = test.tell(Event::Frame { hop: 1, frame: Frame::Leaving });
    assert!(matches!(&effects[..], [Effect::Leaving { hop: 1 }]), "{effects:?}");
    replaced(&mut test, 2, 6);
    let effects: Vec<_> = (0..3).flat_map(|hop| test.tell(Event::Frame { hop, frame: Frame::Ready })).collect();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Promoted { hop: 1 })), "{effects:?}");
}

/// How a standby ends.
type End<'a> = &'a dyn Fn(&mut Test) -> Vec<Effect>;

#[test]
fn what_a_standby_does_is_its_own_business() {
    let failure = || Failure::new(FailureCode::PeerLost, "gone");
    let ends: [End; 5] = [
        &|test| test.tell(Event::Closed { hop: 4, failure: failure() }),
        &|test| test.tell(Event::Frame { hop: 4, frame: Frame::Failed(failure()) }),
        &|test| test.tell(Event::Frame { hop: 4, frame: Frame::Answer(good()) }),
        &|test| test.tell(Event::Frame { hop: 4, frame: Frame::Credit { frames: 1 } }),
        &|test| test.tell(Event::Frame { hop: 0, frame: missed(4, 5) }),
    ];
    for end in ends {
        let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
        stands_by(&mut test, 1, 5);
        let effects = end(&mut test);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::StandbyLost { hop: 1, .. })), "{effects:?}");
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Close { hop: 4, .. })), "{effects:?}");
        // The next one may stand by; and without any, a loss is the caller's business.
        assert!(matches!(&test.tell(lost(1))[..], [Effect::Lost { hop: 1, .. }]));
    }
}

#[test]
fn who_cannot_stand_by_is_refused() {
    let stage = |n, start, end| match remote(n, start, end) {
        Hop::Remote(stage) => stage,
        Hop::Own(_) => unreachable!(),
    };
    let refused = |test: &mut Test, hop, stage| {
        matches!(test.session.stand_by(test.now, hop, stage), Err(SessionError::BadStep(_)))
    };
    let mut test = kept(vec![own(0, 3), remote(2, 3, 6), own(6, 9)], &[0, 2]);
    assert!(refused(&mut test, 0, stage(5, 0, 3)), "an own stage");
    assert!(refused(&mut test, 1, stage(5, 3, 7)), "another stage");
    assert!(refused(&mut test, 1, stage(2, 3, 6)), "the peer itself");
    stands_by(&mut test, 1, 5);
    assert!(refused(&mut test, 1, stage(6, 3, 6)), "a second one");
    let mut test = kept(vec![own(0, 3), remote(2, 3, 6), own(6, 9)], &[0, 2]);
    test.tell(lost(1));
    assert!(refused(&mut test, 1, stage(5, 3, 6)), "a lost peer's");
    assert!(refused(&mut Test::remote(), 1, stage(5, 3, 6)), "of a session that ends with its peers");
}
