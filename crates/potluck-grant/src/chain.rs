//! A grant as a chain of links: the root's, and one for each time that it was handed on.
//!
//! The token is a biscuit. Block 0 is signed by the root; each further one is a third-party block, signed by whoever held the
//! grant before it. Blocks hold facts and nothing else ([`Caveats`]): no rule and no check of anybody's is ever run.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{fmt, str::FromStr};

use biscuit_auth::{
    Algorithm, Biscuit, BlockBuilder, PublicKey,
    builder::{Fact, Term, fact},
    datalog::SymbolTable,
    format::schema::{self, public_key::Algorithm as KeyKind, term::Content},
};
use data_encoding::HEXLOWER_PERMISSIVE;
use potluck_core::{Defence, ModelId, PeerId};
use potluck_wire::GRANT_BYTES_MAX;
use prost::Message as _;

use crate::{Caveats, GrantError, Hours, Net, Ports, rights::Scope};

/// Links of a grant: the root's, and how often it may be handed on. What is longer is refused.
pub const LINKS_MAX: usize = 8;

/// Facts of one link. What has more is refused.
const FACTS_MAX: usize = 64;

/// Protocols, as a port's fact names them.
const TCP: &str = "tcp";
const UDP: &str = "udp";

/// The name of one link of a grant, and of what was handed on from there: what a revocation names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId([u8; 16]);

impl GrantId {
    /// From its bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// By the link's signature, which only whoever could sign another link can change.
    fn of(revocation_identifier: &[u8]) -> Self {
        let mut id = [0; 16];
        blake3::Hasher::new_derive_key("potluck 2026-11 grant id")
            .update(revocation_identifier)
            .finalize_xof()
            .fill(&mut id);
        Self(id)
    }
}

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

impl fmt::Debug for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrantId({:.8})", self.to_string())
    }
}

impl FromStr for GrantId {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| GrantError::Unreadable("a grant's id has 32 hexadecimal digits".into()))
    }
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What a revocation names.
    pub id: GrantId,
    /// To whom.
    pub holder: PeerId,
    /// What it takes away.
    pub caveats: Caveats,
}

/// A grant whose signatures are good, each link signed by the holder of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The root that has signed its first link.
    pub(crate) root: PeerId,
    pub(crate) links: Vec<Link>,
    pub(crate) scope: Scope,
}

impl Chain {
    /// Reads a grant, which may come from anybody, and which one of these roots has signed.
    pub(crate) fn read(bytes: &[u8], roots: impl Iterator<Item = PeerId>) -> Result<Self, GrantError> {
        if bytes.len() > GRANT_BYTES_MAX {
            return Err(GrantError::TooLarge { len: bytes.len() });
        }
        if !Defence::GrantSignature.stands() {
            let unsigned = schema::Biscuit::decode(bytes).map_err(|error| GrantError::NotOurs(error.to_string()))?;
            let blocks = [&unsigned.authority].into_iter().chain(&unsigned.blocks);
            let ids: Vec<_> = blocks.map(|block| block.signature.clone()).collect();
            let root = roots.into_iter().next().ok_or(GrantError::NoSwarm)?;
            return Self::of_container(&unsigned, &ids, root);
        }
        let mut refused = GrantError::NoSwarm;
        for root in roots {
            match Biscuit::from(bytes, public_key(root).ok_or(GrantError::NoSwarm)?) {
                Ok(token) => return Self::of(&token, root),
                Err(error) => refused = GrantError::NotOurs(error.to_string()),
            }
        }
        Err(refused)
    }

    pub(crate) fn of(token: &Biscuit, root: PeerId) -> Result<Self, GrantError> {
        Self::of_container(&token.container().to_proto(), &token.revocation_identifiers(), root)
    }

