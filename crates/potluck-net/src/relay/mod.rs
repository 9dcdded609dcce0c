//! Relays, as a node uses them: where they are, by what they are known, and which of several is good for anything.

mod at;
mod keep;
mod known;

use std::{fs::File, sync::Arc};

use iroh::{Endpoint, RelayConfig, RelayMap, RelayMode, RelayUrl, endpoint::Builder};
use potluck_core::PeerId;
use potluck_grant::{RelayPass, relay_token};
use tokio::task::JoinHandle;

use crate::{Identity, NetError};

pub use at::RelayAt;
use known::Known;

/// Relays that one node listens at, at most; the rest is left out.
pub const RELAYS_MAX: usize = 8;

/// At which relays a node listens.
#[derive(Debug, Clone)]
pub struct RelayUse {
    /// Where they are ([`RelayAt`]): it listens at the nearest that works.
    pub urls: Vec<String>,
    /// By what it is let in; none: by its grant.
    pub pass: Option<RelayInvitation>,
    /// What keeps others with the same key off them, held for as long as the node lives: a relay passes on to the latest only.
    pub claim: Option<Arc<File>>,
}

/// What a newcomer shows that has no grant yet.
#[derive(Clone)]
pub struct RelayInvitation {
    /// The root's word.
    pub pass: RelayPass,
    /// The invitation's secret.
    pub secret: [u8; 16],
}

impl std::fmt::Debug for RelayInvitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelayInvitation(until {})", self.pass.until)
    }
}

/// The relays of one node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Relays {
    own: Vec<RelayAt>,
    known: Known,
    _claim: Option<Arc<File>>,
    _keeper: Option<Arc<Keeper>>,
}

/// Ends with the last of its node's clones.
#[derive(Debug)]
struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Relays {
    /// As they are asked for.
    pub(crate) fn read(asked: Option<RelayUse>) -> Result<(Self, Option<RelayInvitation>), NetError> {
        let Some(RelayUse { urls, pass, claim }) = asked else { return Ok((Self::default(), None)) };
        let mut own: Vec<RelayAt> = Vec::new();
        for url in urls.iter().take(RELAYS_MAX) {
            let at = RelayAt::parse(url)?;
            if own.iter().all(|known| known.url() != at.url()) {
                own.push(at);
            }
        }
        let known = Known::default();
        own.iter().for_each(|at| known.note(at));
        Ok((Self { own, known, _claim: claim, _keeper: None }, pass))
    }

    /// Tells the endpoint of them, with what this node shows there.
    pub(crate) fn configure(&self, builder: Builder, identity: &Identity, pass: Option<&RelayInvitation>) -> Builder {
        if self.own.is_empty() {
            return builder.relay_mode(RelayMode::Disabled);
        }
        let token = token(identity, pass);
        let configs = self.own.iter().map(|at| at.config(&token));
        let builder = builder.relay_mode(RelayMode::Custom(configs.collect::<RelayMap>()));
        builder.ca_tls_config(self.known.tls())
    }

    /// Sees to it that a relay that is lost is left for another.
    pub(crate) fn keep(&mut self, endpoint: &Endpoint, identity: &Identity, pass: Option<&RelayInvitation>) {
        if self.own.len() > 1 {
            let token = token(identity, pass);
            let configs: Vec<RelayConfig> = self.own.iter().map(|at| at.config(&token)).collect();
            let keeping = tokio::spawn(keep::keep(endpoint.clone(), configs));
            self._keeper = Some(Arc::new(Keeper(keeping)));
        }
    }

    /// Whether this node is at none.
    pub(crate) fn is_empty(&self) -> bool {
        self.own.is_empty()
    }

    /// Where this node is found: at its home relay if that one answers, else at the first.
    pub(crate) fn home(&self, connected: Option<&RelayUrl>) -> Option<String> {
        let home = self.own.iter().find(|at| connected == Some(at.url())).or_else(|| self.own.first());
        home.map(ToString::to_string)
    }

    /// Where to ask for a peer that said it was found there: at that relay, and at this node's own, where it may have moved to. Whoever
    /// is at no relay asks none; those of others are asked where the way to them is encrypted.
    pub(crate) fn to_ask(&self, told: Option<&str>) -> Vec<RelayUrl> {
        if self.own.is_empty() {
            return Vec::new();
        }
        let Some(told) = told.and_then(|text| RelayAt::parse(text).ok()) else { return Vec::new() };
        let is_own = self.own.iter().any(|at| at.url() == told.url());
        let mut asked: Vec<_> = self.own.iter().map(|at| at.url().clone()).collect();
        if !is_own && told.url().scheme() == "https" {
            // What is known of our own relays is not for others to say, at whatever port.
            if self.own.iter().all(|at| at.name() != told.name()) {
                self.known.note(&told);
            }
            asked.push(told.url().clone());
        }
        if !is_own && told.url().scheme() != "https" {
            // A peer that listens elsewhere, where it is not asked, is asked nowhere.
            return Vec::new();
        }
        asked
    }
}

