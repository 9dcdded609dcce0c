//! A user who knows the right answers: every row that comes back is compared with the whole model's.

use std::{collections::VecDeque, time::Duration};

use potluck_chain::{Answer, ClientSession, SessionError, Submission};
use potluck_core::{Account, Hidden, Logits, Rows, SessionId, StateKey, Tree};

use crate::{client::SimClient, toy, world::World};

/// How often a user puts a session aside, at most.
pub(crate) const PARKS_MAX: u32 = 3;

/// Peers keep what a session holds no sooner after they did it last.
const SAVED_EVERY: Duration = Duration::from_secs(10);

/// Positions of a step in which text is sent anew.
const ANEW_POSITIONS: usize = 24;

/// What the client wants, and what it has seen.
#[derive(Debug, Default)]
pub(crate) struct User {
    /// The prompt, and what was chosen since.
    text: Vec<u32>,
    /// Positions that the caches hold, or will once every step in flight has run.
    held: usize,
    pub(crate) wanted: usize,
    seen: usize,
    flights: VecDeque<Flight>,
    /// The row that was asked for, by its largest logit, and the token to go on with.
    asked: Option<(u32, u32)>,
    /// Steps and positions that were submitted.
    submitted: (u64, u64),
    /// The token to go on with, once the accounts have come.
    accounting: Option<u32>,
    done: bool,
    /// The token to go on with, and the key, once it is known what is kept; and the token with which another session begins.
    saving: Option<(u32, StateKey)>,
    pub(crate) resumes: Option<u32>,
    /// How often it was tried to put the session aside, and when it is tried next.
    parks: u32,
    saves_from: Duration,
    /// It began with what was kept of another: where it loses a peer, all of it is computed again, in yet another.
    is_short: bool,
}

/// A step in flight.
#[derive(Debug)]
struct Flight {
    /// The text before it.
    before: Vec<u32>,
    tokens: Vec<u32>,
    tree: Tree,
    /// So many of its tokens are text, and the others guesses.
    certain: usize,
    /// A token before its own was another.
    stale: bool,
}

impl Flight {
    /// The text that ends with that row.
    fn text(&self, row: usize) -> Vec<u32> {
        let rows = std::iter::successors(Some(row), |row| self.tree.parent(*row));
        let mut path: Vec<u32> = rows.map(|row| self.tokens[row]).collect();
        path.reverse();
        [&self.before[..], &path].concat()
    }

    /// The guess below a row that says this token.
    fn child(&self, row: usize, token: u32) -> Option<usize> {
        (row + 1..self.tokens.len()).find(|child| self.tree.parent(*child) == Some(row) && self.tokens[*child] == token)
    }

    fn trunk(&self) -> usize {
        self.tree.trunk(self.tokens.len())
    }
}

impl User {
    /// One who wants so many tokens.
    pub(crate) fn new(wanted: usize) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Its session has ended as it wanted, and another has computed nothing yet.
    pub(crate) fn rests(&mut self) {
        (self.submitted, self.saves_from) = Default::default();
    }

    /// A step was answered that is of use, whose rows from `first` on say these tokens. Returns the token to go on with; none where a
    /// further step has it already.
    fn judge(&mut self, flight: &Flight, said: &[u32], first: usize) -> Option<u32> {
        let (mut row, mut held) = (flight.certain - 1, flight.certain);
        let last = loop {
            let token = said[row - first];
            self.seen += 1;
            match flight.child(row, token).filter(|_| self.seen < self.wanted) {
                Some(child) => {
                    self.text.push(token);
                    held += usize::from(child == held && child < flight.trunk());
                    row = child;
                }
                None => break token,
            }
        };
        let whole = row + 1 == flight.trunk() && held == flight.trunk();
        let next = self.flights.front_mut().filter(|next| whole && !next.stale && next.tokens[0] == last);
        if let (Some(next), true) = (next, self.seen < self.wanted) {
            next.certain = 1;
            self.text.push(last);
            return None;
        }
        self.flights.iter_mut().for_each(|later| later.stale = true);
        self.held = flight.before.len() + held;
        Some(last)
    }
}

