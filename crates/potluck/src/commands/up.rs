//! `potluck up`: peers on this machine that stay, and a prompt to talk to them.

use clap::Args;
use serde_json::json;

use crate::{
    args::{EngineArgs, RouteArgs, SamplingArgs, StopArgs},
    failure::Failure,
    home::Home,
    prompt::converse,
    screen::Screen,
    signals::Interrupt,
    talk::{Asked, Talk},
};

/// Peers, unless the user says otherwise.
const PEERS: u16 = 3;

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Up {
    pub(crate) async fn run(mut self, home: &Home, screen: Screen) -> Result<(), Failure> {
        if !self.route.local {
            self.route.peers = self.route.peers.or(Some(PEERS));
        }
        let mut asked = Asked::new(&self.sampling, &self.stop, &self.engine)?;
        let mut interrupt = Interrupt::listen()?;
        let mut talk = interrupt.or(Talk::start(home, screen, &self.route, &self.engine)).await??;
        let result = stay(home, screen, &mut talk, &mut asked, &mut interrupt).await;
        talk.close().await;
        result
    }
}

async fn stay(
    home: &Home,
    screen: Screen,
    talk: &mut Talk,
    asked: &mut Asked,
    interrupt: &mut Interrupt,
) -> Result<(), Failure> {
    let peers: Vec<_> = talk.peers().collect();
    if screen.json {
        screen.object(&json!({ "url": null, "peers": peers }))?;
    } else {
        screen.note(talk.show_route());
    }
    if screen.interactive() {
        return converse(home, screen, talk, asked, interrupt).await;
    }
    tokio::select! {
        failure = talk.lost() => Err(failure),
        () = interrupt.wait() => Ok(()),
    }
}
