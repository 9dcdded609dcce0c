//! One frame of each kind, and any frame at all.

use potluck_core::{
    Account, Action, Endpoint, Hidden, LayerRange, Logits, ModelId, Offer, Order, PeerId, Renewal, Revocation, Revoked,
    Rows, SecretKey, SessionId, SessionKey, SignedOffer, SignedOrder, SignedRevocation, StageShape, StageSpec,
    StageSpeed, StateKey, Succession, Tree,
};
use potluck_wire::{
    AnswerFrame, Ask, Bounds, Codec, CodecSet, Failure, FailureCode, Fetch, Frame, Head, Held, Hello, HopOpen, Join,
    Joined, Keep, Lender, Mirror, NeighbourLost, NextHop, OpenSession, Part, PeerAddress, Prefix, PreviousHop, Refusal,
    Reroute, Restore, Return, Save, SharedModel, StepFrame, Upstream, UpstreamModel, Upstreams, Welcome,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

/// Frames whose bytes are pinned, by the name of their file.
pub(crate) fn examples() -> Vec<(&'static str, Frame)> {
    let peer = |n: u8| PeerId::from_bytes([n; 32]);
    let session = SessionId::from_bytes([0xa1; 16]);
    let spec = StageSpec {
        model: ModelId::from_bytes([0x11; 32]),
        layers: LayerRange::new(4, 14).unwrap(),
        head: false,
        tail: true,
    };
    let address =
        PeerAddress { peer: peer(3), addresses: vec!["192.168.1.7:7575".into()], relay: Some("https://r.test".into()) };
    let open = OpenSession {
        session,
        epoch: 2,
        stage: spec,
        positions: 4_096,
        previous: PreviousHop::Client,
        next: NextHop::Client,
        codec_in: Codec::F16,
        codec_out: Codec::F16,
        prefix: None,
        idle_ms: 600_000,
    };
    let between = OpenSession {
        stage: StageSpec { tail: false, ..spec },
        previous: PreviousHop::Peer(peer(2)),
        next: NextHop::Peer { address, grant: vec![9; 3] },
        prefix: Some(Prefix { session: SessionId::from_bytes([0xa2; 16]), positions: 300 }),
        ..open.clone()
    };
    let step = StepFrame {
        sequence: 7,
        epoch: 2,
        start: 0x0102_0304,
        count: 1,
        rows: Rows::Last,
        top: 128,
        codec: Codec::F32,
        payload: vec![0, 0, 128, 63, 0, 0, 0, 192],
        pad: false,
        tree: Tree::chain(),
        fence: false,
        skipped: false,
    };
    let tokens = StepFrame {
        count: 2,
        rows: Rows::None,
        top: 0,
        codec: Codec::Tokens,
        payload: vec![1, 0, 0, 0, 255, 191, 0, 0],
        ..step.clone()
    };
    let top = Logits::Top { largest: vec![(50, 1.5), (7, -2.0)], log_sum_exp: 2.25 };
    let answer = AnswerFrame {
        sequence: 7,
        epoch: 2,
        start: 9,
        count: 2,
        rows: vec![top, Logits::Whole(Hidden(vec![1.0, 0.5]))],
        pad: false,
        skipped: false,
    };
    let bounds = Bounds { step_positions: 512, hop_frames: 16, sessions: 64 };
    vec![
        (
            "hello",
            Frame::Hello(Hello {
                version_min: 1,
                version_max: 1,
                features: 0,
                codecs: CodecSet::all(),
                grant: vec![1, 2, 3],
                agent: "potluck/0.1.0".into(),
            }),
        ),
        (
            "welcome",
            Frame::Welcome(Welcome { version: 1, features: 0, codecs: CodecSet::all(), bounds, grant: vec![4, 5] }),
        ),
        ("refused", Frame::Refused(Refusal { code: FailureCode::NotAdmitted, version_min: 1, version_max: 1 })),
        ("open", Frame::Open(Box::new(open))),
        ("open-between", Frame::Open(Box::new(between))),
        ("ready", Frame::Ready),
        ("hop-open", Frame::HopOpen(HopOpen { session: SessionKey { client: peer(1), id: session }, epoch: 2 })),
        ("hop-ready", Frame::HopReady),
        ("hop-resumed", Frame::HopResumed { expected: 300 }),
        ("keep", Frame::Keep(Keep { grace_ms: 20_000, answered: 7 })),
        (
            "reroute",
            Frame::Reroute(Box::new(Reroute {
                epoch: 3,
                previous: Some(PreviousHop::Peer(peer(2))),
                next: None,
                answered: 300,
                merges: true,
            })),
        ),
        (
            "mirror",
            Frame::Mirror(Box::new(Mirror { epoch: 4, standby: Some(NextHop::Nobody), answered: 300, merges: false })),
        ),
        (
            "neighbour-lost",
            Frame::NeighbourLost(NeighbourLost {
                epoch: 2,
                failure: Failure::new(FailureCode::PeerLost, "gone").of(peer(3)),
            }),
        ),
        ("leaving", Frame::Leaving),
        ("caught-up", Frame::CaughtUp { epoch: 9 }),
        ("return", Frame::Return(Return { session, previous: 2, next: 3, answered: 300 })),
        ("returned", Frame::Returned { expected: 300 }),
        ("save", Frame::Save(Save { key: StateKey([0x5a; 32]), seconds: 86_400 })),
        ("saved", Frame::Saved { positions: 300, bytes: 70_000 }),
        ("restore", Frame::Restore(Restore { session, key: StateKey([0x5a; 32]) })),
        ("restored", Frame::Restored { positions: 300 }),
        ("replay", Frame::Replay { due: 6, step: step.clone(), checked: false }),
        ("checked-replay", Frame::Replay { due: 6, step: step.clone(), checked: true }),
        ("step", Frame::Step(step)),
        ("step-tokens", Frame::Step(tokens.clone())),
        (
            "step-padded",
            Frame::Step(StepFrame { count: 3, payload: [1, 0, 0, 0].repeat(3), pad: true, ..tokens.clone() }),
        ),
        (
            "step-tree",
            Frame::Step(StepFrame {
                count: 4,
                rows: Rows::All,
                payload: [1, 0, 0, 0].repeat(4),
                tree: Tree::new(vec![0, 0, 1, 0]).unwrap(),
                fence: true,
                ..tokens
            }),
        ),
        ("step-skipped", Frame::Step(StepFrame::skipped(7, 2, 9, 2))),
        ("answer", Frame::Answer(answer.clone())),
        ("answer-padded", Frame::Answer(AnswerFrame { pad: true, ..answer.clone() })),
        ("answer-skipped", Frame::Answer(AnswerFrame { rows: Vec::new(), skipped: true, ..answer })),
        ("padded-part", Frame::PaddedPart(b"data: {}".to_vec())),
        ("credit", Frame::Credit { frames: 300 }),
        ("row-request", Frame::RowRequest { sequence: 7, row: 1 }),
        ("row", Frame::Row { sequence: 7, row: 1, logits: Hidden(vec![1.0, -0.5]) }),
        ("failed", Frame::Failed(Failure::new(FailureCode::PeerLost, "gone").of(peer(3)))),
        ("announce", Frame::Announce(signed_offer(3))),
        ("list-offers", Frame::ListOffers),
        ("offers", Frame::Offers(vec![signed_offer(3), signed_offer(4)])),
        ("join", Frame::Join(Join { secret: [0x5e; 16], keys: vec![peer(1), peer(2)] })),
        (
            "joined",
            Frame::Joined(Joined {
                grants: vec![vec![1, 2, 3], vec![4]],
                contacts: vec![PeerAddress { peer: peer(3), addresses: vec!["10.0.0.1:7575".into()], relay: None }],
            }),
        ),
        ("list-models", Frame::ListModels),
        ("models", Frame::Models(vec![shared(1), shared(2)])),
        ("fetch", Frame::Fetch(Fetch { model: spec.model, part: Part::Held })),
        ("fetch-piece", Frame::Fetch(Fetch { model: spec.model, part: Part::Piece(271, 300) })),
        ("held", Frame::Held(Held { manifest_bytes: 1_500_000, tensors: vec![0xff, 0x01] })),
        ("part", Frame::Part(vec![1, 2, 3])),
        ("order", Frame::Order(signed_order(5, true))),
        ("ask-account", Frame::AskAccount),
        ("account", Frame::Account(account(7))),
        ("list-upstreams", Frame::ListUpstreams),
        ("upstreams", Frame::Upstreams(Upstreams { own: Some(upstream(2)), others: vec![lender(3)] })),
        ("ask", Frame::Ask(Ask { endpoint: Endpoint::Embeddings, bytes: 300 })),
        ("head", Frame::Head(Head { status: 429, content_type: "application/json".into(), retry_after: Some(5) })),
        ("lend", Frame::Lend(lender(3))),
        ("list-revocations", Frame::ListRevocations([0xd1; 32])),
        ("revocations", Frame::Revocations(vec![revocation(1), revocation(2)])),
        ("revocations-succession", Frame::Revocations(succession())),
    ]
}

fn signed_order(n: u8, load: bool) -> SignedOrder {
    let action = Action::Load { model: ModelId::from_bytes([0x11; 32]), layers: LayerRange::new(4, 14).unwrap() };
    let action = if load { action } else { Action::Unload };
    let peer = PeerId::from_bytes([n; 32]);
    Order { peer, sequence: 7, expires: 1_800_000_060, action }.sign(&SecretKey::from_bytes(&[n; 32]))
}

fn account(n: u64) -> Account {
    let next_rtt_us = (n % 2 == 1).then_some(800);
    Account {
        steps: n,
        positions: 300 * n,
        queue_us: 20,
        compute_us: 90_000 * n,
        handover_us: 150,
        codec_us: 4,
        bytes_in: 345_600,
        bytes_out: 1_000,
        next_rtt_us,
    }
}

fn upstream(n: u8) -> Upstream {
    let model = |n| UpstreamModel { name: format!("model:{n}"), context: (n % 2 == 1).then_some(8_192) };
    let trouble = (n == 0).then(|| "it does not answer".to_owned());
    Upstream { models: (0..n % 4).map(model).collect(), running: n.into(), places: 64, trouble }
}

fn lender(n: u8) -> Lender {
    let peer = PeerId::from_bytes([n; 32]);
    let address = PeerAddress { peer, addresses: vec![format!("10.0.0.{n}:7575")], relay: None };
    Lender { address, grant: vec![n; 5] }
}

fn shared(n: u8) -> SharedModel {
    let (model, name) = (ModelId::from_bytes([n; 32]), format!("model-{n}"));
    SharedModel { model, name, layers: 30, bytes: 98_000_000, held_bytes: 49_000_000 }
}

fn signed_offer(n: u8) -> SignedOffer {
    let key = SecretKey::from_bytes(&[n; 32]);
    let spec = StageSpec {
        model: ModelId::from_bytes([0x11; 32]),
        layers: LayerRange::new(0, 4).unwrap(),
        head: true,
        tail: false,
    };
    let shape = StageShape {
        spec,
        width: 576,
        vocabulary: 49_152,
        caches: 8,
        context: 2_048,
        cache_bytes_per_position: 3_072,
        weight_bytes: 14_000_000,
        exact: true,
    };
    let speed = StageSpeed { decode_us: 1_200, prefill_position_us: 300 };
    Offer {
        peer: key.peer_id(),
        sequence: 1_800_000_000_001,
        expires: 1_800_000_120,
        addresses: vec!["127.0.0.1:4000".into()],
        relay: Some("https://relay.example/".into()),
        shape,
        speed,
        free_caches: 7,
        free_bytes: 1 << 30,
    }
    .sign(&key, vec![n; 5])
}

/// Any frame that its sender may send.
pub(crate) fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        any_greeting(),
        any_open().prop_map(|open| Frame::Open(Box::new(open))),
        (any_key(), any::<u32>()).prop_map(|(session, epoch)| Frame::HopOpen(HopOpen { session, epoch })),
        any_repair(),
        any_step(),
        any_answer(),
        any::<u32>().prop_map(|frames| Frame::Credit { frames }),
        any::<(u32, u16)>().prop_map(|(sequence, row)| Frame::RowRequest { sequence, row }),
        (any::<(u32, u16)>(), any_hidden()).prop_map(|((sequence, row), logits)| Frame::Row { sequence, row, logits }),
        (any_code(), option::of(any_peer()), ".{0,40}").prop_map(|(code, peer, detail)| Frame::Failed(Failure {
            code,
            peer,
            detail
        })),
        any::<u8>().prop_map(|n| Frame::Announce(signed_offer(n))),
        (any::<[u8; 16]>(), vec(any_peer(), 0..3)).prop_map(|(secret, keys)| Frame::Join(Join { secret, keys })),
        (vec(vec(any::<u8>(), 0..40), 0..3), vec((any_peer(), "[ -~]{0,20}"), 0..3)).prop_map(|(grants, contacts)| {
            let at = |(peer, text)| PeerAddress { peer, addresses: vec![text], relay: None };
            Frame::Joined(Joined { grants, contacts: contacts.into_iter().map(at).collect() })
        }),
        vec(any::<u8>(), 0..4).prop_map(|ns| Frame::Offers(ns.into_iter().map(signed_offer).collect())),
        any_sharing(),
        any_lending(),
        select(vec![Frame::Ready, Frame::HopReady, Frame::ListOffers, Frame::ListModels]),
        select(vec![Frame::AskAccount, Frame::ListUpstreams]),
        any::<[u8; 32]>().prop_map(Frame::ListRevocations),
        vec(any::<u8>(), 0..4).prop_map(|ns| Frame::Revocations(ns.into_iter().map(revocation).collect())),
    ]
}