    fn of_container(container: &schema::Biscuit, ids: &[Vec<u8>], root: PeerId) -> Result<Self, GrantError> {
        let blocks: Vec<_> = [&container.authority].into_iter().chain(&container.blocks).collect();
        if blocks.len() > LINKS_MAX && Defence::LinksMax.stands() {
            return Err(GrantError::TooLong(blocks.len()));
        }
        let mut links: Vec<Link> = Vec::with_capacity(blocks.len());
        for (n, (block, id)) in blocks.iter().zip(ids).enumerate() {
            // Of other kinds of signature there are several for one key and one text: a link's id could be changed.
            if block.next_key.algorithm != KeyKind::Ed25519 as i32 {
                return Err(GrantError::Unreadable("a key of another kind than Ed25519".into()));
            }
            match (links.last(), &block.external_signature) {
                (None, _) => {}
                (Some(before), Some(signed)) if is_key(&signed.public_key, before.holder) => {}
                (Some(_), _) if Defence::LinkSigner.stands() => return Err(GrantError::NotHandedOn(n)),
                (Some(_), _) => {}
            }
            let (holder, caveats) = read_block(&block.block)?;
            links.push(Link { id: GrantId::of(id), holder, caveats });
        }
        let Some((first, further)) = links.split_first() else {
            return Err(GrantError::Unreadable("no link".into()));
        };
        let mut scope = Scope::of_root(&first.caveats, first.id)?;
        for link in further {
            scope.hand_on()?;
            scope.narrow(&link.caveats, link.id);
        }
        Ok(Self { root, links, scope })
    }

    /// The root that has signed it.
    pub fn root(&self) -> PeerId {
        self.root
    }

    /// Its links, the root's first.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// What it allows.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Who may use it.
    pub fn holder(&self) -> PeerId {
        self.links[self.links.len() - 1].holder
    }
}

/// A root's key, where it is one.
pub(crate) fn public_key(root: PeerId) -> Option<PublicKey> {
    PublicKey::from_bytes(root.as_bytes(), Algorithm::Ed25519).ok()
}

fn is_key(key: &schema::PublicKey, peer: PeerId) -> bool {
    key.algorithm == KeyKind::Ed25519 as i32 && key.key == peer.as_bytes()
}

/// A link as facts.
pub(crate) fn write_block(holder: PeerId, caveats: &Caveats) -> Result<BlockBuilder, GrantError> {
    let int = |value: u64| Term::Integer(i64::try_from(value).unwrap_or(i64::MAX));
    let bytes = |value: &[u8]| Term::Bytes(value.to_vec());
    let mut facts: Vec<Fact> = vec![fact("holder", &[bytes(holder.as_bytes())])];
    facts.extend(caveats.role.map(|role| fact("role", &[Term::Str(role.name().into())])));
    facts.extend(caveats.from.map(|from| fact("from", &[int(from)])));
    facts.extend(caveats.until.map(|until| fact("until", &[int(until)])));
    facts.extend(caveats.hours.map(|hours| fact("hours", &[int(hours.from.into()), int(hours.to.into())])));
    facts.extend(caveats.models.iter().map(|model| fact("model", &[bytes(model.as_bytes())])));
    facts.extend(caveats.peers.iter().map(|peer| fact("peer", &[bytes(peer.as_bytes())])));
    facts.extend(caveats.tokens_per_day.map(|tokens| fact("tokens_per_day", &[int(tokens)])));
    facts.extend(caveats.hand_on.map(|times| fact("hand_on", &[int(times.into())])));
    facts.extend(caveats.ports.iter().map(|ports| {
        let (first, last) = ports.range();
        let protocol = Term::Str(if ports.udp() { UDP } else { TCP }.into());
        fact("port", &[protocol, int(first.into()), int(last.into())])
    }));
    facts.extend(caveats.nets.iter().map(|net| match net.parts() {
        (IpAddr::V4(address), bits) => fact("net", &[bytes(&address.octets()), int(bits.into())]),
        (IpAddr::V6(address), bits) => fact("net", &[bytes(&address.octets()), int(bits.into())]),
    }));
    facts.extend(caveats.bytes_per_day.map(|count| fact("bytes_per_day", &[int(count)])));
    facts.extend(caveats.yields.then(|| fact("yields", &[Term::Bool(true)])));
    if facts.len() > FACTS_MAX {
        return Err(GrantError::Unreadable(format!("{} facts in a link; {FACTS_MAX} are allowed", facts.len())));
    }
    let unsigned = |error: biscuit_auth::error::Token| GrantError::Unsigned(error.to_string());
    facts.into_iter().try_fold(BlockBuilder::new(), |block, fact| block.fact(fact).map_err(unsigned))
}

