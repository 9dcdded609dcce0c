//! A conversation that is put aside: its words and tokens with the user, what was computed for it with those who did.
//!
//! Whoever holds a part keeps it encrypted, for a while, as long as it has room. Where that is gone, or its holder, the tokens are evaluated
//! again.

use std::time::Duration;

use potluck_core::{LayerRange, PeerId, StateKey};
use serde::{Deserialize, Serialize};

use super::{AnyChain, Talk, start::Wanted, swarm};
use crate::{
    args::Prefer,
    commands::swarm::utc_now,
    failure::{Failure, OrFail},
    states::KEPT_SECONDS_MAX,
};

/// How long steps that nobody waits for any more may take before what the stages hold is written down.
const AT_REST_WITHIN: Duration = Duration::from_secs(5);

/// What takes a conversation up again: whoever has it, and the client's key, can read what the stages keep.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Parked {
    /// The model's id.
    model: String,
    /// What the stages knew the session by.
    session: String,
    /// Base 64.
    key: String,
    /// UTC seconds after which nobody keeps anything.
    pub(crate) until: u64,
    /// The stages, in order.
    stages: Vec<ParkedStage>,
    /// How hidden states travelled, and whether they were computed exactly: what is computed otherwise does not go on with it.
    #[serde(default)]
    codec: String,
    #[serde(default)]
    exact: bool,
    tokens: Vec<u32>,
    /// Where the steps begin that they were evaluated in.
    cuts: Vec<usize>,
    /// Bytes that the stages keep.
    #[serde(skip)]
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ParkedStage {
    /// None: the machine that asked.
    peer: Option<String>,
    layers: [u32; 2],
}

impl std::fmt::Debug for Parked {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { model, session, until, stages, .. } = self;
        f.debug_struct("Parked")
            .field("model", model)
            .field("session", session)
            .field("until", until)
            .field("stages", stages)
            .finish_non_exhaustive()
    }
}

/// Who holds which layers: none is this machine.
pub(super) type Holders = Vec<(Option<PeerId>, LayerRange)>;

impl Parked {
    /// How many positions are kept.
    pub(crate) fn positions(&self) -> usize {
        self.tokens.len()
    }

    /// By how many machines.
    pub(crate) fn machines(&self) -> usize {
        self.stages.len()
    }

    /// Whether both ends were the asking machine's: nobody else was sent what was said.
    fn began_here(&self) -> bool {
        let mut ends = self.stages.first().into_iter().chain(self.stages.last());
        !self.stages.is_empty() && ends.all(|stage| stage.peer.is_none())
    }

    fn holders(&self) -> Option<Holders> {
        let holder = |stage: &ParkedStage| {
            let peer = stage.peer.as_deref().map(str::parse).transpose().ok()?;
            Some((peer, LayerRange::new(stage.layers[0], stage.layers[1]).ok()?))
        };
        self.stages.iter().map(holder).collect()
    }

    fn state_key(&self) -> Option<StateKey> {
        let bytes = data_encoding::BASE64.decode(self.key.as_bytes()).ok()?;
        Some(StateKey(bytes.try_into().ok()?))
    }
}

impl Talk {
    /// Has every stage keep what it holds of the conversation; none where one does not.
    ///
    /// # Errors
    /// The session's.
    pub(crate) async fn park(&mut self) -> Result<Option<Parked>, Failure> {
        self.session.come_to_rest(AT_REST_WITHIN).await;
        // What this command started ends with it.
        if !self.session.is_at_rest() || self.embedded.is_some() || self.session.held().is_empty() {
            return Ok(None);
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).or_fail("io", "run it again")?;
        let until = utc_now() + u64::from(KEPT_SECONDS_MAX);
        let (tokens, cuts) = (self.session.held().to_vec(), self.session.cuts().to_vec());
        let AnyChain::Route(chain) = self.session.chain_mut() else { return Ok(None) };
        let Some((positions, bytes)) = chain.save(StateKey(key), KEPT_SECONDS_MAX).await? else { return Ok(None) };
        // What was drafted and not wanted is held beyond them.
        if (positions as usize) < tokens.len() {
            return Ok(None);
        }
        let stage = |(peer, layers): &(Option<PeerId>, LayerRange)| ParkedStage {
            peer: peer.map(|peer| peer.to_string()),
            layers: [layers.start(), layers.end()],
        };
        Ok(Some(Parked {
            model: self.entry.id.to_string(),
            session: chain.session().to_string(),
            key: data_encoding::BASE64.encode(&key),
            until,
            stages: chain.stages().iter().map(stage).collect(),
            codec: chain.codec().to_string(),
            exact: self.settings.exact,
            tokens,
            cuts,
            bytes,
        }))
    }

