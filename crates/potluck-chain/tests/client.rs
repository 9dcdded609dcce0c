//! What a client accepts from peers that it has no reason to trust.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test is its own driver, and may fail")]

use std::time::{Duration, Instant};

use potluck_chain::{
    ClientSession, Deadlines, Effect, Event, Hop, OwnStage, RemoteStage, STEPS_IN_FLIGHT_MAX, SessionConfig,
    SessionError, Submission,
};
use potluck_core::{
    Account, CacheId, Hidden, LayerRange, Logits, ModelId, Output, PeerId, Rows, SessionId, SessionKey, StageCommand,
    StageError, StageReply, StageSpec, Tree,
};
use potluck_wire::{
    AnswerFrame, Codec, Failure, FailureCode, Frame, HOP_FRAMES_MAX, NeighbourLost, NextHop, PeerAddress, PreviousHop,
    Return, StepFrame,
};

const WIDTH: u32 = 2;
const VOCABULARY: u32 = 8;

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

fn spec(start: u32, end: u32) -> StageSpec {
    let layers = LayerRange::new(start, end).unwrap();
    StageSpec { model: ModelId::from_bytes([5; 32]), layers, head: start == 0, tail: end == 9 }
}

fn remote(n: u8, start: u32, end: u32) -> Hop {
    let address = PeerAddress { peer: peer(n), addresses: vec![], relay: None };
    Hop::Remote(RemoteStage { spec: spec(start, end), address, grant: vec![n], speed: None })
}

fn own(start: u32, end: u32) -> Hop {
    Hop::Own(OwnStage { spec: spec(start, end), cache: CacheId(7) })
}

fn config(route: Vec<Hop>) -> SessionConfig {
    SessionConfig {
        key: SessionKey { client: peer(99), id: SessionId::from_bytes([1; 16]) },
        epoch: 3,
        positions: 32,
        width: WIDTH,
        vocabulary: VOCABULARY,
        codec: Codec::F32,
        codec_otherwise: None,
        route,
        prefix: None,
        pad: false,
        exact: false,
        deadlines: Deadlines {
            open: Duration::from_secs(5),
            step: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            grace: None,
        },
    }
}

struct Test {
    session: ClientSession,
    now: Instant,
}

impl Test {
    fn new(route: Vec<Hop>) -> Self {
        let now = Instant::now();
        Self { session: ClientSession::new(now, config(route)).unwrap(), now }
    }

    fn remote() -> Self {
        Self::new(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)]).ready(&[])
    }

    fn own_ends() -> Self {
        Self::new(vec![own(0, 3), remote(2, 3, 6), own(6, 9)]).ready(&[0, 2])
    }

    fn drain(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.session.poll()).collect()
    }

    fn tell(&mut self, event: Event) -> Vec<Effect> {
        self.session.handle(self.now, event);
        self.drain()
    }

    fn ready(mut self, own: &[usize]) -> Self {
        self.drain();
        let mut effects = vec![];
        for hop in 0..3 {
            let opened = StageReply::Opened { cache: CacheId(7), result: Ok(()) };
            effects = self.tell(if own.contains(&hop) {
                Event::Own { hop, reply: opened }
            } else {
                Event::Frame { hop, frame: Frame::Ready }
            });
        }
        assert!(matches!(effects[..], [Effect::Ready]), "{effects:?}");
        self
    }

    fn submit(&mut self, start: u32, count: usize) -> Result<u32, SessionError> {
        self.session.submit(self.now, Submission::chain(start, vec![1; count], Rows::Last, 2))
    }

    /// The error that ends the session.
    fn error(&mut self, event: Event) -> SessionError {
        let effects = self.tell(event);
        assert!(self.session.is_over());
        let closed =
            effects.iter().filter(|effect| matches!(effect, Effect::Close { .. } | Effect::Own { .. })).count();
        assert_eq!(closed, 3, "every stage of the route is told: {effects:?}");
        match effects.into_iter().last() {
            Some(Effect::Failed(error)) => error,
            other => panic!("{other:?}"),
        }
    }
}

