//! Ollama's `/api/pull` and `/api/delete`: models come and go at a client's wish.

use std::sync::Arc;

use axum::{
    Json,
    body::{Body as HttpBody, Bytes},
    extract::{Extension, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use utoipa::ToSchema;

use crate::{
    Problem, Whose,
    http::{Asker, Json as Body, Shared, Site, either},
    keeper::{Progress, Step, Wish},
};

/// Characters of a digest that its line names it by, after the name of the hash.
const DIGEST_CHARS: usize = 12;

/// Characters of a model's name or address. A longer one is refused.
const NAME_CHARS_MAX: usize = 2_048;

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaPullRequest)]
pub(crate) struct PullRequest {
    #[serde(default)]
    model: Option<String>,
    /// The older name of the same.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaDeleteRequest)]
pub(crate) struct DeleteRequest {
    #[serde(default)]
    model: Option<String>,
    /// The older name of the same.
    #[serde(default)]
    name: Option<String>,
}

#[utoipa::path(post, path = "/api/pull", tag = "Ollama", request_body = PullRequest, responses((status = 200, description = "How far it has come, as lines of JSON unless `stream` is false")))]
pub(crate) async fn pull(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    headers: HeaderMap,
    Body(body): Body<PullRequest>,
) -> Response {
    let result = async {
        shared.access.check_change(&headers, &caller)?;
        let PullRequest { model, name, stream } = body?;
        let progress = wish(&shared, |reply| Ok(Wish::Pull(named(model, name)?, reply))).await?;
        if stream == Some(false) { whole(progress).await } else { Ok(lines(progress)) }
    };
    either(result.await, Problem::ollama)
}

#[utoipa::path(delete, path = "/api/delete", tag = "Ollama", request_body = DeleteRequest, responses((status = 200, description = "It is forgotten, and what was fetched of it is removed"), (status = 404, description = "There is no such model"), (status = 409, description = "It is in use")))]
pub(crate) async fn delete(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    headers: HeaderMap,
    Body(body): Body<DeleteRequest>,
) -> Response {
    let result = async {
        shared.access.check_change(&headers, &caller)?;
        let DeleteRequest { model, name } = body?;
        let name = named(model, name)?;
        if shared.is_own(&name) {
            let message = format!("model '{name}' is served by this gateway: stop it first");
            return Err(Problem::new(Whose::Conflict, "in_use", message));
        }
        wish(&shared, |reply| Ok(Wish::Delete(name, reply))).await?;
        Ok(StatusCode::OK.into_response())
    };
    either(result.await, Problem::ollama)
}

fn named(model: Option<String>, name: Option<String>) -> Result<String, Problem> {
    let name = model.filter(|model| !model.is_empty()).or(name).filter(|name| !name.is_empty());
    match name {
        None => Err(Problem::value("model", "you must provide a model parameter")),
        Some(name) if name.chars().count() > NAME_CHARS_MAX => {
            Err(Problem::value("model", format!("a name has {NAME_CHARS_MAX} characters at most")))
        }
        Some(name) => Ok(name),
    }
}

async fn wish<T>(
    shared: &Arc<Shared>,
    make: impl FnOnce(oneshot::Sender<Result<T, Problem>>) -> Result<Wish, Problem>,
) -> Result<T, Problem> {
    let wishes = shared.wishes.as_ref().ok_or_else(|| {
        let message = "this gateway fetches and removes no models: it was started with --no-pull";
        Problem::new(Whose::Origin, "no_pull", message)
    })?;
    let (reply, answer) = oneshot::channel();
    wishes.send(make(reply)?).await.map_err(|_| leaving())?;
    answer.await.map_err(|_| leaving())?
}

/// Waits for its end.
async fn whole(mut progress: watch::Receiver<Progress>) -> Result<Response, Problem> {
    loop {
        if let Progress::Done(ended) = &*progress.borrow_and_update() {
            return ended.clone().map(|()| Json(json!({ "status": "success" })).into_response());
        }
        progress.changed().await.map_err(|_| leaving())?;
    }
}

/// What follows a pull, line by line. Dropped, it follows no more.
struct Lines {
    progress: watch::Receiver<Progress>,
    last: Option<Value>,
    ended: bool,
}

fn lines(progress: watch::Receiver<Progress>) -> Response {
    let lines = Lines { progress, last: None, ended: false };
    let body = n0_future::stream::unfold(lines, async |mut lines| {
        let line = lines.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(format!("{line}\n"))), lines))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-cache")];
    (headers, HttpBody::from_stream(body)).into_response()
}

impl Lines {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if self.ended {
                return None;
            }
            if self.last.is_none() {
                // Every stream begins with it, also of who follows what has come far already.
                self.progress.mark_changed();
                let line = Step::Asking.line();
                self.last = Some(line.clone());
                return Some(line);
            }
            if self.progress.changed().await.is_err() {
                self.ended = true;
                return Some(json!({ "error": leaving().message }));
            }
            let line = match &*self.progress.borrow_and_update() {
                Progress::Step(step) => step.line(),
                Progress::Done(ended) => {
                    self.ended = true;
                    match ended {
                        Ok(()) => json!({ "status": "success" }),
                        Err(problem) => json!({ "error": problem.message }),
                    }
                }
            };
            if self.last.as_ref() != Some(&line) {
                self.last = Some(line.clone());
                return Some(line);
            }
        }
    }
}

impl Step {
    fn line(&self) -> Value {
        match self {
            Self::Asking => json!({ "status": "pulling manifest" }),
            Self::Coming { digest, done, total } => {
                let hash = digest.split_once(':').map_or(digest.as_str(), |(_, hash)| hash);
                let short: String = hash.chars().take(DIGEST_CHARS).collect();
                json!({ "status": format!("pulling {short}"), "digest": digest, "total": total, "completed": done })
            }
            Self::Checking => json!({ "status": "verifying sha256 digest" }),
        }
    }
}

fn leaving() -> Problem {
    Problem::new(Whose::Lenders(1), "shutting_down", "the gateway is shutting down")
}
