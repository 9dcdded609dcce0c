//! A simulated client: the production session, and a user who knows the right answers.

use std::time::Duration;

use potluck_chain::{
    Answer, ClientSession, Deadlines, Effect, Event, Hop, OwnStage, RemoteStage, SessionConfig, SessionError,
    Submission,
};
use potluck_core::{
    Account, CacheId, Hidden, LayerRange, Logits, PeerId, Rows, SecretKey, SessionId, SessionKey, Stage as _,
    StageCommand,
};
use potluck_grant::Root;
use potluck_wire::{Codec, Failure, Frame};

use crate::{
    Scenario,
    peer::{CONTEXT, SimPeer, grant},
    toy::{self, ToyStage},
    wire::End,
    world::{Due, World},
};

#[derive(Debug)]
pub(crate) struct SimClient {
    pub(crate) id: PeerId,
    pub(crate) grant: Vec<u8>,
    config: SessionConfig,
    session: Option<ClientSession>,
    /// Own stages at the ends of the route, by stage of the route.
    own: Vec<(usize, ToyStage)>,
    streams: Vec<Option<usize>>,
    wake_at: Option<Duration>,
    user: User,
    /// How often the user will still open a session of the same name, at the same epoch, after one has ended.
    returns: u32,
    prompt: Vec<Vec<u32>>,
}

/// What the client wants, and what it has seen.
#[derive(Debug, Default)]
struct User {
    tokens: Vec<u32>,
    wanted: usize,
    seen: usize,
    /// The row that was asked for: its largest logits, to compare.
    asked: Option<u32>,
    /// Steps and positions that were submitted.
    submitted: (u64, u64),
    /// The token to go on with, once the accounts have come.
    accounting: Option<u32>,
    done: bool,
}

impl SimClient {
    pub(crate) fn new(
        index: usize,
        ranges: &[LayerRange],
        peers: &[SimPeer],
        scenario: &Scenario,
        root: &Root,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let id = SecretKey::from_bytes(&[index as u8 + 101; 32]).peer_id();
        let own_ends = ranges.len() > 1 && rng.bool();
        let mut own = Vec::new();
        let hop = |(place, range): (usize, &LayerRange)| {
            let spec = toy::spec(*range, scenario.layers);
            if own_ends && (place == 0 || place + 1 == ranges.len()) && ranges.len() > 2 {
                own.push((place, ToyStage::new(spec, 1, CONTEXT)));
                return Hop::Own(OwnStage { spec, cache: CacheId(0) });
            }
            let holders: Vec<_> = peers.iter().filter(|peer| peer.range == *range).collect();
            let peer = holders[rng.usize(..holders.len())];
            Hop::Remote(RemoteStage { spec, address: peer.address(), grant: peer.grant.clone(), speed: None })
        };
        let route: Vec<_> = ranges.iter().enumerate().map(hop).collect();
        let config = SessionConfig {
            key: SessionKey { client: id, id: SessionId::from_bytes([index as u8; 16]) },
            epoch: 0,
            positions: CONTEXT,
            width: toy::WIDTH,
            vocabulary: toy::VOCABULARY,
            codec: if rng.bool() { Codec::F16 } else { Codec::F32 },
            codec_otherwise: None,
            route,
            prefix: None,
            pad: false,
            deadlines: Deadlines { step: Duration::from_secs(30), ..Deadlines::default() },
        };
        let prompt = (0..rng.usize(1..=4)).map(|_| random_tokens(rng, 24)).collect();
        let user = User { wanted: rng.usize(1..=24), ..User::default() };
        let returns = rng.u32(..=scenario.returns);
        let streams = vec![None; ranges.len()];
        Self { id, grant: grant(root, id), config, session: None, own, streams, wake_at: None, user, returns, prompt }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.session.as_ref().is_none_or(ClientSession::is_over)
    }
}

fn random_tokens(rng: &mut fastrand::Rng, max: usize) -> Vec<u32> {
    (0..rng.usize(1..=max)).map(|_| rng.u32(..toy::VOCABULARY)).collect()
}

impl World {
    pub(crate) fn client_frame(&mut self, client: usize, hop: usize, stream: usize, frame: Frame) {
        if self.clients[client].streams[hop] == Some(stream) {
            self.inform(client, Event::Frame { hop, frame });
        }
    }