pub(crate) fn random_tokens(rng: &mut fastrand::Rng, max: usize) -> Vec<u32> {
    (0..rng.usize(1..=max)).map(|_| rng.u32(..toy::VOCABULARY)).collect()
}

impl World {
    pub(crate) fn send_prompt(&mut self, client: usize) {
        let chunks = self.clients[client].prompt.clone();
        let last = chunks.len() - 1;
        for (index, chunk) in chunks.into_iter().enumerate() {
            let rows = if index == last { Rows::Last } else { Rows::None };
            let user = &mut self.clients[client].user;
            let (before, certain) = (user.text.clone(), chunk.len());
            user.text.extend(&chunk);
            self.fly(client, Flight { before, tokens: chunk, tree: Tree::chain(), certain, stale: false }, rows);
        }
    }

    fn fly(&mut self, client: usize, flight: Flight, rows: Rows) {
        let now = self.instant();
        let fence = self.scenario.drafts && self.clients[client].user.flights.iter().any(|earlier| earlier.stale);
        let SimClient { session, user, .. } = &mut self.clients[client];
        let (start, tokens, tree) = (flight.before.len() as u32, flight.tokens.clone(), flight.tree.clone());
        user.submitted = (user.submitted.0 + 1, user.submitted.1 + tokens.len() as u64);
        user.held = flight.before.len() + flight.trunk();
        user.flights.push_back(flight);
        let submission = Submission { start, tokens, rows, top: 8, tree, fence };
        let result = session.as_mut().map(|session| session.submit(now, submission));
        let submitted = matches!(result, Some(Ok(_) | Err(SessionError::Closed)));
        self.check(submitted, &format!("a user's step is accepted: {result:?}"));
    }

    pub(crate) fn answered(&mut self, client: usize, answer: &Answer) {
        let Some(flight) = self.clients[client].user.flights.pop_front() else {
            return self.check(false, "there is one answer for each step");
        };
        if answer.skipped {
            return self.check(flight.stale, "what is of use is not skipped");
        }
        let first = flight.tokens.len() - answer.rows.len();
        let mut said = Vec::new();
        for (row, logits) in (first..).zip(&answer.rows) {
            let Logits::Top { largest, .. } = logits else {
                return self.check(false, "a whole row comes only where one was asked for");
            };
            let (token, expected) = (largest[0].0, toy::greedy(&flight.text(row), self.scenario.layers));
            self.check(token == expected, &format!("client {client}: token {token} is the whole model's, {expected}"));
            said.push(token);
        }
        let Some(last_row) = said.last().copied().filter(|_| !flight.stale) else { return };
        let user = &mut self.clients[client].user;
        let before = user.seen;
        let token = user.judge(&flight, &said, first);
        self.report.tokens += user.seen - before;
        let rests = user.flights.is_empty();
        let Some(token) = token else { return };
        let draw = self.rng.u8(..16);
        if draw == 0 && rests {
            let now = self.instant();
            let last = answer.count - 1;
            let session = self.clients[client].session.as_mut();
            let asked = session.map(|session| session.request_row(now, answer.sequence, last));
            self.check(matches!(asked, Some(Ok(()))), "the last row is kept until the next step");
            self.clients[client].user.asked = Some((last_row, token));
            return;
        }
        if draw == 2 && rests {
            let now = self.instant();
            let session = self.clients[client].session.as_mut();
            let asked = session.map(|session| session.ask_accounts(now));
            self.check(matches!(asked, Some(Ok(()))), "accounts may be asked for at any time");
            // Where every stage is the client's own, they are here already.
            self.clients[client].user.accounting = Some(token);
            return;
        }
        if matches!(draw, 3..=5) && rests && self.scenario.parks && self.clients[client].user.parks < PARKS_MAX {
            // Sooner, peers refuse: now and then that is tried.
            if self.now >= self.clients[client].user.saves_from || self.rng.u8(..8) == 0 {
                return self.save(client, token);
            }
        }
        self.go_on(client, token, draw == 1);
    }