fn top(largest: &[(u32, f32)]) -> Logits {
    Logits::Top { largest: largest.to_vec(), log_sum_exp: 2.5 }
}

fn answer(sequence: u32, rows: Vec<Logits>) -> AnswerFrame {
    AnswerFrame { sequence, epoch: 3, start: 0, count: 2, rows, pad: false, skipped: false }
}

fn good() -> AnswerFrame {
    answer(0, vec![top(&[(4, 2.0), (1, 1.0)])])
}

#[test]
fn each_peer_is_told_its_neighbours() {
    let mut test = Test::new(vec![own(0, 3), remote(1, 3, 5), remote(2, 5, 9)]);
    let mut opens = test.drain().into_iter().filter_map(|effect| match effect {
        Effect::Send { hop, frame: Frame::Open(open) } => Some((hop, open)),
        _ => None,
    });
    let (_, first) = opens.next().unwrap();
    assert_eq!(first.previous, PreviousHop::Client);
    assert!(matches!(&first.next, NextHop::Peer { address, grant } if address.peer == peer(2) && *grant == [2]));
    let (_, second) = opens.next().unwrap();
    assert_eq!((second.previous, second.next), (PreviousHop::Peer(peer(1)), NextHop::Client));
}

#[test]
fn a_good_answer_is_delivered_once() {
    let mut test = Test::remote();
    assert_eq!(test.submit(0, 2), Ok(0));
    test.drain();
    let effects = test.tell(Event::Frame { hop: 2, frame: Frame::Answer(good()) });
    assert!(matches!(&effects[..], [Effect::Answer(answer)] if answer.rows == good().rows), "{effects:?}");
    assert!(test.tell(Event::Frame { hop: 2, frame: Frame::Answer(good()) }).is_empty(), "a late twin");
    let stale = AnswerFrame { epoch: 2, ..good() };
    assert!(test.tell(Event::Frame { hop: 2, frame: Frame::Answer(stale) }).is_empty(), "an older epoch");
}

#[test]
fn a_tail_cannot_answer_what_was_not_asked() {
    let bad = [
        answer(1, good().rows),
        AnswerFrame { epoch: 4, ..good() },
        AnswerFrame { start: 1, ..good() },
        AnswerFrame { count: 1, ..good() },
        answer(0, vec![]),
        answer(0, vec![top(&[(4, 2.0), (1, 1.0)]), top(&[(4, 2.0), (1, 1.0)])]),
        answer(0, vec![top(&[(4, 2.0)])]),
        answer(0, vec![top(&[(8, 2.0), (1, 1.0)])]),
        answer(0, vec![top(&[(4, 1.0), (1, 2.0)])]),
        answer(0, vec![top(&[(4, 1.0), (4, 1.0)])]),
        answer(0, vec![top(&[(4, f32::NAN), (1, 1.0)])]),
        answer(0, vec![top(&[(4, f32::INFINITY), (1, 1.0)])]),
        answer(0, vec![top(&[(4, 2.0), (4, 1.0)])]),
        answer(0, vec![Logits::Top { largest: vec![(4, 2.0), (1, 1.0)], log_sum_exp: 1.9 }]),
        answer(0, vec![Logits::Top { largest: vec![(4, 2.0), (1, 1.0)], log_sum_exp: f32::NEG_INFINITY }]),
        answer(0, vec![Logits::Whole(Hidden(vec![0.0; 8]))]),
    ];
    for frame in bad {
        let mut test = Test::remote();
        test.submit(0, 2).unwrap();
        test.drain();
        let text = format!("{frame:?}");
        let error = test.error(Event::Frame { hop: 2, frame: Frame::Answer(frame) });
        assert!(matches!(error, SessionError::Protocol { peer: p, .. } if p == peer(3)), "{text}: {error:?}");
    }
}

