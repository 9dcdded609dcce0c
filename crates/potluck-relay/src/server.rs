//! A relay that runs.

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use iroh_metrics::{Registry, service::MetricsServer};
use iroh_relay::server as protocol;
use potluck_core::with_causes;
use tokio::{sync::watch, task::JoinSet, time::interval};
use tracing::{info, warn};

use crate::{
    RelayConfig, Spent,
    access::{Guard, utc_now},
};

/// How often it looks who has to go: what was taken back is in force within this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Seconds of a UTC day.
const DAY: u64 = 86_400;

/// Bytes that one connection may send at once beyond its rate: this many seconds' worth.
const BURST_SECONDS: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);

/// Why a relay does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The operator: the certificate or its key.
    #[error("the relay's certificate: {0}")]
    Certificate(String),
    /// The operator: an address is in use, or the right to use it is missing (ports below 1024).
    #[error("the relay does not start: {0}")]
    Start(String),
    /// The operator: it ended by itself.
    #[error("the relay has ended: {0}")]
    Ended(String),
}

/// A relay that runs, until it is stopped or dropped.
#[derive(Debug)]
pub struct Relay {
    server: protocol::Server,
    spent: watch::Receiver<Spent>,
    metrics: Option<MetricsServer>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Starts it.
    ///
    /// # Errors
    /// `Certificate`, `Start`.
    pub async fn start(config: RelayConfig) -> Result<Self, RelayError> {
        let RelayConfig { gates, certificate, bind, http, discovery, metrics, limits, spent } = config;
        let guard = Arc::new(Guard::new(gates, limits));
        let mut relay = protocol::RelayConfig::new(if certificate.is_some() { http } else { bind });
        let mut server = protocol::ServerConfig::default();
        if let Some(certificate) = certificate {
            relay.tls = Some(protocol::TlsConfig::new(bind, certificate.into_config()?));
            server.quic = Some(protocol::QuicConfig::new(discovery));
        }
        relay.access = guard.clone();
        relay.limits.client_rx = limits.bytes_per_second.map(|rate| {
            let mut limit = protocol::ClientRateLimit::new(rate);
            limit.max_burst_bytes = Some(rate.saturating_mul(BURST_SECONDS));
            limit
        });
        server.relay = Some(relay);
        let server = protocol::Server::spawn(server).await.map_err(|error| RelayError::Start(with_causes(&error)))?;
        let metrics = match metrics {
            Some(at) => Some(serve_metrics(at, &server, &guard).await?),
            None => None,
        };
        let (tell, told) = watch::channel(spent);
        let mut tasks = JoinSet::new();
        let looking = Looking { guard, relayed: server.metrics().clone(), per_day: limits.bytes_per_day, tell };
        let service = server.relay_service().cloned().ok_or_else(|| RelayError::Start("no service".into()))?;
        tasks.spawn(looking.run(service));
        Ok(Self { server, spent: told, metrics, _tasks: tasks })
    }

    /// Where it listens by TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.https_addr().or(self.server.http_addr())
    }

    /// Where it tells by QUIC what it sees.
    pub fn discovery(&self) -> Option<SocketAddr> {
        self.server.quic_addr()
    }

    /// Where its metrics are read.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(MetricsServer::local_addr)
    }

    /// What was passed on in this UTC day, as of a second ago.
    pub fn spent(&self) -> Spent {
        *self.spent.borrow()
    }

    /// The same, as it changes.
    pub fn spending(&self) -> watch::Receiver<Spent> {
        self.spent.clone()
    }

    /// Returns when it has ended by itself, which it has no reason to.
    ///
    /// # Errors
    /// `Ended`, with why.
    pub async fn ended(&mut self) -> RelayError {
        RelayError::Ended(match self.server.join().await {
            Ok(Ok(())) => "it was stopped".into(),
            Ok(Err(error)) => with_causes(&error),
            Err(error) => error.to_string(),
        })
    }

    /// Puts everybody out, and ends.
    ///
    /// # Errors
    /// `Ended`, where it had ended before.
    pub async fn stop(self) -> Result<(), RelayError> {
        if let Some(metrics) = self.metrics {
            metrics.shutdown().await;
        }
        self.server.shutdown().await.map_err(|error| RelayError::Ended(with_causes(&error)))
    }
}

async fn serve_metrics(at: SocketAddr, server: &protocol::Server, guard: &Guard) -> Result<MetricsServer, RelayError> {
    let mut registry = Registry::default();
    registry.register_all(server.metrics());
    registry.register(guard.metrics.clone());
    let served = MetricsServer::spawn(at, Arc::new(registry)).await;
    served.map_err(|error| RelayError::Start(format!("metrics at {at}: {error}")))
}

/// Looks, again and again, who has to go.
struct Looking {
    guard: Arc<Guard>,
    relayed: protocol::RelayMetrics,
    per_day: Option<u64>,
    tell: watch::Sender<Spent>,
}

impl Looking {
    async fn run(self, service: protocol::http_server::RelayService) {
        let (mut counted, mut was_spent) = (0, false);
        let mut ticks = interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let all = self.relayed.server.bytes_recv.get();
            let (today, more) = (utc_now() / DAY, all - counted);
            counted = all;
            self.tell.send_modify(|spent| {
                if today > spent.day {
                    *spent = Spent { day: today, bytes: 0 };
                }
                spent.bytes = spent.bytes.saturating_add(more);
            });
            let bytes = self.tell.borrow().bytes;
            self.guard.metrics.bytes_today.set(bytes.min(i64::MAX as u64) as i64);
            let spent = self.per_day.is_some_and(|limit| bytes >= limit);
            if spent && !was_spent {
                warn!(bytes, "the day's bytes are used up: nobody is helped until tomorrow (UTC)");
            }
            was_spent = spent;
            for (key, connection) in self.guard.to_put_out(spent) {
                if service.clients().disconnect(key, Some(connection)) {
                    self.guard.metrics.put_out.inc();
                    info!(peer = %key.fmt_short(), "put out");
                }
            }
        }
    }
}
