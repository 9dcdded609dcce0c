//! The server: routes, limits, and what all responses have in common.

mod body;
mod outer;

use std::{future::Future, net::SocketAddr, sync::Arc, time::SystemTime};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use potluck_client::Request;
use potluck_core::bounds::STEP_POSITIONS_MAX;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use crate::{
    Access, Lent, LentModel, Model, Opener, Overflow, Problem, Whose,
    access::Caller,
    answer::Ended,
    anthropic,
    document::document,
    keeper::{self, Keeper, WISHES_MAX, Wish},
    lent::{Lending, Turns, elsewhere, pass},
    metrics::{Metrics, Paths},
    ollama, ollama_embed, ollama_models,
    openai::{self, Params},
    overflow::Fit,
    slots::{self, Job},
};

pub(crate) use body::{Json, or_default, read, too_large};

/// What the metrics are written in.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bytes of a request's body. A longer one is refused with 413.
pub const BODY_BYTES_MAX: usize = 20 << 20;

/// Requests on their way to the queue. Beyond it handlers wait.
const JOBS_MAX: usize = 64;

/// Models that an error names at most.
const NAMES_SHOWN: usize = 16;

/// What a gateway is made of.
#[derive(Debug)]
pub struct Gateway<O, K> {
    /// The model that it answers with itself; none where it only passes on what others lend.
    pub own: Option<Own<O>>,
    /// Who may ask.
    pub access: Access,
    /// Models that others run whole, and lend.
    pub lent: Option<Box<dyn Lent>>,
    /// What fetches and removes models; none: nobody may have it done.
    pub keeper: Option<K>,
    /// What becomes of a prompt that is longer than the context, where its request does not say.
    pub overflow: Overflow,
    /// How the peers are reached that its answers come from, for its metrics.
    pub paths: Option<Box<dyn Paths>>,
}

/// A model that a gateway answers with itself.
#[derive(Debug)]
pub struct Own<O> {
    /// What it is.
    pub model: Model,
    /// What opens a session for a slot.
    pub opener: O,
    /// Requests that are answered at once. Others wait.
    pub slots: usize,
    /// Positions of each prefill step; none: as many as fill the route.
    pub chunk: Option<u16>,
    /// Answers depend on nothing but their request: no prompt is continued from a cache, whose steps were cut otherwise.
    pub exact: bool,
}

/// What every handler sees.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Its own model; none where it only passes on what others lend.
    pub(crate) model: Option<Model>,
    pub(crate) lending: Option<Lending>,
    pub(crate) access: Access,
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) wishes: Option<mpsc::Sender<Wish>>,
    pub(crate) metrics: Arc<Metrics>,
    chunk: Option<u16>,
    exact: bool,
    overflow: Overflow,
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
pub async fn serve<O: Opener, K: Keeper>(
    listener: TcpListener,
    gateway: Gateway<O, K>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let Gateway { own, access, keeper, lent, overflow, paths } = gateway;
    let metrics = Arc::new(Metrics::new(paths));
    let (jobs, queue) = mpsc::channel(JOBS_MAX);
    let lending = lent.map(|lent| Lending { lent, turns: Turns::new(metrics.clone()), since: SystemTime::now() });
    let (mut pool, mut model, mut chunk, mut exact) = (None, None, None, false);
    if let Some(own) = own {
        pool = Some(tokio::task::spawn_local(slots::run(own.opener, own.slots, queue, metrics.clone())));
        (model, chunk, exact) = (Some(own.model), own.chunk, own.exact);
    }
    let (stopping, stopped) = oneshot::channel();
    let wishes = keeper.map(|keeper| {
        let (wishes, queue) = mpsc::channel(WISHES_MAX);
        tokio::task::spawn_local(keeper::run(keeper, queue, stopped));
        wishes
    });
    let stop = async move {
        stop.await;
        // A pull may take hours: it is not waited for, and what has come is kept.
        let _ = stopping.send(());
    };
    // Its id is the manifest's hash; a model of another name is none that a grant could name.
    let access = access.before(model.as_ref().and_then(|model: &Model| model.id.parse().ok()));
    let shared = Arc::new(Shared { model, lending, access, jobs, wishes, metrics, chunk, exact, overflow });
    let app = outer::wrap(routes(shared.clone()), shared);
    let served = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>());
    served.with_graceful_shutdown(stop).await?;
    // The last handler is gone, and with it the last sender of jobs: the pool ends by itself.
    if let Some(pool) = pool {
        let _ = pool.await;
    }
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
        .route("/api/pull", post(ollama_models::pull))
        .route("/api/delete", delete(ollama_models::delete))
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
        .route_layer(from_fn_with_state(shared.clone(), pass))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

