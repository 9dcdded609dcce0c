//! `potluck chat`: a conversation.

use std::path::PathBuf;

use clap::Args;

use crate::{
    args::{EngineArgs, RouteArgs, SamplingArgs, StopArgs},
    failure::Failure,
    home::Home,
    prompt::{converse, go_on, load},
    screen::Screen,
    signals::Interrupt,
    talk::{Asked, Talk},
};

#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// What the model is told before anything else
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Go on with a conversation that /save or /park kept
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Chat {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let mut asked = Asked::new(&self.sampling, &self.stop, &self.engine)?;
        let kept = self.load.as_deref().map(load).transpose()?;
        let mut interrupt = Interrupt::listen()?;
        let mut talk = interrupt.or(Talk::start(home, screen, &self.route, &self.engine)).await??;
        if let Some(system) = self.system {
            talk.conversation.system(system);
        }
        let talked = async {
            if let Some(kept) = kept {
                interrupt.or(go_on(kept, screen, &mut talk)).await??;
            }
            converse(screen, &mut talk, &mut asked, &mut interrupt).await
        };
        let result = talked.await;
        talk.close().await;
        result
    }
}