fn drafts(start: u32, fence: bool) -> Submission {
    Submission { fence, ..Submission::chain(start, vec![1, 2], Rows::All, 2) }
}

fn skipped(sequence: u32, start: u32) -> AnswerFrame {
    AnswerFrame { sequence, epoch: 3, start, count: 2, rows: vec![], pad: false, skipped: true }
}

#[test]
fn only_what_was_fenced_off_may_be_skipped() {
    let mut test = Test::remote();
    for (start, fence) in [(0, false), (2, false), (1, true)] {
        test.session.submit(test.now, drafts(start, fence)).unwrap();
    }
    test.drain();
    let rows = vec![top(&[(4, 2.0), (1, 1.0)]); 2];
    test.tell(Event::Frame { hop: 2, frame: Frame::Answer(answer(0, rows.clone())) });
    let effects = test.tell(Event::Frame { hop: 2, frame: Frame::Answer(skipped(1, 2)) });
    assert!(matches!(&effects[..], [Effect::Answer(answer)] if answer.skipped && answer.rows.is_empty()));
    let error = test.error(Event::Frame { hop: 2, frame: Frame::Answer(skipped(2, 1)) });
    assert!(matches!(error, SessionError::Protocol { peer: p, .. } if p == peer(3)), "{error:?}");
}

#[test]
fn an_own_tail_does_not_run_what_nobody_wants_and_keeps_the_order() {
    let mut test = Test::own_ends();
    for (start, fence) in [(0, false), (2, false), (1, true)] {
        test.session.submit(test.now, drafts(start, fence)).unwrap();
    }
    let hidden = || Output::Hidden(Hidden(vec![1.0; 4]));
    let forwarded = |batch, output| StageReply::Forwarded { batch, results: vec![Ok(output)], compute_us: 1 };
    let mut sent = Vec::new();
    for batch in 0..3 {
        sent.extend(test.tell(Event::Own { hop: 0, reply: forwarded(batch, hidden()) }));
    }
    let steps: Vec<StepFrame> = sent
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Send { hop: 1, frame: Frame::Step(step) } => Some(step),
            _ => None,
        })
        .collect();
    assert_eq!(steps.iter().map(|step| step.fence).collect::<Vec<_>>(), [false, false, true], "peers are told");
    let back = |step: &StepFrame| Event::Frame { hop: 1, frame: Frame::Step(step.clone()) };
    let effects = test.tell(back(&steps[0]));
    assert!(matches!(&effects[..], [Effect::Own { hop: 2, .. }]), "{effects:?}");
    // The second comes back, as skipped or as it is: nobody wants it, and it waits for its turn.
    let effects = test.tell(back(&StepFrame::skipped(1, 3, 2, 2)));
    assert!(effects.is_empty(), "{effects:?}");
    let rows = Output::Logits(vec![top(&[(4, 2.0), (1, 1.0)]); 2]);
    let effects = test.tell(Event::Own { hop: 2, reply: forwarded(0, rows) });
    let answers: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Answer(answer) => Some((answer.sequence, answer.skipped)),
            _ => None,
        })
        .collect();
    assert_eq!(answers, [(0, false), (1, true)]);
    let error = test.error(back(&StepFrame::skipped(2, 3, 1, 2)));
    assert!(matches!(error, SessionError::Protocol { .. }), "the third is wanted: {error:?}");
}