impl Shared {
    /// The gateway's own model, if it is what a request names.
    pub(crate) fn named(&self, name: Option<&str>) -> Result<&Model, Problem> {
        let name = name.ok_or_else(|| Problem::value("model", "you must provide a model parameter"))?;
        if let Some(model) = self.model.as_ref().filter(|model| model.is_called(name)) {
            return Ok(model);
        }
        // Where a model that is lent can be asked for, its requests have been taken out before.
        Err(self.lent(name).map_or_else(|| self.unknown(name), |model| elsewhere(&model)))
    }

    /// The model that a request names, if it is one that others lend: the gateway's own goes before.
    pub(crate) fn lent(&self, name: &str) -> Option<LentModel> {
        self.lending.as_ref().filter(|_| !self.is_own(name))?.find(name)
    }

    /// The same, for a request that may name none.
    pub(crate) fn to_ask(&self, name: Option<&str>) -> Option<LentModel> {
        self.to_pass_on(name?)
    }

    /// The same for a request that is passed on: also one that was lent before, which nobody may answer now.
    pub(crate) fn to_pass_on(&self, name: &str) -> Option<LentModel> {
        self.lending.as_ref().filter(|_| !self.is_own(name))?.find_or_knew(name)
    }

    /// True if that is the gateway's own model.
    pub(crate) fn is_own(&self, name: &str) -> bool {
        self.model.as_ref().is_some_and(|model| model.is_called(name))
    }

    /// Models that others lend, under names that are not the gateway's own.
    pub(crate) fn all_lent(&self) -> Vec<LentModel> {
        let mut models = self.lending.as_ref().map_or_else(Vec::new, |lending| lending.lent.models());
        models.retain(|lent| !self.is_own(&lent.name));
        models
    }

    /// When the gateway began to list them.
    pub(crate) fn lent_since(&self) -> SystemTime {
        self.lending.as_ref().map_or(SystemTime::UNIX_EPOCH, |lending| lending.since)
    }

    fn unknown(&self, name: &str) -> Problem {
        let own = self.model.iter().map(|model| model.name.clone());
        let names: Vec<_> = own.chain(self.all_lent().into_iter().map(|model| model.name)).take(NAMES_SHOWN).collect();
        let served = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let message = match names.len() {
            0 => format!("The model `{name}` does not exist; nobody lends this gateway a model now."),
            _ => format!("The model `{name}` does not exist; this gateway serves {served}."),
        };
        Problem { param: Some("model".into()), ..Problem::new(Whose::Missing, "model_not_found", message) }
    }

    /// A request for each choice that the parameters ask for. `logprobs`: alternatives to report.
    pub(crate) fn requests(
        &self,
        model: &Model,
        params: &Params,
        prompt: &[u32],
        logprobs: Option<u16>,
    ) -> Result<Vec<Request>, Problem> {
        let (chunk, fixed, exact) = (self.chunk(), self.chunk.is_some(), self.exact);
        let template = Request { chunk, fixed, reuse: !exact, exact, ..Request::new(prompt.to_vec()) };
        params.requests(&template, logprobs, model.vocabulary.info().tokens)
    }

    /// How a prompt is made to fit. `truncate`: what its request says; `answer`: tokens of the answer at most.
    pub(crate) fn fit(&self, truncate: Option<bool>, answer: Option<u32>) -> Fit {
        Fit::new(self.overflow, truncate, answer)
    }

    /// Positions of a step at most.
    pub(crate) fn chunk(&self) -> u16 {
        self.chunk.unwrap_or(STEP_POSITIONS_MAX as u16)
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, ended: &Ended) {
        self.metrics.answered(ended);
    }
}

/// A response, whether the handler found one or a problem, in the shape that its API gives problems.
pub(crate) fn either(result: Result<Response, Problem>, shape: fn(Problem) -> Response) -> Response {
    result.unwrap_or_else(shape)
}
