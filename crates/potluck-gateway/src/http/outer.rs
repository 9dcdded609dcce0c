//! What happens to a request before it finds its handler, and to each response on its way out.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    http::{HeaderValue, Method, Uri, uri::PathAndQuery},
    response::Response,
};
use tower::ServiceExt as _;
use tracing::{Instrument as _, field::Empty, info_span};

use super::{Asker, Shared};
use crate::anthropic;

/// Addresses below `/v1`, which some clients leave out.
const SHORT: [&str; 6] = ["/chat/completions", "/completions", "/embeddings", "/models", "/responses", "/messages"];

/// Addresses that say nothing of the model: open to whoever watches the process.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// Puts the outer layer around the routes.
pub(super) fn wrap(routes: Router, shared: Arc<Shared>) -> Router {
    Router::new().fallback(async move |request: Request| outer(routes, shared, request).await)
}

async fn outer(routes: Router, shared: Arc<Shared>, mut request: Request) -> Response {
    if let Some(uri) = tidy(request.uri()) {
        *request.uri_mut() = uri;
    }
    let path = request.uri().path().to_owned();
    let id = format!("req_{:016x}", fastrand::u64(..));
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let from = from.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
    let span = info_span!(
        "request",
        // Nothing that a stranger words: neither the address nor a method of its own.
        otel.name = format!("{} {}", method(request.method()), api(&path)),
        otel.kind = "server",
        http.request.method = method(request.method()),
        potluck.api = api(&path),
        http.response.status_code = Empty,
        potluck.request = id,
    );
    let mut response = match shared.access.check(request.headers(), from) {
        Err(problem) if !OPEN.contains(&path.as_str()) => match api(&path) {
            "anthropic" => anthropic::problem(problem),
            "ollama" => problem.ollama(),
            _ => problem.openai(),
        },
        caller => {
            if let Ok(caller) = caller {
                request.extensions_mut().insert(Asker(caller));
            }
            // The router's own error is impossible: its services do not fail.
            routes.oneshot(request).instrument(span.clone()).await.unwrap_or_else(|never| match never {})
        }
    };
    span.record("http.response.status_code", response.status().as_u16());
    shared.metrics.responded(api(&path), response.status().as_u16());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// A method's name, as traces know it.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

/// Whose API an address belongs to.
fn api(path: &str) -> &'static str {
    match path {
        _ if path.starts_with("/v1/messages") => "anthropic",
        _ if path.starts_with("/v1/") => "openai",
        _ if path.starts_with("/api/") => "ollama",
        _ => "other",
    }
}

/// The address without doubled slashes and with `/v1`, where it was left out; none if it was right.
fn tidy(uri: &Uri) -> Option<Uri> {
    let mut path = uri.path().to_owned();
    while path.contains("//") {
        path = path.replace("//", "/");
    }
    if SHORT.iter().any(|short| path == *short || path.starts_with(&format!("{short}/"))) {
        path.insert_str(0, "/v1");
    }
    if path == uri.path() {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{path}{query}").parse::<PathAndQuery>().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_forgiven() {
        let tidied = |text: &str| tidy(&text.parse().unwrap()).map(|uri| uri.to_string());
        assert_eq!(tidied("/v1//models"), Some("/v1/models".into()));
        assert_eq!(tidied("/chat/completions?x=1"), Some("/v1/chat/completions?x=1".into()));
        assert_eq!(tidied("//v1///models/a//b"), Some("/v1/models/a/b".into()));
        assert_eq!(tidied("/models/name"), Some("/v1/models/name".into()));
        for right in ["/v1/models", "/api/chat", "/", "/metrics", "/modelsx"] {
            assert_eq!(tidied(right), None, "{right}");
        }
    }
}