#[test]
fn frames_out_of_place_are_the_senders_fault() {
    let step = StepFrame {
        sequence: 0,
        epoch: 3,
        start: 0,
        count: 2,
        rows: Rows::Last,
        top: 2,
        codec: Codec::F32,
        payload: vec![0; 16],
        pad: false,
        tree: Tree::chain(),
        fence: false,
        skipped: false,
    };
    for (hop, frame) in [
        (0, Frame::Answer(good())),
        (1, Frame::Credit { frames: 1 }),
        (0, Frame::Credit { frames: HOP_FRAMES_MAX + 1 }),
        (0, Frame::Credit { frames: 0 }),
        (2, Frame::Step(step)),
        (2, Frame::Row { sequence: 0, row: 0, logits: Hidden(vec![0.0; 8]) }),
        (1, Frame::Ready),
        (0, Frame::HopReady),
    ] {
        let mut test = Test::remote();
        test.submit(0, 2).unwrap();
        test.drain();
        let text = format!("{} on hop {hop}", frame.kind());
        let error = test.error(Event::Frame { hop, frame });
        assert!(
            matches!(error, SessionError::Protocol { peer: p, .. } if p == peer(hop as u8 + 1)),
            "{text}: {error:?}"
        );
    }
}

#[test]
fn a_failure_names_the_peer_that_it_is_about() {
    let mut test = Test::remote();
    let failure = Failure::new(FailureCode::PeerLost, "timed out").of(peer(2));
    let error = test.error(Event::Frame { hop: 0, frame: Frame::Failed(failure) });
    assert!(
        matches!(&error, SessionError::PeerLost { peer: p, layers, .. } if *p == peer(2) && layers == "3..6"),
        "{error}"
    );
    let mut test = Test::remote();
    let error = test.error(Event::Closed { hop: 2, failure: Failure::new(FailureCode::Done, "") });
    assert!(
        matches!(error, SessionError::PeerLost { peer: p, .. } if p == peer(3)),
        "an end without a reason is a loss"
    );
}

