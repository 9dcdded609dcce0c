//! A session over a route, as the generation loop wants it, which counts what it sends.

use std::collections::VecDeque;

use potluck_chain::{Answer, Hop, SessionConfig, SessionError, Submission, chunks::Place};
use potluck_client::{Chain, ChainShape, StageAccount};
use potluck_core::{Account, Hidden};
use potluck_net::{Node, OwnPort, Session, SessionEvent};
use potluck_wire::{Codec, HEADER_BYTES};

/// A session that is ready on every peer of its route.
#[derive(Debug)]
pub(crate) struct WanChain {
    session: Session,
    shape: ChainShape,
    codec: Codec,
    width: usize,
    /// Hops from one peer to another, whose bytes this end does not see.
    peer_hops: usize,
    between: u64,
    answers: VecDeque<Answer>,
    /// The accounts were asked for, and are not waited for.
    asked: bool,
    told: Option<Vec<Account>>,
    /// Steps and positions sent so far.
    pub(crate) sent: Sent,
}

/// What was sent down a chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) steps: u64,
    pub(crate) rows: u64,
}

impl WanChain {
    /// Opens the session and waits until every stage has confirmed it.
    ///
    /// # Errors
    /// See [`SessionError`]; there is a deadline.
    pub(crate) async fn open(node: &Node, config: SessionConfig, own: Vec<OwnPort>) -> Result<Self, SessionError> {
        let shape = ChainShape { vocabulary: config.vocabulary, positions: config.positions };
        let (codec, width) = (config.codec, config.width as usize);
        let remote = |hop: &Hop| matches!(hop, Hop::Remote(_));
        let peer_hops = config.route.windows(2).filter(|pair| pair.iter().all(remote)).count();
        let mut session = node.open(config, own).await?;
        while !matches!(session.next().await?, SessionEvent::Ready) {}
        let (answers, sent, told) = (VecDeque::new(), Sent::default(), None);
        Ok(Self { session, shape, codec, width, peer_hops, between: 0, answers, asked: false, told, sent })
    }

    /// What was asked for has come.
    fn hear(&mut self, accounts: Vec<Account>) {
        self.asked = false;
        self.told = Some(accounts);
    }
}

impl Chain for WanChain {
    fn shape(&self) -> ChainShape {
        self.shape
    }

    fn takes_drafts(&self) -> bool {
        self.session.takes_drafts()
    }

    async fn submit(&mut self, submission: Submission) -> Result<u32, SessionError> {
        let tokens = &submission.tokens;
        self.sent.steps += 1;
        self.sent.rows += tokens.len() as u64;
        self.between += (self.peer_hops * (HEADER_BYTES + self.codec.bytes(tokens.len(), self.width))) as u64;
        self.session.submit(submission)
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        if let Some(answer) = self.answers.pop_front() {
            return Ok(answer);
        }
        loop {
            match self.session.next().await? {
                SessionEvent::Answer(answer) => return Ok(answer),
                SessionEvent::Accounts(accounts) => self.hear(accounts),
                _ => {}
            }
        }
    }

    async fn row(&mut self, sequence: u32, row: u16) -> Result<Hidden, SessionError> {
        self.session.request_row(sequence, row)?;
        loop {
            match self.session.next().await? {
                SessionEvent::Row { logits, .. } => return Ok(logits),
                SessionEvent::Answer(answer) => self.answers.push_back(answer),
                SessionEvent::Accounts(accounts) => self.hear(accounts),
                _ => {}
            }
        }
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        Ok(None)
    }

    fn places(&self) -> Vec<Place> {
        self.session.places()
    }

    fn ask_accounts(&mut self) -> Result<(), SessionError> {
        if !self.asked && self.session.keeps_accounts() {
            self.session.ask_accounts()?;
            self.asked = true;
        }
        Ok(())
    }

    async fn told_accounts(&mut self) -> Result<Option<Vec<Account>>, SessionError> {
        // They may have come since the session was looked at last.
        while self.asked {
            let event = tokio::select! {
                biased;
                event = self.session.next() => event?,
                () = std::future::ready(()) => break,
            };
            match event {
                SessionEvent::Accounts(accounts) => self.hear(accounts),
                SessionEvent::Answer(answer) => self.answers.push_back(answer),
                _ => {}
            }
        }
        Ok(self.told.take())
    }

    fn bytes_written(&self) -> u64 {
        let (written, read) = self.session.bytes();
        written + read + self.between
    }

    async fn let_go(&mut self) {
        self.session.close();
    }

    async fn close(mut self) {
        self.let_go().await;
    }
}
