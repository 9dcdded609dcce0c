//! How often anybody may come: by address before the handshake, which costs us more than it costs whoever begins it, and by key
//! after it.

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use governor::{Quota, RateLimiter, clock::MonotonicClock, state::keyed::HashMapStateStore};
use iroh::{EndpointId, endpoint::IncomingAddr};
use potluck_core::{Defence, PeerId};

/// Connections a second from one address that has been proven, and how many may come at once: several machines behind one
/// address, each of which opens one to each peer.
const PROVEN: (NonZeroU32, NonZeroU32) = (nonzero(32), nonzero(128));

/// The same while the address may be made up: beyond it, its owner is asked to come again, which costs nothing here.
const UNPROVEN: (NonZeroU32, NonZeroU32) = (nonzero(8), nonzero(32));

/// The same of one key: a program of a member's opens one connection and keeps it.
const OF_KEY: (NonZeroU32, NonZeroU32) = (nonzero(8), nonzero(32));

/// Addresses and keys that are remembered, each a few words. While so many have come of late, nobody is let in.
const REMEMBERED_MAX: usize = 16_384;

/// How often it is looked at whom to forget, where it is too many.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

const fn nonzero(value: u32) -> NonZeroU32 {
    match NonZeroU32::new(value) {
        Some(value) => value,
        None => panic!("no rate"),
    }
}

/// Where a connection comes from, as far as one party has it at its disposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    V4(Ipv4Addr),
    /// The first 64 bits: whoever has one address of such a network has all of them.
    V6(u64),
    /// By a relay, whoever has proven that key there. Which relay is part of it: another may say what it likes.
    Relayed(u64, EndpointId),
    Other,
}

impl Origin {
    pub(crate) fn of(address: &IncomingAddr) -> Self {
        match address {
            IncomingAddr::Ip(address) => match address.ip().to_canonical() {
                IpAddr::V4(address) => Self::V4(address),
                IpAddr::V6(address) => Self::V6((u128::from(address) >> 64) as u64),
            },
            IncomingAddr::Relay { url, endpoint_id } => {
                let mut relay = DefaultHasher::new();
                url.hash(&mut relay);
                Self::Relayed(relay.finish(), *endpoint_id)
            }
            _ => Self::Other,
        }
    }

    /// Whether nobody can make it up.
    pub(crate) fn is_proven(self) -> bool {
        matches!(self, Self::Relayed(..))
    }

    pub(crate) fn is_relayed(&self) -> bool {
        matches!(self, Self::Relayed(..))
    }
}

/// One kind of rate, and when those that have not come of late were forgotten last.
#[derive(Debug)]
struct Limiter<K: Hash + Eq + Clone> {
    rates: RateLimiter<K, HashMapStateStore<K>, MonotonicClock>,
    swept: Mutex<Option<Instant>>,
}

/// How often each has come of late.
#[derive(Debug)]
pub(crate) struct Rates {
    proven: Limiter<Origin>,
    unproven: Limiter<Origin>,
    of_key: Limiter<PeerId>,
}

impl Default for Rates {
    fn default() -> Self {
        Self { proven: Limiter::new(PROVEN), unproven: Limiter::new(UNPROVEN), of_key: Limiter::new(OF_KEY) }
    }
}

impl Rates {
    /// Whether another connection may come from there.
    pub(crate) fn allow(&self, from: Origin) -> bool {
        self.proven.allow(&from) || !Defence::AddressRate.stands()
    }

    /// The same where the address may be made up.
    pub(crate) fn allow_unproven(&self, from: Origin) -> bool {
        self.unproven.allow(&from)
    }

    /// Whether that key may open another.
    pub(crate) fn allow_key(&self, peer: PeerId) -> bool {
        self.of_key.allow(&peer) || !Defence::KeyRate.stands()
    }
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    fn new((a_second, at_once): (NonZeroU32, NonZeroU32)) -> Self {
        let quota = Quota::per_second(a_second).allow_burst(at_once);
        Self { rates: RateLimiter::new(quota, HashMapStateStore::default(), MonotonicClock), swept: Mutex::default() }
    }

    fn allow(&self, of: &K) -> bool {
        if self.rates.len() >= REMEMBERED_MAX {
            self.sweep();
            if self.rates.len() >= REMEMBERED_MAX {
                return false;
            }
        }
        self.rates.check_key(of).is_ok()
    }

    /// Forgets those that have not come of late: they are as good as new. Whoever floods us is not to have all looked at again and again.
    fn sweep(&self) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY) {
            self.rates.retain_recent();
            *swept = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn at(text: &str) -> Origin {
        let address: SocketAddr = text.parse().unwrap();
        Origin::of(&IncomingAddr::Ip(address))
    }

    #[test]
    fn one_address_has_its_share_and_another_its_own() {
        let rates = Rates::default();
        let at_once = |from| (0..1_000).take_while(|_| rates.allow(from)).count();
        // A cell comes back in 31 ms: a slow machine sees some more, and never as many as another address has.
        let (whole, rest) = (128..400, 0..64);
        assert!(whole.contains(&at_once(at("192.0.2.1:7"))), "what may come at once");
        assert!(rest.contains(&at_once(at("192.0.2.1:8"))), "another port is no other address");
        assert!(rest.contains(&at_once(at("[::ffff:192.0.2.1]:7"))), "nor is it another way to write it");
        assert!(whole.contains(&at_once(at("192.0.2.2:7"))));
        assert!(whole.contains(&at_once(at("[2001:db8::1]:7"))));
        assert!(rest.contains(&at_once(at("[2001:db8::ffff:2]:7"))), "of the same network");
        assert!(whole.contains(&at_once(at("[2001:db8:0:1::1]:7"))));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let rates = Rates::default();
        let mut allowed = 0;
        for n in 0..2 * REMEMBERED_MAX as u32 {
            allowed += usize::from(rates.allow(Origin::V4(Ipv4Addr::from(n))));
        }
        assert!(allowed >= REMEMBERED_MAX && rates.proven.rates.len() <= REMEMBERED_MAX);
    }
}
