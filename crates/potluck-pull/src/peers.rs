//! The driver of a pull from peers: asks as the schedule says, checks, writes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use potluck_core::{
    Manifest, ModelId, PeerId, PieceHash, TensorEntry, bounds::MANIFEST_BYTES_MAX, pieces_of, tensor_hash,
};
use potluck_net::{NetError, Node};
use potluck_store::{Catalogue, Entry, Intake, Progress, StoreError};
use potluck_wire::{FailureCode, Fetch, Held, PART_BYTES_MAX, PIECE_HASHES_MAX, Part, PeerAddress, SharedModel};
use tokio::{
    task::{AbortHandle, JoinSet, spawn_blocking},
    time::sleep_until,
};

use crate::{Ask, Item, PullError, RoomFor, Schedule, Setback, SourceId};

/// How long nothing may come from anybody before a pull is given up. What has come is kept.
const GIVE_UP: Duration = Duration::from_secs(60);

/// How often the catalogue is told of tensors that have come: a crash costs no more than hashing them again.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// Who shares what.
#[derive(Debug, Default, Clone)]
pub struct Shared {
    /// Models, and who has something of them.
    pub models: Vec<(PeerAddress, SharedModel)>,
    /// Who did not answer, and why.
    pub silent: Vec<String>,
}

/// What a pull did.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The model, as the catalogue has it now.
    pub entry: Entry,
    /// Bytes of tensors that were needed and not here before.
    pub wanted_bytes: u64,
    /// Bytes that arrived, those that were asked for twice included.
    pub received_bytes: u64,
    /// Bytes of pieces that were used, by the peer that sent them.
    pub from: BTreeMap<PeerId, u64>,
}

/// Asks these peers, all at once, which models they share.
pub async fn shared(node: &Node, peers: &[PeerAddress]) -> Shared {
    let mut asked = JoinSet::new();
    for peer in peers.iter().cloned() {
        let node = node.clone();
        asked.spawn(async move {
            let models = node.models(&peer).await;
            (peer, models)
        });
    }
    let mut shared = Shared::default();
    while let Some(answered) = asked.join_next().await {
        match answered {
            Ok((peer, Ok(models))) => shared.models.extend(models.into_iter().map(|model| (peer.clone(), model))),
            Ok((_, Err(error))) => shared.silent.push(error.to_string()),
            Err(error) => shared.silent.push(error.to_string()),
        }
    }
    // As they were asked, not as they answered.
    let place = |peer: &PeerAddress| peers.iter().position(|other| other == peer);
    shared.models.sort_by_key(|(peer, model)| (place(peer), model.name.clone()));
    shared
}

/// The manifest of a model, from the first of these peers that has it. Its hash is the model's name.
///
/// # Errors
/// `Nobody`, with what each answered.
pub async fn manifest(node: &Node, peers: &[PeerAddress], model: ModelId) -> Result<Manifest, PullError> {
    let mut silent = Vec::new();
    for peer in peers {
        match manifest_from(node, peer, model).await {
            Ok(manifest) => return Ok(manifest),
            Err(error) => silent.push(error.to_string()),
        }
    }
    Err(PullError::Nobody { model: model.to_string(), silent })
}

async fn manifest_from(node: &Node, peer: &PeerAddress, model: ModelId) -> Result<Manifest, PullError> {
    let announced = node.held(peer, model).await?.manifest_bytes as usize;
    if announced > MANIFEST_BYTES_MAX {
        return Err(PullError::WrongManifest(peer.peer));
    }
    let mut bytes = Vec::new();
    while bytes.len() < announced {
        let fetch = Fetch { model, part: Part::Manifest(bytes.len() as u32) };
        let part = node.part(peer, fetch, &mut |_| {}).await?;
        // A peer that sends a byte at a time would be asked without end.
        if part.len() != PART_BYTES_MAX.min(announced - bytes.len()) {
            return Err(PullError::WrongManifest(peer.peer));
        }
        bytes.extend(part);
    }
    let manifest = Manifest::decode(&bytes)?;
    // The encoding is canonical: these bytes are what the name is the hash of.
    if manifest.id() == model { Ok(manifest) } else { Err(PullError::WrongManifest(peer.peer)) }
}

