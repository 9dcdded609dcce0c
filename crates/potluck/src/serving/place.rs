//! A peer's place in a swarm: what it serves there by turns, as it is ordered, as others are missing, and as its owner lends the machine.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use potluck_core::{Action, LayerRange, ModelId, PeerId, SignedOffer, StageShape, StageSpec};
use potluck_engine::EngineSettings;
use potluck_net::{Node, StateJobs};
use potluck_pull::{Library, Pulled};
use potluck_store::InUse;
use potluck_wire::PeerAddress;
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    Announcer, LentTo, LoadedStage, Mending, Owner, ServingPeer, owner::taken_back, serve_nothing, taking::missing,
};
use crate::{
    embedded::Ready,
    failure::{Failure, OrFail},
    home::{Counted, Home, Lent, meter},
    models::{all_layers, find_model, pull_stage},
    screen::Screen,
    signals::Interrupt,
};

/// Longest that a peer which is told to stop waits for its sessions to go on at others, and then for others to hear of it.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// How long sessions have to go on at others where the owner wants the machine: it has it within a second.
const GIVE_BACK_WITHIN: Duration = Duration::from_millis(500);

/// How often it is tried again to load what was lent before.
const LOAD_AGAIN: Duration = Duration::from_secs(30);

/// How often it is said at most whose sessions are open.
const SAY_CLIENTS_EVERY: Duration = Duration::from_secs(1);

/// How often it is noted that a model is in use.
const NOTE_USE_EVERY: Duration = Duration::from_secs(3_600);

/// What is loaded, of what, and how it came.
pub(crate) struct Loaded {
    entry: InUse,
    stage: LoadedStage,
    spec: StageSpec,
    pulled: Option<Pulled>,
}

/// A peer's place in the swarm, whatever it serves there.
pub(crate) struct Place {
    pub(crate) node: Node,
    pub(crate) library: Library,
    pub(crate) announcer: Announcer,
    pub(crate) settings: EngineSettings,
    /// Where it chooses for itself which layers it serves.
    pub(crate) mending: Option<Mending>,
    /// What it has said that it is about to serve.
    pub(crate) coming: Option<StageShape>,
    /// Whose machine it is.
    pub(crate) owner: Owner,
    pub(crate) swarm: String,
    /// What it has heard of others.
    pub(crate) heard: Vec<SignedOffer>,
    /// Whoever keeps what sessions hold that are put aside.
    pub(crate) states: Option<StateJobs>,
}

/// What was served, and what comes next.
type Served = (Option<(InUse, StageSpec)>, Next);

/// What a peer does next.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// The user has had enough.
    End,
    /// What was ordered.
    Order(Action),
    /// These layers, without which no route leads through the model.
    Mend(LayerRange),
    /// The same again, once the owner lends the machine again.
    Again,
}

/// What comes of waiting for something to be loaded.
pub(super) enum Waited {
    Loaded(Box<Loaded>),
    /// An order came first.
    Ordered(Action),
    /// There is nothing to be loaded.
    Nothing,
}

impl Place {
    /// Serves what is loaded, and then whatever is ordered, whenever the owner lends the machine, until the user has had enough.
    ///
    /// # Errors
    /// What hinders it.
    pub(crate) async fn keep(
        &mut self,
        home: &Home,
        screen: Screen,
        loaded: Loaded,
        orders: &mut mpsc::Receiver<Action>,
        interrupt: &mut Interrupt,
    ) -> Result<(), Failure> {
        let mut now = Some(loaded);
        loop {
            let (mut before, mut next) = match now.take() {
                Some(loaded) => self.serve(home, screen, loaded, orders, interrupt).await?,
                None => self.rest(orders, interrupt).await,
            };
            // While nothing is lent, orders may still come.
            while now.is_none() {
                let waited = match (next, before.take()) {
                    (Next::End, _) => return Ok(()),
                    (Next::Again | Next::Mend(_), None) => break,
                    (Next::Again, Some((entry, spec))) => {
                        before = Some((entry.clone(), spec));
                        interrupt.or(self.again(home, screen, entry, spec, orders)).await
                    }
                    (Next::Mend(layers), Some((entry, spec))) => {
                        before = Some((entry.clone(), spec));
                        interrupt.or(self.mend(home, screen, (entry, spec), layers, orders)).await
                    }
                    (Next::Order(Action::Unload), _) => {
                        self.mending = None;
                        self.tell_unloaded(screen)?;
                        break;
                    }
                    (Next::Order(Action::Load { model, layers }), then) => {
                        before.clone_from(&then);
                        interrupt.or(self.obey(home, screen, (model, layers), then, orders)).await
                    }
                };
                match waited {
                    // Who stops what is about to be loaded has nothing to wait for.
                    Err(_) => {
                        self.end_claim().await;
                        return Ok(());
                    }
                    Ok(Waited::Loaded(loaded)) => now = Some(*loaded),
                    Ok(Waited::Ordered(action)) => next = Next::Order(action),
                    Ok(Waited::Nothing) => break,
                }
            }
        }
    }

