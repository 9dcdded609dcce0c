//! Models that the clients of a gateway have fetched and removed.
//!
//! A pull has a thread and a runtime of its own: checking what comes takes a processor's time, and the gateway's thread is for answers.

use potluck_core::ModelId;
use potluck_gateway::{Problem, Step, Whose};
use potluck_pull::Address;
use potluck_store::{Entry, StoreError};
use tokio::sync::{mpsc, oneshot};

use super::{
    Models,
    room::room,
    travel::{fetch, pull_shared},
};
use crate::{apart::apart, failure::Failure, home::Home, screen::Screen};

/// Seconds after which a pull that found nobody may be tried again.
const RETRY_SECONDS: u32 = 5;

/// The models of this machine, as a gateway's clients may change them.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    home: Home,
    screen: Screen,
    /// The model that the gateway serves itself, if it does.
    served: Option<ModelId>,
}

impl Keeper {
    /// For this home; `served` stays.
    pub(crate) fn new(home: &Home, screen: Screen, served: Option<ModelId>) -> Self {
        Self { home: home.clone(), screen, served }
    }
}

impl potluck_gateway::Keeper for Keeper {
    async fn pull(&self, name: &str, tell: &mut dyn FnMut(Step)) -> Result<(), Problem> {
        let (told, mut heard) = mpsc::unbounded_channel();
        // Dropped with this future: then the thread ends.
        let (_alive, gone) = oneshot::channel::<()>();
        let (home, screen, of) = (self.home.clone(), self.screen, name.to_owned());
        let work = apart(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Failure::io("starting a pull", &error))?;
            runtime.block_on(async {
                tokio::select! {
                    pulled = pull(&home, screen, &of, &told) => pulled,
                    _ = gone => Err(Failure::new("stopped", "nobody waits for it any more", "")),
                }
            })
        });
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(step) = heard.recv() => tell(step),
                done = &mut work => return done.and_then(|pulled| pulled).map_err(|failure| problem(name, failure)),
            }
        }
    }

    async fn delete(&self, name: &str) -> Result<(), Problem> {
        let (keeper, of) = (self.clone(), name.to_owned());
        let deleted = apart(move || keeper.remove(&of)).await;
        deleted.and_then(|deleted| deleted).map_err(|failure| problem(name, failure))
    }
}

impl Keeper {
    fn remove(&self, name: &str) -> Result<(), Failure> {
        let entry = known(&Models::open(&self.home)?, name)?;
        if Some(entry.id) == self.served {
            return Err(StoreError::InUse(entry.name).into());
        }
        room(&self.home)?.remove(entry.id)?;
        Ok(())
    }
}

/// A model of the catalogue, as Ollama's clients name it: `NAME`, or `NAME:latest`.
fn known(models: &Models, name: &str) -> Result<Entry, StoreError> {
    match models.catalogue.get(name) {
        Err(StoreError::Unknown(_)) if name.ends_with(":latest") => models.catalogue.get(plain(name)),
        Err(StoreError::Unknown(_)) => models.catalogue.get(&format!("{name}:latest")),
        known => known,
    }
}

fn plain(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

/// What is not here comes from an address of the web; a name is the swarm's, or else that of Ollama's library.
async fn pull(home: &Home, screen: Screen, name: &str, told: &mpsc::UnboundedSender<Step>) -> Result<(), Failure> {
    // Whoever is told may be gone; then this ends, too.
    let tell = |step| drop(told.send(step));
    let address = match Address::of(name) {
        Some(address) => address,
        None => {
            match known(&Models::open(home)?, name) {
                Ok(entry) if entry.is_whole() => return Ok(entry.check()?),
                Err(error @ StoreError::Ambiguous { .. }) => return Err(error.into()),
                _ => {}
            }
            let mut coming = |entry: &Entry, p: potluck_store::Progress| {
                tell(Step::Coming { digest: format!("blake3:{}", entry.id), done: p.done, total: p.total });
            };
            if pull_shared(home, screen, plain(name), &mut coming).await?.is_some() {
                return Ok(());
            }
            Address::Ollama(name.to_owned())
        }
    };
    let (source, promise) = fetch(home, screen, &address, &mut |coming| {
        let digest = match coming.sha256 {
            Some(sha256) => format!("sha256:{}", data_encoding::HEXLOWER.encode(&sha256)),
            // Nobody has announced one.
            None => name.to_owned(),
        };
        tell(Step::Coming { digest, done: coming.file.done, total: coming.file.total });
    })
    .await?;
    tell(Step::Checking);
    let catalogue = Models::open(home)?.catalogue;
    // Of a model that is not of the library the whole name is told, so that it is found by it.
    let own = (name.contains('/') && Address::of(name).is_none() && catalogue.get(name).is_err()).then_some(name);
    catalogue.add(&source, own, &mut |_| {})?;
    drop(promise);
    Ok(())
}

/// What those who ask are told.
fn problem(name: &str, failure: Failure) -> Problem {
    let (whose, message) = match failure.code.as_ref() {
        "no_model" => (Whose::Missing, format!("model '{name}' not found")),
        "in_use" => (Whose::Conflict, format!("model '{name}' is in use: {}", failure.hint)),
        "usage" | "ambiguous" | "bad_name" | "bad_model" => (Whose::Request, failure.message),
        "not_allowed" | "offline" => (Whose::Origin, failure.message),
        "unreachable" | "peer_lost" | "no_swarm" | "busy" => (Whose::Lenders(RETRY_SECONDS), failure.message),
        _ => (Whose::Ours, format!("{}; {}", failure.message, failure.hint)),
    };
    Problem::new(whose, failure.code, message)
}