fn any_repair() -> impl Strategy<Value = Frame> {
    let next = any_open().prop_map(|open| open.next).boxed();
    let previous = any_open().prop_map(|open| open.previous);
    prop_oneof![
        any::<u32>().prop_map(|expected| Frame::HopResumed { expected }),
        any::<u32>().prop_map(|epoch| Frame::CaughtUp { epoch }),
        Just(Frame::Leaving),
        any::<u32>().prop_map(|expected| Frame::Returned { expected }),
        any::<([u8; 32], u32)>().prop_map(|(key, seconds)| Frame::Save(Save { key: StateKey(key), seconds })),
        any::<(u32, u64)>().prop_map(|(positions, bytes)| Frame::Saved { positions, bytes }),
        any::<([u8; 16], [u8; 32])>().prop_map(|(id, key)| {
            Frame::Restore(Restore { session: SessionId::from_bytes(id), key: StateKey(key) })
        }),
        any::<u32>().prop_map(|positions| Frame::Restored { positions }),
        any::<([u8; 16], u32, u32, u32)>().prop_map(|(id, previous, next, answered)| {
            let session = SessionId::from_bytes(id);
            Frame::Return(Return { session, previous, next, answered })
        }),
        any::<(u32, u32)>().prop_map(|(grace_ms, answered)| Frame::Keep(Keep { grace_ms, answered })),
        (any::<u32>(), option::of(previous), option::of(next.clone()), any::<(u32, bool)>()).prop_map(
            |(epoch, previous, next, (answered, merges))| {
                Frame::Reroute(Box::new(Reroute { epoch, previous, next, answered, merges }))
            }
        ),
        (any::<u32>(), option::of(next), any::<(u32, bool)>()).prop_map(|(epoch, standby, (answered, merges))| {
            Frame::Mirror(Box::new(Mirror { epoch, standby, answered, merges }))
        }),
        (any::<u32>(), any_code(), option::of(any_peer()), ".{0,40}").prop_map(|(epoch, code, peer, detail)| {
            Frame::NeighbourLost(NeighbourLost { epoch, failure: Failure { code, peer, detail } })
        }),
        (any_step(), any::<u32>(), any::<bool>()).prop_map(|(step, due, checked)| match step {
            Frame::Step(step) => Frame::Replay { due, step, checked },
            other => other,
        }),
    ]
}