#[test]
fn own_ends_see_the_tokens_and_nobody_else() {
    let mut test = Test::own_ends();
    test.submit(0, 2).unwrap();
    let effects = test.drain();
    assert!(
        matches!(&effects[..], [Effect::Own { hop: 0, command: StageCommand::Forward { batch: 0, .. } }]),
        "{effects:?}"
    );
    let forwarded = |output| StageReply::Forwarded { batch: 0, results: vec![Ok(output)], compute_us: 1 };
    let hidden = Hidden(vec![1.0, 2.0, 3.0, 4.0]);
    let effects = test.tell(Event::Own { hop: 0, reply: forwarded(Output::Hidden(hidden)) });
    let [Effect::Send { hop: 1, frame: Frame::Step(step) }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((step.codec, step.payload.len()), (Codec::F32, 16));
    let back = StepFrame { ..step.clone() };
    let effects = test.tell(Event::Frame { hop: 1, frame: Frame::Step(back.clone()) });
    assert!(matches!(&effects[..], [Effect::Own { hop: 2, .. }]), "{effects:?}");
    assert!(test.tell(Event::Frame { hop: 1, frame: Frame::Step(back) }).is_empty(), "a late twin");
    let rows = vec![top(&[(4, 2.0), (1, 1.0)])];
    let effects = test.tell(Event::Own { hop: 2, reply: forwarded(Output::Logits(rows)) });
    assert!(matches!(&effects[..], [Effect::Answer(_)]), "{effects:?}");
}

#[test]
fn nobody_answers_for_the_own_tail() {
    let mut test = Test::own_ends();
    test.submit(0, 2).unwrap();
    test.drain();
    let error = test.error(Event::Frame { hop: 1, frame: Frame::Answer(good()) });
    assert!(matches!(error, SessionError::Protocol { peer: p, .. } if p == peer(2)), "{error}");
}

#[test]
fn accounts_come_where_they_were_asked_for_and_once() {
    let mut test = Test::own_ends();
    test.submit(0, 2).unwrap();
    test.drain();
    let results = vec![Ok(Output::Hidden(Hidden(vec![0.5; 4])))];
    test.tell(Event::Own { hop: 0, reply: StageReply::Forwarded { batch: 0, results, compute_us: 40 } });
    test.session.ask_accounts(test.now).unwrap();
    let effects = test.drain();
    assert!(matches!(effects[..], [Effect::Send { hop: 1, frame: Frame::AskAccount }]), "{effects:?}");
    assert!(matches!(test.session.ask_accounts(test.now), Err(SessionError::BadStep(_))), "one question at a time");
    let theirs = Account { steps: 7, positions: 70, ..Account::default() };
    let effects = test.tell(Event::Frame { hop: 1, frame: Frame::Account(theirs) });
    let [Effect::Accounts(accounts)] = &effects[..] else { panic!("{effects:?}") };
    let mine = Account { steps: 1, positions: 2, compute_us: 40, ..Account::default() };
    assert_eq!(accounts[..], [mine, theirs, Account::default()]);
    let error = test.error(Event::Frame { hop: 1, frame: Frame::Account(theirs) });
    assert!(matches!(error, SessionError::Protocol { .. }), "nobody asked: {error:?}");

    let mut test = Test::remote();
    test.session.ask_accounts(test.now).unwrap();
    test.drain();
    test.tell(Event::Frame { hop: 0, frame: Frame::Account(theirs) });
    test.now += Duration::from_secs(10);
    let SessionError::Deadline { waiting, .. } = test.error(Event::Timeout) else { panic!("no deadline") };
    assert_eq!(waiting, "the account of layers 3..6 was asked for");
}

#[test]
fn a_flood_of_twins_ends_the_session() {
    let mut test = Test::remote();
    test.submit(0, 2).unwrap();
    test.drain();
    test.tell(Event::Frame { hop: 2, frame: Frame::Answer(good()) });
    for _ in 0..1_024 {
        assert!(test.tell(Event::Frame { hop: 2, frame: Frame::Answer(good()) }).is_empty());
    }
    let error = test.error(Event::Frame { hop: 2, frame: Frame::Answer(good()) });
    assert!(matches!(error, SessionError::Protocol { .. }), "{error}");
}

#[test]
fn an_own_stage_that_fails_ends_the_session_for_all() {
    let mut test = Test::own_ends();
    test.submit(0, 1).unwrap();
    test.drain();
    let results = vec![Err(StageError::Engine("boom".into()))];
    let error = test.error(Event::Own { hop: 0, reply: StageReply::Forwarded { batch: 0, results, compute_us: 0 } });
    assert!(matches!(error, SessionError::Own { .. }), "{error}");
}

#[test]
fn every_wait_has_a_deadline_and_says_what_for() {
    let mut test = Test::new(vec![remote(1, 0, 9)]);
    test.drain();
    assert_eq!(test.session.poll_timeout(), Some(test.now + Duration::from_secs(5)));
    test.now += Duration::from_secs(5);
    test.session.handle(test.now, Event::Timeout);
    assert!(matches!(
        test.drain().last(),
        Some(Effect::Failed(SessionError::Deadline { setting: "open_timeout", .. }))
    ));
    assert_eq!(test.session.poll_timeout(), None);

    let mut test = Test::remote();
    assert_eq!(test.session.poll_timeout(), None, "nothing is under way");
    test.submit(0, 2).unwrap();
    test.drain();
    test.now += Duration::from_secs(9);
    test.tell(Event::Frame { hop: 2, frame: Frame::Answer(good()) });
    test.session.request_row(test.now, 0, 1).unwrap();
    test.now += Duration::from_secs(10);
    let error = test.error(Event::Timeout);
    assert!(matches!(error, SessionError::Deadline { setting: "step_timeout", .. }), "{error}");
}

#[test]
fn the_caller_is_told_what_does_not_fit() {
    let mut test = Test::remote();
    for (start, count) in [(0, 0), (1, 1), (0, 33), (0, 513)] {
        assert!(matches!(test.submit(start, count), Err(SessionError::BadStep(_))), "{start} {count}");
    }
    let outside = test.session.submit(test.now, Submission::chain(0, vec![VOCABULARY], Rows::Last, 2));
    assert!(matches!(outside, Err(SessionError::BadStep(_))));
    assert!(test.session.request_row(test.now, 0, 0).is_err(), "nothing was answered yet");
    for sequence in 0..STEPS_IN_FLIGHT_MAX as u32 {
        assert_eq!(test.submit(0, 1), Ok(sequence));
    }
    assert!(matches!(test.submit(0, 1), Err(SessionError::BadStep(_))));
    let sent = test.drain().iter().filter(|e| matches!(e, Effect::Send { frame: Frame::Step(_), .. })).count();
    assert_eq!(sent, HOP_FRAMES_MAX as usize, "the rest waits for credit");
    assert_eq!(test.tell(Event::Frame { hop: 0, frame: Frame::Credit { frames: 4 } }).len(), 4);
}

#[test]
fn a_route_covers_the_model_once_and_in_order() {
    let refused = |route| matches!(ClientSession::new(Instant::now(), config(route)), Err(SessionError::BadStep(_)));
    assert!(refused(vec![]));
    assert!(refused(vec![remote(1, 0, 3)]), "no tail");
    assert!(refused(vec![remote(1, 3, 9)]), "no head");
    assert!(refused(vec![remote(1, 0, 3), remote(2, 4, 9)]), "a gap");
    assert!(refused(vec![remote(1, 0, 5), remote(2, 4, 9)]), "an overlap");
    assert!(refused(vec![remote(1, 0, 3), own(3, 6), remote(2, 6, 9)]), "an own stage in the middle");
    assert!(refused(vec![own(0, 3), own(3, 9)]), "one machine in two parts");
    assert!(refused(vec![remote(1, 0, 3), remote(1, 3, 9)]), "a peer twice");
    assert!(!refused(vec![own(0, 9)]));
    assert!(!refused(vec![own(0, 3), remote(1, 3, 9)]));
}

/// A session that waits for others in the places of lost peers.
fn kept(route: Vec<Hop>, own: &[usize]) -> Test {
    let now = Instant::now();
    let config = config(route);
    let deadlines = Deadlines { grace: Some(Duration::from_secs(5)), ..config.deadlines };
    Test { session: ClientSession::new(now, SessionConfig { deadlines, ..config }).unwrap(), now }.ready(own)
}

fn lost(hop: usize) -> Event {
    Event::Closed { hop, failure: Failure::new(FailureCode::PeerLost, "the connection broke") }
}

fn missed(epoch: u32, whom: u8) -> Frame {
    let failure = Failure::new(FailureCode::PeerLost, "gone").of(peer(whom));
    Frame::NeighbourLost(NeighbourLost { epoch, failure })
}

/// Peer `n` takes the place of the one at `hop`.
fn replaced(test: &mut Test, hop: usize, n: u8) -> Vec<Effect> {
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
    assert!(matches!(&test.tell(Event::Frame { hop: 0, frame: missed(4, 5) })[..], [Effect::Lost { hop: 1, .. }]));
    let error = test.error(Event::Frame { hop: 2, frame: missed(5, 5) });
    assert!(matches!(error, SessionError::Protocol { peer: p, .. } if p == peer(3)), "{error:?}");
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
fn stands_by(test: &mut Test, hop: usize, n: u8) -> u32 {
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
    assert!(matches!(&test.tell(Event::Frame { hop: 0, frame: missed(4, 5) })[..], [Effect::Lost { hop: 1, .. }]));
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
            Effect::Send { hop: 0, frame: Frame::Replay { due, step } } if *due == step.sequence => {
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
    assert!(matches!(test.tell(Event::Frame { hop: 0, frame: missed(3, 2) })[..], [Effect::Lost { hop: 1, .. }]));
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
        let effects = test.tell(Event::Frame { hop: 1, frame: Frame::Replay { due: sequence, step: step(sequence) } });
        let runs = |effect: &Effect| matches!(effect, Effect::Own { hop: 2, command: StageCommand::Forward { .. } });
        assert!(effects.iter().any(runs), "{effects:?}");
    }
}
