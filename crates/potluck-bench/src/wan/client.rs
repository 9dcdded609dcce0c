//! The client's process, in the client's namespace: opens sessions, answers prompts, and says when each token came.

use std::{
    collections::HashMap,
    io::{BufRead as _, Write as _},
    sync::PoisonError,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use potluck_chain::{Deadlines, Hop, OwnStage, RemoteStage, SessionConfig, sample::SamplingParams};
use potluck_client::{
    Cancel, ChatTemplate, Conversation, DraftModel, Drafting, Drafts, LocalChain, RenderOptions, Request, Session,
    SpecialTokens, prompt_tokens,
};
use potluck_core::{CacheId, SecretKey, SessionId, SessionKey, StageSpec};
use potluck_engine::{EngineSettings, VocabularyClient};
use potluck_grant::Gate;
use potluck_model::facts;
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, OwnPort, StagePort};
use potluck_store::{Catalogue, Entry};
use potluck_wire::{Codec, PeerAddress};
use tokio::{sync::mpsc, task::LocalSet};

use super::{
    chain::WanChain,
    pace::{self, Recordings},
    ports::share,
    server, stages,
    words::{Answered, Ask, ClientOrder, Generate, OpenChain, Place, Source, Told},
};
use crate::Outcome;

/// The second that a chat template takes for now: prompts are the same in every run.
const NOW: i64 = 1_700_000_000;

type Sessions = Vec<Session<WanChain>>;

/// Sessions that are open under one name.
struct Open {
    sessions: Sessions,
    /// What their paced tail answers from, where they have one.
    recordings: Recordings,
}

struct Client {
    order: ClientOrder,
    catalogue: Catalogue,
    entry: Entry,
    node: Node,
    vocabulary: VocabularyClient,
    chains: HashMap<String, Open>,
    /// Draft models, by the name that they were opened under.
    drafts: HashMap<String, DraftModel>,
    /// What each way of drafting has learnt of a chain, as a user's session would over its answers.
    learnt: HashMap<String, Drafting>,
}

/// Reads an order and then one request after the other, until standard input ends.
pub(crate) async fn run() -> Outcome<()> {
    let (heard, mut lines) = mpsc::channel(1);
    // The connections want to be kept alive while nothing is asked.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if heard.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let order = lines.recv().await.ok_or("no order came")?;
    let mut client = Client::start(serde_json::from_str(&order)?).await?;
    tell(&Told::Ready)?;
    LocalSet::new()
        .run_until(async {
            while let Some(line) = lines.recv().await {
                let told = match client.obey(serde_json::from_str(&line)?).await {
                    Ok(told) => told,
                    Err(error) => Told::Failed(error.to_string()),
                };
                tell(&told)?;
            }
            Ok(())
        })
        .await
}

fn tell(told: &Told) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    out.write_all((serde_json::to_string(told)? + "\n").as_bytes())?;
    Ok(out.flush()?)
}

impl Client {
    async fn start(order: ClientOrder) -> Outcome<Self> {
        let key = SecretKey::from_bytes(HEXLOWER.decode(order.key.as_bytes())?.as_slice().try_into()?);
        let grant = HEXLOWER.decode(order.grant.as_bytes())?;
        let identity = Identity { key, grant, gate: Gate::new(order.swarm.parse()?) };
        let deadlines = NetDeadlines::default();
        let node = Node::bind(NodeConfig { identity, bind: Bind::Any, lan: Lan::Off, relay: None, deadlines }).await?;
        let catalogue = Catalogue::open(&order.models)?;
        let entry = catalogue.get(&order.model)?;
        let vocabulary = stages::vocabulary(&entry, &order.settings).await?;
        Ok(Self {
            order,
            catalogue,
            entry,
            node,
            vocabulary,
            chains: HashMap::new(),
            drafts: HashMap::new(),
            learnt: HashMap::new(),
        })
    }