/// A root is followed by another, which lets a grant and two revocations stand.
fn succession() -> Vec<SignedRevocation> {
    let [swarm, next] = [9, 10].map(|n| SecretKey::from_bytes(&[n; 32]));
    let to = Revoked::Root(Succession { next: next.peer_id(), pages: 1, until: 300 });
    let stands = [Renewal::Adopted([1; 16]), Renewal::Key(PeerId::from_bytes([2; 32])), Renewal::Link([3; 16])];
    let (page, _) = Revocation::sign_page(swarm.peer_id(), 0, &stands, 1 << 24, &next);
    vec![Revocation::sign(swarm.peer_id(), to, 1 << 24, &swarm, Vec::new()), page]
}

fn revocation(n: u8) -> SignedRevocation {
    let what = if n.is_multiple_of(2) { Revoked::Key(PeerId::from_bytes([n; 32])) } else { Revoked::Link([n; 16]) };
    let grant = vec![n; usize::from(n % 3)];
    Revocation::sign(PeerId::from_bytes([9; 32]), what, u64::from(n) << 24, &SecretKey::from_bytes(&[n; 32]), grant)
}

fn any_sharing() -> impl Strategy<Value = Frame> {
    let part = prop_oneof![
        Just(Part::Held),
        any::<u32>().prop_map(Part::Manifest),
        any::<(u32, u32)>().prop_map(|(tensor, first)| Part::Hashes(tensor, first)),
        any::<(u32, u32)>().prop_map(|(tensor, number)| Part::Piece(tensor, number)),
    ];
    let model = any::<[u8; 32]>().prop_map(ModelId::from_bytes);
    prop_oneof![
        vec(any::<u8>(), 0..4).prop_map(|ns| Frame::Models(ns.into_iter().map(shared).collect())),
        (model, part).prop_map(|(model, part)| Frame::Fetch(Fetch { model, part })),
        (any::<u32>(), vec(any::<u8>(), 0..40))
            .prop_map(|(manifest_bytes, tensors)| Frame::Held(Held { manifest_bytes, tensors })),
        vec(any::<u8>(), 0..200).prop_map(Frame::Part),
        any::<(u8, bool)>().prop_map(|(n, load)| Frame::Order(signed_order(n, load))),
        (0..1_000_000u64).prop_map(|n| Frame::Account(account(n))),
    ]
}

