//! From arguments to a model that is ready to answer.

use std::time::Duration;

use potluck_chain::{
    Deadlines, Hop, SessionConfig,
    plan::{Preference, Preview, Wish},
};
use potluck_client::{ChatTemplate, Conversation, LocalChain, Session, SpecialTokens};
use potluck_core::{CacheId, PeerId, SessionId, SessionKey, StageSpec};
use potluck_engine::{EngineSettings, memory};
use potluck_model::facts;
use potluck_net::OwnPort;
use potluck_peer::GRACE_MAX;
use potluck_store::Entry;

use super::{
    AnyChain, Talk,
    advice::advice,
    draft::{Drafter, drafting},
    opening::{REOPEN_WITHIN, open_when_loaded, open_within},
    own_peers,
    route::OwnEngine,
};
use crate::{
    args::{EngineArgs, Privacy, RouteArgs},
    embedded::Embedded,
    engines::{RunningEngine, start_engine, start_vocabulary},
    failure::{Failure, OrFail},
    home::Home,
    models::{CodecChoice, all_layers, find_model, load_stage, load_vocabulary, load_whole},
    placement::{free_memory, known_machine},
    screen::Screen,
};

/// The cache that a session of this command uses in its own engines: they have one.
pub(super) const OWN_CACHE: CacheId = CacheId(0);

/// How long the others of a route keep what they hold while another peer is looked for in the place of a lost one: as long as peers allow,
/// for somebody may have to load what the lost one had.
const REPLACED_WITHIN: Duration = GRACE_MAX;

/// What is to be opened.
pub(crate) struct Wanted<'a> {
    pub(crate) home: &'a Home,
    pub(crate) entry: &'a Entry,
    pub(crate) settings: &'a EngineSettings,
    pub(crate) codec: CodecChoice,
    /// What this machine gives; none: most of what is free.
    pub(crate) memory: Option<u64>,
    /// Who may hold what.
    pub(crate) privacy: &'a Privacy,
    /// How many peers are to stand by.
    pub(crate) standby: u16,
    /// Where whoever reads along is told what happens to the route; none: nobody does.
    pub(crate) screen: Option<Screen>,
}

impl Wanted<'_> {
    /// What a planner is to plan for. `may_load`: machines may load what they have not loaded.
    pub(super) fn wish(&self, preference: Option<Preference>, may_load: bool) -> Wish {
        Wish {
            positions: self.settings.context,
            chunk: self.settings.chunk,
            codec: self.codec.first(),
            preference,
            may_load,
            hide_layers: self.privacy.hide_layers,
            trusted_layers: self.privacy.trusted_layers,
            own_sessions: self.settings.caches,
        }
    }
}

/// What came of it.
pub(super) struct Opened {
    pub(super) chain: AnyChain,
    /// The peers that were started for it.
    pub(super) embedded: Option<Embedded>,
    /// Why it is what it is, in a sentence.
    pub(super) verdict: String,
    /// What the planner expects of it, where it was asked.
    pub(super) plan: Option<Preview>,
    /// Whether both ends of its route are this machine's.
    pub(super) ends_here: bool,
}

impl Talk {
    /// Finds the model, starts what is to run it, and opens a session.
    pub(crate) async fn start(
        home: &Home,
        screen: Screen,
        route: &RouteArgs,
        engine: &EngineArgs,
    ) -> Result<Self, Failure> {
        Self::start_among(home, screen, route, engine, 1).await
    }

    /// The same, on engines that keep caches for `sessions` sessions: this one, and others.
    pub(crate) async fn start_among(
        home: &Home,
        screen: Screen,
        route: &RouteArgs,
        engine: &EngineArgs,
        sessions: u16,
    ) -> Result<Self, Failure> {
        let home = &route.disk.limit(home);
        let entry = find_model(home, screen, route.model.as_deref()).await?;
        let (settings, codec) = (engine.settings(sessions), CodecChoice::of(home, screen, &entry, engine));
        settings.check()?;
        memory::keep_freed(settings.wipe_within.is_none());
        route.check()?;
        let mut privacy = route.privacy.read();
        // Its own engines will have taken of what is free when another session is opened.
        let memory = route.memory.unwrap_or_else(free_memory);
        let standby = route.standby;
        let wanted = Wanted {
            home,
            entry: &entry,
            settings: &settings,
            codec,
            memory: Some(memory),
            privacy: &privacy,
            standby,
            screen: Some(screen),
        };
        let bar = screen.wait(format!("loading {}", entry.name));
        let vocabulary = start_vocabulary(load_vocabulary(&entry, &settings)?);
        let drafter = Drafter::start(home, screen, route, &entry.manifest, &settings);
        let opened = open_when_loaded(&wanted, route);
        let (vocabulary, opened, drafter) = tokio::try_join!(vocabulary, opened, drafter)?;
        let mut session = Session::new(opened.chain, vocabulary);
        session.set_drafting(drafting(route.drafts(), drafter.as_deref()).await);
        drop(bar);
        if let Some(why) = slower_than_alone(&wanted, route, opened.plan.as_ref()) {
            screen.note(format!("hint: {why}"));
        }
        // What no peer was sent in a conversation, none is sent in the rest of it.
        if opened.ends_here {
            privacy.hide_layers = privacy.hide_layers.max(1);
        }
        // Nor does one leave this machine that began here alone.
        let local = route.local || matches!(session.chain(), AnyChain::Local(..));
        let template = ChatTemplate::of(&entry.manifest).or_fail("bad_template", "send the prompt as it is: --raw")?;
        Ok(Self {
            conversation: Conversation::new(template, SpecialTokens::of(&entry.manifest)),
            session,
            drafter,
            embedded: opened.embedded,
            verdict: opened.verdict,
            plan: opened.plan,
            home: home.clone(),
            screen,
            route: RouteArgs { local, ..route.clone() },
            settings,
            codec,
            memory,
            privacy,
            entry,
            is_lost: false,
        })
    }

