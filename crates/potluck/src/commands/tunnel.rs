//! `potluck tunnel`: single services of a peer, here; or of this machine, there.

use std::{
    future::pending,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use clap::Args;
use potluck_net::Node;
use potluck_tunnel::{Far, FindPeer, TunnelError, UdpTimes, forward_tcp, forward_udp};
use potluck_wire::{Dial, HOST_BYTES_MAX, Host, PeerAddress, Service};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use super::serve::PORT;
use crate::{
    args::take_handles,
    failure::Failure,
    home::{Home, Membership},
    screen::Screen,
    serving::{Announcer, ExposeArgs, Present, find_peer, look_again, serve_nothing},
    signals::Interrupt,
    talk::client_node,
};

#[derive(Debug, Args)]
pub(crate) struct Tunnel {
    /// The peer: the first digits of its id, as `potluck peers` shows it, its whole key, or KEY@IP:PORT
    #[arg(long, value_name = "PEER", required_unless_present = "expose", requires = "ports")]
    to: Option<String>,
    /// What to reach there: a port of its own, or of a host that it exposes (repeatable)
    #[arg(long = "port", value_name = "[HOST:]PORT", requires = "to")]
    ports: Vec<Wanted>,
    /// Where programs here reach it, in the order of the ports [default: 127.0.0.1, the same port]
    #[arg(long, value_name = "[IP:]PORT", value_parser = parse_listen, requires = "to")]
    listen: Vec<SocketAddr>,
    /// UDP instead of TCP, where a port does not say udp: or tcp:
    #[arg(long, requires = "to")]
    udp: bool,
    #[command(flatten)]
    expose: ExposeArgs,
    /// Where to listen for members, with --expose
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from(([0, 0, 0, 0], PORT)), conflicts_with = "to")]
    bind: SocketAddr,
}

/// A service that is wanted, and whether its protocol was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    udp: Option<bool>,
    host: Host,
    port: u16,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no service: write 5432, udp:53, db.lan:5432 or [fd00::1]:22");
        let (udp, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => (Some(false), rest),
            Some(("udp", rest)) => (Some(true), rest),
            _ => (None, text),
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) => (Some(host), port),
            None => (None, rest),
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let named = |host: &str| {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let fits = !host.is_empty() && host.len() <= HOST_BYTES_MAX && !host.contains([':', '[', ']', '/']);
            match bare.parse::<IpAddr>() {
                Ok(address) => Some(address.into()),
                Err(_) => (fits && host.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Host::Name(host.into())),
            }
        };
        let host = host.map_or(Some(Host::Own), named).ok_or_else(wrong)?;
        Ok(Self { udp, host, port })
    }
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| format!("`{text}` is no address to listen at: write 5432 or 127.0.0.1:5432"))
}

impl Tunnel {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        take_handles();
        match &self.to {
            Some(to) => self.forward(home, screen, to).await,
            None => self.serve(home, screen).await,
        }
    }

    /// Services of a peer, here.
    async fn forward(&self, home: &Home, screen: Screen, to: &str) -> Result<(), Failure> {
        if self.listen.len() > self.ports.len() {
            return Err(Failure::usage("more --listen than --port", "give a --port for each"));
        }
        let mut interrupt = Interrupt::listen()?;
        // Addresses that are taken are told at once.
        let mut sockets = Vec::new();
        for (n, wanted) in self.ports.iter().enumerate() {
            let at = self.listen.get(n).copied().unwrap_or((Ipv4Addr::LOCALHOST, wanted.port).into());
            let udp = wanted.udp.unwrap_or(self.udp);
            let service = if udp { Service::Udp(wanted.port) } else { Service::Tcp(wanted.port) };
            sockets.push((Local::open(at, udp).await?, Dial { service, host: wanted.host.clone() }));
        }
        let membership = Membership::open(home)?;
        let node = client_node(home, &membership).await?;
        let far = interrupt.or(reach_peer(&node, screen, membership.contacts.clone(), to)).await??;
        tell(screen, &far, &sockets)?;
        let mut tasks = JoinSet::new();
        for (local, dial) in sockets {
            let far = far.clone();
            tasks.spawn(async move {
                match local {
                    Local::Tcp(listener) => forward_tcp(listener, far, dial).await,
                    Local::Udp(socket) => {
                        if let Err(error) = forward_udp(socket, far, dial, UdpTimes::default()).await {
                            tracing::error!(%error, "a socket has broken");
                        }
                    }
                }
            });
        }
        interrupt.wait().await;
        node.close().await;
        Ok(())
    }

    /// Services of this machine, there.
    async fn serve(&self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let mut interrupt = Interrupt::listen()?;
        let Present { identity, grant, membership, node, .. } = &Present::enter(home, screen, self.bind).await?;
        let _exposing = self.expose.open(home, screen, node)?;
        let serving = serve_nothing(node);
        tell_exposed(screen, node, &self.expose, &membership.swarm)?;
        let mut announcer = Announcer::new(home, identity.key.clone(), grant.clone(), membership);
        tokio::select! {
            () = announcer.run_lending(node, &serving) => {}
            () = interrupt.wait() => {}
        }
        serving.stop().await;
        node.close().await;
        Ok(())
    }
}

