//! `potluck gateway`: the APIs that clients already speak, in front of a model.

use std::net::SocketAddr;

use clap::Args;
use serde_json::json;
use tokio::{net::TcpListener, sync::oneshot, task::LocalSet};

use crate::{
    args::{DoorArgs, EngineArgs, RouteArgs},
    failure::Failure,
    home::Home,
    screen::Screen,
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
        if self.route.own_ends {
            let hint = "leave --own-ends out: the gateway's slots share the engines of its peers";
            return Err(Failure::usage("a gateway holds no stage itself", hint));
        }
        let access = self.door.access()?;
        let (listener, address) = self.door.listen().await?;
        let mut interrupt = Interrupt::listen()?;
        let started = Front::start(home, screen, &self.route, &self.engine, self.door.slots);
        let mut front = interrupt.or(started).await??;
        front.model.aliases.clone_from(&self.door.alias);
        tell(screen, address, &front)?;
        let result = serve(listener, &mut front, access, &self.door, self.engine.chunk, &mut interrupt).await;
        front.close().await;
        result
    }
}

/// Serves until the user interrupts, or a peer that was started for it is lost; answers that have begun are finished first.
pub(crate) async fn serve(
    listener: TcpListener,
    front: &mut Front,
    access: potluck_gateway::Access,
    door: &DoorArgs,
    chunk: u16,
    interrupt: &mut Interrupt,
) -> Result<(), Failure> {
    let gateway = potluck_gateway::Gateway {
        model: front.model.clone(),
        access,
        opener: front.sessions.clone(),
        slots: door.slots.into(),
        chunk,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        // The sender is dropped where nothing is left to serve: that is a stop, too.
        let _ = stopped.await;
    };
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut serving = std::pin::pin!(potluck_gateway::serve(listener, gateway, stopped));
            let mut result = Ok(());
            tokio::select! {
                served = &mut serving => return served.map_err(|error| Failure::io("serving", &error)),
                failure = front.lost() => result = Err(failure),
                () = interrupt.wait() => {}
            }
            let _ = stop.send(());
            // What has begun is finished, unless the user has had enough.
            tokio::select! {
                served = &mut serving => result.and(served.map_err(|error| Failure::io("serving", &error))),
                () = interrupt.wait() => result,
            }
        })
        .await
}

fn tell(screen: Screen, address: SocketAddr, front: &Front) -> Result<(), Failure> {
    let url = format!("http://{address}");
    if screen.json {
        return screen.object(&json!({ "url": url, "model": front.model.name, "peers": front.peers() }));
    }
    let lines = [
        format!("serving {}", front.model.name),
        format!("  OpenAI     {url}/v1"),
        format!("  Anthropic  {url}"),
        format!("  Ollama     {url}"),
    ];
    screen.text(&(lines.join("\n") + "\n"))
}