    async fn obey(&mut self, ask: Ask) -> Outcome<Told> {
        let begun = Instant::now();
        match ask {
            Ask::Open(open) => {
                let name = open.chain.clone();
                if open.model.is_some() {
                    let draft = self.open_draft(open).await?;
                    self.drafts.insert(name, draft);
                    return Ok(Told::Done { seconds: begun.elapsed().as_secs_f64() });
                }
                let opened = self.open(open).await?;
                self.chains.insert(name, opened);
            }
            Ask::Close { chain } => {
                self.learnt.retain(|way, _| !way.starts_with(&format!("{chain} ")));
                for session in self.chains.remove(&chain).map_or(Vec::new(), |open| open.sessions) {
                    session.close().await;
                }
            }
            Ask::Prompts { texts } => return self.prompts(&texts).await,
            Ask::Generate(generate) => return Ok(Told::Answers(self.generate(generate).await?)),
            Ask::Server(ask) => return Ok(Told::Answers(server::ask(&ask).await?)),
        }
        Ok(Told::Done { seconds: begun.elapsed().as_secs_f64() })
    }

    async fn prompts(&self, texts: &[String]) -> Outcome<Told> {
        let template = ChatTemplate::of(&self.entry.manifest)?;
        let mut prompts = Vec::with_capacity(texts.len());
        for text in texts {
            let mut conversation = Conversation::new(template.clone(), SpecialTokens::of(&self.entry.manifest));
            conversation.user(text.as_str());
            let prompt = conversation.prompt(&RenderOptions::at(NOW))?;
            prompts.push(prompt_tokens(&self.vocabulary, &prompt).await?);
        }
        Ok(Told::Prompts(prompts))
    }

    /// Of engines here.
    fn settings(&self, open: &OpenChain) -> EngineSettings {
        let settings = &self.order.settings;
        let threads = open.threads.unwrap_or(settings.threads);
        EngineSettings { threads, threads_batch: threads, ..settings.clone() }
    }

    /// A model of its own, whole, in an engine here.
    async fn open_draft(&self, open: OpenChain) -> Outcome<DraftModel> {
        let entry = self.catalogue.get(open.model.as_deref().unwrap_or_default())?;
        let spec = stages::whole(&entry)?;
        let StagePort { commands, replies } = stages::start(&entry, spec, &self.settings(&open)).await?;
        let whole = (spec.layers, facts::vocabulary(&entry.manifest));
        let chain = LocalChain::over((commands, replies), whole, open.positions, Deadlines::default()).await?;
        Ok(DraftModel::new(chain))
    }

    async fn open(&self, open: OpenChain) -> Outcome<Open> {
        let entry = self.entry.clone();
        let codec: Codec = open.codec.parse()?;
        let (recordings, settings) = (Recordings::default(), self.settings(&open));
        let mut own: Vec<Vec<OwnPort>> = (0..open.sessions).map(|_| Vec::new()).collect();
        let mut route = Vec::with_capacity(open.route.len());
        for (hop, place) in open.route.into_iter().enumerate() {
            let spec = StageSpec { model: entry.id, layers: place.layers, head: place.head, tail: place.tail };
            if place.at.is_none() {
                let port = match place.pace.clone() {
                    Some(pace) => pace::start(spec, pace, recordings.clone()).1,
                    None => stages::start(&entry, spec, &settings).await?,
                };
                own.iter_mut().zip(share(port, hop, open.sessions)).for_each(|(own, port)| own.push(port));
            }
            route.push(hop_of(place, spec)?);
        }
        let mut sessions = Vec::new();
        for ports in own {
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(|error| error.to_string())?;
            let config = SessionConfig {
                key: SessionKey { client: self.node.id(), id: SessionId::from_bytes(id) },
                epoch: 0,
                positions: open.positions,
                width: entry.manifest.width(),
                vocabulary: facts::vocabulary(&entry.manifest),
                codec,
                codec_otherwise: None,
                route: route.clone(),
                prefix: None,
                pad: false,
                exact: false,
                deadlines: Deadlines { idle: Duration::from_secs(24 * 3_600), ..Deadlines::default() },
            };
            let chain = WanChain::open(&self.node, config, ports).await?;
            sessions.push(Session::new(chain, self.vocabulary.clone()));
        }
        Ok(Open { sessions, recordings })
    }

