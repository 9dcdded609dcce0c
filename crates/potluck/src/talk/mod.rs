//! A model that is ready to answer, whatever runs it: one engine here, peers of our own, or a swarm.

mod advice;
mod chain;
mod draft;
mod front;
mod lenders;
mod lent;
mod opening;
mod own_peers;
mod parked;
mod report;
mod route;
mod shared;
mod start;
mod substitutes;
mod swarm;
mod traced;

use std::rc::Rc;

use potluck_chain::{
    SessionError,
    plan::{Preview, Who},
    sample::SamplingParams,
};
use potluck_client::{
    Cancel, Chain as _, Conversation, Drafts, GenerateError, Outcome, RenderOptions, Request, Session, TemplateError,
    TokenEvent,
};
use potluck_engine::{EngineSettings, GrammarSource};
use potluck_net::NetError;
use potluck_store::InUse;
use serde_json::Value;

use crate::{
    args::{EngineArgs, Privacy, RouteArgs, SamplingArgs, StopArgs},
    embedded::Embedded,
    failure::Failure,
    home::Home,
    models::{CodecChoice, all_layers},
    placement::own_machine,
    screen::Screen,
    signals::Interrupt,
};

pub(crate) use advice::{advice, compared};
pub(crate) use chain::AnyChain;
use draft::{Drafter, drafting};
pub(crate) use front::Front;
use opening::open_again;
pub(crate) use own_peers::{own_peers_plan, split};
pub(crate) use parked::Parked;
pub(crate) use report::RouteStage;
pub(crate) use start::Wanted;
pub(crate) use swarm::{Surveyed, client_node, preview, who_name};
pub(crate) use traced::show_trace;

/// How an answer is to be made.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// How tokens are chosen.
    pub(crate) params: SamplingParams,
    /// What the answer must follow.
    pub(crate) grammar: Option<GrammarSource>,
    /// Tokens of the answer at most.
    pub(crate) max_tokens: Option<u32>,
    stop: Vec<String>,
    ignore_eos: bool,
    chunk: Option<u16>,
    exact: bool,
    /// Whether where the time went is to be shown.
    pub(crate) trace: bool,
}

/// A model that is ready to answer.
#[derive(Debug)]
pub(crate) struct Talk {
    /// What was said so far.
    pub(crate) conversation: Conversation,
    /// The model.
    pub(crate) entry: InUse,
    session: Session<AnyChain>,
    home: Home,
    screen: Screen,
    route: RouteArgs,
    settings: EngineSettings,
    codec: CodecChoice,
    /// What it gave to the model at the start.
    memory: u64,
    privacy: Privacy,
    /// The peers that this command started, which end with it.
    embedded: Option<Embedded>,
    /// Why the route is what it is, in a sentence.
    verdict: String,
    /// What the planner expects of the route that it chose.
    plan: Option<Preview>,
    /// The draft model, where there is one.
    drafter: Option<Rc<Drafter>>,
    /// The session was let go of, and there is no other yet.
    is_lost: bool,
}

impl Asked {
    /// From the arguments.
    pub(crate) fn new(sampling: &SamplingArgs, stop: &StopArgs, engine: &EngineArgs) -> Result<Self, Failure> {
        Ok(Self {
            params: sampling.params(),
            grammar: sampling.grammar()?,
            max_tokens: stop.max_tokens,
            stop: stop.stop.clone(),
            ignore_eos: stop.ignore_eos,
            chunk: engine.chunk,
            exact: engine.exact(),
            trace: stop.trace,
        })
    }

    /// With these parameters and no bound.
    #[cfg(test)]
    pub(crate) fn of(params: SamplingParams) -> Self {
        Self {
            params,
            grammar: None,
            max_tokens: None,
            stop: Vec::new(),
            ignore_eos: false,
            chunk: None,
            exact: false,
            trace: false,
        }
    }

    /// The likeliest tokens, so many of them, and where the time went: for measurements.
    pub(crate) fn timed(engine: &EngineArgs, tokens: u32) -> Self {
        Self {
            params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            grammar: None,
            max_tokens: Some(tokens),
            stop: Vec::new(),
            ignore_eos: true,
            chunk: Some(engine.settings(1).chunk),
            exact: engine.exact(),
            trace: true,
        }
    }

    fn request(&self, prompt: Vec<u32>) -> Request {
        let request = Request::new(prompt);
        Request {
            params: self.params.clone(),
            stop: self.stop.clone(),
            max_tokens: self.max_tokens,
            ignore_eos: self.ignore_eos,
            grammar: self.grammar.clone(),
            chunk: self.chunk.unwrap_or(request.chunk),
            fixed: self.chunk.is_some(),
            exact: self.exact,
            trace: self.trace,
            ..request
        }
    }
}