fn token(identity: &Identity, pass: Option<&RelayInvitation>) -> String {
    let peer: PeerId = identity.key.peer_id();
    pass.map_or_else(|| relay_token(&identity.grant), |shown| shown.pass.token(&shown.secret, peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(urls: &[&str]) -> Relays {
        let urls = urls.iter().map(|&url| url.to_owned()).collect();
        Relays::read(Some(RelayUse { urls, pass: None, claim: None })).unwrap().0
    }

    #[test]
    fn who_has_no_relay_asks_none_and_others_are_asked_in_private_only() {
        let own = at(&["http://10.0.0.1:3340"]);
        for relay in ["http://10.0.0.1:3340", "https://elsewhere.example"] {
            assert!(Relays::default().to_ask(Some(relay)).is_empty(), "{relay}");
            assert!(own.to_ask(Some(relay)).iter().any(|url| relay.starts_with(url.as_str().trim_end_matches('/'))));
        }
        for relay in ["http://169.254.169.254", "ftp://a", "https://a/b", "https://a?b", "https://u:p@a", "data:a", ""]
        {
            assert!(own.to_ask(Some(relay)).is_empty(), "{relay}");
        }
        assert!(own.to_ask(None).is_empty(), "who listens at none is asked for at none");
    }

    #[test]
    fn who_may_have_moved_is_asked_for_at_each_of_our_own() {
        let own = at(&["https://a.example", "https://b.example", "https://a.example/"]);
        let asked = |told| own.to_ask(Some(told)).iter().map(ToString::to_string).collect::<Vec<_>>();
        let both = ["https://a.example/", "https://b.example/"];
        assert_eq!(asked("https://b.example"), both);
        assert_eq!(asked("https://c.example"), [both[0], both[1], "https://c.example/"]);
        assert_eq!(own.home(None).as_deref(), Some(both[0]));
        let second: RelayUrl = both[1].parse().unwrap();
        assert_eq!(own.home(Some(&second)).as_deref(), Some(both[1]));
        assert!(Relays::read(Some(RelayUse { urls: vec!["relay".into()], pass: None, claim: None })).is_err());
    }

    #[test]
    fn nobody_else_says_by_what_our_own_relays_are_known() {
        let pin = |n: u8| format!("#pin={}", data_encoding::BASE64URL_NOPAD.encode(&[n; 32]));
        let (signed, pinned) = ("https://signed.example/", format!("https://pinned.example/{}", pin(1)));
        let own = at(&[signed, &pinned]);
        let pins = |host: &'static str| own.known.pins(&host.try_into().unwrap());
        for foreign in ["signed", "pinned", "other"] {
            let asked = own.to_ask(Some(&format!("https://{foreign}.example:444/{}", pin(2))));
            assert_eq!(asked.len(), 3, "it is asked all the same");
        }
        assert_eq!(pins("signed.example"), None);
        assert_eq!(pins("pinned.example"), Some(vec![[1; 32]]));
        assert_eq!(pins("other.example"), Some(vec![[2; 32]]));
    }
}