fn any_lending() -> impl Strategy<Value = Frame> {
    let upstreams = (option::of(any::<u8>()), vec(any::<u8>(), 0..4)).prop_map(|(own, others)| Upstreams {
        own: own.map(upstream),
        others: others.into_iter().map(lender).collect(),
    });
    prop_oneof![
        upstreams.prop_map(Frame::Upstreams),
        (select(Endpoint::ALL.to_vec()), 0..=potluck_wire::ASK_BYTES_MAX)
            .prop_map(|(endpoint, bytes)| Frame::Ask(Ask { endpoint, bytes })),
        (any::<u16>(), "[ -~]{0,40}", option::of(any::<u32>())).prop_map(|(status, content_type, retry_after)| {
            Frame::Head(Head { status, content_type, retry_after })
        }),
        any::<u8>().prop_map(|n| Frame::Lend(lender(n))),
    ]
}

fn any_greeting() -> impl Strategy<Value = Frame> {
    let hello = (any::<(u16, u16, u64, u32)>(), vec(any::<u8>(), 0..40), "[ -~]{0,20}").prop_map(
        |((version_min, version_max, features, codecs), grant, agent)| {
            Frame::Hello(Hello { version_min, version_max, features, codecs: CodecSet(codecs), grant, agent })
        },
    );
    let welcome = (any::<(u16, u64, u32)>(), any::<(u16, u32, u16)>(), vec(any::<u8>(), 0..40)).prop_map(
        |((version, features, codecs), (step_positions, hop_frames, sessions), grant)| {
            let bounds = Bounds { step_positions, hop_frames, sessions };
            Frame::Welcome(Welcome { version, features, codecs: CodecSet(codecs), bounds, grant })
        },
    );
    let refused = (any_code(), any::<(u16, u16)>())
        .prop_map(|(code, (version_min, version_max))| Frame::Refused(Refusal { code, version_min, version_max }));
    prop_oneof![hello, welcome, refused]
}

