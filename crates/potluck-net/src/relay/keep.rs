//! Leaves a relay that is lost for another, sooner than the library would: it looks for one every 20 to 26 s (iroh 1.4.1).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use iroh::{Endpoint, RelayConfig, RelayUrl, Watcher as _};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::info;

/// How long a home relay may be without a connection before another one is looked for.
const PATIENCE: Duration = Duration::from_secs(3);

/// For how long a relay that was left is not tried again.
const REST: Duration = Duration::from_secs(30);

/// Until the endpoint is closed.
pub(super) async fn keep(endpoint: Endpoint, configs: Vec<RelayConfig>) {
    let configs: BTreeMap<RelayUrl, Arc<RelayConfig>> =
        configs.into_iter().map(|config| (config.url.clone(), Arc::new(config))).collect();
    let mut resting: BTreeMap<RelayUrl, Instant> = BTreeMap::new();
    let mut states = endpoint.home_relay_status();
    let mut without_since: Option<(RelayUrl, Instant)> = None;
    loop {
        let homes = states.get();
        let now = Instant::now();
        let lost = homes.iter().all(|home| !home.is_connected()).then(|| homes.first().map(|home| home.url().clone()));
        without_since = match (lost.flatten(), without_since.take()) {
            (Some(url), Some((before, since))) if before == url => Some((url, since)),
            (Some(url), _) => Some((url, now)),
            (None, _) => None,
        };
        if let Some((url, since)) = &without_since
            && now >= *since + PATIENCE
        {
            // The last one is left to the library, which tries it again.
            if resting.len() + 1 < configs.len() && endpoint.remove_relay(url).await.is_some() {
                info!(relay = %url, "it does not answer: another one is looked for");
                resting.insert(url.clone(), now + REST);
            }
            without_since = None;
        }
        for url in resting.iter().filter(|(_, until)| **until <= now).map(|(url, _)| url.clone()).collect::<Vec<_>>() {
            resting.remove(&url);
            if let Some(config) = configs.get(&url) {
                endpoint.insert_relay(url, config.clone()).await;
            }
        }
        let patience = without_since.as_ref().map(|(_, since)| *since + PATIENCE);
        let wake = patience.into_iter().chain(resting.values().copied()).min();
        let changed = async {
            match wake {
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    timeout(left, states.updated()).await.map_or(Ok(()), |updated| updated.map(drop))
                }
                None => states.updated().await.map(drop),
            }
        };
        tokio::select! {
            changed = changed => if changed.is_err() { return },
            _ = endpoint.closed() => return,
        }
        // A state that changes again and again is looked at no more often than this.
        sleep_until(now + Duration::from_millis(50)).await;
    }
}