    /// The user puts the session aside, where every stage keeps what it holds.
    fn save(&mut self, client: usize, token: u32) {
        let (now, key) = (self.instant(), StateKey([self.rng.u8(..); 32]));
        let until = self.now + SAVED_EVERY;
        let session = self.clients[client].session.as_mut();
        let asked = session.map(|session| session.save(now, key, 3_600));
        match asked {
            Some(Ok(())) => {
                let user = &mut self.clients[client].user;
                user.parks += 1;
                user.saves_from = until;
                // Where every stage is the client's own, it is known already.
                user.saving = Some((token, key));
            }
            // A peer is lost just now.
            _ => self.go_on(client, token, false),
        }
    }

    pub(crate) fn saved(&mut self, client: usize, positions: u32) {
        let Some((token, key)) = self.clients[client].user.saving.take() else {
            return self.check(false, "what is kept is told where it was asked for");
        };
        let held = self.clients[client].session.as_ref().map_or(0, ClientSession::held);
        self.check(positions == 0 || positions == held, "all that a session holds is kept, or nothing");
        // Now and then the user goes on all the same: what is kept harms nobody.
        if positions == 0 || self.rng.u8(..4) == 0 {
            return self.go_on(client, token, false);
        }
        self.clients[client].user.resumes = Some(token);
        self.park(client, key);
    }

    /// The session that goes on in another's place is ready.
    pub(crate) fn restore(&mut self, client: usize, (session, key): (SessionId, StateKey)) {
        let now = self.instant();
        let asked = self.clients[client].session.as_mut().map(|open| open.restore(now, session, key));
        self.check(matches!(asked, Some(Ok(()))), "a session may begin with what was kept");
    }

    /// So many positions need not be computed again.
    pub(crate) fn restored(&mut self, client: usize, positions: u32) {
        let Some(token) = self.clients[client].user.resumes.take() else {
            return self.check(false, "what comes back is told where it was asked for");
        };
        self.report.taken_up += usize::from(positions > 0);
        let user = &mut self.clients[client].user;
        // Guesses that were not wanted may have been kept, too.
        user.held = user.held.min(positions as usize);
        user.is_short = positions > 0;
        if positions > 0 {
            return self.go_on(client, token, false);
        }
        user.text.push(token);
        let text = std::mem::take(&mut user.text);
        let chunks = text.chunks(ANEW_POSITIONS).count();
        for (index, chunk) in text.chunks(ANEW_POSITIONS).enumerate() {
            let rows = if index + 1 == chunks { Rows::Last } else { Rows::None };
            let before = text[..index * ANEW_POSITIONS].to_vec();
            let (tokens, tree, certain, stale) = (chunk.to_vec(), Tree::chain(), chunk.len(), false);
            self.fly(client, Flight { before, tokens, tree, certain, stale }, rows);
        }
        self.clients[client].user.text = text;
    }

    /// Every stage has computed each position once, and no other.
    pub(crate) fn accounts_came(&mut self, client: usize, accounts: &[Account]) {
        let user = &mut self.clients[client].user;
        let (submitted, token) = (user.submitted, user.accounting.take());
        // Where bits flip on the way, an account says anything: nobody relies on it.
        let told = self.scenario.faults.flips == 0.0;
        let replaced = self.clients[client].replaced.clone();
        for (hop, account) in accounts.iter().enumerate().filter(|_| told) {
            let counted = (account.steps, account.positions);
            if replaced.contains(&hop) {
                // Who took a lost peer's place has computed what is in use once more, and nothing else.
                let no_more = counted.0 <= submitted.0 && counted.1 <= submitted.1;
                self.check(no_more, &format!("a substitute's account says {counted:?}; {submitted:?} were submitted"));
                self.report.computed_again += counted.0;
                continue;
            }
            // What was skipped nobody computed.
            let adds_up = counted == submitted || self.scenario.drafts && counted <= submitted;
            self.check(adds_up, &format!("an account says {counted:?}; {submitted:?} were submitted"));
        }
        match token {
            Some(token) => self.go_on(client, token, false),
            None => self.check(false, "accounts come only where they were asked for"),
        }
    }