fn any_open() -> impl Strategy<Value = OpenSession> {
    let previous = prop_oneof![Just(PreviousHop::Client), any_peer().prop_map(PreviousHop::Peer)];
    let address = (any_peer(), vec("[0-9.:]{0,20}", 0..4), option::of("[a-z:/.]{0,20}"))
        .prop_map(|(peer, addresses, relay)| PeerAddress { peer, addresses, relay });
    let next = prop_oneof![
        Just(NextHop::Client),
        (address, vec(any::<u8>(), 0..40)).prop_map(|(address, grant)| NextHop::Peer { address, grant })
    ];
    let prefix =
        option::of((any_session(), any::<u32>()).prop_map(|(session, positions)| Prefix { session, positions }));
    let codecs = (select(Codec::ALL.to_vec()), select(Codec::ALL.to_vec()));
    (any_session(), any_spec(), any::<(u32, u32, u32)>(), previous, next, codecs, prefix).prop_map(
        |(session, stage, (epoch, positions, idle_ms), previous, next, (codec_in, codec_out), prefix)| OpenSession {
            session,
            epoch,
            stage,
            positions,
            previous,
            next,
            codec_in,
            codec_out,
            prefix,
            idle_ms,
        },
    )
}

fn any_step() -> impl Strategy<Value = Frame> {
    let rows = select(vec![Rows::None, Rows::Last, Rows::All, Rows::Mean]);
    let header = (any::<(u32, u32, u32)>(), 1u16..=512, rows, any::<u16>(), select(Codec::ALL.to_vec()));
    let plain = (header, vec(any::<u8>(), 0..200)).prop_map(
        |(((sequence, epoch, start), count, rows, top, codec), payload)| StepFrame {
            sequence,
            epoch,
            start,
            count,
            rows,
            top,
            codec,
            payload,
            pad: false,
            tree: Tree::chain(),
            fence: false,
            skipped: false,
        },
    );
    // What is padded has as many bytes for each position.
    let padded = (plain.clone(), 1u16..=40, vec(any::<u8>(), 0..20)).prop_map(|(step, count, position)| StepFrame {
        count,
        payload: position.repeat(count.into()),
        pad: true,
        ..step
    });
    let tree = (prop_oneof![plain.clone(), padded.clone()], vec(any::<u8>(), 1..20), any::<bool>()).prop_filter_map(
        "a tree",
        |(step, choices, fence)| {
            let tree = Tree::new(parents(&choices)).ok()?;
            let count = choices.len() as u16;
            let payload = vec![7; if step.pad { 3 * usize::from(count) } else { step.payload.len() }];
            Some(StepFrame { count, payload, tree, fence, ..step })
        },
    );
    let skipped = (any::<(u32, u32, u32)>(), 1u16..=512)
        .prop_map(|((sequence, epoch, start), count)| StepFrame::skipped(sequence, epoch, start, count));
    prop_oneof![plain, padded, tree, skipped].prop_map(Frame::Step)
}

