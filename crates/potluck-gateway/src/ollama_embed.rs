//! Ollama's embeddings: `/api/embed`, and the older `/api/embeddings`.

use std::time::Instant;

use axum::{
    Json,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::{
    Model, Problem,
    answer::Answers,
    http::{Asker, Json as Body, Site, either},
    openai::{EMBEDDED_TEXTS_MAX, OneOrMany},
    prompt,
};

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbedRequest {
    model: Option<String>,
    #[serde(default)]
    input: Option<OneOrMany>,
    /// Whether a text that is too long is cut; without it, it is an error.
    #[serde(default = "yes")]
    truncate: bool,
}

/// Written as it is: as values of JSON, numbers would take many times as much.
#[derive(Debug, Serialize)]
struct Embedded {
    model: String,
    embeddings: Vec<Vec<f32>>,
    prompt_eval_count: usize,
    total_duration: u64,
    load_duration: u64,
}

fn yes() -> bool {
    true
}

#[utoipa::path(post, path = "/api/embed", tag = "Ollama", request_body = EmbedRequest, responses((status = 200, description = "Embeddings")))]
pub(crate) async fn embed(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<EmbedRequest>,
) -> Response {
    let result = async {
        let (EmbedRequest { model, input, truncate }, begun) = (body?, Instant::now());
        let texts = match input {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => vec![text],
            Some(OneOrMany::Many(texts)) => texts,
        };
        if texts.len() > EMBEDDED_TEXTS_MAX {
            let message = format!("{} texts; the most is {EMBEDDED_TEXTS_MAX}", texts.len());
            return Err(Problem::value("input", message));
        }
        let (name, embeddings, count) = match shared.to_ask(model.as_deref()) {
            Some(lent) => {
                let name = lent.name.clone();
                let (embeddings, count) = shared.embed_lent(&caller, lent, texts).await?;
                (name, embeddings, count)
            }
            None => {
                let known = shared.named(model.as_deref())?;
                let mut all = Vec::with_capacity(texts.len());
                for text in &texts {
                    all.push(tokens(known, text, truncate).await?);
                }
                let count = all.iter().map(Vec::len).sum();
                (known.name.clone(), Answers::embed(&shared.jobs, &caller, all, shared.chunk()).await?, count)
            }
        };
        let total_duration = begun.elapsed().as_nanos() as u64;
        let embedded = Embedded { model: name, embeddings, prompt_eval_count: count, total_duration, load_duration: 0 };
        Ok(Json(embedded).into_response())
    };
    either(result.await, Problem::ollama)
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OldRequest {
    model: Option<String>,
    #[serde(default)]
    prompt: String,
}

#[utoipa::path(post, path = "/api/embeddings", tag = "Ollama", request_body = OldRequest, responses((status = 200, description = "One embedding: the older form")))]
pub(crate) async fn embeddings(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<OldRequest>,
) -> Response {
    let result = async {
        let OldRequest { model, prompt } = body?;
        let lent = shared.to_ask(model.as_deref());
        let known = if lent.is_some() { None } else { Some(shared.named(model.as_deref())?) };
        // Asked for nothing, Ollama loads the model: it is loaded.
        if prompt.is_empty() {
            return Ok(Json(json!({ "embedding": [] })).into_response());
        }
        let mut embeddings = match (lent, known) {
            (Some(lent), _) => shared.embed_lent(&caller, lent, vec![prompt]).await?.0,
            (None, Some(known)) => {
                let text = tokens(known, &prompt, true).await?;
                Answers::embed(&shared.jobs, &caller, vec![text], shared.chunk()).await?
            }
            (None, None) => Vec::new(),
        };
        let embedding = embeddings.pop();
        Ok(Json(json!({ "embedding": embedding.unwrap_or_default() })).into_response())
    };
    either(result.await, Problem::ollama)
}

async fn tokens(model: &Model, text: &str, truncate: bool) -> Result<Vec<u32>, Problem> {
    if truncate { prompt::of_cut_text(model, text).await } else { prompt::of_text(model, text).await }
}
