//! `potluck gateway`: the APIs that clients already speak, in front of a model.

use clap::Args;
use potluck_gateway::Access;
use serde_json::json;
use tokio::{net::TcpListener, sync::oneshot, task::LocalSet};

use crate::{
    args::{DoorArgs, EngineArgs, RouteArgs},
    failure::Failure,
    home::Home,
    screen::{Screen, printable},
    serving::{hearing_node, keep_hearing},
    signals::Interrupt,
    talk::Front,
};

#[derive(Debug, Args)]
pub(crate) struct Gateway {
    #[command(flatten)]
    door: DoorArgs,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Gateway {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        self.route.check()?;
        let (access, gate) = self.door.access(home)?;
        let listener = self.door.listen().await?;
        let mut interrupt = Interrupt::listen()?;
        let started = Front::start(home, screen, &self.route, &self.engine, self.door.slots);
        let mut front = interrupt.or(started).await??;
        // Keys of the swarm are taken wherever the model runs: what is taken back is heard of in any case.
        let ears = match front.swarm() {
            Some(node) => Some(node),
            None => hearing_node(home).await?,
        };
        let _hearing = keep_hearing(home, ears.clone(), gate);
        tell(screen, &url(&listener)?, &front)?;
        let result = stay(listener, &mut front, access, &self.door, self.engine.chunk, &mut interrupt).await;
        front.close().await;
        if let Some(node) = ears {
            node.close().await;
        }
        result
    }
}

/// Serves until the user interrupts, or a peer that was started for it is lost; answers that have begun are finished first.
async fn stay(
    listener: TcpListener,
    front: &mut Front,
    access: Access,
    door: &DoorArgs,
    chunk: Option<u16>,
    interrupt: &mut Interrupt,
) -> Result<(), Failure> {
    let (stop, stopped) = oneshot::channel();
    let serve = front.serve(listener, access, door, chunk, stopped);
    LocalSet::new()
        .run_until(async {
            let mut serving = std::pin::pin!(serve);
            let result = tokio::select! {
                served = &mut serving => return served,
                failure = front.lost() => Err(failure),
                () = interrupt.wait() => Ok(()),
            };
            let _ = stop.send(());
            // What has begun is finished, unless the user has had enough.
            tokio::select! {
                served = &mut serving => result.and(served),
                () = interrupt.wait() => result,
            }
        })
        .await
}

/// Where a listener is reached.
pub(crate) fn url(listener: &TcpListener) -> Result<String, Failure> {
    let address = listener.local_addr().map_err(|error| Failure::io("asking where we listen", &error))?;
    Ok(format!("http://{address}"))
}

fn tell(screen: Screen, url: &str, front: &Front) -> Result<(), Failure> {
    let lent = front.lent();
    if screen.json {
        return screen.object(&json!({ "url": url, "model": front.model(), "lent": lent, "peers": front.peers() }));
    }
    let names: Vec<_> = front.model().map(str::to_owned).into_iter().chain(lent.unwrap_or_default()).collect();
    let lines = [
        format!("serving {}", printable(&names.join(", "))),
        format!("  OpenAI     {url}/v1"),
        format!("  Anthropic  {url}"),
        format!("  Ollama     {url}"),
    ];
    screen.text(&(lines.join("\n") + "\n"))
}
