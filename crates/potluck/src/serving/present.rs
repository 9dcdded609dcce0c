//! A machine that takes up its place in its swarm: members reach it from then on.

use std::net::SocketAddr;

use potluck_net::{Bind, Identity as NetIdentity, Node};
use tokio::task::JoinSet;

use super::{bind_node, door, revoked::keep_what_is_taken_back};
use crate::{
    commands::swarm::utc_now,
    failure::Failure,
    home::{Home, Identity, KeyLock, Membership, Role},
    screen::Screen,
};

/// A machine at its place: bound, with its door open to newcomers where it holds the root's key. It serves nothing yet.
#[derive(Debug)]
pub(crate) struct Present {
    /// Its keys.
    pub(crate) identity: Identity,
    /// Its grant, which lets it lend.
    pub(crate) grant: Vec<u8>,
    /// Its swarm, with where it is reached.
    pub(crate) membership: Membership,
    /// Where it is reached.
    pub(crate) node: Node,
    _keeping: JoinSet<()>,
    _lock: KeyLock,
}

impl Present {
    /// Takes it up. One process at a time does; who leaves the swarm holds the lock, too, so that what is read behind it stands.
    pub(crate) async fn enter(home: &Home, screen: Screen, bind: SocketAddr) -> Result<Self, Failure> {
        let identity = Identity::open(home, Role::Peer)?;
        let lock = identity.lock(home)?;
        let mut membership = Membership::open(home)?;
        let grant = membership.grant(identity.key.peer_id())?;
        let who = NetIdentity { key: identity.key.clone(), grant: grant.clone(), gate: membership.gate(home)? };
        if let Err(error) = who.gate.check_lender(&grant, who.key.peer_id(), utc_now()) {
            let hint =
                "potluck swarm whoami says what this machine may; its owner lets it lend with `potluck swarm grant`";
            return Err(Failure::new("not_allowed", format!("this machine may not lend: {error}"), hint));
        }
        membership.relays = membership.relays(home);
        let node = bind_node(who, Bind::Address(bind), home.reach.serving(), membership.relays.clone()).await?;
        let node = home.reach.in_public(node, true);
        membership.knows(node.address());
        membership.save(home)?;
        if let Some(door) = door(home, screen, &node.identity().gate)? {
            node.open_door(door);
        }
        let keeping = keep_what_is_taken_back(home, &node);
        Ok(Self { identity, grant, membership, node, _keeping: keeping, _lock: lock })
    }
}
