//! Who may ask: keys, and the names by which a browser may call a gateway that only this machine reaches.

use std::{net::IpAddr, sync::Arc};

use axum::http::HeaderMap;
use potluck_core::ModelId;
use potluck_grant::ApiKey;

use crate::{
    Problem, Whose,
    granted::{Granted, Guest},
};

/// Characters of the shortest key that is accepted: shorter ones are guessed.
pub const KEY_BYTES_MIN: usize = 16;

/// Who may ask.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Hashes of the keys: the keys themselves are not kept.
    keys: Vec<blake3::Hash>,
    /// Only this machine reaches the gateway.
    loopback: bool,
    /// Keys that the swarm has granted.
    granted: Option<Arc<Granted>>,
    /// The gateway's own model.
    model: Option<ModelId>,
}

/// By whom a request is counted: each takes its turn.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Caller {
    /// The hash of its key.
    Key([u8; 32]),
    /// Its address, where there are no keys.
    Address(IpAddr),
    /// The holder of a key that the swarm has granted.
    Granted(Guest),
}

impl Caller {
    /// Whether it may ask the gateway's own model.
    pub(crate) fn may_ask_own(&self) -> Result<(), Problem> {
        if let Self::Granted(guest) = self { guest.may_ask(true) } else { Ok(()) }
    }

    /// Whether it may ask a model that is lent.
    pub(crate) fn may_ask_lent(&self) -> Result<(), Problem> {
        if let Self::Granted(guest) = self { guest.may_ask(false) } else { Ok(()) }
    }

    /// Whether one may find in a cache what was evaluated for the other: how fast it comes tells what the other has asked. Those of one
    /// key; without keys nobody is told apart.
    pub(crate) fn shares_with(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Address(_), Self::Address(_))) || self == other
    }

    /// Whether others go first: the grant of its key says so.
    pub(crate) fn yields(&self) -> bool {
        if let Self::Granted(guest) = self { guest.yields() } else { false }
    }

    /// Counts tokens that are computed for it, before they are.
    pub(crate) fn charge(&self, tokens: usize) -> Result<(), Problem> {
        if let Self::Granted(guest) = self { guest.charge(tokens as u64) } else { Ok(()) }
    }
}

impl Access {
    /// With these keys; none: whoever reaches the gateway may ask. `loopback`: only this machine does.
    pub fn new(keys: impl IntoIterator<Item = impl AsRef<str>>, loopback: bool) -> Self {
        let keys = keys.into_iter().map(|key| blake3::hash(key.as_ref().as_bytes())).collect();
        Self { keys, loopback, granted: None, model: None }
    }

    /// And whoever shows a key that the swarm has granted.
    #[must_use]
    pub fn or_granted(self, granted: Granted) -> Self {
        Self { granted: Some(Arc::new(granted)), ..self }
    }

    /// In front of this model.
    pub(crate) fn before(self, model: Option<ModelId>) -> Self {
        Self { model, ..self }
    }

    /// Whether whoever shows no key is let in: where there are none, and nobody else reaches the gateway or keys are granted to nobody.
    fn is_open(&self) -> bool {
        self.keys.is_empty() && (self.loopback || self.granted.is_none())
    }

    /// Who asks, if it may.
    pub(crate) fn check(&self, headers: &HeaderMap, from: IpAddr) -> Result<Caller, Problem> {
        self.check_host(headers)?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let shown = bearer.or_else(|| text("x-api-key")).map(str::trim);
        if self.is_open() && !shown.is_some_and(|key| self.granted.is_some() && ApiKey::is_one(key)) {
            return Ok(Caller::Address(from));
        }
        let Some(key) = shown else {
            let message = "You didn't provide an API key: send it as `Authorization: Bearer KEY`.";
            return Err(Problem::new(Whose::Key, "invalid_api_key", message));
        };
        // Hashes compare in constant time.
        let hash = blake3::hash(key.as_bytes());
        if self.keys.contains(&hash) {
            return Ok(Caller::Key(hash.into()));
        }
        let guest = self.granted.as_ref().and_then(|granted| granted.admit(key, hash, self.model));
        let guest = guest.ok_or_else(|| Problem::new(Whose::Key, "invalid_api_key", "Incorrect API key provided."))?;
        Ok(Caller::Granted(guest))
    }

    /// Whether who asks may change what is on this machine, and not only ask the model: with a key, or from this machine itself; and
    /// not through a page of another origin, whose requests a browser sends without asking its user.
    pub(crate) fn check_change(&self, headers: &HeaderMap, caller: &Caller) -> Result<(), Problem> {
        check_origin(headers)?;
        match caller {
            Caller::Key(_) => Ok(()),
            Caller::Granted(guest) => guest.may_change(),
            Caller::Address(from) if self.loopback && from.to_canonical().is_loopback() => Ok(()),
            Caller::Address(_) => {
                let message = "models are pulled and deleted by who has an API key, or from this machine itself";
                Err(Problem::new(Whose::Origin, "forbidden", message))
            }
        }
    }