/// The facts of a block. Whatever else it holds, or says twice, refuses the whole grant: a limit that is not understood is not
/// passed over.
fn read_block(bytes: &[u8]) -> Result<(PeerId, Caveats), GrantError> {
    let unreadable = |what: &str| GrantError::Unreadable(what.into());
    let block = schema::Block::decode(bytes).map_err(|error| GrantError::Unreadable(error.to_string()))?;
    let program = !block.rules.is_empty() || !block.checks.is_empty() || !block.scope.is_empty();
    if program || !block.public_keys.is_empty() || block.context.is_some() {
        return Err(unreadable("a link holds facts alone"));
    }
    if block.facts.len() > FACTS_MAX && Defence::FactsMax.stands() {
        return Err(unreadable("a link of too many facts"));
    }
    let symbols = SymbolTable::from(block.symbols).map_err(|error| GrantError::Unreadable(error.to_string()))?;
    let (mut holder, mut caveats) = (None, Caveats::default());
    for fact in &block.facts {
        let name = symbols.get_symbol(fact.predicate.name).ok_or_else(|| unreadable("a fact without a name"))?;
        let terms: Vec<_> = fact.predicate.terms.iter().filter_map(|term| term.content.as_ref()).collect();
        let fresh = match (name, terms.as_slice()) {
            ("holder", [Content::Bytes(key)]) => set(&mut holder, PeerId::from_bytes(sized(key)?)),
            ("role", [Content::String(role)]) => {
                let role = symbols.get_symbol(*role).ok_or_else(|| unreadable("a role without a name"))?;
                set(&mut caveats.role, role.parse()?)
            }
            ("from", [Content::Integer(at)]) => set(&mut caveats.from, whole(*at)?),
            ("until", [Content::Integer(at)]) => set(&mut caveats.until, whole(*at)?),
            ("hours", [Content::Integer(from), Content::Integer(to)]) => {
                let hours = Hours::new(whole(*from)?, whole(*to)?).ok_or_else(|| unreadable("hours of no day"))?;
                set(&mut caveats.hours, hours)
            }
            ("model", [Content::Bytes(model)]) => caveats.models.insert(ModelId::from_bytes(sized(model)?)),
            ("peer", [Content::Bytes(peer)]) => caveats.peers.insert(PeerId::from_bytes(sized(peer)?)),
            ("tokens_per_day", [Content::Integer(tokens)]) => set(&mut caveats.tokens_per_day, whole(*tokens)?),
            ("hand_on", [Content::Integer(times)]) => set(&mut caveats.hand_on, whole(*times)?),
            ("port", [Content::String(protocol), Content::Integer(first), Content::Integer(last)]) => {
                let udp = match symbols.get_symbol(*protocol) {
                    Some(TCP) => false,
                    Some(UDP) => true,
                    _ => return Err(unreadable("a port of an unknown protocol")),
                };
                let ports = Ports::new(udp, whole(*first)?, whole(*last)?).ok_or_else(|| unreadable("no ports"))?;
                caveats.ports.insert(ports)
            }
            ("net", [Content::Bytes(address), Content::Integer(bits)]) => {
                let address = match address.len() {
                    4 => IpAddr::V4(Ipv4Addr::from(sized::<4>(address)?)),
                    _ => IpAddr::V6(Ipv6Addr::from(sized::<16>(address)?)),
                };
                let net = Net::new(address, whole(*bits)?).filter(|net| net.parts().0 == address);
                caveats.nets.insert(net.ok_or_else(|| unreadable("no network"))?)
            }
            ("bytes_per_day", [Content::Integer(count)]) => set(&mut caveats.bytes_per_day, whole(*count)?),
            ("yields", [Content::Bool(true)]) => !std::mem::replace(&mut caveats.yields, true),
            _ => return Err(unreadable("a fact that this version does not know")),
        };
        if !fresh {
            return Err(unreadable("a fact that is there twice"));
        }
    }
    let holder = holder.ok_or_else(|| unreadable("a link without a holder"))?;
    Ok((holder, caveats))
}

fn set<T>(place: &mut Option<T>, value: T) -> bool {
    place.replace(value).is_none()
}

fn whole<T: TryFrom<i64>>(value: i64) -> Result<T, GrantError> {
    T::try_from(value).map_err(|_| GrantError::Unreadable(format!("{value} is out of bounds")))
}

fn sized<const N: usize>(bytes: &[u8]) -> Result<[u8; N], GrantError> {
    bytes.try_into().map_err(|_| GrantError::Unreadable(format!("{} bytes for {N}", bytes.len())))
}