fn any_answer() -> impl Strategy<Value = Frame> {
    let top = (vec((any::<u32>(), -9f32..9.0), 0..8), -9f32..9.0)
        .prop_map(|(largest, log_sum_exp)| Logits::Top { largest, log_sum_exp });
    let row = prop_oneof![top, any_hidden().prop_map(Logits::Whole)];
    let answer = (any::<(u32, u32, u32)>(), 8u16..=512, vec(row, 0..8), any::<(bool, bool)>());
    answer.prop_map(|((sequence, epoch, start), count, rows, (pad, skipped))| {
        let rows = if skipped { Vec::new() } else { rows };
        Frame::Answer(AnswerFrame { sequence, epoch, start, count, rows, pad, skipped })
    })
}

/// Parents of rows that come depth first: each choice says how far up the path the row hangs.
fn parents(choices: &[u8]) -> Vec<u8> {
    let (mut path, mut parents): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
    for (row, &choice) in choices.iter().enumerate() {
        if let Some(&parent) = path.get(usize::from(choice) % path.len().max(1)) {
            path.retain(|&ancestor| ancestor <= parent);
            parents.push(parent);
        } else {
            parents.push(0);
        }
        path.push(row as u8);
    }
    parents
}

fn any_hidden() -> impl Strategy<Value = Hidden> {
    vec(-9f32..9.0, 0..20).prop_map(Hidden)
}

fn any_code() -> impl Strategy<Value = FailureCode> {
    select(FailureCode::ALL.to_vec())
}

fn any_peer() -> impl Strategy<Value = PeerId> {
    any::<[u8; 32]>().prop_map(PeerId::from_bytes)
}

fn any_session() -> impl Strategy<Value = SessionId> {
    any::<[u8; 16]>().prop_map(SessionId::from_bytes)
}

fn any_key() -> impl Strategy<Value = SessionKey> {
    (any_peer(), any_session()).prop_map(|(client, id)| SessionKey { client, id })
}

fn any_spec() -> impl Strategy<Value = StageSpec> {
    (any::<[u8; 32]>(), 0u32..500, 1u32..500, any::<(bool, bool)>()).prop_map(|(model, start, layers, (head, tail))| {
        let layers = LayerRange::new(start, start + layers).unwrap();
        StageSpec { model: ModelId::from_bytes(model), layers, head, tail }
    })
}
