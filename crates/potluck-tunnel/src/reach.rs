//! From a request to a socket: what the grant allows and the peer exposes, by the address that it comes to. There is no other way.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use potluck_core::Defence;
use potluck_grant::{Authorized, GrantError, Reach};
use potluck_net::Tunnel;
use potluck_wire::{Dial, Host, NotReached, Service};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket, lookup_host},
    sync::Semaphore,
    time::timeout,
};
use tracing::info;

use crate::{Exposure, copy, echo};

/// Longest that a service may take to answer a dial, all its addresses together.
const DIAL_MAX: Duration = Duration::from_secs(10);

/// Longest that a name may take to be resolved.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// Names that are looked up at once. The next waits its turn.
const LOOKUPS_MAX: usize = 16;

/// Addresses of one name that are tried.
const ADDRESSES_TRIED_MAX: usize = 4;

type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Turns names into addresses.
#[derive(Clone)]
pub struct Resolver(Arc<dyn Fn(String) -> Resolving + Send + Sync>);

impl Resolver {
    /// As this machine does.
    pub fn system() -> Self {
        let at_once = Arc::new(Semaphore::new(LOOKUPS_MAX));
        Self::new(move |name| {
            let at_once = at_once.clone();
            async move {
                // Each holds a thread until the system answers, whether or not anybody waits for it still.
                let place = at_once.acquire_owned().await.map_err(io::Error::other)?;
                let looked_up = tokio::spawn(async move {
                    let found = lookup_host((name, 0)).await?.map(|address| address.ip()).collect();
                    drop(place);
                    Ok(found)
                });
                looked_up.await.map_err(io::Error::other)?
            }
        })
    }

    /// By that function.
    pub fn new<F>(resolve: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        Self(Arc::new(move |name| Box::pin(resolve(name))))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// An address that its member may reach and this peer exposes. Only [`targets`] makes one, and only from one is anything dialled.
struct Target(Authorized<Reach>);

/// What was reached.
#[derive(Debug)]
pub(crate) enum Reached {
    Tcp(TcpStream),
    /// A socket that hears that service alone.
    Udp(UdpSocket),
    /// It answers.
    Echo,
}

/// Reaches what was asked for.
pub(crate) async fn reach(
    tunnel: &Tunnel,
    dial: Dial,
    exposed: &[Exposure],
    resolver: &Resolver,
) -> Result<Reached, NotReached> {
    let service = dial.service;
    let targets = targets(tunnel, dial, exposed, resolver).await?;
    let reached = async {
        // One that does not answer leaves the others their time.
        let patience = DIAL_MAX / targets.len().try_into().unwrap_or(1);
        let mut why = None;
        for target in targets {
            match timeout(patience, target.open(service)).await.unwrap_or(Err(NotReached::Late)) {
                Ok(reached) => return Ok(reached),
                // The first says most: this machine may know no other kind of address.
                Err(error) => why = why.or(Some(error)),
            }
        }
        Err(why.unwrap_or(NotReached::NoRoute))
    };
    reached.await
}

/// The addresses of what was asked for, as far as they are both allowed and exposed; why not, where none is.
async fn targets(
    tunnel: &Tunnel,
    dial: Dial,
    exposed: &[Exposure],
    resolver: &Resolver,
) -> Result<Vec<Target>, NotReached> {
    let peer = tunnel.peer().short();
    let refused = |error: GrantError| {
        info!(%peer, %error, "a member asked to reach what it may not");
        NotReached::NotAllowed
    };
    // Whoever may not ask at all has no name looked up.
    let dial = tunnel.authorize(dial).map_err(refused)?.into_parts().0;
    let name = match &dial.host {
        Host::Name(name) => Some(name.as_str()),
        _ => None,
    };
    // What no exposure can mean is not looked up: it would tell which names there are.
    if let Some(name) = name
        && !exposed.iter().any(|one| one.may_mean(dial.service, name))
        && Defence::TunnelExposed.stands()
    {
        info!(%peer, service = ?dial.service, "a member asked to reach a name that is not exposed");
        return Err(NotReached::NotExposed);
    }
    let mut why = NotReached::NoName;
    let mut targets = Vec::new();
    for address in addresses(&dial.host, resolver).await? {
        match tunnel.authorize(Reach { service: dial.service, address: Some(address) }) {
            Ok(reach)
                if exposed.iter().any(|one| one.covers(dial.service, address, name))
                    || !Defence::TunnelExposed.stands() =>
            {
                targets.push(Target(reach));
            }
            Ok(_) => {
                info!(%peer, service = ?dial.service, %address, "a member asked to reach what is not exposed");
                why = NotReached::NotExposed;
            }
            Err(error) => why = refused(error),
        }
    }
    if matches!(dial.service, Service::Udp(_)) {
        // A socket of UDP does not say whether anybody listens: the first address is the one.
        targets.sort_by_key(|target| !matches!(target.0.request().address, Some(IpAddr::V4(_))));
    }
    targets.truncate(ADDRESSES_TRIED_MAX);
    if targets.is_empty() { Err(why) } else { Ok(targets) }
}

async fn addresses(host: &Host, resolver: &Resolver) -> Result<Vec<IpAddr>, NotReached> {
    if let Some(address) = host.address() {
        return Ok(vec![address.to_canonical()]);
    }
    let Host::Name(name) = host else {
        return Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    };
    match timeout(RESOLVE_MAX, (resolver.0)(name.clone())).await {
        Ok(Ok(found)) => Ok(found.into_iter().map(|address| address.to_canonical()).collect()),
        Ok(Err(_)) => Err(NotReached::NoName),
        Err(_) => Err(NotReached::Late),
    }
}

impl Target {
    async fn open(&self, service: Service) -> Result<Reached, NotReached> {
        let Some(address) = self.0.request().address else { return Err(NotReached::NoRoute) };
        let at = |port| SocketAddr::new(address, port);
        let reached = match service {
            Service::Tcp(port) => tcp(at(port)).await.map(Reached::Tcp),
            Service::Udp(port) => udp(at(port)).await.map(Reached::Udp),
            Service::Echo => {
                return if echo::answers(address).await { Ok(Reached::Echo) } else { Err(NotReached::Late) };
            }
        };
        reached.map_err(|error| why(&error))
    }
}

async fn tcp(at: SocketAddr) -> io::Result<TcpStream> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let socket = socket.connect(at).await?;
    copy::prepare(&socket)?;
    Ok(socket)
}

async fn udp(at: SocketAddr) -> io::Result<UdpSocket> {
    let any = if at.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(at).await?;
    Ok(socket)
}

fn why(error: &io::Error) -> NotReached {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => NotReached::Refused,
        ErrorKind::TimedOut => NotReached::Late,
        _ => NotReached::NoRoute,
    }
}