    /// Pulls what is missing of a stage, and loads it, when its owner lends the machine.
    pub(crate) async fn load(
        &mut self,
        home: &Home,
        screen: Screen,
        entry: InUse,
        spec: StageSpec,
    ) -> Result<Loaded, Failure> {
        loop {
            while let Some(reason) = self.owner.wants() {
                self.owner.say_not(&reason);
                if screen.json {
                    screen
                        .object(&json!({ "lends": false, "reason": reason.code(), "message": reason.to_string() }))?;
                }
                let _bar = screen.wait(format!("lending nothing for now: {reason}"));
                self.owner.changed().await;
            }
            if let Some(loaded) = load_while_lent(home, screen, &mut self.owner, &self.settings, (&entry, spec)).await {
                return loaded;
            }
        }
    }

    /// Serves a stage until an order comes, the owner wants the machine, or the user interrupts. An order waits for the sessions that are
    /// open, the others for no longer than they say.
    async fn serve(
        &mut self,
        home: &Home,
        screen: Screen,
        loaded: Loaded,
        orders: &mut mpsc::Receiver<Action>,
        interrupt: &mut Interrupt,
    ) -> Result<Served, Failure> {
        let Loaded { mut entry, stage, spec, pulled } = loaded;
        self.library.share(entry.id);
        let mut peer = stage.serve(self.node.clone(), meter(home, Counted::Peer)?, self.states.clone());
        for offer in std::mem::take(&mut self.heard) {
            peer.announce(offer).await;
        }
        tell(screen, &peer, &self.swarm, &entry.name, pulled.as_ref())?;
        let lent = Lent {
            model: entry.name.clone(),
            layers: Some([spec.layers.start(), spec.layers.end()]),
            bytes: Some(peer.shape.weight_bytes),
        };
        self.owner.say(|lending| (lending.lends, lending.reason) = (Some(lent), None));
        self.announcer.would_lend(self.mending.as_ref().map_or(0, |mending| mending.free_bytes(spec.layers)));
        let (mut wants, mending, answers) = (self.owner.view(), &self.mending, self.announcer.answers());
        let missing = missing((home, screen), mending.as_ref(), &peer, (&entry, spec), answers);
        let mut renewed = None;
        let mut next = tokio::select! {
            () = self.announcer.run(&peer) => Next::End,
            () = keep_noting(&entry) => Next::End,
            () = say_clients(&mut self.owner, peer.clients()) => Next::End,
            () = taken_back(&mut wants) => Next::Again,
            ordered = orders.recv() => ordered.map_or(Next::End, Next::Order),
            (layers, with) = missing => {
                renewed = Some(with);
                Next::Mend(layers)
            }
            () = interrupt.wait() => Next::End,
        };
        let mut since = Instant::now();
        if let (Next::Mend(layers), Some(renewed)) = (next, renewed) {
            entry = renewed;
            // Before what is served now is missed.
            self.claim(&peer, (&entry, spec), layers).await;
        }
        // Whoever is away holds nobody up.
        let told = self.announcer.withdraw(&peer).await;
        let mut is_taken = matches!(next, Next::Again);
        if let Next::Order(_) | Next::Mend(_) = next {
            let _bar = screen.wait("waiting for the sessions that are open to end, or to go on elsewhere");
            let is_urgent = matches!(next, Next::Mend(_));
            tokio::select! {
                () = peer.drained() => {}
                // Others wait for the layers.
                () = sleep(LEAVE_WITHIN), if is_urgent => {}
                () = taken_back(&mut wants) => (is_taken, since) = (true, Instant::now()),
                // Who cannot wait may interrupt it.
                () = interrupt.wait() => next = Next::End,
            }
            if is_urgent && is_taken {
                next = Next::Again;
                self.unclaim(Some(&peer.serving)).await;
            }
        }
        let within = match next {
            _ if is_taken => Some(GIVE_BACK_WITHIN),
            Next::End => Some(LEAVE_WITHIN),
            Next::Order(_) | Next::Mend(_) | Next::Again => None,
        };
        if let Some(within) = within
            && self.leave(screen, &mut peer, within, interrupt).await
        {
            next = Next::End;
        }
        self.heard = peer.unload().await;
        // Whoever has just said `potluck pause` reads why, and not that there is nothing to lend.
        let why = self.owner.wants().map(|reason| (reason.code().into(), reason.to_string()));
        self.owner.say(|lending| {
            (lending.lends, lending.sessions, lending.reason) = (None, Vec::new(), why);
            if is_taken {
                lending.gave_back_ms = Some(since.elapsed().as_millis() as u64);
            }
        });
        if matches!(next, Next::End) {
            if let Some(told) = told {
                let _ = timeout(TOLD_WITHIN, told).await;
            }
            self.end_claim().await;
        }
        Ok((Some((entry, spec)), next))
    }