    /// Goes on where a conversation was put aside: over the machines that have kept what they held of it, where all are there and may have
    /// it still. How many tokens need not be evaluated again.
    ///
    /// # Errors
    /// Where there is no session any more, over whatever machines: the next answer looks for one.
    pub(crate) async fn take_up(&mut self, parked: &Parked) -> Result<usize, Failure> {
        if parked.began_here() {
            // What no peer was sent then, none is sent now.
            self.privacy.hide_layers = self.privacy.hide_layers.max(1);
        }
        let held = self.try_take_up(parked).await;
        if !self.is_lost && parked.began_here() && !self.ends_are_here() {
            self.begin_anew().await?;
        }
        held
    }

    async fn try_take_up(&mut self, parked: &Parked) -> Result<usize, Failure> {
        let (Some(holders), Some(key)) = (parked.holders(), parked.state_key()) else { return Ok(0) };
        let Ok(session) = parked.session.parse() else { return Ok(0) };
        let is_another = parked.model != self.entry.id.to_string()
            || parked.exact != self.settings.exact
            || parked.tokens.len() > self.settings.context as usize;
        // Who wants the words to stay here, where they can, is not led elsewhere by where they were before.
        let leaves = self.route.prefer == Prefer::Private && !parked.began_here() && self.ends_are_here();
        let is_planned = self.route.local || self.route.peers.is_some();
        if is_another || leaves || is_planned || parked.until < utc_now() {
            return Ok(0);
        }
        let is_here = |chain: &AnyChain| matches!(chain, AnyChain::Route(chain) if *chain.stages() == *holders);
        if !is_here(self.session.chain()) || !self.session.held().is_empty() {
            self.let_go().await;
            if !self.open_over(&holders).await {
                self.reopen().await?;
                return Ok(0);
            }
        }
        let AnyChain::Route(chain) = self.session.chain_mut() else { return Ok(0) };
        if chain.codec().to_string() != parked.codec {
            return Ok(0);
        }
        match chain.restore(session, key).await {
            Ok(positions) => {
                let held = &parked.tokens[..parked.tokens.len().min(positions as usize)];
                self.session.begin_with(held.to_vec(), &parked.cuts);
                Ok(held.len())
            }
            Err(error) => {
                tracing::info!(%error, "what was put aside does not come back");
                self.begin_anew().await?;
                Ok(0)
            }
        }
    }

    /// Ends the session; until there is another, there is none.
    async fn let_go(&mut self) {
        self.is_lost = true;
        self.session.let_go().await;
    }

    async fn begin_anew(&mut self) -> Result<(), Failure> {
        self.let_go().await;
        self.reopen().await
    }

    /// Whether nobody but this machine is sent what is said.
    fn ends_are_here(&self) -> bool {
        match self.session.chain() {
            AnyChain::Route(chain) => {
                let stages = chain.stages();
                let mut ends = stages.first().into_iter().chain(stages.last());
                self.embedded.is_some() || ends.all(|(peer, _)| peer.is_none())
            }
            AnyChain::Local(..) => true,
        }
    }

    /// Opens another session in the place of one that was let go of, over these; whether there is one.
    async fn open_over(&mut self, holders: &Holders) -> bool {
        let Self { home, entry, settings, codec, memory, privacy, screen, .. } = self;
        let (standby, screen) = (self.route.standby, Some(*screen));
        let wanted = Wanted { home, entry, settings, codec: *codec, memory: Some(*memory), privacy, standby, screen };
        match swarm::open_over(&wanted, holders).await {
            Ok(Some(chain)) => {
                self.verdict = "these machines have kept what was computed for this conversation".into();
                self.plan = None;
                self.replace_chain(chain).await;
                true
            }
            Ok(None) => false,
            Err(unopened) => {
                let failure = Failure::from(unopened);
                tracing::info!(code = %failure.code, "{}", failure.message);
                false
            }
        }
    }
}
