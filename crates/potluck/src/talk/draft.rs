//! The draft model of a conversation: a small model on this machine that guesses what the large one will say.

use std::{cell::Cell, rc::Rc};

use potluck_chain::SessionError;
use potluck_client::{DraftModel, Drafting, Drafts, LocalChain};
use potluck_core::{Manifest, MetaValue, StageShape};
use potluck_engine::EngineSettings;
use potluck_store::InUse;

use super::{shared::SharedEngine, start::deadlines};
use crate::{
    args::RouteArgs,
    failure::Failure,
    home::Home,
    models::{find_model, load_whole},
    screen::Screen,
};

/// What makes one vocabulary another: the same token ids would mean other texts.
const TOKENIZER: [&str; 4] =
    ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"];

/// A draft model that runs, for all conversations of this command.
#[derive(Debug)]
pub(crate) struct Drafter {
    engine: SharedEngine,
    shape: StageShape,
    positions: u32,
    opened: Cell<u64>,
    /// Nothing of it is removed to make room while it is used.
    _in_use: InUse,
}

impl Drafter {
    /// Loads the draft model, if the arguments name one that is to be used, for so many conversations at once.
    pub(crate) async fn start(
        home: &Home,
        screen: Screen,
        route: &RouteArgs,
        target: &Manifest,
        settings: &EngineSettings,
    ) -> Result<Option<Rc<Self>>, Failure> {
        let Some(name) = &route.drafts.draft_model else { return Ok(None) };
        if settings.exact || !matches!(route.drafts(), Drafts::Auto | Drafts::Model) {
            screen.note(format!("{name} is not loaded: --exact, --pad and --drafts off or lookup draft with no model"));
            return Ok(None);
        }
        let entry = find_model(home, screen, Some(name)).await?;
        check_vocabulary(&entry.manifest, target, name)?;
        let (engine, shape) = SharedEngine::start_with(load_whole(&entry, settings)?).await?;
        let opened = Cell::default();
        Ok(Some(Rc::new(Self { engine, shape, positions: settings.context, opened, _in_use: entry })))
    }

    async fn open(&self) -> Result<DraftModel, SessionError> {
        self.opened.set(self.opened.get() + 1);
        let port = self.engine.port(0, self.opened.get(), None);
        let ends = (port.commands, port.replies);
        let whole = (self.shape.spec.layers, self.shape.vocabulary);
        Ok(DraftModel::new(LocalChain::over(ends, whole, self.positions, deadlines()).await?))
    }

    /// Waits until its engine is gone. Its conversations are over already, and whoever else has it has let go of it.
    pub(crate) async fn stop(drafter: Option<Rc<Self>>) {
        if let Some(drafter) = drafter.and_then(Rc::into_inner) {
            drafter.engine.stop().await;
        }
    }
}

/// What one more conversation drafts with. A draft model that is lost is done without, here as in mid-answer.
pub(crate) async fn drafting(drafts: Drafts, drafter: Option<&Drafter>) -> Drafting {
    let model = match drafter {
        Some(drafter) => drafter.open().await,
        None => return Drafting::new(drafts, None),
    };
    let model = model.map_err(|error| tracing::warn!(%error, "the draft model is lost; answers come without it"));
    Drafting::new(drafts, model.ok())
}

/// Refuses a draft model whose tokens are not the target's.
fn check_vocabulary(draft: &Manifest, target: &Manifest, name: &str) -> Result<(), Failure> {
    fn value<'a>(manifest: &'a Manifest, key: &str) -> Option<&'a MetaValue> {
        manifest.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
    match TOKENIZER.into_iter().find(|key| value(draft, key) != value(target, key)) {
        None => Ok(()),
        Some(key) => Err(Failure::new(
            "other_vocabulary",
            format!("{name} cannot draft for this model: their vocabularies differ ({key})"),
            "choose a smaller model of the same family, or leave --draft-model out",
        )),
    }
}
