//! What a machine runs already (Ollama, `llama-server`, vLLM, anything that speaks OpenAI's API), lent to a swarm as it is.
//!
//! An [`Upstream`] says which models it has, again and again: while it does not answer it has none. [`Upstream::lend`] passes
//! members' requests to it and its answers back, piece by piece, without reading either:
//! ```ignore
//! let (lending, lent) = Upstream::new("http://127.0.0.1:11434", None)?.lend(16);
//! node.lend(lending);
//! lent.await;
//! ```
//! **Invariants.** Nobody who asks names an address: there are as many as [`Endpoint`](potluck_core::Endpoint) has. The upstream's
//! key is shown to the upstream alone; neither the key nor the upstream's address is in what members are told. Whoever is gone is not
//! computed for.
//!
//! Not here: who may ask, and how many at once (`potluck-net`).

mod error;
mod health;
mod pass;

use std::{sync::Arc, time::Duration};

use potluck_net::Lending;
use potluck_wire::Upstream as State;
use reqwest::{Client, Method, RequestBuilder, Url, redirect::Policy};
use tokio::sync::{Notify, mpsc, watch};

pub use error::UpstreamError;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Requests on their way from the network. Beyond it the network waits.
const ASKS_WAITING_MAX: usize = 8;

/// A server that speaks OpenAI's API.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: Client,
    base: Url,
    key: Option<String>,
    /// Something went wrong: it is looked at anew, without waiting for the next time.
    look: Arc<Notify>,
}

impl Upstream {
    /// The server at this address, with or without `/v1`; `key`: what it is shown as a bearer.
    ///
    /// # Errors
    /// `Address` where this is none; `Client` where the system refuses a client.
    pub fn new(address: &str, key: Option<String>) -> Result<Self, UpstreamError> {
        let plain = address.trim_end_matches('/').trim_end_matches("/v1");
        let refused = |what: &dyn std::fmt::Display| {
            let secret = address.contains('@');
            let address = if secret { "what was given" } else { address };
            UpstreamError::Address { address: address.into(), what: what.to_string() }
        };
        let base = Url::parse(&format!("{plain}/")).map_err(|error| refused(&error))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(refused(&"expected http://HOST:PORT"));
        }
        let named = !base.username().is_empty() || base.password().is_some();
        if named || base.query().is_some() || base.fragment().is_some() {
            return Err(refused(&"it holds more than a host and a path; a key is given by a file"));
        }
        // Another part of the program may have chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = concat!("potluck/", env!("CARGO_PKG_VERSION"));
        // What it refers to is not followed, and no proxy is asked: the key and the prompts are for this server.
        let client = Client::builder().user_agent(agent).connect_timeout(CONNECT).redirect(Policy::none()).no_proxy();
        let client = client.build().map_err(|error| UpstreamError::Client(error.to_string()))?;
        Ok(Self { client, base, key, look: Arc::default() })
    }

    /// What a node needs to lend it to so many requests at once, and what does so for as long as it is polled: looks after its health,
    /// and passes requests on.
    pub fn lend(self, places: u16) -> (Lending, impl Future<Output = ()>) {
        let (state, offered) = watch::channel(State::default());
        let (asks, asked) = mpsc::channel(ASKS_WAITING_MAX);
        let lent = async move {
            tokio::join!(self.watch(state), self.pass_on(asked));
        };
        (Lending { offered, asks, places }, lent)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        // Its own path goes before, where there is one.
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        let request = self.client.request(method, url);
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::Endpoint;

    use super::*;

    fn asked(address: &str) -> String {
        let upstream = Upstream::new(address, None).unwrap();
        upstream.request(Method::POST, Endpoint::ChatCompletions.path()).build().unwrap().url().to_string()
    }

    #[test]
    fn an_address_is_taken_with_and_without_the_version() {
        for address in ["http://127.0.0.1:11434", "http://127.0.0.1:11434/", "http://127.0.0.1:11434/v1/"] {
            assert_eq!(asked(address), "http://127.0.0.1:11434/v1/chat/completions", "{address}");
        }
        assert_eq!(asked("https://rack.example/llm/v1"), "https://rack.example/llm/v1/chat/completions");
    }

    #[test]
    fn what_is_no_address_of_a_server_is_refused() {
        for address in
            ["", "11434", "ftp://host", "http://", "http://me:secret@host", "http://host/?x=1", "file:///etc"]
        {
            let refused = Upstream::new(address, None).unwrap_err();
            assert!(matches!(refused, UpstreamError::Address { .. }), "{address}: {refused}");
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
    }
}