/// The peer that was named, connected where it is there. One that is away is waited for by whoever asks for its services.
pub(super) async fn reach_peer(
    node: &Node,
    screen: Screen,
    contacts: Vec<PeerAddress>,
    text: &str,
) -> Result<Far, Failure> {
    let at = find_peer(node, &contacts, text).await?;
    let (peer, finding) = (at.peer, node.clone());
    let find = FindPeer::new(move || {
        let (node, contacts) = (finding.clone(), contacts.clone());
        async move { look_again(&node, &contacts, peer).await }
    });
    let far = Far::new(node.clone(), at, find);
    match far.reach().await {
        Ok(_) => {}
        Err(error @ (TunnelError::Away { .. } | TunnelError::Lost(_))) => {
            screen.note(format!("{error}; connections wait for it, ten seconds each"));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(far)
}

/// A socket of this machine.
enum Local {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Local {
    async fn open(at: SocketAddr, udp: bool) -> Result<Self, Failure> {
        let opened =
            if udp { UdpSocket::bind(at).await.map(Self::Udp) } else { TcpListener::bind(at).await.map(Self::Tcp) };
        opened.map_err(|error| cannot_listen(at, &error))
    }

    fn at(&self) -> String {
        let at = match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        };
        at.map_or_else(|error| error.to_string(), |at| at.to_string())
    }
}

pub(super) fn cannot_listen(at: SocketAddr, error: &std::io::Error) -> Failure {
    let hint = "choose another address: --listen 127.0.0.1:0 takes any free port";
    Failure { hint: hint.into(), ..Failure::io(format!("listening at {at}"), error) }
}

/// How a peer is reached at present, in a word; none while it is not.
pub(super) async fn way(far: &Far) -> Option<String> {
    Some(far.reach().await.ok()?.path()?.kind.to_string())
}

fn host_name(host: &Host) -> Option<String> {
    match host {
        Host::Own => None,
        Host::Name(name) => Some(name.clone()),
        host => host.address().map(|address| address.to_string()),
    }
}

fn tell(screen: Screen, far: &Far, sockets: &[(Local, Dial)]) -> Result<(), Failure> {
    if screen.json {
        let tunnel = |(local, dial): &(Local, Dial)| -> Value {
            let protocol = if matches!(dial.service, Service::Udp(_)) { "udp" } else { "tcp" };
            let (host, port) = (host_name(&dial.host), dial.service.port());
            json!({ "listen": local.at(), "protocol": protocol, "host": host, "port": port })
        };
        let tunnels: Vec<_> = sockets.iter().map(tunnel).collect();
        return screen.object(&json!({ "peer": far.peer().to_string(), "tunnels": tunnels }));
    }
    let mut text = String::new();
    for (local, dial) in sockets {
        let protocol = if matches!(dial.service, Service::Udp(_)) { "UDP " } else { "" };
        let port = dial.service.port().unwrap_or(0);
        let there = match host_name(&dial.host) {
            Some(host) => format!("{host} port {port}, through {}", far.peer().short()),
            None => format!("port {port} of {}", far.peer().short()),
        };
        text += &format!("{protocol}{} is {there}\n", local.at());
    }
    screen.text(&text)
}

fn tell_exposed(screen: Screen, node: &Node, exposed: &ExposeArgs, swarm: &str) -> Result<(), Failure> {
    let PeerAddress { addresses, relay, .. } = node.address();
    if screen.json {
        return screen.object(&json!({
            "id": node.id().to_string(),
            "addresses": addresses,
            "relay": relay,
            "pid": std::process::id(),
            "swarm": swarm,
            "exposes": exposed.names(),
        }));
    }
    let lines = [
        format!("members reach {}", exposed.names().join(", ")),
        format!("  peer   {}", node.id()),
        format!("  at     {}", addresses.into_iter().chain(relay).collect::<Vec<_>>().join(" ")),
        format!("  swarm  {swarm}"),
    ];
    screen.text(&(lines.join("\n") + "\n"))
}

/// Waits for tasks that end only where something breaks.
pub(super) async fn first_to_end(tasks: &mut JoinSet<Result<(), Failure>>) -> Failure {
    match tasks.join_next().await {
        Some(Ok(Err(failure))) => failure,
        _ => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_as_people_write_them() {
        let wanted = |text: &str| text.parse::<Wanted>();
        assert_eq!(wanted("5432"), Ok(Wanted { udp: None, host: Host::Own, port: 5432 }));
        assert_eq!(wanted("udp:53"), Ok(Wanted { udp: Some(true), host: Host::Own, port: 53 }));
        assert_eq!(wanted("10.0.0.1:22").unwrap().host, Host::V4([10, 0, 0, 1]));
        assert_eq!(wanted("tcp:db.lan:22").unwrap().host, Host::Name("db.lan".into()));
        assert!(matches!(wanted("[fd00::1]:22").unwrap().host, Host::V6(_)));
        for bad in ["", "0", "x", "70000", ":22", "[fd00::1:22", "a b:22", "tcp:", "10.0.0.0/8:22"] {
            assert!(wanted(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_listen("5432"), Ok("127.0.0.1:5432".parse().unwrap()));
        assert!(parse_listen("localhost:1").is_err());
    }
}