/// Pulls these tensors (numbers in the manifest) of a model that the catalogue knows, from all of these peers that have
/// them. Those that are here are left alone. `room`: asked once somebody is known who has something, before the first byte.
///
/// # Errors
/// `Gone` where nobody has what is left, or nothing came for a minute; `Store` where there is no room, or it cannot be written.
pub async fn pull(
    node: &Node,
    catalogue: &Catalogue,
    entry: &Entry,
    tensors: &[usize],
    peers: &[PeerAddress],
    room: &mut RoomFor<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Pulled, PullError> {
    let wanted: Vec<usize> = tensors.iter().copied().filter(|&t| missing(entry, t)).collect();
    let wanted_bytes = wanted.iter().map(|&t| entry.manifest.tensors[t].bytes).sum();
    if wanted.is_empty() {
        let from = BTreeMap::new();
        return Ok(Pulled { entry: entry.clone(), wanted_bytes, received_bytes: 0, from });
    }
    let mut pull = Puller::start(node, catalogue, entry, wanted, wanted_bytes).await?;
    pull.find_sources(peers).await?;
    room(wanted_bytes)?;
    pull.run(progress).await
}

fn missing(entry: &Entry, number: usize) -> bool {
    entry.manifest.tensors.get(number).is_some_and(|tensor| !entry.has(tensor))
}

/// What every request needs.
struct Context {
    node: Node,
    entry: Entry,
    intake: Mutex<Intake>,
    received: AtomicU64,
}

struct Puller {
    context: Arc<Context>,
    schedule: Schedule,
    sources: Vec<PeerAddress>,
    /// By tensor.
    hashes: HashMap<usize, Arc<Vec<PieceHash>>>,
    /// Pieces of a tensor that are still to come.
    left: HashMap<usize, u64>,
    /// Tensors that the catalogue is to be told of.
    complete: Vec<usize>,
    requests: JoinSet<(Ask, Result<Came, Fault>)>,
    running: HashMap<(SourceId, Item), AbortHandle>,
    done_bytes: u64,
    wanted_bytes: u64,
    from: BTreeMap<PeerId, u64>,
    silent: BTreeMap<PeerId, String>,
}

/// What a request brought.
enum Came {
    /// Hashes, and which pieces are on the disk already.
    Hashes(Arc<Vec<PieceHash>>, Vec<bool>),
    /// A piece, checked and written.
    Piece(u64),
}

/// Why it brought nothing.
enum Fault {
    /// The source's.
    Source(Setback, String),
    /// Ours: the pull ends.
    Disk(StoreError),
}

impl Puller {
    async fn start(
        node: &Node,
        catalogue: &Catalogue,
        entry: &Entry,
        wanted: Vec<usize>,
        wanted_bytes: u64,
    ) -> Result<Self, PullError> {
        let (catalogue, known) = (catalogue.clone(), entry.clone());
        let intake = spawn_blocking(move || Intake::open(&catalogue, &known)).await;
        let intake = intake.map_err(|error| PullError::Store(broken(&error)))??;
        let context = Context {
            node: node.clone(),
            entry: entry.clone(),
            intake: Mutex::new(intake),
            received: AtomicU64::new(0),
        };
        let mut schedule = Schedule::new(wanted_bytes);
        for tensor in wanted {
            let pieces = pieces_of(entry.manifest.tensors[tensor].bytes);
            schedule.add(Item::Hashes(tensor), pieces * size_of::<PieceHash>() as u64);
        }
        Ok(Self {
            context: Arc::new(context),
            schedule,
            sources: Vec::new(),
            hashes: HashMap::new(),
            left: HashMap::new(),
            complete: Vec::new(),
            requests: JoinSet::new(),
            running: HashMap::new(),
            done_bytes: 0,
            wanted_bytes,
            from: BTreeMap::new(),
            silent: BTreeMap::new(),
        })
    }

    /// Asks everybody what they have.
    async fn find_sources(&mut self, peers: &[PeerAddress]) -> Result<(), PullError> {
        let mut asked = JoinSet::new();
        for (place, peer) in peers.iter().cloned().enumerate() {
            let (node, model) = (self.context.node.clone(), self.context.entry.id);
            asked.spawn(async move {
                let held = node.held(&peer, model).await;
                (place, peer, held)
            });
        }
        let mut answers: Vec<(usize, PeerAddress, Result<Held, NetError>)> = Vec::new();
        while let Some(answered) = asked.join_next().await {
            answers.extend(answered);
        }
        answers.sort_by_key(|(place, ..)| *place);
        for (_, peer, held) in answers {
            match held {
                Ok(held) => {
                    let tensors = 0..self.context.entry.manifest.tensors.len();
                    self.schedule.source(tensors.filter(|&tensor| held.has(tensor)));
                    self.sources.push(peer);
                }
                Err(error) => drop(self.silent.insert(peer.peer, error.to_string())),
            }
        }
        if self.sources.is_empty() {
            let model = self.context.entry.name.clone();
            return Err(PullError::Nobody { model, silent: self.silent.values().cloned().collect() });
        }
        Ok(())
    }

    async fn run(mut self, progress: &mut dyn FnMut(Progress)) -> Result<Pulled, PullError> {
        let (mut heard, mut saved) = (Instant::now(), Instant::now());
        let mut entry = self.context.entry.clone();
        loop {
            while let Some(ask) = self.schedule.next(Instant::now()) {
                self.request(ask);
            }
            if let Some(item) = self.schedule.stuck() {
                return Err(self.end(item).await);
            }
            if self.schedule.is_done() {
                break;
            }
            let now = Instant::now();
            let wake = self.schedule.wake(now).unwrap_or(now + GIVE_UP).min(heard + GIVE_UP);
            tokio::select! {
                Some(answered) = self.requests.join_next(), if !self.requests.is_empty() => {
                    // A request that was stopped says nothing.
                    if let Ok((ask, came)) = answered && self.take(ask, came)? {
                        heard = Instant::now();
                        progress(Progress { done: self.done_bytes, total: self.wanted_bytes });
                    }
                }
                () = sleep_until(wake.into()) => {
                    if heard.elapsed() >= GIVE_UP && let Some(item) = self.schedule.first_waiting() {
                        return Err(self.end(item).await);
                    }
                }
            }
            if saved.elapsed() >= SAVE_EVERY {
                entry = self.save().await?;
                saved = Instant::now();
            }
        }
        if !self.complete.is_empty() {
            entry = self.save().await?;
        }
        let received_bytes = self.context.received.load(Ordering::Relaxed);
        Ok(Pulled { entry, wanted_bytes: self.wanted_bytes, received_bytes, from: self.from })
    }

    fn request(&mut self, ask: Ask) {
        let (context, peer) = (self.context.clone(), self.sources[ask.source.0].clone());
        let hashes = self.hashes.get(&tensor_of(ask.item)).cloned();
        let running = self.requests.spawn(async move {
            let came = match ask.item {
                Item::Hashes(tensor) => context.hashes(&peer, tensor).await,
                Item::Piece(tensor, piece) => context.clone().piece(&peer, tensor, piece, hashes).await,
            };
            (ask, came)
        });
        self.running.insert((ask.source, ask.item), running);
    }

    /// Takes what came; true if it was something.
    fn take(&mut self, ask: Ask, came: Result<Came, Fault>) -> Result<bool, PullError> {
        // Of two that were asked, the second one is not counted.
        if self.running.remove(&(ask.source, ask.item)).is_none() {
            return Ok(false);
        }
        match came {
            Ok(came) => {
                for other in self.schedule.done(ask, Instant::now()) {
                    if let Some(request) = self.running.remove(&(other, ask.item)) {
                        request.abort();
                    }
                }
                self.count(ask, came);
                Ok(true)
            }
            Err(Fault::Disk(error)) => Err(error.into()),
            Err(Fault::Source(why, what)) => {
                let peer = self.sources[ask.source.0].peer;
                tracing::info!(peer = %peer.short(), %what, "a piece did not come");
                self.silent.insert(peer, what);
                self.schedule.failed(ask, why, Instant::now());
                Ok(false)
            }
        }
    }

    fn count(&mut self, ask: Ask, came: Came) {
        let tensor = tensor_of(ask.item);
        let entry = &self.context.entry.manifest.tensors[tensor];
        match came {
            Came::Hashes(hashes, here) => {
                let mut left = 0;
                for (number, here) in (0..).zip(here) {
                    let bytes = piece_bytes(entry, number);
                    if here {
                        self.done_bytes += bytes;
                    } else {
                        self.schedule.add(Item::Piece(tensor, number), bytes);
                        left += 1;
                    }
                }
                self.hashes.insert(tensor, hashes);
                self.left.insert(tensor, left);
            }
            Came::Piece(bytes) => {
                self.done_bytes += bytes;
                *self.from.entry(self.sources[ask.source.0].peer).or_default() += bytes;
                *self.left.entry(tensor).or_insert(1) -= 1;
            }
        }
        if self.left.get(&tensor) == Some(&0) {
            self.hashes.remove(&tensor);
            self.left.remove(&tensor);
            self.complete.push(tensor);
        }
    }

    async fn save(&mut self) -> Result<Entry, PullError> {
        let (context, complete) = (self.context.clone(), std::mem::take(&mut self.complete));
        let saved = spawn_blocking(move || context.intake().save(&context.entry, &complete)).await;
        Ok(saved.map_err(|error| PullError::Store(broken(&error)))??)
    }

    /// Gives up; what has come is kept.
    async fn end(&mut self, item: Item) -> PullError {
        if let Err(error) = self.save().await {
            return error;
        }
        let tensor = self.context.entry.manifest.tensors[tensor_of(item)].name.clone();
        let left = self.wanted_bytes - self.done_bytes;
        PullError::Gone { tensor, left, silent: self.silent.values().cloned().collect() }
    }
}

impl Context {
    fn intake(&self) -> std::sync::MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tensor(&self, number: usize) -> &TensorEntry {
        &self.entry.manifest.tensors[number]
    }

    /// The hashes of a tensor's pieces, which make the tensor's own; and which of the pieces are here.
    async fn hashes(self: Arc<Self>, from: &PeerAddress, tensor: usize) -> Result<Came, Fault> {
        let pieces = pieces_of(self.tensor(tensor).bytes);
        let mut hashes: Vec<PieceHash> = Vec::new();
        if pieces == 1 {
            hashes.push(self.tensor(tensor).hash);
        }
        while (hashes.len() as u64) < pieces {
            let first = hashes.len();
            let bytes = self.fetch(from, Part::Hashes(tensor as u32, first as u32)).await?;
            let (page, rest) = bytes.as_chunks::<32>();
            hashes.extend_from_slice(page);
            let due = (pieces - first as u64).min(PIECE_HASHES_MAX as u64);
            if page.len() as u64 != due || !rest.is_empty() {
                return Err(lied("a list of hashes that is too short or too long"));
            }
        }
        if tensor_hash(self.tensor(tensor).bytes, &hashes) != Some(self.tensor(tensor).hash) {
            return Err(lied("hashes that do not make the tensor's"));
        }
        let hashes = Arc::new(hashes);
        let (context, list) = (self, hashes.clone());
        let looked = spawn_blocking(move || {
            let mut intake = context.intake();
            let has = |(piece, hash)| intake.has(tensor, context.tensor(tensor), piece, hash);
            (0..).zip(list.iter()).map(has).collect::<Result<Vec<_>, _>>()
        });
        let here = looked.await.map_err(|error| Fault::Disk(broken(&error)))?.map_err(Fault::Disk)?;
        Ok(Came::Hashes(hashes, here))
    }

    /// A piece, checked and written.
    async fn piece(
        self: Arc<Self>,
        from: &PeerAddress,
        tensor: usize,
        piece: u64,
        hashes: Option<Arc<Vec<PieceHash>>>,
    ) -> Result<Came, Fault> {
        let bytes = self.fetch(from, Part::Piece(tensor as u32, piece as u32)).await?;
        let len = bytes.len() as u64;
        let written = spawn_blocking(move || {
            let entry = self.tensor(tensor);
            let hash = hashes.as_ref().and_then(|hashes| hashes.get(piece as usize));
            let Some(hash) = hash else {
                return Err(StoreError::WrongPiece { tensor: entry.name.clone(), number: piece });
            };
            self.intake().write(tensor, entry, piece, hash, &bytes)
        });
        match written.await.map_err(|error| Fault::Disk(broken(&error)))? {
            Ok(()) => Ok(Came::Piece(len)),
            Err(error @ StoreError::WrongPiece { .. }) => Err(lied(&error.to_string())),
            Err(error) => Err(Fault::Disk(error)),
        }
    }

    async fn fetch(&self, from: &PeerAddress, part: Part) -> Result<Vec<u8>, Fault> {
        let fetch = Fetch { model: self.entry.id, part };
        let mut count = |bytes| {
            self.received.fetch_add(bytes, Ordering::Relaxed);
        };
        self.node.part(from, fetch, &mut count).await.map_err(|error| {
            let why = match &error {
                NetError::Failed { failure, .. } if failure.code == FailureCode::NotServed => Setback::NotThere,
                NetError::Protocol { .. } | NetError::Unexpected { .. } => Setback::Lied,
                _ => Setback::Lost,
            };
            Fault::Source(why, error.to_string())
        })
    }
}

fn lied(what: &str) -> Fault {
    Fault::Source(Setback::Lied, what.to_owned())
}

fn tensor_of(item: Item) -> usize {
    match item {
        Item::Hashes(tensor) | Item::Piece(tensor, _) => tensor,
    }
}

fn piece_bytes(tensor: &TensorEntry, number: u64) -> u64 {
    potluck_core::piece_range(tensor.bytes, number).map_or(0, |(_, len)| len as u64)
}

/// A task of ours that broke off.
fn broken(error: &tokio::task::JoinError) -> StoreError {
    StoreError::Io { path: "the pull".into(), source: std::io::Error::other(error.to_string()) }
}
