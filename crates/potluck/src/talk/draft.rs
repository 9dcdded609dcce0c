//! The draft model of a conversation: a small model on this machine that guesses what the large one will say.

use potluck_client::{DraftModel, Drafts, LocalChain};
use potluck_core::{Manifest, MetaValue, StageShape};
use potluck_engine::EngineSettings;
use potluck_store::InUse;

use super::{shared::SharedEngine, start::deadlines};
use crate::{
    args::DraftArgs,
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
    opened: std::cell::Cell<u64>,
    /// Nothing of it is removed to make room while it is used.
    _in_use: InUse,
}

impl Drafter {
    /// Loads the draft model, if the arguments name one, for so many conversations at once.
    pub(crate) async fn start(
        home: &Home,
        screen: Screen,
        args: &DraftArgs,
        target: &Manifest,
        settings: &EngineSettings,
    ) -> Result<Option<Self>, Failure> {
        let Some(name) = args.model() else { return Ok(None) };
        let entry = find_model(home, screen, Some(name)).await?;
        check_vocabulary(&entry.manifest, target, name)?;
        let (engine, shape) = SharedEngine::start_with(load_whole(&entry, settings)?).await?;
        let opened = std::cell::Cell::default();
        Ok(Some(Self { engine, shape, positions: settings.context, opened, _in_use: entry }))
    }

    /// The draft model for one more conversation.
    pub(crate) async fn open(&self) -> Result<DraftModel, Failure> {
        self.opened.set(self.opened.get() + 1);
        let port = self.engine.port(0, self.opened.get());
        let ends = (port.commands, port.replies);
        let whole = (self.shape.spec.layers, self.shape.vocabulary);
        Ok(DraftModel::new(LocalChain::over(ends, whole, self.positions, deadlines()).await?))
    }

    /// Waits until its engine is gone. Its conversations are over already.
    pub(crate) async fn stop(self) {
        self.engine.stop().await;
    }
}

/// Drafts for a conversation: the draft model, where there is one.
pub(crate) async fn drafts(args: Drafts, drafter: Option<&Drafter>) -> Result<(Drafts, Option<DraftModel>), Failure> {
    Ok(match drafter {
        Some(drafter) => (args, Some(drafter.open().await?)),
        None => (args, None),
    })
}

/// Refuses a draft model whose tokens are not the target's.
fn check_vocabulary(draft: &Manifest, target: &Manifest, name: &str) -> Result<(), Failure> {
    let value = |manifest: &Manifest, key: &str| -> Option<MetaValue> {
        manifest.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    };
    match TOKENIZER.into_iter().find(|key| value(draft, key) != value(target, key)) {
        None => Ok(()),
        Some(key) => Err(Failure::new(
            "other_vocabulary",
            format!("{name} cannot draft for this model: their vocabularies differ ({key})"),
            "choose a smaller model of the same family, or leave --draft-model out",
        )),
    }
}
