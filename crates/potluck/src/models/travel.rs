//! Models that are not here: found in the swarm, and pulled from whoever has them.

use std::collections::BTreeSet;

use potluck_core::{LayerRange, ModelId, PeerId, StageSpec, with_causes};
use potluck_model::slice;
use potluck_net::Node;
use potluck_pull::{Address, Coming, PullError, Pulled, Shared, Web};
use potluck_store::{Entry, For, InUse, Progress, Promise, Source, StoreError, begins_with};
use potluck_wire::{PeerAddress, SharedModel};

use super::{
    Models, all_layers, is_place,
    room::{make_room, room},
};
use crate::{
    failure::Failure,
    home::{Home, Identity, Membership, Role},
    placement::members,
    screen::{Screen, printable},
    serving::offers_of,
    talk::client_node,
};

/// Where it is set, nothing is fetched from the web: Hugging Face's own name for that.
const OFFLINE: &str = "HF_HUB_OFFLINE";

/// The members of this machine's swarm that may share models.
#[derive(Debug)]
pub(crate) struct Sharers {
    node: Node,
    home: Home,
    peers: Vec<PeerAddress>,
    /// What each serves.
    pub(crate) offered: Vec<(PeerId, StageSpec)>,
}

impl Sharers {
    /// Everybody that this machine knows of, or is told of; none where it belongs to no swarm.
    pub(crate) async fn find(home: &Home) -> Result<Option<Self>, Failure> {
        let Some(membership) = Membership::find(home)? else { return Ok(None) };
        let node = client_node(home, &membership).await?;
        let (offers, silent) = offers_of(&node, &membership.contacts).await;
        silent.iter().for_each(|why| tracing::info!("{why}"));
        // Those that offer something now come first, at the addresses that they have now.
        let mut peers = members(&offers, &membership.contacts);
        // What this machine has itself is not asked for over the network.
        let own = Identity::open(home, Role::Peer)?.key.peer_id();
        peers.retain(|at| at.peer != own);
        let home = home.clone();
        Ok(Some(Self {
            node,
            home,
            peers,
            offered: offers.iter().map(|offer| (offer.peer, offer.shape.spec)).collect(),
        }))
    }

    /// The model of that name, or of that id; without one, the only model that is shared.
    async fn model(&self, text: Option<&str>) -> Result<SharedModel, Failure> {
        let Shared { models, silent } = potluck_pull::shared(&self.node, &self.peers).await;
        silent.iter().for_each(|why| tracing::info!("{why}"));
        let names = |models: &[SharedModel]| {
            let names: BTreeSet<_> =
                models.iter().map(|m| format!("{} ({})", printable(&m.name), m.model.short())).collect();
            names.into_iter().collect::<Vec<_>>().join(", ")
        };
        let models: Vec<_> = models.into_iter().map(|(_, model)| model).collect();
        // A whole id is nobody's name; and a name counts before the first digits of an id.
        let whole = text.and_then(|text| text.parse::<ModelId>().ok());
        let named = |model: &&SharedModel| match (text, whole) {
            (None, _) => true,
            (Some(_), Some(id)) => model.model == id,
            (Some(text), None) => model.name == text,
        };
        let mut found: Vec<_> = models.iter().filter(named).cloned().collect();
        if let (true, Some(text)) = (found.is_empty(), text) {
            found = models.iter().filter(|model| begins_with(&model.model, text)).cloned().collect();
        }
        let ids: BTreeSet<_> = found.iter().map(|model| model.model).collect();
        match (ids.len(), found.into_iter().next()) {
            (1, Some(model)) => Ok(model),
            (0, _) if models.is_empty() => {
                let message = "nobody in the swarm shares a model now";
                Err(Failure::new(
                    "no_model",
                    message,
                    "lend one: potluck serve --model M, or --upstream URL, where it lies or runs",
                ))
            }
            (0, _) => {
                let message = format!("there is no model `{}` here or in the swarm", text.unwrap_or_default());
                Err(Failure::new("no_model", message, format!("the swarm shares {}", names(&models))))
            }
            _ => Err(Failure::usage(
                format!("which model? The swarm shares {}", names(&models)),
                "say --model with its id",
            )),
        }
    }