    pub(crate) fn client_stream_closed(&mut self, client: usize, hop: usize, stream: usize, failure: Failure) {
        if self.clients[client].streams[hop] == Some(stream) {
            self.inform(client, Event::Closed { hop, failure });
        }
    }

    pub(crate) fn wake_client(&mut self, client: usize) {
        self.clients[client].wake_at = None;
        match &self.clients[client].session {
            Some(session) if session.is_over() && self.clients[client].returns > 0 => self.come_back(client),
            Some(_) => return self.inform(client, Event::Timeout),
            None => {}
        }
        match ClientSession::new(self.instant(), self.clients[client].config.clone()) {
            Ok(session) => self.clients[client].session = Some(session),
            Err(error) => self.check(false, &format!("a scenario's route is sound: {error}")),
        }
        self.drain(client);
    }

    /// The user starts over, under the same name and epoch: whatever is still under way for the old session is not for
    /// the new one.
    fn come_back(&mut self, client: usize) {
        let client = &mut self.clients[client];
        client.returns -= 1;
        client.streams.fill(None);
        client.user = User { wanted: client.user.wanted, ..User::default() };
        for chunk in client.prompt.iter_mut().flatten() {
            *chunk = (*chunk + 1) % toy::VOCABULARY;
        }
        client.own.iter_mut().for_each(|(_, stage)| stage.close(CacheId(0)));
    }

    fn inform(&mut self, client: usize, event: Event) {
        let now = self.instant();
        if let Some(session) = &mut self.clients[client].session {
            session.handle(now, event);
        }
        self.drain(client);
    }

    fn drain(&mut self, client: usize) {
        while let Some(effect) = self.clients[client].session.as_mut().and_then(ClientSession::poll) {
            self.carry_out(client, effect);
        }
        if self.clients[client].session.as_ref().is_some_and(ClientSession::is_over) && self.clients[client].returns > 0
        {
            let soon = Duration::from_micros(self.rng.u64(..20_000));
            return self.after(soon, Due::Wake(End::Client(client, 0)));
        }
        let at = self.clients[client].session.as_ref().and_then(ClientSession::poll_timeout);
        let Some(at) = at.map(|at| self.since_start(at)) else { return };
        if self.clients[client].wake_at.is_none_or(|set| at < set) {
            self.clients[client].wake_at = Some(at);
            self.at(at, Due::Wake(End::Client(client, 0)));
        }
    }

    fn carry_out(&mut self, client: usize, effect: Effect) {
        match effect {
            Effect::Send { hop, frame } => {
                let stream = self.client_stream(client, hop);
                self.send(stream, 0, &frame);
            }
            Effect::Limit { hop, frame_bytes_max } => {
                let stream = self.client_stream(client, hop);
                self.streams[stream].readers[0].set_limit(frame_bytes_max);
            }
            Effect::Close { hop, failure } => {
                let stream = self.client_stream(client, hop);
                if self.streams[stream].open[0] {
                    self.close(stream, 0, failure);
                }
            }
            Effect::Own { hop, command } => self.own_compute(client, hop, command),
            Effect::Ready => self.send_prompt(client),
            Effect::Answer(answer) => self.answered(client, answer),
            Effect::Row { logits, .. } => self.row_came(client, &logits),
            Effect::Accounts(accounts) => self.accounts_came(client, &accounts),
            Effect::Failed(error) => self.session_failed(client, &error),
        }
    }

    fn client_stream(&mut self, client: usize, hop: usize) -> usize {
        if let Some(stream) = self.clients[client].streams[hop] {
            return stream;
        }
        let peer = self.clients[client].config.route[hop].peer().and_then(|id| self.by_id.get(&id)).copied();
        let peer = peer.unwrap_or_default();
        let stream = self.open_stream(End::Client(client, hop), End::Peer(peer));
        self.clients[client].streams[hop] = Some(stream);
        if !self.peers[peer].alive {
            self.break_stream(stream);
        }
        stream
    }

    fn own_compute(&mut self, client: usize, hop: usize, command: StageCommand) {
        let own = self.clients[client].own.iter_mut().find(|(place, _)| *place == hop);
        let Some(reply) = own.and_then(|(_, stage)| command.apply(stage)) else { return };
        let now = self.instant();
        if let Some(session) = &mut self.clients[client].session {
            session.handle(now, Event::Own { hop, reply });
        }
    }

