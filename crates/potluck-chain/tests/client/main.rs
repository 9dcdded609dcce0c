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

mod back;
mod repair;
mod saving;

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