    /// Notes that model in the catalogue: what it is, not yet its tensors.
    async fn note(&self, home: &Home, model: &SharedModel) -> Result<Entry, Failure> {
        let manifest = potluck_pull::manifest(&self.node, &self.peers, model.model).await?;
        Ok(Models::open(home)?.catalogue.note(manifest, &model.name)?)
    }

    /// Pulls these tensors. Nothing is removed to make room for them before somebody is there who has them.
    async fn pull(
        &self,
        home: &Home,
        screen: Screen,
        entry: &Entry,
        tensors: &[usize],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pulled, Failure> {
        let catalogue = Models::open(home)?.catalogue;
        let (store, what) = (room(home)?, For::Model(entry.id, entry.manifest.bytes()));
        let mut promise = None;
        let mut make = |bytes| {
            promise = Some(make_room(&store, screen, &home.models(), what, bytes)?);
            Ok(())
        };
        Ok(potluck_pull::pull(&self.node, &catalogue, entry, tensors, &self.peers, &mut make, progress).await?)
    }

    pub(crate) async fn close(self) {
        self.home.let_go(&self.node).await;
    }
}

/// A model of this machine, or else of the swarm: then what it is comes at once, and its tensors when they are needed. It is in use
/// from now on.
pub(crate) async fn find_model(home: &Home, screen: Screen, text: Option<&str>) -> Result<InUse, Failure> {
    let found = find_entry(home, screen, text).await?;
    Ok(Models::open(home)?.catalogue.hold(found.id)?)
}

async fn find_entry(home: &Home, screen: Screen, text: Option<&str>) -> Result<Entry, Failure> {
    let here = Models::open(home)?.find_or_only(text, screen);
    let Err(missing) = here else { return here };
    if missing.code != "no_model" {
        return Err(missing);
    }
    if let Some(address) = text.and_then(Address::of) {
        return pull_from_web(home, screen, &address, None).await;
    }
    if text.is_some_and(is_place) {
        return Err(missing);
    }
    let Some(sharers) = Sharers::find(home).await? else { return Err(missing) };
    let found = async {
        let model = sharers.model(text).await?;
        sharers.note(home, &model).await
    };
    let found = found.await;
    sharers.close().await;
    found
}

/// Makes sure that the tensors of a stage are here, and pulls those that are not; none where nothing was missing.
pub(crate) async fn pull_stage(
    home: &Home,
    screen: Screen,
    entry: &Entry,
    spec: StageSpec,
) -> Result<Option<Pulled>, Failure> {
    let tensors = tensors_of(entry, Some((spec.layers, spec.head, spec.tail)))?;
    if tensors.iter().all(|&tensor| entry.has(&entry.manifest.tensors[tensor])) {
        return Ok(None);
    }
    pull(home, screen, entry, &tensors).await.map(Some)
}

/// Gets a model from the web, unless it is here already, and adds it.
pub(crate) async fn pull_from_web(
    home: &Home,
    screen: Screen,
    address: &Address,
    name: Option<&str>,
) -> Result<Entry, Failure> {
    let (source, promise) = {
        let bar = screen.bytes("fetching the model");
        fetch(home, screen, address, &mut |coming| bar.at(coming.all.done, coming.all.total)).await?
    };
    let added = Models::open(home)?.add_source(&source, name, screen);
    // Room is promised until the catalogue knows the model.
    drop(promise);
    added
}

/// Gets a model from the web, unless it is here already; where it is, and the room that it was promised.
pub(crate) async fn fetch(
    home: &Home,
    screen: Screen,
    address: &Address,
    progress: &mut dyn FnMut(Coming),
) -> Result<(Source, Option<Promise>), Failure> {
    if std::env::var_os(OFFLINE).is_some_and(|value| value != "0") {
        let hint = "only what is here already can be added: potluck model add";
        return Err(Failure::new("offline", format!("{OFFLINE} is set: nothing is fetched"), hint));
    }
    let web = Web::from_env(home.downloads())?;
    let (store, folder) = (room(home)?, web.folder(address));
    let what = if matches!(address, Address::Url(_)) { For::Download(&folder) } else { For::Elsewhere };
    // Also of what an earlier attempt has brought whole nothing is to be removed before it is known.
    let mut promise = Some(store.make(what, 0, None)?);
    let mut make = |bytes| {
        promise = Some(make_room(&store, screen, &folder, what, bytes)?);
        Ok(())
    };
    let source = web.get(address, &mut make, progress).await?;
    Ok((source, promise))
}

/// Pulls a model, or the layers that are wanted of it, from the swarm.
pub(crate) async fn pull_model(
    home: &Home,
    screen: Screen,
    text: &str,
    layers: Option<LayerRange>,
) -> Result<Pulled, Failure> {
    let entry = find_model(home, screen, Some(text)).await?;
    let all = all_layers(&entry.manifest)?;
    let part = layers.map(|layers| (layers, layers.start() == 0, layers.end() == all.end()));
    let tensors = tensors_of(&entry, part)?;
    pull(home, screen, &entry, &tensors).await
}

async fn pull(home: &Home, screen: Screen, entry: &Entry, tensors: &[usize]) -> Result<Pulled, Failure> {
    let sharers = Sharers::find(home).await?.ok_or_else(|| {
        let message = format!("of {} only a part is here, and this machine belongs to no swarm", entry.name);
        Failure::new("no_swarm", message, "join the swarm that has it: potluck join LINE")
    })?;
    let bar = screen.bytes(format!("pulling {}", entry.name));
    let pulled = sharers.pull(home, screen, entry, tensors, &mut |p| bar.at(p.done, p.total)).await;
    sharers.close().await;
    pulled
}

/// Pulls all of a model that the swarm shares under that name; none where it shares no such model.
pub(crate) async fn pull_shared(
    home: &Home,
    screen: Screen,
    name: &str,
    progress: &mut dyn FnMut(&Entry, Progress),
) -> Result<Option<Pulled>, Failure> {
    let Some(sharers) = Sharers::find(home).await? else { return Ok(None) };
    let pulled = async {
        let model = match sharers.model(Some(name)).await {
            Err(failure) if failure.code == "no_model" => return Ok(None),
            model => model?,
        };
        let entry = sharers.note(home, &model).await?;
        let held = Models::open(home)?.catalogue.hold(entry.id)?;
        let tensors = tensors_of(&held, None)?;
        sharers.pull(home, screen, &held, &tensors, &mut |p| progress(&held, p)).await.map(Some)
    };
    let pulled = pulled.await;
    sharers.close().await;
    pulled
}

/// The numbers of the tensors of a stage, or of all.
fn tensors_of(entry: &Entry, part: Option<(LayerRange, bool, bool)>) -> Result<Vec<usize>, Failure> {
    let all = 0..entry.manifest.tensors.len();
    let Some((layers, head, tail)) = part else { return Ok(all.collect()) };
    let plan = slice::plan(&entry.manifest, layers, head, tail)?;
    let names: BTreeSet<_> = plan.tensors().into_iter().collect();
    Ok(all.filter(|&tensor| names.contains(entry.manifest.tensors[tensor].name.as_str())).collect())
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        let (code, hint) = match error {
            PullError::Store(error @ StoreError::Io { .. }) => {
                return Self::new("io", with_causes(&error), "is the disk full? What has come is kept: run it again");
            }
            PullError::Store(error) => return error.into(),
            PullError::Net(error) => return error.into(),
            PullError::Nobody { .. } => ("no_model", "potluck peers says who is there; what they serve, they share"),
            PullError::Web { .. } => ("unreachable", "try again: what has come is kept"),
            PullError::Address { .. } => ("usage", "potluck model pull --help"),
            PullError::Missing(_) => ("no_model", "look at the name again, where the model is published"),
            PullError::NotAllowed(_) => {
                ("not_allowed", "accept its licence there, and set HF_TOKEN to a token that may read it")
            }
            PullError::Several { .. } => ("ambiguous", "name one of them: hf:ORG/NAME:QUANTISATION"),
            PullError::Digest(_) => ("bad_model", "try again; if it stays so, whoever publishes it must mend it"),
            PullError::Answer { .. } => ("unreachable", "is that the address of a model?"),
            PullError::Gone { .. } => {
                ("peer_lost", "what has come is kept: run it again once somebody who has it is back")
            }
            _ => ("protocol", "compare both sides' versions: potluck --version"),
        };
        Self::new(code, with_causes(&error), hint)
    }
}