    /// Opens another session after one was lost, over the same peers where this command started them.
    pub(crate) async fn reopen(&mut self) -> Result<(), Failure> {
        let Self { home, entry, settings, codec, memory, privacy, screen, .. } = self;
        let (standby, screen) = (self.route.standby, Some(*screen));
        let wanted = Wanted { home, entry, settings, codec: *codec, memory: Some(*memory), privacy, standby, screen };
        let (chain, verdict) = open_within(&wanted, &self.route, self.embedded.as_ref(), REOPEN_WITHIN).await?;
        self.verdict = verdict.unwrap_or_else(|| std::mem::take(&mut self.verdict));
        self.replace_chain(chain).await;
        Ok(())
    }

    /// The next answer goes over this one, which holds nothing.
    pub(super) async fn replace_chain(&mut self, chain: AnyChain) {
        let vocabulary = self.session.vocabulary().clone();
        let mut session = Session::new(chain, vocabulary);
        session.set_drafting(drafting(self.route.drafts(), self.drafter.as_deref()).await);
        session.set_times(self.session.take_times());
        self.is_lost = false;
        std::mem::replace(&mut self.session, session).close().await;
    }
}

/// What to tell whoever asked for peers where one machine is predicted faster: of what is known, for this is no time to measure.
fn slower_than_alone(wanted: &Wanted<'_>, route: &RouteArgs, plan: Option<&Preview>) -> Option<String> {
    let name = &wanted.entry.name;
    if let Some(plan) = plan {
        return advice(plan, name);
    }
    // An answer does not fail for want of advice.
    let own = known_machine(wanted).ok()??;
    let placed = own_peers::own_peers_plan_on(wanted, &own, route.peers?.into(), route.ends());
    advice(&placed.ok()?, name)
}

/// One engine here, on the original file.
pub(super) async fn local(wanted: &Wanted<'_>, verdict: String) -> Result<Opened, Failure> {
    let engine = start_engine(load_whole(wanted.entry, wanted.settings)?).await?;
    let chain = LocalChain::open(engine, wanted.settings.context, deadlines()).await?;
    Ok(Opened {
        chain: AnyChain::Local(Box::new(chain), all_layers(&wanted.entry.manifest)?),
        embedded: None,
        verdict,
        plan: None,
        ends_here: false,
    })
}

/// An engine here for one stage of a route.
pub(super) async fn own_engine(wanted: &Wanted<'_>, hop: usize, spec: StageSpec) -> Result<OwnEngine, Failure> {
    let (engine, pipe) = RunningEngine::start(load_stage(wanted.entry, spec, wanted.settings)?).await?;
    Ok(OwnEngine { port: OwnPort { hop, commands: pipe.commands, replies: pipe.replies }, engine })
}

/// A session of this client over these stages.
pub(super) fn session_config(wanted: &Wanted<'_>, client: PeerId, route: Vec<Hop>) -> Result<SessionConfig, Failure> {
    let (codec, codec_otherwise) = wanted.codec.over(route.len());
    Ok(SessionConfig {
        key: SessionKey { client, id: session_id()? },
        epoch: 0,
        positions: wanted.settings.context,
        width: wanted.entry.manifest.width(),
        vocabulary: facts::vocabulary(&wanted.entry.manifest),
        codec,
        codec_otherwise,
        route,
        prefix: None,
        pad: wanted.privacy.pad,
        exact: wanted.settings.exact,
        deadlines: deadlines(),
    })
}

pub(super) fn session_id() -> Result<SessionId, Failure> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| Failure::new("io", format!("no randomness: {error}"), ""))?;
    Ok(SessionId::from_bytes(id))
}

pub(super) fn deadlines() -> Deadlines {
    Deadlines { idle: Duration::from_secs(3_600), grace: Some(REPLACED_WITHIN), ..Deadlines::default() }
}
