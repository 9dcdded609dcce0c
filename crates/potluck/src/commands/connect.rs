//! `potluck connect`: a door to a peer's network.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;
use potluck_grant::Net;
use potluck_tunnel::{Far, UdpTimes, socks};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

use super::tunnel::{cannot_listen, first_to_end, reach_peer, way};
use crate::{
    args::take_handles,
    failure::Failure,
    home::{Home, Membership},
    screen::Screen,
    signals::Interrupt,
    talk::client_node,
};

/// Where programs ask for a proxy, usually.
const SOCKS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);

#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// The peer: the first digits of its id, as `potluck peers` shows it, its whole key, or KEY@IP:PORT
    peer: String,
    /// Where programs find a SOCKS 5 proxy; names are resolved by the peer
    #[arg(long, value_name = "IP:PORT", default_value_t = SOCKS)]
    socks: SocketAddr,
    /// Let others on the network use the proxy as well, with this machine's grant: it asks for no password
    #[arg(long)]
    socks_for_others: bool,
    /// Route a range of addresses through the peer, such as 192.168.1.0/24; takes root, Linux (repeatable)
    #[arg(long, value_name = "RANGE")]
    tun: Vec<Net>,
}

impl Connect {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        take_handles();
        if !self.socks.ip().is_loopback() && !self.socks_for_others {
            let message = format!("a proxy at {} is open to whoever reaches it", self.socks);
            return Err(Failure::usage(message, "listen at 127.0.0.1, or say --socks-for-others"));
        }
        let mut interrupt = Interrupt::listen()?;
        let listener = TcpListener::bind(self.socks).await.map_err(|error| cannot_listen(self.socks, &error))?;
        let at = listener.local_addr().map_err(|error| cannot_listen(self.socks, &error))?;
        // Before the endpoint: it would take the new device for a change of the network.
        let mut tasks = JoinSet::new();
        let device = Device::open(&self.tun)?;
        let membership = Membership::open(home)?;
        let node = client_node(home, &membership).await?;
        let far = interrupt.or(reach_peer(&node, screen, membership.contacts.clone(), &self.peer)).await??;
        let path = way(&far).await;
        if path.is_none() {
            self.check_way(&far)?;
        }
        self.tell(screen, &far, path, at, device.as_ref())?;
        let door = far.clone();
        tasks.spawn(async move {
            socks::serve(listener, door, UdpTimes::default()).await;
            Ok(())
        });
        if let Some(device) = device {
            tasks.spawn(device.serve(far));
        }
        let ended = tokio::select! {
            failure = first_to_end(&mut tasks) => Err(failure),
            () = interrupt.wait() => Ok(()),
        };
        node.close().await;
        ended
    }

    /// Whether the way to the peer was routed through the peer.
    fn check_way(&self, far: &Far) -> Result<(), Failure> {
        let places = far.at().addresses;
        let hidden = places.iter().find(|text| {
            let place: Option<SocketAddr> = text.parse().ok();
            place.is_some_and(|at| self.tun.iter().any(|range| range.holds(at.ip())))
        });
        hidden.map_or(Ok(()), |at| {
            let message = format!("the peer itself is at {at}, which would be routed through it");
            Err(Failure::new("tun", message, "give --tun a narrower range"))
        })
    }

    fn tell(
        &self,
        screen: Screen,
        far: &Far,
        path: Option<String>,
        at: SocketAddr,
        device: Option<&Device>,
    ) -> Result<(), Failure> {
        let peer = far.peer();
        let ranges: Vec<_> = self.tun.iter().map(ToString::to_string).collect();
        if screen.json {
            let device = device.map(Device::name);
            let object = json!({
                "peer": peer.to_string(), "path": path, "socks": at.to_string(), "tun": ranges, "device": device,
            });
            return screen.object(&object);
        }
        let path = path.map_or("away".into(), |path| format!("{path} path"));
        let routed = match device {
            Some(device) => format!(", and {} by {}", ranges.join(", "), device.name()),
            None => String::new(),
        };
        screen.text(&format!("the network of {} ({path}) is at socks5h://{at}{routed}\n", peer.short()))
    }
}

/// The device that ranges are routed to.
#[cfg(target_os = "linux")]
struct Device(potluck_tunnel::tun::TunDevice);

#[cfg(target_os = "linux")]
impl Device {
    fn open(ranges: &[Net]) -> Result<Option<Self>, Failure> {
        if ranges.is_empty() {
            return Ok(None);
        }
        let opened = potluck_tunnel::tun::TunDevice::open(ranges);
        opened.map(|device| Some(Self(device))).map_err(|error| {
            let hint = "it takes root, and ranges that this machine is not in itself; --socks takes neither";
            Failure::new("tun", format!("no device for {} could be made: {error}", names(ranges)), hint)
        })
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    async fn serve(self, far: Far) -> Result<(), Failure> {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| Failure::new("io", format!("no randomness: {error}"), ""))?;
        let served = potluck_tunnel::tun::serve(self.0, far, UdpTimes::default(), u64::from_le_bytes(seed)).await;
        served.map_err(|error| Failure::io("the TUN device", &error))
    }
}

#[cfg(not(target_os = "linux"))]
struct Device(std::convert::Infallible);

#[cfg(not(target_os = "linux"))]
impl Device {
    fn open(ranges: &[Net]) -> Result<Option<Self>, Failure> {
        if ranges.is_empty() {
            return Ok(None);
        }
        let message = format!("{} cannot be routed on this system yet", names(ranges));
        Err(Failure::new("tun", message, "use the SOCKS proxy, which `potluck connect` opens without --tun"))
    }

    fn name(&self) -> &str {
        match self.0 {}
    }

    async fn serve(self, _far: Far) -> Result<(), Failure> {
        match self.0 {}
    }
}

fn names(ranges: &[Net]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