    async fn generate(&mut self, generate: Generate) -> Outcome<Vec<Answered>> {
        let name = &generate.chain;
        let mut open = self.chains.remove(name).ok_or_else(|| format!("no chain is called {name}"))?;
        let prompts = &generate.prompts;
        if prompts.len() > open.sessions.len() {
            return Err(format!("{} prompts for {} sessions", prompts.len(), open.sessions.len()).into());
        }
        let recorded = prompts.iter().zip(&generate.recordings).map(|(prompt, answer)| [&prompt[..], answer].concat());
        *open.recordings.lock().unwrap_or_else(PoisonError::into_inner) =
            recorded.enumerate().map(|(session, tokens)| (CacheId(session as u16), tokens)).collect();
        let begun = Instant::now();
        let idle = open.sessions.split_off(prompts.len());
        let way = format!("{name} {:?}", generate.speculation);
        let mut learnt = self.learnt.remove(&way);
        let mut draft = generate.speculation.draft.as_ref().and_then(|name| self.drafts.remove(name));
        let running = open.sessions.into_iter().zip(prompts.clone()).map(|(mut session, prompt)| {
            let generate = generate.clone();
            let mut drafting =
                learnt.take().unwrap_or_else(|| Drafting::new(drafts(generate.speculation.source), None));
            drafting.set_model(draft.take());
            session.set_drafting(drafting);
            tokio::task::spawn_local(async move { answer(session, prompt, &generate, begun).await })
        });
        let (mut sessions, mut answers) = (Sessions::new(), Vec::new());
        for task in running.collect::<Vec<_>>() {
            let (mut session, answered) = task.await?;
            let mut drafting = session.take_drafting();
            if let (Some(model), Some(name)) = (drafting.take_model(), &generate.speculation.draft) {
                self.drafts.insert(name.clone(), model);
            }
            self.learnt.entry(way.clone()).or_insert(drafting);
            sessions.push(session);
            answers.push(answered?);
        }
        sessions.extend(idle);
        self.chains.insert(generate.chain, Open { sessions, ..open });
        Ok(answers)
    }
}

/// One prompt's answer over one session.
async fn answer(
    mut session: Session<WanChain>,
    prompt: Vec<u32>,
    generate: &Generate,
    begun: Instant,
) -> (Session<WanChain>, Result<Answered, String>) {
    let before = session.chain().sent;
    let positions = prompt.len() as u64;
    let mut request = Request {
        params: SamplingParams { logprobs: generate.margins.then_some(2), ..SamplingParams::greedy() },
        max_tokens: Some(generate.max_tokens),
        ignore_eos: generate.ignore_eos,
        // Each answer is of its prompt alone, as with the server that it is compared with.
        reuse: false,
        ..Request::new(prompt)
    };
    (request.chunk, request.fixed) = (generate.chunk.unwrap_or(request.chunk), generate.chunk.is_some());
    request.in_flight = generate.in_flight.unwrap_or(request.in_flight);
    let (mut at_s, mut margins) = (Vec::new(), Vec::new());
    let result = session
        .generate(request, &Cancel::new(), |event| {
            at_s.push(begun.elapsed().as_secs_f64());
            if let Some([first, second, ..]) = event.logprobs.as_ref().map(|logprobs| &logprobs.top[..]) {
                margins.push(first.1 - second.1);
            }
        })
        .await;
    let sent = session.chain().sent;
    let answered = result.map(|outcome| {
        let (steps, decode_steps) = (sent.steps - before.steps, outcome.drafts.steps as u64);
        Answered {
            tokens: outcome.tokens,
            text: outcome.text,
            at_s,
            prefill_steps: steps.saturating_sub(decode_steps),
            decode_steps,
            decode_rows: (sent.rows - before.rows).saturating_sub(positions),
            drafts: outcome.drafts,
            margins,
        }
    });
    (session, answered.map_err(|error| error.to_string()))
}

/// Where an answer's drafts come from.
fn drafts(source: Source) -> Drafts {
    match source {
        Source::Off => Drafts::Off,
        Source::Lookup => Drafts::Lookup,
        Source::Draft => Drafts::Model,
        Source::Auto => Drafts::Auto,
    }
}

fn hop_of(place: Place, spec: StageSpec) -> Outcome<Hop> {
    let Some(at) = place.at else { return Ok(Hop::Own(OwnStage { spec, cache: CacheId(0) })) };
    let address = PeerAddress { peer: at.peer.parse()?, addresses: at.addresses, relay: None };
    Ok(Hop::Remote(RemoteStage { spec, address, grant: HEXLOWER.decode(at.grant.as_bytes())?, speed: None }))
}
