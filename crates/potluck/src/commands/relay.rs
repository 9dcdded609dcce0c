//! `potluck relay`: helps the machines of a swarm that do not reach each other.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use clap::{Args, builder::NonEmptyStringValueParser};
use potluck_grant::{Gate, SwarmId};
use potluck_net::RelayAt;
use potluck_relay::{Acme, Certificate, Limits, Relay as Server, RelayConfig, RelayError, Spent};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::watch, time::interval};

use crate::{
    args::parse_bytes,
    commands::swarm::own_addresses,
    failure::{Failure, OrFail},
    home::{Home, Membership},
    screen::Screen,
    serving::keep_hearing,
    signals::Interrupt,
    talk::client_node,
};

/// Where a relay listens unless the user says otherwise.
const HTTPS: u16 = 443;
const HTTP: u16 = 80;
/// What clients assume, too.
const DISCOVERY: u16 = 7842;

/// How often it is noted how much was passed on.
const NOTE_EVERY: Duration = Duration::from_secs(3);

const SPENT: &str = "relay.json";

#[derive(Debug, Args)]
pub(crate) struct Relay {
    /// The name or address by which the others reach this machine (repeatable) [default: its own addresses]
    #[arg(long, value_name = "HOST", value_parser = NonEmptyStringValueParser::new())]
    name: Vec<String>,
    /// Where it listens for the relay itself: TCP
    #[arg(long, value_name = "IP:PORT", default_value_t = at(HTTPS))]
    bind: SocketAddr,
    /// Where it tells machines from where it sees them, without which none finds a direct path: UDP
    #[arg(long, value_name = "IP:PORT", default_value_t = at(DISCOVERY))]
    udp: SocketAddr,
    /// Where it answers, in plain HTTP, who asks whether this is the Internet
    #[arg(long, value_name = "IP:PORT", default_value_t = at(HTTP))]
    http: SocketAddr,
    /// Have the certificate from Let's Encrypt, for the names of --name: port 443 has to be reached from the Internet
    #[arg(long, conflicts_with = "cert", requires = "name")]
    acme: bool,
    /// Whom that authority may write to
    #[arg(long, value_name = "MAIL", requires = "acme")]
    contact: Option<String>,
    /// Another authority that speaks ACME
    #[arg(long, value_name = "URL", requires = "acme")]
    acme_directory: Option<String>,
    /// A certificate of your own: the chain, as PEM [default: one of its own making, known by its hash]
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key, as PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// A swarm to help, besides this machine's own: its id (repeatable)
    #[arg(long, value_name = "SWARM")]
    also: Vec<SwarmId>,
    /// Serve metrics there, for Prometheus
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    connections: usize,
    /// What one connection may send in a second, such as 2MB
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    rate: Option<NonZeroU32>,
    /// What all of them may send in a day (UTC), such as 50GB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    daily: Option<u64>,
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

fn parse_rate(text: &str) -> Result<NonZeroU32, String> {
    let bytes = parse_bytes(text)?;
    let bytes = u32::try_from(bytes).ok().and_then(NonZeroU32::new);
    bytes.ok_or_else(|| format!("`{text}` is more than 4 GB in a second"))
}

/// What was passed on, kept over a restart.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    day: u64,
    bytes: u64,
}

