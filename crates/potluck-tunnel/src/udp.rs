//! Flows of UDP on the side that reaches: one for each who sends and whom it sends to, for as long as something passes.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use bytes::Bytes;
use potluck_wire::{Dial, Service};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tracing::debug;

use crate::Far;

/// Flows of one door at once. For the next one, the flow that was used longest ago ends.
const FLOWS_MAX: usize = 1_024;

/// Packets of one flow that wait to be sent: those, too, that come before its service is reached. The next one is dropped.
const WAITING_MAX: usize = 256;

/// How long packets to what was not reached are dropped before it is asked for again.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// The port of DNS.
const DNS: u16 = 53;

/// How long a flow of UDP may carry nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpTimes {
    /// Of DNS: a question and its answer.
    pub dns: Duration,
    /// Of all else; RFC 4787 asks for two minutes at least.
    pub other: Duration,
}

impl Default for UdpTimes {
    fn default() -> Self {
        Self { dns: Duration::from_secs(30), other: Duration::from_secs(120) }
    }
}

impl UdpTimes {
    pub(crate) fn idle(self, service: Service) -> Duration {
        if service == Service::Udp(DNS) { self.dns } else { self.other }
    }
}

/// The flows of one door. `K` tells them apart, and says where an answer goes.
#[derive(Debug)]
pub(crate) struct UdpFlows<K> {
    far: Far,
    times: UdpTimes,
    flows: HashMap<K, Running>,
    answers: mpsc::Sender<(K, Bytes)>,
    tasks: JoinSet<K>,
}

#[derive(Debug)]
struct Running {
    packets: mpsc::Sender<Bytes>,
    used: Instant,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> UdpFlows<K> {
    /// Flows to that peer, whose answers come out of `answers`.
    pub(crate) fn new(far: Far, times: UdpTimes, answers: mpsc::Sender<(K, Bytes)>) -> Self {
        Self { far, times, flows: HashMap::new(), answers, tasks: JoinSet::new() }
    }

    /// Sends a packet to that service, by the flow that there is or a new one.
    pub(crate) fn send(&mut self, key: K, dial: Dial, packet: Bytes) {
        self.tidy();
        if let Some(flow) = self.flows.get_mut(&key).filter(|flow| !flow.packets.is_closed()) {
            flow.used = Instant::now();
            // Whoever sends faster than the tunnel takes it loses packets, as on any path.
            let _ = flow.packets.try_send(packet);
            return;
        }
        if self.flows.len() >= FLOWS_MAX {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.used).map(|(key, _)| key.clone());
            oldest.map(|key| self.flows.remove(&key));
        }
        let (packets, waiting) = mpsc::channel(WAITING_MAX);
        let _ = packets.try_send(packet);
        self.flows.insert(key.clone(), Running { packets, used: Instant::now() });
        let (far, answers, idle) = (self.far.clone(), self.answers.clone(), self.times.idle(dial.service));
        self.tasks.spawn(async move {
            run(far, dial, waiting, idle, |packet| answers.try_send((key.clone(), packet)).is_ok()).await;
            key
        });
    }

    /// Lets go of flows that have ended.
    fn tidy(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Ok(key) = ended
                && self.flows.get(&key).is_some_and(|flow| flow.packets.is_closed())
            {
                self.flows.remove(&key);
            }
        }
    }
}

/// One flow, until nothing has passed for so long, or nobody wants it any more.
async fn run(far: Far, dial: Dial, mut waiting: mpsc::Receiver<Bytes>, idle: Duration, answer: impl Fn(Bytes) -> bool) {
    let mut flow = match far.open(&dial).await {
        Ok(opened) => opened.into_flow(),
        Err(error) => {
            debug!(%error, service = ?dial.service, "a flow was not begun");
            // Each packet asking again would be a storm.
            let drain = async { while waiting.recv().await.is_some() {} };
            let _ = timeout(REFUSED_FOR, drain).await;
            return;
        }
    };
    let mut until = tokio::time::Instant::now() + idle;
    loop {
        tokio::select! {
            packet = waiting.recv() => {
                let Some(packet) = packet else { return };
                if !flow.send(&packet).await {
                    return;
                }
            }
            packet = flow.recv() => {
                let Some(packet) = packet else { return };
                // A reader that does not keep up loses packets.
                let _ = answer(packet);
            }
            () = sleep_until(until) => return,
        }
        until = tokio::time::Instant::now() + idle;
    }
}
