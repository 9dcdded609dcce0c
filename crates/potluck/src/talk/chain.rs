//! Whatever runs the model, as one type: an engine here, or a route.

use potluck_chain::{Answer, SessionError, Submission, chunks::Place};
use potluck_client::{Chain, ChainShape, LocalChain, RepairTimes, StageAccount};
use potluck_core::{Account, Hidden, LayerRange};
use potluck_wire::Codec;

use super::{RouteStage, route::RouteChain};

/// Whatever runs the model.
#[derive(Debug)]
pub(crate) enum AnyChain {
    /// One engine with all layers.
    Local(Box<LocalChain>, LayerRange),
    /// Stages at peers, and perhaps at both ends on this machine.
    Route(Box<RouteChain>),
}

impl AnyChain {
    /// How hidden states travel; none where they do not.
    pub(crate) fn codec(&self) -> Option<Codec> {
        match self {
            Self::Local(..) => None,
            Self::Route(chain) => (chain.stages().len() > 1).then(|| chain.codec()),
        }
    }

    /// The stages, as they are reached now.
    pub(crate) fn route(&self) -> Vec<RouteStage> {
        match self {
            Self::Local(_, layers) => vec![RouteStage::own(*layers)],
            Self::Route(chain) => chain.route(),
        }
    }
}

impl Chain for AnyChain {
    fn shape(&self) -> ChainShape {
        match self {
            Self::Local(chain, _) => chain.shape(),
            Self::Route(chain) => chain.shape(),
        }
    }

    async fn submit(&mut self, submission: Submission) -> Result<u32, SessionError> {
        match self {
            Self::Local(chain, _) => chain.submit(submission).await,
            Self::Route(chain) => chain.submit(submission).await,
        }
    }

    fn takes_drafts(&self) -> bool {
        match self {
            Self::Local(chain, _) => chain.takes_drafts(),
            Self::Route(chain) => chain.takes_drafts(),
        }
    }

    fn rows_max(&self, top: u16) -> usize {
        match self {
            Self::Local(chain, _) => chain.rows_max(top),
            Self::Route(chain) => chain.rows_max(top),
        }
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        match self {
            Self::Local(chain, _) => chain.answer().await,
            Self::Route(chain) => chain.answer().await,
        }
    }

    async fn row(&mut self, sequence: u32, row: u16) -> Result<Hidden, SessionError> {
        match self {
            Self::Local(chain, _) => chain.row(sequence, row).await,
            Self::Route(chain) => chain.row(sequence, row).await,
        }
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        match self {
            Self::Local(chain, _) => chain.accounts().await,
            Self::Route(chain) => chain.accounts().await,
        }
    }

    fn places(&self) -> Vec<Place> {
        match self {
            Self::Local(chain, _) => chain.places(),
            Self::Route(chain) => chain.places(),
        }
    }

    fn ask_accounts(&mut self) -> Result<(), SessionError> {
        match self {
            Self::Local(chain, _) => chain.ask_accounts(),
            Self::Route(chain) => chain.ask_accounts(),
        }
    }

    async fn told_accounts(&mut self) -> Result<Option<Vec<Account>>, SessionError> {
        match self {
            Self::Local(chain, _) => chain.told_accounts().await,
            Self::Route(chain) => chain.told_accounts().await,
        }
    }

    fn take_repairs(&mut self) -> Vec<RepairTimes> {
        match self {
            Self::Local(chain, _) => chain.take_repairs(),
            Self::Route(chain) => chain.take_repairs(),
        }
    }

    fn bytes_written(&self) -> u64 {
        match self {
            Self::Local(chain, _) => chain.bytes_written(),
            Self::Route(chain) => chain.bytes_written(),
        }
    }

    async fn let_go(&mut self) {
        match self {
            Self::Local(chain, _) => chain.let_go().await,
            Self::Route(chain) => chain.let_go().await,
        }
    }

    async fn close(self) {
        match self {
            Self::Local(chain, _) => (*chain).close().await,
            Self::Route(chain) => chain.close().await,
        }
    }
}