    /// What it is not to serve after all nobody is to wait for.
    async fn end_claim(&mut self) {
        if let Some(told) = self.unclaim(None).await {
            let _ = timeout(TOLD_WITHIN, told).await;
        }
    }

    /// The sessions that are open go on at other peers, where there are some. Who cannot wait may interrupt it: whether somebody did.
    async fn leave(
        &mut self,
        screen: Screen,
        peer: &mut ServingPeer,
        within: Duration,
        interrupt: &mut Interrupt,
    ) -> bool {
        let is_used = !peer.clients().borrow().is_empty();
        let _bar = is_used.then(|| screen.wait("handing over the sessions that are open"));
        tokio::select! {
            _ = timeout(within, peer.drained()) => false,
            () = interrupt.wait() => true,
        }
    }

    /// Serves nothing, until an order comes or the user interrupts.
    async fn rest(&mut self, orders: &mut mpsc::Receiver<Action>, interrupt: &mut Interrupt) -> Served {
        self.owner.say(|lending| lending.reason = Some(("ordered".into(), "it waits for an order".into())));
        let idle = serve_nothing(&self.node);
        let next = tokio::select! {
            ordered = orders.recv() => ordered.map_or(Next::End, Next::Order),
            () = interrupt.wait() => Next::End,
        };
        idle.stop().await;
        (None, next)
    }

    /// Loads what was served before, once the owner lends the machine again; or takes the next order.
    pub(super) async fn again(
        &mut self,
        home: &Home,
        screen: Screen,
        entry: InUse,
        spec: StageSpec,
        orders: &mut mpsc::Receiver<Action>,
    ) -> Waited {
        let idle = serve_nothing(&self.node);
        let loading = async {
            loop {
                match self.load(home, screen, entry.clone(), spec).await {
                    Ok(loaded) => break Waited::Loaded(Box::new(loaded)),
                    // Its owner may have filled the memory meanwhile.
                    Err(failure) => {
                        screen.note(format!("lending nothing for now: {}", failure.message));
                        tracing::warn!(code = %failure.code, "what was lent is not: {}", failure.message);
                        sleep(LOAD_AGAIN).await;
                    }
                }
            }
        };
        let waited = tokio::select! {
            loaded = loading => loaded,
            Some(action) = orders.recv() => Waited::Ordered(action),
        };
        idle.stop().await;
        waited
    }

    /// Loads what was ordered; what was served before, where that fails.
    async fn obey(
        &mut self,
        home: &Home,
        screen: Screen,
        (model, layers): (ModelId, LayerRange),
        before: Option<(InUse, StageSpec)>,
        orders: &mut mpsc::Receiver<Action>,
    ) -> Waited {
        let idle = serve_nothing(&self.node);
        let ordered = async {
            let entry = find_model(home, screen, Some(&model.to_string())).await?;
            let all = all_layers(&entry.manifest)?;
            let spec = StageSpec { model, layers, head: layers.start() == 0, tail: layers.end() == all.end() };
            self.load(home, screen, entry, spec).await
        };
        // The latest order counts.
        let mut loaded = tokio::select! {
            loaded = ordered => loaded,
            Some(action) = orders.recv() => {
                idle.stop().await;
                return Waited::Ordered(action);
            }
        };
        if loaded.is_ok() {
            // What it serves is somebody's choice from now on.
            self.mending = None;
        }
        if let Err(failure) = &loaded {
            screen.note(format!("an order could not be carried out: {}", failure.message));
            tracing::warn!(code = %failure.code, "an order could not be carried out");
            if let Some((entry, spec)) = before {
                loaded = self.load(home, screen, entry, spec).await;
            }
        }
        if let Err(failure) = &loaded {
            screen.note(format!("serving nothing until the next order: {}", failure.message));
            tracing::warn!(code = %failure.code, "serving nothing until the next order");
        }
        idle.stop().await;
        // With nothing to go back to, it waits for a better order.
        loaded.map_or(Waited::Nothing, |loaded| Waited::Loaded(Box::new(loaded)))
    }

