//! `potluck up`: peers on this machine that stay, a gateway in front of them, and a prompt to talk to them.

use clap::Args;
use serde_json::json;
use tokio::{net::TcpListener, sync::oneshot, task::LocalSet};

use super::gateway::url;
use crate::{
    args::{DoorArgs, EngineArgs, RouteArgs, SamplingArgs, StopArgs},
    failure::Failure,
    home::Home,
    prompt::converse,
    screen::Screen,
    serving::{hearing_node, keep_hearing},
    signals::Interrupt,
    talk::{Asked, Front, Talk},
};

/// Peers, unless the user says otherwise.
const PEERS: u16 = 3;

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    door: DoorArgs,
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
        // One peer with the whole model is this machine alone, for as many as ask.
        let peers = if std::mem::take(&mut self.route.local) { 1 } else { PEERS };
        self.route.peers = self.route.peers.or(Some(peers));
        let (access, gate) = self.door.access(home)?;
        let ears = hearing_node(home).await?;
        let _hearing = keep_hearing(home, ears.clone(), gate);
        let listener = self.door.listen_somewhere().await?;
        let mut asked = Asked::new(&self.sampling, &self.stop, &self.engine)?;
        let mut interrupt = Interrupt::listen()?;
        // The prompt has a session of its own: whoever asks the gateway does not disturb it.
        let sessions = self.door.slots + 1;
        let started = Talk::start_among(home, screen, &self.route, &self.engine, sessions);
        let mut talk = interrupt.or(started).await??;
        let result = match Front::over(&talk, screen).await {
            Ok(Some(front)) => {
                let (stop, stopped) = oneshot::channel();
                let address = url(&listener)?;
                let serve = front.serve(listener, access, &self.door, self.engine.chunk, stopped);
                let staying = stay(screen, &mut talk, &mut asked, &mut interrupt, Some(address));
                let result = LocalSet::new().run_until(beside(serve, staying, stop)).await;
                front.close().await;
                result
            }
            Ok(None) => {
                screen.note("no gateway: this command started no peers");
                drop::<TcpListener>(listener);
                stay(screen, &mut talk, &mut asked, &mut interrupt, None).await
            }
            Err(failure) => Err(failure),
        };
        talk.close().await;
        if let Some(node) = ears {
            node.close().await;
        }
        result
    }
}

/// Serves while the user stays; answers that have begun are finished then.
async fn beside(
    serve: impl Future<Output = Result<(), Failure>>,
    stay: impl Future<Output = Result<(), Failure>>,
    stop: oneshot::Sender<()>,
) -> Result<(), Failure> {
    let mut serving = std::pin::pin!(serve);
    let result = tokio::select! {
        served = &mut serving => return served,
        result = stay => result,
    };
    let _ = stop.send(());
    // A lost peer's answers never end: there is nothing to wait for.
    if result.is_ok() { serving.await } else { result }
}

async fn stay(
    screen: Screen,
    talk: &mut Talk,
    asked: &mut Asked,
    interrupt: &mut Interrupt,
    url: Option<String>,
) -> Result<(), Failure> {
    let peers: Vec<_> = talk.peers().collect();
    if screen.json {
        screen.object(&json!({ "url": url, "peers": peers }))?;
    } else {
        screen.note(talk.show_route());
        if let Some(url) = url {
            screen.note(format!("API    {url}/v1   OpenAI, Anthropic and Ollama clients"));
        }
    }
    if screen.interactive() {
        return converse(screen, talk, asked, interrupt).await;
    }
    tokio::select! {
        failure = talk.lost() => Err(failure),
        () = interrupt.wait() => Ok(()),
    }
}
