//! How a peer takes layers that no route leads through any more, in the place of its own.
//!
//! While it serves, it fetches what it lacks of them; then it says that it is about to serve them, has its sessions go on elsewhere, and
//! loads.

use potluck_core::{Action, LayerRange, StageSpec};
use potluck_net::Serving;
use potluck_store::InUse;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    Mending, Place, ServingPeer,
    mending::Silent,
    place::{Waited, load_while_lent},
    serve_nothing,
};
use crate::{home::Home, models::pull_stage, screen::Screen};

/// Until this peer had better serve other layers, and has all of their weights: which, and the model with these. Never, where what it serves
/// is its owner's choice.
pub(super) async fn missing(
    (home, screen): (&Home, Screen),
    mending: Option<&Mending>,
    peer: &ServingPeer,
    (entry, spec): (&InUse, StageSpec),
    answers: watch::Receiver<u64>,
) -> (LayerRange, InUse) {
    let Some(mending) = mending else { return std::future::pending().await };
    let (mut entry, mut silent) = (entry.clone(), Silent::default());
    loop {
        let layers = mending.due(peer, answers.clone(), &mut silent).await;
        match pull_stage(home, screen, &entry, stage_of(&entry, spec, layers)).await {
            Ok(None) => return (layers, entry),
            // Somebody may have taken them meanwhile.
            Ok(Some(pulled)) => entry = entry.renewed(pulled.entry),
            Err(failure) => {
                tracing::warn!(code = %failure.code, "missing layers cannot be taken: {}", failure.message);
                mending.failed();
            }
        }
    }
}

fn stage_of(entry: &InUse, spec: StageSpec, layers: LayerRange) -> StageSpec {
    StageSpec { layers, head: layers.start() == 0, tail: layers.end() == entry.manifest.layers(), ..spec }
}

impl Place {
    /// Says that these layers are about to be served, before those that are served now are offered no longer.
    pub(super) async fn claim(&mut self, peer: &ServingPeer, (entry, spec): (&InUse, StageSpec), layers: LayerRange) {
        let Some(mending) = &self.mending else { return };
        let shape = mending.shape(entry, stage_of(entry, spec, layers), &self.settings);
        self.announcer.would_lend(mending.free_bytes(layers));
        self.announcer.claim(&self.node, &peer.serving, &shape).await;
        self.coming = Some(shape);
    }

    /// They are not, after all. `serving`: what answers for this peer now. What is returned ends when the others have heard.
    pub(super) async fn unclaim(&mut self, serving: Option<&Serving>) -> Option<JoinHandle<()>> {
        let shape = self.coming.take()?;
        Some(self.announcer.unclaim(&self.node, serving, &shape).await)
    }

    /// Loads them; what was served before, where that fails or the owner wants the machine.
    pub(super) async fn mend(
        &mut self,
        home: &Home,
        screen: Screen,
        (entry, before): (InUse, StageSpec),
        layers: LayerRange,
        orders: &mut mpsc::Receiver<Action>,
    ) -> Waited {
        let spec = stage_of(&entry, before, layers);
        let idle = serve_nothing(&self.node);
        for offer in self.heard.clone() {
            idle.announce(offer).await;
        }
        screen.note(format!("no route leads through {} any more: taking layers {layers}", entry.name));
        tracing::info!(%layers, "no route leads through the model any more: taking layers");
        let coming = self.coming.as_ref();
        let announce = async {
            match coming {
                Some(shape) => self.announcer.run_coming(&self.node, &idle, shape).await,
                None => std::future::pending().await,
            }
        };
        let loaded = tokio::select! {
            loaded = load_while_lent(home, screen, &mut self.owner, &self.settings, (&entry, spec)) => loaded,
            () = announce => None,
            Some(action) = orders.recv() => {
                self.unclaim(Some(&idle)).await;
                idle.stop().await;
                return Waited::Ordered(action);
            }
        };
        if let Some(Ok(loaded)) = loaded {
            idle.stop().await;
            // It is about to be offered.
            self.coming = None;
            self.mending.iter().for_each(Mending::succeeded);
            return Waited::Loaded(Box::new(loaded));
        }
        self.unclaim(Some(&idle)).await;
        idle.stop().await;
        if let (Some(Err(failure)), Some(mending)) = (loaded, &self.mending) {
            screen.note(format!("layers {layers} could not be taken: {}", failure.message));
            tracing::warn!(code = %failure.code, "missing layers could not be taken: {}", failure.message);
            mending.failed();
        }
        self.again(home, screen, entry, before, orders).await
    }
}
