//! An upstream over real HTTP: a server that answers as Ollama and its like do, and one that does not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says where")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use n0_future::stream::unfold;
use potluck_core::{Endpoint, PASSED_ON};
use potluck_net::{Asked, Lending, Reply};
use potluck_upstream::{Upstream, UpstreamError};
use potluck_wire::{Failure, FailureCode, Head, Upstream as Offered};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The key that the server wants.
const KEY: &str = "sk-upstream";

/// What the server was asked, and what it says.
#[derive(Default)]
struct Site {
    models: Mutex<Value>,
    asked: Mutex<Vec<(String, Value)>>,
    /// Pieces of the next streamed answer, and who is told when it was dropped.
    stream: Mutex<Option<(mpsc::Receiver<&'static str>, oneshot::Sender<()>)>>,
}

type Here = State<Arc<Site>>;

struct Server {
    site: Arc<Site>,
    at: SocketAddr,
    running: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let site = Arc::new(Site::default());
        *site.models.lock().unwrap() = json!({ "object": "list", "data": [{ "id": "m", "max_model_len": 512 }] });
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(chat))
            .route("/v1/completions", post(async || Redirect::temporary("/v1/chat/completions")))
            .route(
                "/v1/embeddings",
                post(async || (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "7")], "busy")),
            )
            .with_state(site.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let running = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { site, at, running }
    }

    fn upstream(&self, key: Option<&str>) -> Upstream {
        Upstream::new(&format!("http://{}/v1", self.at), key.map(str::to_owned)).unwrap()
    }

    fn lists(&self, models: Value) {
        *self.site.models.lock().unwrap() = models;
    }
}

fn is_let_in(headers: &HeaderMap) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|value| value == &format!("Bearer {KEY}"))
}

