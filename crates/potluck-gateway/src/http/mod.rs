//! The server: routes, limits, and what all responses have in common.

mod body;
mod outer;

use std::{future::Future, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use potluck_client::{Outcome, Request};
use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    Access, Model, Opener, Problem, Whose,
    access::Caller,
    anthropic,
    document::document,
    metrics::Metrics,
    ollama, ollama_embed,
    openai::{self, Params},
    slots::{self, Job},
};

pub(crate) use body::{Json, or_default};

/// What the metrics are written in.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bytes of a request's body. A longer one is refused with 413.
pub const BODY_BYTES_MAX: usize = 20 << 20;

/// Requests on their way to the queue. Beyond it handlers wait.
const JOBS_MAX: usize = 64;

/// What a gateway is made of.
#[derive(Debug)]
pub struct Gateway<O> {
    /// The model that it answers with.
    pub model: Model,
    /// Who may ask.
    pub access: Access,
    /// What opens a session for a slot.
    pub opener: O,
    /// Requests that are answered at once. Others wait.
    pub slots: usize,
    /// Positions of a prefill step.
    pub chunk: u16,
    /// Answers depend on nothing but their request: no prompt is continued from a cache, whose steps were cut otherwise.
    pub exact: bool,
}

/// What every handler sees.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) model: Model,
    pub(crate) access: Access,
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) metrics: Arc<Metrics>,
    chunk: u16,
    exact: bool,
}

/// The state of the handlers.
pub(crate) type Site = State<Arc<Shared>>;

/// Who asks; made by the outermost layer, which lets nobody else in.
#[derive(Debug, Clone)]
pub(crate) struct Asker(pub(crate) Caller);

/// Serves until `stop`; then answers what it has begun and returns. Must run in a [`tokio::task::LocalSet`].
///
/// # Errors
/// What the listener says.
pub async fn serve<O: Opener>(
    listener: TcpListener,
    gateway: Gateway<O>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let Gateway { model, access, opener, slots, chunk, exact } = gateway;
    let metrics = Arc::new(Metrics::default());
    let (jobs, queue) = mpsc::channel(JOBS_MAX);
    let pool = tokio::task::spawn_local(slots::run(opener, slots, queue, metrics.clone()));
    let shared = Arc::new(Shared { model, access, jobs, metrics, chunk, exact });
    let app = outer::wrap(routes(shared.clone()), shared);
    let served = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>());
    served.with_graceful_shutdown(stop).await?;
    // The last handler is gone, and with it the last sender of jobs: the pool ends by itself.
    let _ = pool.await;
    Ok(())
}

fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::handle))
        .route("/v1/completions", post(openai::completions::handle))
        .route("/v1/responses", post(openai::responses::handle))
        .route("/v1/embeddings", post(openai::embeddings::handle))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::show))
        .route("/v1/messages", post(anthropic::handle))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/", get(ollama::hello))
        .route("/api/version", get(ollama::version))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(ollama_embed::embed))
        .route("/api/embeddings", post(ollama_embed::embeddings))
        .route("/openapi.json", get(document))
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(async || "ok"))
        .route("/metrics", get(async |State(shared): Site| ([(CONTENT_TYPE, OPEN_METRICS)], shared.metrics.text())))
        .fallback(async || {
            Problem::new(Whose::Missing, "not_found", "there is nothing at this address: see docs/api.md").openai()
        })
        .method_not_allowed_fallback(async || {
            let problem = Problem::new(Whose::Request, "method_not_allowed", "this address takes another method");
            (StatusCode::METHOD_NOT_ALLOWED, problem.openai()).into_response()
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

impl Shared {
    /// The model that a request names.
    pub(crate) fn named(&self, name: Option<&str>) -> Result<&Model, Problem> {
        match name {
            None => Err(Problem::value("model", "you must provide a model parameter")),
            Some(name) if self.model.is_called(name) => Ok(&self.model),
            Some(name) => {
                let message = format!("The model `{name}` does not exist; this gateway serves `{}`.", self.model.name);
                let problem = Problem::new(Whose::Missing, "model_not_found", message);
                Err(Problem { param: Some("model".into()), ..problem })
            }
        }
    }

    /// A request for each choice that the parameters ask for. `logprobs`: alternatives to report.
    pub(crate) fn requests(
        &self,
        params: &Params,
        prompt: &[u32],
        logprobs: Option<u16>,
    ) -> Result<Vec<Request>, Problem> {
        let template = Request { chunk: self.chunk, reuse: !self.exact, ..Request::new(prompt.to_vec()) };
        params.requests(&template, logprobs, self.model.vocabulary.info().tokens)
    }

    /// Positions of a step.
    pub(crate) fn chunk(&self) -> u16 {
        self.chunk
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, outcome: &Outcome) {
        self.metrics.answered(outcome);
    }
}

/// A response, whether the handler found one or a problem, in the shape that its API gives problems.
pub(crate) fn either(result: Result<Response, Problem>, shape: fn(Problem) -> Response) -> Response {
    result.unwrap_or_else(shape)
}