    /// A page of somebody else's that has its name resolve to this machine is told by the name.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let host = headers.get("host").and_then(|value| value.to_str().ok()).unwrap_or("");
        match !self.loopback || host.is_empty() || is_ours(host) {
            true => Ok(()),
            false => Err(Problem::new(Whose::Origin, "forbidden_host", format!("`{host}` is no name of this machine"))),
        }
    }
}

/// A browser names the page that asks; other programs name none.
fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let own = |origin: &str| {
        let page = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        page.is_some() && page == text("host")
    };
    let foreign = text("origin").is_some_and(|origin| !own(origin)) || text("sec-fetch-site") == Some("cross-site");
    if !foreign {
        return Ok(());
    }
    let origin = text("origin").unwrap_or("another site");
    Err(Problem::new(Whose::Origin, "forbidden_origin", format!("a page of {origin} may not change models here")))
}

fn is_ours(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return match address {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
        };
    }
    let name = name.to_ascii_lowercase();
    name == "localhost" || [".localhost", ".local", ".internal"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_key_is_asked_for_where_there_are_keys() {
        let access = Access::new(["a-key-of-some-length"], false);
        let code = |pairs: &[(&'static str, &str)]| access.check(&headers(pairs), FROM).map_err(|p| p.status());
        assert_eq!(code(&[]), Err(401));
        assert_eq!(code(&[("authorization", "Bearer wrong")]), Err(401));
        assert_eq!(code(&[("authorization", "a-key-of-some-length")]), Err(401), "not as a bearer");
        let bearer = code(&[("authorization", "Bearer a-key-of-some-length")]).unwrap();
        assert_eq!(code(&[("x-api-key", "a-key-of-some-length")]).unwrap(), bearer);
        let open = Access::new([""; 0], false);
        assert_eq!(open.check(&headers(&[]), FROM).unwrap(), Caller::Address(FROM));
    }

    #[test]
    fn what_was_evaluated_for_a_key_is_that_keys() {
        let (one, other) = (Caller::Key([1; 32]), Caller::Key([2; 32]));
        let [here, there] = [FROM, [10, 0, 0, 1].into()].map(Caller::Address);
        assert!(one.shares_with(&one) && here.shares_with(&there));
        assert!(!one.shares_with(&other) && !one.shares_with(&here) && !here.shares_with(&one));
    }

    #[test]
    fn a_page_of_another_origin_and_another_machine_change_nothing() {
        let with = |access: &Access, from: &str, pairs: &[(&'static str, &str)]| {
            let caller = access.check(&headers(pairs), from.parse().unwrap()).unwrap();
            access.check_change(&headers(pairs), &caller).map_err(|problem| problem.code)
        };
        let open = Access::new([""; 0], true);
        let host = ("host", "localhost:7575");
        for own in [&[host][..], &[host, ("origin", "http://localhost:7575")]] {
            assert_eq!(with(&open, "127.0.0.1", own), Ok(()), "{own:?}");
            assert_eq!(with(&open, "::ffff:127.0.0.1", own), Ok(()), "{own:?}");
            assert_eq!(with(&open, "192.168.1.9", own), Err("forbidden".into()), "{own:?}");
        }
        for origin in ["http://evil.example", "null", "", "http://localhost:8080", "file://localhost:7575"] {
            let refused = with(&open, "127.0.0.1", &[host, ("origin", origin)]);
            assert_eq!(refused, Err("forbidden_origin".into()), "{origin}");
        }
        assert!(with(&open, "127.0.0.1", &[host, ("sec-fetch-site", "cross-site")]).is_err());
        let keyed = Access::new(["a-key-of-some-length"], false);
        let key = ("x-api-key", "a-key-of-some-length");
        assert_eq!(with(&keyed, "192.168.1.9", &[key]), Ok(()));
        assert!(with(&keyed, "192.168.1.9", &[key, ("origin", "http://evil.example")]).is_err(), "a key that leaked");
        assert!(with(&Access::new([""; 0], false), "127.0.0.1", &[]).is_err(), "others reach it, without a key");
    }

    #[test]
    fn a_name_that_was_rebound_to_this_machine_is_refused() {
        let access = Access::new([""; 0], true);
        let lets = |host: &str| access.check(&headers(&[("host", host)]), FROM).is_ok();
        for host in ["localhost:7575", "127.0.0.1", "[::1]:7575", "192.168.1.4:80", "attic.local", "a.localhost"] {
            assert!(lets(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:7575", "8.8.8.8", "local"] {
            assert!(!lets(host), "{host}");
        }
    }
}
