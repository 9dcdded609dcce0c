//! `potluck serve --upstream`: what this machine runs already, lent to the swarm as it is.

use std::{fs, io::Read, path::PathBuf};

use clap::Args;
use potluck_net::{Asked, Lending, Node};
use potluck_upstream::{Upstream, UpstreamError};
use potluck_wire::{Failure as WireFailure, FailureCode, PeerAddress, Upstream as State};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{Announcer, Owner, owner::taken_back, serve_nothing};
use crate::{
    failure::Failure,
    home::Lent,
    screen::{Screen, printable},
    signals::Interrupt,
};

/// Bytes of a file with a key.
const KEY_BYTES_MAX: u64 = 16 << 10;

/// What others are told while the owner does not lend it.
const NOT_LENT: &str = "it is not lent for now";

/// Requests that wait to be passed on.
const ASKS_WAITING_MAX: usize = 8;

/// What runs here already.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpstreamArgs {
    /// Lend what runs here already instead of layers: the address of an Ollama, llama-server or vLLM
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "layers", "memory"])]
    upstream: Option<String>,
    /// A file with the key that the upstream wants; it stays on this machine
    #[arg(long, value_name = "FILE", env = "POTLUCK_UPSTREAM_KEY_FILE", hide_env_values = true)]
    upstream_key_file: Option<PathBuf>,
    /// Requests that the upstream gets at once; gateways let the others take turns
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    upstream_slots: u16,
}

/// An upstream that is to be lent.
#[derive(Debug)]
pub(crate) struct ToLend {
    upstream: Upstream,
    slots: u16,
}

impl UpstreamArgs {
    /// The upstream; none where layers are to be lent.
    pub(crate) fn open(&self) -> Result<Option<ToLend>, Failure> {
        let Some(address) = &self.upstream else { return Ok(None) };
        let key = self.upstream_key_file.as_ref().map(key_of).transpose()?;
        Ok(Some(ToLend { upstream: Upstream::new(address, key)?, slots: self.upstream_slots }))
    }
}

fn key_of(path: &PathBuf) -> Result<String, Failure> {
    let unreadable = |error| Failure::io(path.display(), &error);
    let mut text = String::new();
    fs::File::open(path).map_err(unreadable)?.take(KEY_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    let key = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("{}: its first line is no key", path.display());
        return Err(Failure::usage(message, "the key alone, as the upstream takes it after `Bearer`"));
    }
    Ok(key.to_owned())
}

/// Lends it on that node, whenever its owner does, until the user has had enough.
pub(crate) async fn lend_upstream(
    screen: Screen,
    node: Node,
    mut announcer: Announcer,
    ToLend { upstream, slots }: ToLend,
    swarm: &str,
    mut owner: Owner,
    interrupt: &mut Interrupt,
) -> Result<(), Failure> {
    let (state, mut offered) = watch::channel(State::default());
    let (asks, asked) = mpsc::channel(ASKS_WAITING_MAX);
    node.lend(Lending { offered: offered.clone(), asks, places: slots });
    let serving = serve_nothing(&node);
    let told = async {
        // It has been looked at once, whatever came of it.
        let _ = offered.changed().await;
        tell(screen, &node, swarm, &offered.borrow_and_update())?;
        watch_health(screen, &mut offered).await;
        Ok(())
    };
    let ended = tokio::select! {
        told = told => told,
        () = while_lent(&upstream, slots, &mut owner, &state, asked) => Ok(()),
        () = announcer.run_lending(&node, &serving) => Ok(()),
        () = interrupt.wait() => Ok(()),
    };
    serving.stop().await;
    node.close().await;
    ended
}

/// Passes requests on while the owner lends; answers that are under way when the owner takes it back are cut off, and further requests are
/// told why there is none. Never returns.
async fn while_lent(
    upstream: &Upstream,
    slots: u16,
    owner: &mut Owner,
    state: &watch::Sender<State>,
    mut asked: mpsc::Receiver<Asked>,
) {
    loop {
        while let Some(reason) = owner.wants() {
            owner.say_not(&reason);
            // What the owner does is nobody's business.
            state.send_replace(State { trouble: Some(NOT_LENT.into()), ..State::default() });
            let refuse = async {
                while let Some(asked) = asked.recv().await {
                    let _ = asked.reply.try_send(Err(WireFailure::new(FailureCode::NotServed, NOT_LENT)));
                }
                std::future::pending().await
            };
            tokio::select! {
                () = owner.changed() => {}
                () = refuse => {}
            }
        }
        let (lending, lent) = upstream.clone().lend(slots);
        let (mut offered, mut wants) = (lending.offered.clone(), owner.view());
        let pass_on = async {
            loop {
                let models = names(&offered.borrow_and_update().models);
                let lent = (!models.is_empty()).then_some(Lent { model: models, layers: None, bytes: None });
                owner.say(|lending| (lending.lends, lending.reason) = (lent, None));
                tokio::select! {
                    Some(asked) = asked.recv() => drop(lending.asks.send(asked).await),
                    Ok(()) = offered.changed() => drop(state.send_replace(offered.borrow().clone())),
                    else => return,
                }
            }
        };
        tokio::select! {
            () = taken_back(&mut wants) => {}
            () = lent => return std::future::pending().await,
            () = pass_on => return std::future::pending().await,
        }
    }
}

/// Says when it falls ill, and when it is well again. Never returns.
async fn watch_health(screen: Screen, offered: &mut watch::Receiver<State>) {
    while offered.changed().await.is_ok() {
        let State { models, trouble, .. } = offered.borrow_and_update().clone();
        screen.note(match trouble {
            Some(trouble) if trouble == NOT_LENT => "lending nothing for now: its owner has it".into(),
            Some(trouble) => format!("lending nothing until it is well: {trouble}"),
            None => format!("lending {}", names(&models)),
        });
    }
    std::future::pending().await
}

fn tell(screen: Screen, node: &Node, swarm: &str, state: &State) -> Result<(), Failure> {
    let PeerAddress { addresses, relay, .. } = node.address();
    if screen.json {
        let models: Vec<_> =
            state.models.iter().map(|model| json!({ "name": model.name, "context": model.context })).collect();
        return screen.object(&json!({
            "id": node.id().to_string(),
            "addresses": addresses,
            "relay": relay,
            "pid": std::process::id(),
            "swarm": swarm,
            "upstream": { "models": models, "trouble": state.trouble },
        }));
    }
    let first = match &state.trouble {
        Some(trouble) => format!("lending nothing until it is well: {}", printable(trouble)),
        None => format!("lending {}", printable(&names(&state.models))),
    };
    let lines = [
        first,
        format!("  peer   {}", node.id()),
        format!("  at     {}", addresses.into_iter().chain(relay).collect::<Vec<_>>().join(" ")),
        format!("  swarm  {swarm}"),
    ];
    screen.text(&(lines.join("\n") + "\n"))
}

fn names(models: &[potluck_wire::UpstreamModel]) -> String {
    models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ")
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        Self::new(error.code(), &error, error.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_first_line_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = |text: &str| {
            fs::write(&path, text).unwrap();
            key_of(&path)
        };
        assert_eq!(key("\n  sk-1234\nmore\n"), Ok("sk-1234".into()));
        for text in ["", "\n\n", "two words", "sk-\u{1b}[2J"] {
            assert_eq!(key(text).unwrap_err().code, "usage", "{text:?}");
        }
    }
}
