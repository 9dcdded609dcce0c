//! What each stage of the route has done for the session: asked of the peers, counted for the own stages.

use std::time::Instant;

use potluck_core::Account;
use potluck_wire::Frame;

use super::{ClientSession, Effect, Hop};
use crate::SessionError;

/// The accounts of a route's stages.
#[derive(Debug)]
pub(super) struct Accounts {
    /// Of own stages: kept; of peers: as they said last.
    stages: Vec<Account>,
    /// Which peers have not answered yet, and since when.
    due: Vec<bool>,
    since: Option<Instant>,
}

impl Accounts {
    pub(super) fn new(stages: usize) -> Self {
        Self { stages: vec![Account::default(); stages], due: vec![false; stages], since: None }
    }

    /// When the peers were asked, if they have not all answered.
    pub(super) fn asked_since(&self) -> Option<Instant> {
        self.since
    }

    /// Those that are still to come have as long from here on.
    pub(super) fn go_on(&mut self, now: Instant) {
        self.since = self.since.map(|_| now);
    }

    /// The first stage whose account is still to come.
    pub(super) fn first_due(&self) -> Option<usize> {
        self.due.iter().position(|due| *due)
    }

    /// An own stage ran a step. No queue, no codec, no wire: the machine's own.
    pub(super) fn own_ran(&mut self, hop: usize, positions: u16, compute_us: u64) {
        if let Some(account) = self.stages.get_mut(hop) {
            account.steps += 1;
            account.positions += u64::from(positions);
            account.compute_us = account.compute_us.saturating_add(compute_us);
        }
    }
}

impl ClientSession {
    /// Asks each stage of the route what it has done for this session so far: [`Effect::Accounts`].
    ///
    /// # Errors
    /// `BadStep` while the route is not ready or an earlier question is open; `Closed` after the end.
    pub fn ask_accounts(&mut self, now: Instant) -> Result<(), SessionError> {
        if self.over {
            return Err(SessionError::Closed);
        }
        if !self.ready || self.accounts.since.is_some() {
            return Err(SessionError::BadStep(
                "accounts are asked for once at a time, on a route that is ready".into(),
            ));
        }
        self.accounts.since = Some(now);
        for hop in 0..self.config.route.len() {
            let remote = matches!(self.config.route[hop], Hop::Remote(_));
            self.accounts.due[hop] = remote;
            // Whoever is about to take a lost peer's place is asked then.
            if remote && !self.repair.is_away(hop) {
                self.send(hop, Frame::AskAccount);
            }
        }
        self.tell_accounts();
        Ok(())
    }

    pub(super) fn account_came(&mut self, now: Instant, hop: usize, account: Account) -> Result<(), SessionError> {
        // It was asked while it was not lost yet.
        if self.repair.is_lost(hop) {
            return self.stale_came(hop);
        }
        // Whoever is about to take a place was not asked for what is due: it will be.
        if self.accounts.due[hop] && !self.repair.is_away(hop) {
            self.accounts.due[hop] = false;
            self.accounts.stages[hop] = account;
            // The others have as long from here on: accounts may be asked for, and looked for when the next prompt comes.
            self.accounts.since = Some(now);
            self.tell_accounts();
        } else if !self.doubts.was_owed(hop) {
            return Err(self.protocol(hop, "it gave an account that nobody asked for".into()));
        }
        self.hears(now, hop)
    }

    /// Another peer has the place of one whose account may be due.
    pub(super) fn ask_account_again(&mut self, hop: usize) {
        if self.accounts.due.get(hop) == Some(&true) {
            self.send(hop, Frame::AskAccount);
        }
    }

    fn tell_accounts(&mut self) {
        if self.accounts.first_due().is_none() {
            self.accounts.since = None;
            self.effects.push_back(Effect::Accounts(self.accounts.stages.clone()));
        }
    }
}
