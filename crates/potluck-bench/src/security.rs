//! What security costs: the model over three peers as they are, against three that do without.
//!
//! Without means: packets as they are (`potluck_net`'s null cipher), engines outside their sandbox, memory that is given back as it was, no
//! limit to count. Grants are shown by both, once a connection; what that takes is timed by itself.

use std::{
    io::{BufRead, stdin},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use potluck_core::{Defence, PeerId, Revocation, Revoked, SecretKey, StageSpec, SwitchedOff, TensorType};
use potluck_engine::{EngineProcess, EngineProgram, EngineSettings, Load, Part};
use potluck_grant::{Caveats, Gate, Grant, Meter, Need, Place, Request, Right, Role, Root};
use potluck_model::{facts, slice};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, StagePort, serve};
use potluck_peer::{Peer, PeerConfig};
use potluck_store::{Catalogue, open_stage};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    Outcome,
    model::Model,
    peers::{Order, PeerChain, Swarm},
    row::{Row, quantile},
};

/// Below which share of the speed without it security may not push.
pub(crate) const GOAL: f64 = 0.97;

const STAGES: usize = 3;

/// Rounds of what is compared, for one of other benches.
pub(crate) const MORE_ROUNDS: usize = 5;

/// Times that each check is made, in a round; rounds.
const CHECKS: u32 = 200;
const ROUNDS: usize = 9;

/// What the gate of these measurements knows to be taken back.
const REVOKED: u32 = 1_000;

/// Defences that a peer of the other side does without.
const OFF: [Defence; 2] = [Defence::Encryption, Defence::Sandbox];

/// The engine of such a peer.
pub(crate) fn engine() -> ! {
    let _off = OFF.map(SwitchedOff::new);
    potluck_engine::child_main()
}

/// Such a peer's process: reads an order, says where it is, serves until its standard input ends.
pub(crate) async fn peer() -> Outcome<()> {
    let _off = OFF.map(SwitchedOff::new);
    let mut line = String::new();
    stdin().lock().read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    let key = SecretKey::from_bytes(HEXLOWER.decode(order.key.as_bytes())?.as_slice().try_into()?);
    let gate = Gate::new(order.swarm.parse()?);
    let (layers, head, tail) = (order.part.layers, order.part.head, order.part.tail);
    let spec = StageSpec { model: order.model.parse()?, layers, head, tail };
    let entry = Catalogue::open(order.models)?.get(&order.model)?;
    let opened = open_stage(&entry, &slice::plan(&entry.manifest, layers, head, tail)?)?;
    let f16 = TensorType(1);
    let cache_bytes_per_position = facts::cache_bytes_per_position(&entry.manifest, layers, f16, f16);
    let part = Part::Stage { spec, source: opened.source, cache_bytes_per_position };
    let load = Load { part, settings: order.settings, files: opened.files.into_iter().map(Arc::new).collect() };
    let engine = EngineProcess::start(EngineProgram::current(["undefended-engine"])?, load).await?;

    let (idle_max, open_timeout) = (Duration::from_secs(600), Duration::from_secs(20));
    let mut machine =
        Peer::new(PeerConfig { id: key.peer_id(), sessions_per_client: 4, idle_max, open_timeout }, gate.clone());
    machine.add_stage(engine.shape().clone());
    let (commands, to_engine) = mpsc::channel(64);
    let (from_engine, replies) = mpsc::channel(64);
    let running = tokio::spawn(engine.run(to_engine, from_engine));
    let identity = Identity { key, grant: HEXLOWER.decode(order.grant.as_bytes())?, gate };
    let deadlines = NetDeadlines::default();
    let node = Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await?;
    let address = node.address();
    println!("{}", json!({ "id": address.peer.to_string(), "addresses": address.addresses }));
    let serving = serve(node, machine, vec![StagePort { commands, replies }]);
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut stdin().lock(), &mut std::io::sink()));
    end.await??;
    serving.stop().await;
    running.abort();
    Ok(())
}

/// Both chains: as they are, and without.
pub(crate) async fn chains(
    potluck: &Path,
    home: &Path,
    model: &Model,
    settings: &EngineSettings,
) -> Outcome<(PeerChain, PeerChain)> {
    let program = (potluck, &["serve", "--embedded", "--json"][..]);
    let secured = PeerChain::start_in(Swarm::counted(home), program, model, STAGES, settings).await?;
    // The client's own endpoint, too.
    let _off = OFF.map(SwitchedOff::new);
    let this = std::env::current_exe()?;
    let program = (this.as_path(), &["undefended-peer"][..]);
    let bare = PeerChain::start_in(Swarm::new(home), program, model, STAGES, settings).await?;
    Ok((bare, secured))
}

struct Use;

impl Request for Use {
    fn needs(&self) -> Need {
        Need { right: Right::Use, model: None }
    }
}

/// Microseconds of the checks: of a grant of three links, once a connection; of what it allows, once a request; of what is left of
/// its day, once a step.
pub(crate) fn checks() -> Outcome<Vec<Row>> {
    let (root, now) = (Root::from_bytes(&[1; 32]), 1_900_000_000);
    let key = |n: u8| SecretKey::from_bytes(&[n; 32]);
    let gate = Gate::new(root.public());
    for n in 0..REVOKED {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_le_bytes());
        let what = Revoked::Key(PeerId::from_bytes(id));
        gate.revoke(Revocation::sign(root.key().peer_id(), what, now, &root.key(), Vec::new()))?;
    }
    let limits = |role| Caveats { role, until: Some(now + 1), tokens_per_day: Some(1 << 40), ..Caveats::default() };
    let mut grant = root.grant_as(key(2).peer_id(), &limits(Some(Role::Member)))?.into_bytes();
    for n in 2..4 {
        grant =
            Grant::hand_on(&grant, root.public().root(), &key(n), key(n + 1).peer_id(), &limits(None))?.into_bytes();
    }
    let holder = key(4).peer_id();
    let member = gate.check(&grant, holder, now)?;
    let mut meter = Meter::default();
    let timed = |name: &str, what: &str, check: &mut dyn FnMut() -> Outcome<()>| -> Outcome<Row> {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            (0..CHECKS).try_for_each(|_| check())?;
            rounds.push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(CHECKS));
        }
        let spread = [0.25, 0.75].map(|share| quantile(&rounds, share));
        let setting = format!(
            "{what}; a grant of three links, {REVOKED} revocations known; quartiles {:.2} and {:.2} us of {ROUNDS} rounds of {CHECKS}",
            spread[0], spread[1]
        );
        Ok(Row::of(name, &[1.0], &rounds, "us").setting(setting))
    };
    Ok(vec![
        timed("grant_checked", "once a connection: the grant's signatures, holder, time, revocations", &mut || {
            gate.check(&grant, holder, now)?;
            Ok(())
        })?,
        timed("request_authorized", "once a request: is it revoked, does it hold, may it", &mut || {
            gate.authorize(&member, Use, Place { peer: holder, now })?;
            Ok(())
        })?,
        timed("step_counted", "once a step: its position counted for three links, in memory", &mut || {
            meter.charge(member.chain().scope(), 1, now)?;
            Ok(())
        })?,
    ])
}