impl Relay {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let mut interrupt = Interrupt::listen()?;
        let membership = Membership::find(home)?;
        let own = membership.as_ref().map(|membership| membership.gate(home)).transpose()?;
        // Its own swarm is heard of; a second gate of it would not be.
        let mut also = self.also.clone();
        also.retain(|swarm| own.as_ref().is_none_or(|gate| gate.swarm() != *swarm));
        also.sort_unstable();
        also.dedup();
        let gates: Vec<Gate> = own.iter().cloned().chain(also.into_iter().map(Gate::new)).collect();
        if gates.is_empty() {
            let hint = "make one: potluck swarm create, join one: potluck join LINE, or name one: --also SWARM";
            return Err(Failure::new(
                "no_swarm",
                "a relay helps the members of a swarm, and this machine knows none",
                hint,
            ));
        }
        let names = if self.name.is_empty() { own_hosts() } else { self.name.clone() };
        let certificate = self.certificate(home, &names)?;
        let is_pinned = self.cert.is_none();
        let pin = certificate.der().filter(|_| is_pinned).map(<[u8]>::to_vec);
        let limits = Limits {
            connections: self.connections,
            bytes_per_second: self.rate,
            bytes_per_day: self.daily,
            ..Limits::default()
        };
        let swarms: Vec<_> = gates.iter().map(|gate| gate.swarm().to_string()).collect();
        let config = RelayConfig {
            bind: self.bind,
            http: self.http,
            discovery: self.udp,
            metrics: self.metrics,
            limits,
            spent: spent(home)?,
            ..RelayConfig::new(gates, certificate)
        };
        let mut relay = Server::start(config).await?;
        let urls = self.urls(&names, &relay, pin.as_deref())?;
        // A member that only asks: at itself as well, for those who are reached by it alone.
        let node = match membership {
            Some(mut membership) => {
                urls.iter().take(1).for_each(|url| membership.keep_relay(url));
                membership.save(home)?;
                Some(client_node(home, &membership).await?)
            }
            None => None,
        };
        self.tell(screen, &urls, &swarms, &relay, node.is_none())?;
        let _hearing = keep_hearing(home, node.clone(), own);
        let spending = relay.spending();
        let done = tokio::select! {
            () = interrupt.wait() => Ok(()),
            ended = relay.ended() => Err(ended.into()),
            failure = note_spending(home, spending) => Err(failure),
        };
        keep_spent(home, relay.spent())?;
        if let Some(node) = node {
            node.close().await;
        }
        if done.is_ok() {
            relay.stop().await?;
        }
        done
    }

    fn certificate(&self, home: &Home, names: &[String]) -> Result<Certificate, Failure> {
        if self.acme {
            return Ok(Certificate::Acme(Acme {
                domains: names.to_vec(),
                contact: self.contact.clone(),
                directory: self.acme_directory.clone(),
                // The library writes keys there that anybody may read.
                folder: home.private_folder("acme")?,
            }));
        }
        Ok(match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Certificate::from_files(cert, key)?,
            _ => Certificate::self_signed(&home.path("relay"), names)?,
        })
    }

    /// How the others write it, by each of its names.
    fn urls(&self, names: &[String], relay: &Server, pin: Option<&[u8]>) -> Result<Vec<RelayAt>, Failure> {
        let port = relay.address().map_or(HTTPS, |at| at.port());
        let udp = relay.discovery().map(|at| at.port()).filter(|&port| port != DISCOVERY);
        let written = |name: &String| {
            let host = if name.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{name}]") } else { name.clone() };
            let port = if port == HTTPS { String::new() } else { format!(":{port}") };
            Ok(RelayAt::with_certificate(&format!("https://{host}{port}"), pin, udp)?)
        };
        names.iter().map(written).collect()
    }

    fn tell(
        &self,
        screen: Screen,
        urls: &[RelayAt],
        swarms: &[String],
        relay: &Server,
        deaf: bool,
    ) -> Result<(), Failure> {
        let written: Vec<_> = urls.iter().map(ToString::to_string).collect();
        if screen.json {
            return screen.object(&json!({
                "relays": written,
                "swarms": swarms,
                "tcp": relay.address(),
                "udp": relay.discovery(),
                "metrics": relay.metrics(),
            }));
        }
        for url in &written {
            screen.text(&format!("relay  {url}\n"))?;
        }
        for swarm in swarms {
            screen.text(&format!("helps  the members of swarm {swarm}\n"))?;
        }
        screen.note(format!(
            "let through by TCP at {} and by UDP at {}, and tell each machine of it: potluck swarm relays --add '{}'",
            relay.address().map_or(self.bind, |at| at),
            relay.discovery().map_or(self.udp, |at| at),
            written.first().map_or("URL", String::as_str),
        ));
        if deaf {
            screen.note(
                "this machine is no member: it does not hear of what is taken back, and goes by each grant's end alone",
            );
        } else {
            screen.note("invitations that are written here from now on name it");
        }
        Ok(())
    }
}

/// This machine's addresses.
fn own_hosts() -> Vec<String> {
    let hosts = own_addresses().into_iter().filter_map(|at| at.parse::<SocketAddr>().ok());
    let hosts: Vec<_> = hosts.map(|at| at.ip().to_string()).collect();
    if hosts.is_empty() { vec!["127.0.0.1".into()] } else { hosts }
}

/// Notes how much was passed on, where it was more than before, until that fails.
async fn note_spending(home: &Home, spending: watch::Receiver<Spent>) -> Failure {
    let (mut ticks, mut noted) = (interval(NOTE_EVERY), None);
    loop {
        ticks.tick().await;
        let spent = *spending.borrow();
        if noted != Some(spent) {
            if let Err(failure) = keep_spent(home, spent) {
                return failure;
            }
            noted = Some(spent);
        }
    }
}

fn spent(home: &Home) -> Result<Spent, Failure> {
    let Some(text) = home.read(SPENT)? else { return Ok(Spent::default()) };
    let Kept { day, bytes } =
        serde_json::from_str(&text).or_fail("relay", "remove relay.json: the day is counted anew")?;
    Ok(Spent { day, bytes })
}

fn keep_spent(home: &Home, Spent { day, bytes }: Spent) -> Result<(), Failure> {
    home.write(SPENT, &serde_json::to_string(&Kept { day, bytes }).or_fail("internal", "report this")?)
}

impl From<RelayError> for Failure {
    fn from(error: RelayError) -> Self {
        let (code, hint) = match &error {
            RelayError::Certificate(_) => ("certificate", "see potluck relay --help: --cert and --key, or neither"),
            RelayError::Start(_) => (
                "bind",
                "ports below 1024 need root; others: --bind 0.0.0.0:8443 --udp 0.0.0.0:7842 --http 0.0.0.0:8080",
            ),
            _ => ("relay", "start it again, and report it if that happens again"),
        };
        Self::new(code, error, hint)
    }
}