async fn models(State(site): Here, headers: HeaderMap) -> Response {
    if !is_let_in(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    Json(site.models.lock().unwrap().clone()).into_response()
}

async fn chat(State(site): Here, headers: HeaderMap, uri: Uri, body: Bytes) -> Response {
    assert!(is_let_in(&headers) && headers[header::CONTENT_TYPE] == "application/json");
    let asked = serde_json::from_slice(&body).unwrap_or(Value::Null);
    site.asked.lock().unwrap().push((uri.path().to_owned(), asked));
    let Some((pieces, gone)) = site.stream.lock().unwrap().take() else {
        return Json(json!({ "choices": [] })).into_response();
    };
    let body = unfold((pieces, gone), async |(mut pieces, gone)| {
        let piece = pieces.recv().await?;
        Some((Ok::<_, Infallible>(piece), (pieces, gone)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)).into_response()
}

/// An upstream that is lent, without a network between.
struct Lent {
    lending: Lending,
    task: JoinHandle<()>,
}

impl Lent {
    fn new(upstream: Upstream) -> Self {
        let (lending, lent) = upstream.lend(4);
        Self { lending, task: tokio::spawn(lent) }
    }

    async fn ask(&self, endpoint: Endpoint, body: &'static str) -> mpsc::Receiver<Result<Reply, Failure>> {
        let (reply, replies) = mpsc::channel(1);
        self.lending.asks.send(Asked { endpoint, body: body.into(), reply }).await.unwrap();
        replies
    }

    async fn waits(&self, what: &str, fit: impl FnMut(&Offered) -> bool) -> Offered {
        let mut offered = self.lending.offered.clone();
        let waited = timeout(PATIENCE, offered.wait_for(fit)).await;
        waited.unwrap_or_else(|_| panic!("waited in vain until {what}")).unwrap().clone()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn next(replies: &mut mpsc::Receiver<Result<Reply, Failure>>) -> Result<Reply, Failure> {
    timeout(PATIENCE, replies.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn its_models_are_those_that_can_be_named_and_are_its_own() {
    let server = Server::start().await;
    let upstream = server.upstream(Some(KEY));
    server.lists(json!({ "data": [
        { "id": "llama3.2:1b", "owned_by": "library" },
        { "id": "m", "max_model_len": 512 },
        { "id": "m", "max_model_len": 1 },
        { "id": "" },
        { "id": "with a space" },
        { "id": "\u{1b}[2J" },
        { "id": "x".repeat(129) },
        { "id": "passed-on", "owned_by": PASSED_ON },
    ] }));
    let models = upstream.models().await.unwrap();
    let models: Vec<_> = models.iter().map(|model| (&*model.name, model.context)).collect();
    assert_eq!(models, [("llama3.2:1b", None), ("m", Some(512))]);
    let many: Vec<_> = (0..1_000).map(|n| json!({ "id": format!("m{n}") })).collect();
    server.lists(json!({ "data": many }));
    assert_eq!(upstream.models().await.unwrap().len(), potluck_wire::UPSTREAM_MODELS_MAX);
    for nothing in [json!({ "data": [] }), json!({ "models": [] }), json!("x".repeat(2 << 20))] {
        server.lists(nothing);
        let refused = upstream.models().await.unwrap_err();
        assert!(matches!(refused, UpstreamError::NoList(_)), "{refused}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_without_its_address_or_its_key() {
    let server = Server::start().await;
    for key in [None, Some("sk-wrong")] {
        assert_eq!(server.upstream(key).models().await, Err(UpstreamError::Key(401)));
    }
    let upstream = server.upstream(Some(KEY));
    server.running.abort();
    let _ = server.running.await;
    let silent = upstream.models().await.unwrap_err();
    assert!(matches!(silent, UpstreamError::Silent(_)), "{silent}");
    let (said, port) = (silent.to_string(), server.at.port().to_string());
    assert!(!said.contains(&port) && !said.contains(KEY), "{said}");
    let lent = Lent::new(upstream);
    let failed = next(&mut lent.ask(Endpoint::ChatCompletions, "{}").await).await.unwrap_err();
    assert_eq!(failed.code, FailureCode::EngineLost);
    assert!(!failed.detail.contains(&port) && !failed.detail.contains(KEY), "{}", failed.detail);
}

#[tokio::test]
async fn it_lends_while_it_is_well() {
    let server = Server::start().await;
    let lent = Lent::new(server.upstream(Some(KEY)));
    let well = lent.waits("it is well", |offered| !offered.models.is_empty()).await;
    assert_eq!((&*well.models[0].name, well.trouble), ("m", None));
    server.lists(json!({ "error": "loading" }));
    let ill = lent.waits("it is ill", |offered| offered.trouble.is_some()).await;
    assert!(ill.models.is_empty());
    server.lists(json!({ "data": [{ "id": "other" }] }));
    let well = lent.waits("it is well again", |offered| offered.trouble.is_none()).await;
    assert_eq!(well.models[0].name, "other");
}

#[tokio::test]
async fn a_request_passes_as_it_is_and_its_answer_as_it_comes() {
    let server = Server::start().await;
    let lent = Lent::new(server.upstream(Some(KEY)));
    let (pieces, read) = mpsc::channel(1);
    let (gone, _told) = oneshot::channel();
    *server.site.stream.lock().unwrap() = Some((read, gone));
    let mut replies = lent.ask(Endpoint::ChatCompletions, r#"{"model":"m","secret_option":7}"#).await;
    let Ok(Reply::Head(Head { status: 200, content_type, .. })) = next(&mut replies).await else { panic!("no head") };
    assert_eq!(content_type, "text/event-stream");
    for text in ["data: 1\n\n", "data: 2\n\n"] {
        // The next one is not made before this one has come.
        pieces.send(text).await.unwrap();
        assert_eq!(next(&mut replies).await, Ok(Reply::Body(text.into())));
    }
    drop(pieces);
    assert_eq!(next(&mut replies).await, Ok(Reply::End));
    let asked = server.site.asked.lock().unwrap().clone();
    assert_eq!(asked, [("/v1/chat/completions".to_owned(), json!({ "model": "m", "secret_option": 7 }))]);
}

#[tokio::test]
async fn errors_pass_and_nobody_is_led_elsewhere() {
    let server = Server::start().await;
    let lent = Lent::new(server.upstream(Some(KEY)));
    let mut replies = lent.ask(Endpoint::Embeddings, "{}").await;
    let Ok(Reply::Head(head)) = next(&mut replies).await else { panic!("no head") };
    assert_eq!((head.status, head.retry_after), (429, Some(7)));
    assert_eq!(next(&mut replies).await, Ok(Reply::Body("busy".into())));
    let mut replies = lent.ask(Endpoint::Completions, "{}").await;
    let Ok(Reply::Head(head)) = next(&mut replies).await else { panic!("no head") };
    assert_eq!(head.status, 307, "it is not followed");
    assert!(server.site.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_is_gone_is_not_computed_for() {
    let server = Server::start().await;
    let lent = Lent::new(server.upstream(Some(KEY)));
    let (pieces, read) = mpsc::channel(1);
    let (gone, told) = oneshot::channel();
    *server.site.stream.lock().unwrap() = Some((read, gone));
    let mut replies = lent.ask(Endpoint::ChatCompletions, "{}").await;
    assert!(matches!(next(&mut replies).await, Ok(Reply::Head(_))));
    drop(replies);
    // The server lets go of its answer: its other half is dropped with it.
    assert!(timeout(PATIENCE, told).await.expect("the connection is closed").is_err());
    assert!(pieces.is_closed());
}