    fn tell_unloaded(&self, screen: Screen) -> Result<(), Failure> {
        if screen.json {
            return screen.object(&json!({ "unloaded": true, "id": self.node.id().to_string() }));
        }
        screen.text("serving nothing, as ordered\n")
    }
}

/// Loads a stage; none where its owner wants the machine meanwhile: what was begun ends with this.
pub(super) async fn load_while_lent(
    home: &Home,
    screen: Screen,
    owner: &mut Owner,
    settings: &EngineSettings,
    (entry, spec): (&InUse, StageSpec),
) -> Option<Result<Loaded, Failure>> {
    owner.say(|lending| lending.reason = Some(("loading".into(), "it is about to".into())));
    let mut wants = owner.view();
    let loaded = tokio::select! {
        loaded = load_now(home, screen, entry.clone(), spec, settings) => loaded,
        () = taken_back(&mut wants) => return None,
    };
    let ended = loaded.as_ref().err().map(|failure| (failure.code.to_string(), failure.message.clone()));
    owner.say(|lending| lending.reason = ended);
    Some(loaded)
}

async fn load_now(
    home: &Home,
    screen: Screen,
    entry: InUse,
    spec: StageSpec,
    settings: &EngineSettings,
) -> Result<Loaded, Failure> {
    let pulled = pull_stage(home, screen, &entry, spec).await?;
    let entry = pulled.as_ref().map_or_else(|| entry.clone(), |pulled| entry.renewed(pulled.entry.clone()));
    let _bar = screen.wait(format!("loading layers {} of {}", spec.layers, entry.name));
    let stage = LoadedStage::load(&entry, spec, settings, LentTo::Members).await?;
    Ok(Loaded { entry, stage, spec, pulled })
}

/// Keeps saying whose sessions are open. Never returns.
async fn say_clients(owner: &mut Owner, mut clients: watch::Receiver<BTreeMap<PeerId, usize>>) {
    loop {
        let now: Vec<_> = clients.borrow_and_update().iter().map(|(peer, count)| (peer.to_string(), *count)).collect();
        owner.say(|lending| lending.sessions = now);
        sleep(SAY_CLIENTS_EVERY).await;
        if clients.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Notes again and again that a model is in use: what a crash ends was used until then. Never returns.
async fn keep_noting(entry: &InUse) {
    loop {
        sleep(NOTE_USE_EVERY).await;
        if let Err(error) = entry.note() {
            tracing::warn!("that {} is in use could not be noted: {error}", entry.name);
        }
    }
}

/// Says what is served, where, and how it came.
pub(crate) fn tell(
    screen: Screen,
    peer: &ServingPeer,
    swarm: &str,
    model: &str,
    pulled: Option<&Pulled>,
) -> Result<(), Failure> {
    let PeerAddress { addresses, relay, .. } = peer.address();
    let layers = peer.shape.spec.layers;
    let ready = Ready {
        id: peer.id().to_string(),
        addresses,
        layers: [layers.start(), layers.end()],
        pid: std::process::id(),
        swarm: swarm.to_owned(),
    };
    if screen.json {
        let mut object = serde_json::to_value(&ready).or_fail("internal", "report this")?;
        object["relay"] = json!(relay);
        if let Some(pulled) = pulled {
            object["pulled"] = json!({ "wanted_bytes": pulled.wanted_bytes, "received_bytes": pulled.received_bytes });
        }
        return screen.object(&object);
    }
    let speed = peer.speed.map_or(String::new(), |speed| format!(", {:.2} ms a token", speed.decode_us as f64 / 1e3));
    let lines = [
        format!("serving layers {layers} of {model}{speed}"),
        format!("  peer   {}", ready.id),
        format!("  at     {}", ready.addresses.into_iter().chain(relay).collect::<Vec<_>>().join(" ")),
        format!("  swarm  {swarm}"),
    ];
    screen.text(&(lines.join("\n") + "\n"))
}