    pub(crate) fn row_came(&mut self, client: usize, logits: &Hidden) {
        let Some((last, token)) = self.clients[client].user.asked.take() else {
            return self.check(false, "a row comes only where one was asked for");
        };
        let Logits::Top { largest, .. } = Logits::reduce(&logits.0, 1) else { return };
        self.check(largest[0].0 == last, "the whole row agrees with its largest logits");
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
        if edit {
            let keep = self.rng.usize(..user.text.len());
            user.text.truncate(keep);
            user.held = user.held.min(keep);
            user.text.extend(random_tokens(&mut self.rng, 8));
        } else {
            user.text.push(token);
        }
        let (before, tokens) = user.text.split_at(user.held);
        let (before, tokens) = (before.to_vec(), tokens.to_vec());
        let (certain, tree, stale) = (tokens.len(), Tree::chain(), false);
        let flight = Flight { before, tokens, tree, certain, stale };
        if self.scenario.drafts && self.rng.u8(..4) > 0 {
            self.guess(client, flight);
        } else {
            self.fly(client, flight, Rows::Last);
        }
    }

    /// Sends what is certain with guesses below it, as a chain that further steps may follow, or as a tree.
    fn guess(&mut self, client: usize, mut flight: Flight) {
        let mut text = self.clients[client].user.text.clone();
        for _ in 0..self.rng.usize(1..=3) {
            flight.tokens.push(self.guessed(&mut text));
        }
        if self.rng.u8(..3) == 0 {
            // Another guess for the first one's place.
            let rows = flight.tokens.len();
            let parents = (0..rows).map(|row| row.saturating_sub(1)).chain([flight.certain - 1]);
            flight.tokens.push(self.rng.u32(..toy::VOCABULARY));
            flight.tree = Tree::new(parents.map(|parent| parent as u8).collect()).unwrap_or_default();
            return self.fly(client, flight, Rows::All);
        }
        let mut before = text.clone();
        self.fly(client, flight, Rows::All);
        for _ in 0..self.rng.usize(..=2) {
            let tokens: Vec<u32> = (0..self.rng.usize(1..=2)).map(|_| self.guessed(&mut text)).collect();
            let (tree, certain, stale) = (Tree::chain(), 0, false);
            self.fly(client, Flight { before, tokens, tree, certain, stale }, Rows::All);
            before = text.clone();
        }
    }

    /// A guess at what follows, which is mostly right, appended to the text.
    fn guessed(&mut self, text: &mut Vec<u32>) -> u32 {
        let right = toy::greedy(text, self.scenario.layers);
        let token = if self.rng.u8(..4) > 0 { right } else { self.rng.u32(..toy::VOCABULARY) };
        text.push(token);
        token
    }

    /// A session has ended otherwise than its user wanted.
    pub(crate) fn failed(&mut self, client: usize, code: &'static str) {
        *self.report.failed.entry(code).or_default() += 1;
        let user = &self.clients[client].user;
        self.report.failed_under_way += usize::from(user.submitted.0 > 0 && !user.is_short);
    }

    pub(crate) fn session_failed(&mut self, client: usize, error: &SessionError) {
        let done = self.clients[client].user.done;
        self.check(!done, &format!("a session that is done does not fail: {error}"));
        let is_sound = self.scenario.faults.flips > 0.0 || error.code() != "engine_error";
        self.check(is_sound, &format!("no engine is asked for what it cannot do: {error}"));
        if !self.begins_with_nothing(client) {
            self.failed(client, error.code());
        }
    }
}
