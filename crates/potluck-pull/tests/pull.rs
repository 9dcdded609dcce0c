//! A model that travels between real endpoints: from several peers at once, past those that fall silent, lie or leave.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{
    fs,
    path::PathBuf,
    slice::from_ref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use potluck_core::{LayerRange, MetaArray, MetaValue, ModelId, PIECE_BYTES, SecretKey};
use potluck_grant::{Gate, Root};
use potluck_model::{
    gguf::{self, TensorSpec},
    slice, types,
};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, Question, Serving, Shelf, serve};
use potluck_peer::{Peer, PeerConfig};
use potluck_pull::{Library, PullError, Pulled, manifest, pull, shared};
use potluck_store::{Catalogue, Entry, Locations, Progress, StoreError, open_stage, open_whole, verify};
use potluck_wire::{Failure, FailureCode, Fetch, Frame, Part, PeerAddress};
use tempfile::TempDir;

const LAYERS: u32 = 4;
const WIDTH: u64 = 512;

/// A model whose tensors are of one piece, of several, and of several and a rest.
fn model_file() -> Vec<u8> {
    let tokens = (0..3_000).map(|n| format!("t{n}").into_bytes().into()).collect();
    let metadata = [
        ("general.architecture", MetaValue::String("llama".into())),
        ("llama.block_count", MetaValue::U32(LAYERS)),
        ("llama.embedding_length", MetaValue::U32(WIDTH as u32)),
        ("llama.context_length", MetaValue::U32(128)),
        ("llama.attention.head_count", MetaValue::U32(4)),
        ("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::String(tokens))),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let spec = |name: String, shape: &[u64]| TensorSpec { name, kind: types::F32, shape: shape.to_vec() };
    let mut tensors =
        vec![spec("token_embd.weight".into(), &[WIDTH, 3_000]), spec("output_norm.weight".into(), &[WIDTH])];
    for layer in 0..LAYERS {
        tensors.push(spec(format!("blk.{layer}.attn_norm.weight"), &[WIDTH]));
        tensors.push(spec(format!("blk.{layer}.ffn_up.weight"), &[WIDTH, 2_048]));
        tensors.push(spec(format!("blk.{layer}.ffn_down.weight"), &[WIDTH, 512 + u64::from(layer)]));
    }
    let mut file = gguf::write(&metadata, &tensors).unwrap();
    for tensor in &tensors {
        let mut data = vec![0; types::tensor_bytes(tensor.kind, &tensor.shape).unwrap() as usize];
        blake3::Hasher::new().update(tensor.name.as_bytes()).finalize_xof().fill(&mut data);
        file.extend(data);
        file.resize(file.len().next_multiple_of(32), 0);
    }
    file
}

/// The catalogue of one machine.
struct Machine {
    dir: TempDir,
}

impl Machine {
    fn empty() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn with_model() -> (Self, Entry) {
        let machine = Self::empty();
        let path = machine.dir.path().join("big.gguf");
        fs::write(&path, model_file()).unwrap();
        let at = |name: &str| machine.dir.path().join(name);
        let places = Locations { ollama: at("ollama"), huggingface: at("hub"), extracted: at("extracted") };
        let source = places.find(path.to_str().unwrap()).unwrap();
        let entry = machine.catalogue().add(&source, None, &mut |_| {}).unwrap().entry;
        (machine, entry)
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    fn catalogue(&self) -> Catalogue {
        Catalogue::open(self.folder()).unwrap()
    }
}

fn root() -> Root {
    Root::from_bytes(&[7; 32])
}

async fn node(n: u8) -> Node {
    let key = SecretKey::from_bytes(&[n; 32]);
    let grant = root().grant(key.peer_id(), 4_000_000_000).unwrap().into_bytes();
    let identity = Identity { key, grant, gate: Gate::new(root().public()) };
    let deadlines = NetDeadlines { stall: Duration::from_secs(2), ..NetDeadlines::default() };
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await.unwrap()
}

/// A peer that serves nothing and shares what is on its shelf, for as long as this is kept.
struct Sharer {
    node: Node,
    address: PeerAddress,
    _serving: Serving,
}

async fn sharer(n: u8, shelf: Option<Shelf>) -> Sharer {
    let node = node(n).await;
    if let Some(shelf) = shelf {
        node.open_shelf(shelf);
    }
    let second = Duration::from_secs(1);
    let config = PeerConfig { id: node.id(), sessions_per_client: 1, idle_max: second, open_timeout: second };
    let machine = Peer::new(config, node.identity().gate.clone());
    Sharer { node: node.clone(), address: node.address(), _serving: serve(node, machine, Vec::new()) }
}

/// All that is in that catalogue of that model.
fn shelf(folder: PathBuf, model: ModelId) -> Shelf {
    let library = Library::new(folder);
    library.share(model);
    library.shelf()
}

/// The same answers, but what `change` makes of pieces.
fn bad_shelf(
    honest: (PathBuf, ModelId),
    change: impl Fn(u32, u32, Vec<u8>) -> Result<Frame, Failure> + Send + Sync + 'static,
) -> Shelf {
    let good = shelf(honest.0, honest.1);
    Shelf::new(move |question| match (question, good.ask(question)?) {
        (Question::Part(Fetch { part: Part::Piece(tensor, piece), .. }), Frame::Part(bytes)) => {
            change(tensor, piece, bytes)
        }
        (_, answer) => Ok(answer),
    })
}

fn all(entry: &Entry) -> Vec<usize> {
    (0..entry.manifest.tensors.len()).collect()
}

fn of_layers(entry: &Entry, layers: LayerRange) -> Vec<usize> {
    let plan = slice::plan(&entry.manifest, layers, layers.start() == 0, layers.end() == LAYERS).unwrap();
    let names = plan.tensors();
    all(entry).into_iter().filter(|&t| names.contains(&entry.manifest.tensors[t].name.as_str())).collect()
}

async fn pull_all(client: &Node, to: &Machine, entry: &Entry, from: &[PeerAddress]) -> Result<Pulled, PullError> {
    pull(client, &to.catalogue(), entry, &all(entry), from, &mut |_| Ok(()), &mut |_| {}).await
}

/// What the newcomer knows before it has any tensor.
async fn noted(client: &Node, to: &Machine, model: ModelId, from: &[PeerAddress]) -> Entry {
    let manifest = manifest(client, from, model).await.unwrap();
    to.catalogue().note(manifest, "big").unwrap()
}

#[tokio::test]
async fn nothing_is_shared_while_its_owner_has_the_machine() {
    let (owner, original) = Machine::with_model();
    let peer = sharer(1, Some(shelf(owner.folder(), original.id))).await;
    let (client, here) = (node(9).await, Machine::empty());
    let from = [peer.address.clone()];
    let entry = noted(&client, &here, original.id, &from).await;
    peer.node.rest(true);
    assert_eq!(shared(&client, &from).await.models.len(), 0);
    assert!(pull_all(&client, &here, &entry, &from).await.is_err());
    peer.node.rest(false);
    let pulled = pull_all(&client, &here, &entry, &from).await.unwrap();
    assert!(pulled.received_bytes > 0);
}

#[tokio::test]
async fn three_peers_share_the_work_and_the_model_is_the_same() {
    let (owner, original) = Machine::with_model();
    let mut peers = Vec::new();
    for n in 1..=3 {
        peers.push(sharer(n, Some(shelf(owner.folder(), original.id))).await);
    }
    let addresses: Vec<_> = peers.iter().map(|peer| peer.address.clone()).collect();
    let (client, here) = (node(9).await, Machine::empty());

    let listed = shared(&client, &addresses).await;
    assert_eq!((listed.models.len(), listed.silent.len()), (3, 0));
    assert!(listed.models.iter().all(|(_, model)| model.model == original.id && model.held_bytes == model.bytes));
    let entry = noted(&client, &here, original.id, &addresses).await;
    assert_eq!((entry.id, entry.name.as_str(), entry.held_bytes()), (original.id, "big", 0));
    assert!(matches!(open_whole(&entry), Err(StoreError::NotHere { .. })));

    let (mut last, tensors) = (0, all(&entry));
    let mut watch = |progress: Progress| {
        assert!(progress.done >= last && progress.done <= progress.total);
        last = progress.done;
    };
    let pulled =
        pull(&client, &here.catalogue(), &entry, &tensors, &addresses, &mut |_| Ok(()), &mut watch).await.unwrap();
    assert_eq!(last, original.manifest.bytes());
    assert!(pulled.entry.is_whole());
    assert_eq!(pulled.from.len(), 3, "each had its part: {:?}", pulled.from);
    assert_eq!(pulled.from.values().sum::<u64>(), original.manifest.bytes());
    assert!(pulled.received_bytes < original.manifest.bytes() * 105 / 100, "{}", pulled.received_bytes);
    verify(&pulled.entry, None, &mut |_| {}).unwrap();
    open_whole(&pulled.entry).unwrap();
    assert_eq!(here.catalogue().get("big").unwrap(), pulled.entry, "and the catalogue knows");

    let again = pull_all(&client, &here, &pulled.entry, &addresses).await.unwrap();
    assert_eq!((again.wanted_bytes, again.received_bytes), (0, 0), "nothing is asked for twice");
    here.catalogue().rm(entry.id).unwrap();
    assert_eq!(fs::read_dir(here.folder()).unwrap().flatten().filter(|f| f.file_name() != "lock").count(), 0);
}

#[tokio::test]
async fn a_peer_gets_its_layers_and_no_more_and_passes_them_on() {
    let (owner, original) = Machine::with_model();
    let first = sharer(1, Some(shelf(owner.folder(), original.id))).await;
    let (second_node, second) = (node(2).await, Machine::empty());
    let layers = LayerRange::new(2, 4).unwrap();
    let entry = noted(&second_node, &second, original.id, from_ref(&first.address)).await;
    let tensors = of_layers(&entry, layers);
    let own: u64 = tensors.iter().map(|&t| entry.manifest.tensors[t].bytes).sum();
    let pulled = pull(
        &second_node,
        &second.catalogue(),
        &entry,
        &tensors,
        from_ref(&first.address),
        &mut |_| Ok(()),
        &mut |_| {},
    )
    .await
    .unwrap();
    assert_eq!((pulled.wanted_bytes, pulled.entry.held_bytes()), (own, own));
    assert!(own < original.manifest.bytes() && pulled.received_bytes < own * 105 / 100);
    open_stage(&pulled.entry, &slice::plan(&entry.manifest, layers, false, true).unwrap()).unwrap();

    // A third gets the same layers from the second, which has nothing else.
    let from = sharer(3, Some(shelf(second.folder(), original.id))).await;
    let (client, third) = (node(9).await, Machine::empty());
    let entry = noted(&client, &third, original.id, from_ref(&from.address)).await;
    let pulled =
        pull(&client, &third.catalogue(), &entry, &tensors, from_ref(&from.address), &mut |_| Ok(()), &mut |_| {})
            .await;
    verify(&pulled.unwrap().entry, None, &mut |_| {}).unwrap();
    let rest = pull_all(&client, &third, &entry, from_ref(&from.address)).await;
    assert!(matches!(rest, Err(PullError::Gone { .. })), "{rest:?}");
    assert!(third.catalogue().get("big").unwrap().held_bytes() >= own, "what has come is kept");
}

#[tokio::test]
async fn who_lies_is_asked_for_nothing_more() {
    let (owner, original) = Machine::with_model();
    let honest = (owner.folder(), original.id);
    let given = Arc::new(AtomicUsize::new(0));
    let count = given.clone();
    let flips = bad_shelf(honest.clone(), move |_, _, mut bytes| {
        count.fetch_add(1, Ordering::Relaxed);
        bytes[7] ^= 1;
        Ok(Frame::Part(bytes))
    });
    let shortens = bad_shelf(honest.clone(), |_, _, mut bytes| {
        bytes.pop();
        Ok(Frame::Part(bytes))
    });
    let liar = sharer(1, Some(flips)).await;
    let miser = sharer(2, Some(shortens)).await;
    let truthful = sharer(3, Some(shelf(honest.0, honest.1))).await;
    let (client, here) = (node(9).await, Machine::empty());
    let entry = noted(&client, &here, original.id, from_ref(&liar.address)).await;
    let pulled =
        pull_all(&client, &here, &entry, &[&liar, &miser, &truthful].map(|peer| peer.address.clone())).await.unwrap();
    verify(&pulled.entry, None, &mut |_| {}).unwrap();
    assert_eq!(pulled.from.keys().copied().collect::<Vec<_>>(), [truthful.address.peer]);
    assert!(given.load(Ordering::Relaxed) <= 4, "it was found out by its first pieces: {given:?}");

    let alone = Machine::empty();
    let entry = noted(&client, &alone, original.id, from_ref(&liar.address)).await;
    let refused = pull_all(&client, &alone, &entry, from_ref(&liar.address)).await;
    assert!(
        matches!(&refused, Err(PullError::Gone { silent, .. }) if silent[0].contains("not the model's")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn hashes_and_manifests_are_believed_nobody() {
    let (owner, original) = Machine::with_model();
    let lies = |part: fn(&Part) -> bool| {
        let good = shelf(owner.folder(), original.id);
        Shelf::new(move |question| match (question, good.ask(question)?) {
            (Question::Part(fetch), Frame::Part(mut bytes)) if part(&fetch.part) => {
                bytes[40] ^= 1;
                Ok(Frame::Part(bytes))
            }
            (_, answer) => Ok(answer),
        })
    };
    let bad_manifest = sharer(1, Some(lies(|part| matches!(part, Part::Manifest(_))))).await;
    let bad_hashes = sharer(2, Some(lies(|part| matches!(part, Part::Hashes(..))))).await;
    let nothing = sharer(3, None).await;
    let (client, here) = (node(9).await, Machine::empty());
    let refused = manifest(&client, &[&bad_manifest, &nothing].map(|peer| peer.address.clone()), original.id).await;
    assert!(matches!(&refused, Err(PullError::Nobody { silent, .. }) if silent.len() == 2), "{refused:?}");
    let entry =
        noted(&client, &here, original.id, &[&bad_manifest, &nothing, &bad_hashes].map(|peer| peer.address.clone()))
            .await;
    let refused = pull_all(&client, &here, &entry, from_ref(&bad_hashes.address)).await;
    assert!(matches!(refused, Err(PullError::Gone { .. })), "{refused:?}");
    let other = ModelId::from_bytes([5; 32]);
    assert!(matches!(manifest(&client, &[], other).await, Err(PullError::Nobody { .. })));
}

#[tokio::test]
async fn what_a_silent_peer_holds_up_another_brings() {
    let (owner, original) = Machine::with_model();
    let honest = (owner.folder(), original.id);
    // It answers two pieces, and then no more: neither an answer nor an end.
    let answered = AtomicUsize::new(0);
    let (let_go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let silent = bad_shelf(honest.clone(), move |_, _, bytes| {
        if answered.fetch_add(1, Ordering::Relaxed) >= 2 {
            assert!(held.lock().unwrap().recv().is_err(), "nothing is ever sent");
        }
        Ok(Frame::Part(bytes))
    });
    let mute = sharer(1, Some(silent)).await;
    let other = sharer(2, Some(shelf(honest.0, honest.1))).await;
    let (client, here) = (node(9).await, Machine::empty());
    let entry = noted(&client, &here, original.id, from_ref(&other.address)).await;
    let pulled = pull_all(&client, &here, &entry, &[mute.address.clone(), other.address.clone()]).await.unwrap();
    drop(let_go);
    verify(&pulled.entry, None, &mut |_| {}).unwrap();
    assert!(pulled.received_bytes < original.manifest.bytes() * 105 / 100, "{}", pulled.received_bytes);
}

#[tokio::test]
async fn an_attempt_that_broke_off_is_gone_on_with() {
    let (owner, original) = Machine::with_model();
    let honest = (owner.folder(), original.id);
    let left = Arc::new(AtomicUsize::new(9));
    let quits = bad_shelf(honest.clone(), move |_, _, bytes| {
        let more = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        more.map(|_| Frame::Part(bytes)).map_err(|_| Failure::new(FailureCode::NotServed, "no more"))
    });
    let quitter = sharer(1, Some(quits)).await;
    let (client, here) = (node(9).await, Machine::empty());
    let entry = noted(&client, &here, original.id, from_ref(&quitter.address)).await;
    let broken = pull_all(&client, &here, &entry, from_ref(&quitter.address)).await;
    let Err(PullError::Gone { left, .. }) = broken else { panic!("{broken:?}") };
    assert!(left < original.manifest.bytes());

    let other = sharer(2, Some(shelf(honest.0, honest.1))).await;
    let known = here.catalogue().get("big").unwrap();
    let pulled = pull_all(&client, &here, &known, from_ref(&other.address)).await.unwrap();
    verify(&pulled.entry, None, &mut |_| {}).unwrap();
    let hashes = original.manifest.bytes() / PIECE_BYTES as u64 * 64;
    assert!(pulled.received_bytes <= left + hashes + 4_096, "{} of {left}", pulled.received_bytes);
}

#[tokio::test]
async fn what_is_damaged_is_not_passed_on() {
    let (owner, original) = Machine::with_model();
    let sick = sharer(1, Some(shelf(owner.folder(), original.id))).await;
    let (client, here) = (node(9).await, Machine::empty());
    let entry = noted(&client, &here, original.id, from_ref(&sick.address)).await;
    // The disk turns a bit, and the file's time stays what it was.
    let file = &original.place.files[0];
    let modified = fs::metadata(&file.path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&file.path).unwrap();
    let at = original.place.tensors["blk.1.ffn_up.weight"].offset as usize + 3_000_000;
    bytes[at] ^= 4;
    fs::write(&file.path, bytes).unwrap();
    fs::File::options().write(true).open(&file.path).unwrap().set_modified(modified).unwrap();
    let refused = pull_all(&client, &here, &entry, from_ref(&sick.address)).await;
    let Err(PullError::Gone { tensor, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(tensor, "blk.1.ffn_up.weight");
}