impl Talk {
    /// The tokens of the conversation, with `text` as what the user says next.
    pub(crate) async fn ask(&mut self, text: &str) -> Result<Vec<u32>, Failure> {
        self.conversation.user(text);
        let prompt = self.conversation.prompt(&RenderOptions::now())?;
        Ok(self.session.tokenize(&prompt).await?)
    }

    /// The tokens of `text` as it is.
    pub(crate) async fn raw(&self, text: &str) -> Result<Vec<u32>, Failure> {
        Ok(self.session.tokenize_raw(text).await?)
    }

    /// Answers. The user may interrupt: then the outcome is what there was.
    pub(crate) async fn answer(
        &mut self,
        prompt: Vec<u32>,
        asked: &Asked,
        interrupt: &mut Interrupt,
        on_token: impl FnMut(&TokenEvent),
    ) -> Result<Outcome, Failure> {
        if self.is_lost {
            interrupt.or(self.reopen()).await??;
        }
        let cancel = Cancel::new();
        let mut answer = std::pin::pin!(self.answer_until(prompt, asked, &cancel, on_token));
        tokio::select! {
            outcome = &mut answer => outcome,
            () = interrupt.wait() => {
                cancel.cancel();
                answer.await
            }
        }
    }

    /// The same, until it is cancelled.
    pub(crate) async fn answer_until(
        &mut self,
        prompt: Vec<u32>,
        asked: &Asked,
        cancel: &Cancel,
        on_token: impl FnMut(&TokenEvent),
    ) -> Result<Outcome, Failure> {
        let Self { session, home, entry, settings, codec, memory, privacy, embedded, route, verdict, .. } = self;
        let (standby, screen, memory) = (route.standby, Some(self.screen), Some(*memory));
        let wanted = Wanted { home, entry, settings, codec: *codec, memory, privacy, standby, screen };
        let reopen = async |lost: &SessionError| match open_again(&wanted, route, embedded.as_ref(), lost).await {
            Ok((chain, why)) => {
                tracing::info!(%lost, "the answer goes on over another route");
                self.screen
                    .aside(format!("{lost}: the answer goes on over another route, after all of it was computed anew"));
                if let Some(why) = why {
                    *verdict = why;
                }
                Some(chain)
            }
            Err(failure) => {
                tracing::info!(%lost, code = %failure.code, "there is no other route");
                None
            }
        };
        Ok(session.generate_over(asked.request(prompt), cancel, on_token, reopen).await?)
    }

    /// The peers that this command started.
    pub(crate) fn peers(&self) -> impl Iterator<Item = Value> {
        self.embedded.iter().flat_map(Embedded::list)
    }

    /// Waits until a peer that this command started ends, which it should not.
    pub(crate) async fn lost(&mut self) -> Failure {
        match &mut self.embedded {
            Some(embedded) => embedded.first_loss().await,
            None => std::future::pending().await,
        }
    }

    /// Drafts from there alone from now on, as if nothing had been drafted yet; whether the route takes drafts at all.
    pub(crate) async fn draft_from(&mut self, drafts: Drafts) -> bool {
        let drafter = self.drafter.as_deref().filter(|_| matches!(drafts, Drafts::Auto | Drafts::Model));
        let drafting = drafting(drafts, drafter).await;
        self.session.set_drafting(drafting);
        drafts != Drafts::Off && self.session.chain().takes_drafts()
    }

    /// What the planner expects of the route, of what it knows now.
    pub(crate) fn expected(&self) -> Result<Preview, Failure> {
        let Self { home, entry, settings, codec, memory, privacy, .. } = self;
        let (standby, screen) = (self.route.standby, None);
        let wanted = Wanted { home, entry, settings, codec: *codec, memory: Some(*memory), privacy, standby, screen };
        match (&self.plan, self.route.peers) {
            (Some(plan), _) => Ok(plan.clone()),
            (None, Some(peers)) => own_peers_plan(&wanted, peers.into(), self.route.ends()),
            (None, None) => {
                let whole = (Who::Own, all_layers(&entry.manifest)?);
                own_peers::placed_here(&wanted, &own_machine(&wanted)?, &[whole])
            }
        }
    }

    /// Forgets what the user said last: it got no answer.
    pub(crate) fn unask(&mut self) {
        self.conversation.undo();
    }

    /// Ends the session and whatever was started for it.
    pub(crate) async fn close(self) {
        self.session.close().await;
        Drafter::stop(self.drafter).await;
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        Self::new(error.code(), &error, error.hint())
    }
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Self {
        Self::new(error.code(), &error, error.hint())
    }
}

impl From<TemplateError> for Failure {
    fn from(error: TemplateError) -> Self {
        Self::new(error.code(), &error, error.hint())
    }
}

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        Self::new(error.code(), &error, error.hint())
    }
}