    fn send_prompt(&mut self, client: usize) {
        let chunks = self.clients[client].prompt.clone();
        let last = chunks.len() - 1;
        for (index, chunk) in chunks.into_iter().enumerate() {
            let rows = if index == last { Rows::Last } else { Rows::None };
            self.submit(client, chunk, rows);
        }
    }

    fn submit(&mut self, client: usize, tokens: Vec<u32>, rows: Rows) {
        let now = self.instant();
        let SimClient { session, user, .. } = &mut self.clients[client];
        let start = user.tokens.len() as u32;
        user.tokens.extend(&tokens);
        user.submitted = (user.submitted.0 + 1, user.submitted.1 + tokens.len() as u64);
        let result = session.as_mut().map(|session| session.submit(now, Submission::chain(start, tokens, rows, 8)));
        let submitted = matches!(result, Some(Ok(_) | Err(SessionError::Closed)));
        self.check(submitted, &format!("a user's step is accepted: {result:?}"));
    }

    fn answered(&mut self, client: usize, answer: Answer) {
        let Some(Logits::Top { largest, .. }) = answer.rows.last() else { return };
        let token = largest[0].0;
        let expected = toy::greedy(&self.clients[client].user.tokens, self.scenario.layers);
        self.check(token == expected, &format!("client {client}: token {token} is the whole model's, {expected}"));
        self.report.tokens += 1;
        self.clients[client].user.seen += 1;
        let draw = self.rng.u8(..16);
        if draw == 0 {
            let now = self.instant();
            let last = answer.count - 1;
            let session = self.clients[client].session.as_mut();
            let asked = session.map(|session| session.request_row(now, answer.sequence, last));
            self.check(matches!(asked, Some(Ok(()))), "the last row is kept until the next step");
            self.clients[client].user.asked = Some(token);
            return;
        }
        if draw == 2 {
            let now = self.instant();
            let session = self.clients[client].session.as_mut();
            let asked = session.map(|session| session.ask_accounts(now));
            self.check(matches!(asked, Some(Ok(()))), "accounts may be asked for at any time");
            // Where every stage is the client's own, they are here already.
            self.clients[client].user.accounting = Some(token);
            return;
        }
        self.go_on(client, token, draw == 1);
    }

    /// Every stage has computed each position once, and no other.
    fn accounts_came(&mut self, client: usize, accounts: &[Account]) {
        let user = &mut self.clients[client].user;
        let (submitted, token) = (user.submitted, user.accounting.take());
        // Where bits flip on the way, an account says anything: nobody relies on it.
        let told = self.scenario.faults.flips == 0.0;
        for account in accounts.iter().filter(|_| told) {
            let counted = (account.steps, account.positions);
            self.check(counted == submitted, &format!("an account says {counted:?}; {submitted:?} were submitted"));
        }
        match token {
            Some(token) => self.go_on(client, token, false),
            None => self.check(false, "accounts come only where they were asked for"),
        }
    }

    fn row_came(&mut self, client: usize, logits: &Hidden) {
        let Some(token) = self.clients[client].user.asked.take() else {
            return self.check(false, "a row comes only where one was asked for");
        };
        let Logits::Top { largest, .. } = Logits::reduce(&logits.0, 1) else { return };
        self.check(largest[0].0 == token, "the whole row agrees with its largest logits");
        self.go_on(client, token, false);
    }

    /// The next token; or, now and then, the user takes some back and says something else.
    fn go_on(&mut self, client: usize, token: u32, edit: bool) {
        let user = &mut self.clients[client].user;
        if user.seen >= user.wanted {
            user.done = true;
            if let Some(session) = &mut self.clients[client].session {
                session.close();
            }
            self.report.finished += 1;
            return;
        }
        let next = if edit {
            let keep = self.rng.usize(..user.tokens.len());
            user.tokens.truncate(keep);
            random_tokens(&mut self.rng, 8)
        } else {
            vec![token]
        };
        self.submit(client, next, Rows::Last);
    }

    fn session_failed(&mut self, client: usize, error: &SessionError) {
        let done = self.clients[client].user.done;
        self.check(!done, &format!("a session that is done does not fail: {error}"));
        *self.report.failed.entry(error.code()).or_default() += 1;
    }
}
