//! `/v1/embeddings`: the mean of a text's hidden states, of length 1.

use axum::{
    Json,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::completions::Prompt;
use crate::{
    Model, Problem,
    access::Caller,
    answer::Answers,
    http::{Asker, Json as Body, Shared, Site, either},
    prompt,
};

/// Texts of one request: the reference's own bound.
pub(crate) const TEXTS_MAX: usize = 2_048;

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingsRequest {
    model: Option<String>,
    input: Option<Prompt>,
    #[serde(default)]
    encoding_format: Option<String>,
    #[serde(default)]
    dimensions: Option<usize>,
}

#[utoipa::path(post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingsRequest, responses((status = 200, description = "Embeddings")))]
pub(crate) async fn handle(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<EmbeddingsRequest>,
) -> Response {
    let result = async { answer(&shared, &caller, body?).await };
    either(result.await, Problem::openai)
}

async fn answer(shared: &Shared, caller: &Caller, request: EmbeddingsRequest) -> Result<Response, Problem> {
    let model = shared.named(request.model.as_deref())?;
    let base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => return Err(Problem::value("encoding_format", format!("`{other}` is no encoding"))),
    };
    let texts = texts(model, request.input).await?;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let embeddings = Answers::embed(&shared.jobs, caller, texts, shared.chunk()).await?;
    let width = embeddings.first().map_or(0, Vec::len);
    if request.dimensions.is_some_and(|dimensions| dimensions != width) {
        let message = format!("this model's embeddings have {width} dimensions; cut shorter they mean nothing");
        return Err(Problem::unsupported("dimensions", message));
    }
    let encode = |embedding: Vec<f32>| match base64 {
        true => json!(BASE64.encode(&embedding.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>())),
        false => json!(embedding),
    };
    let data = embeddings
        .into_iter()
        .enumerate()
        .map(|(index, embedding)| json!({ "object": "embedding", "index": index, "embedding": encode(embedding) }));
    let object = json!({
        "object": "list",
        "data": data.collect::<Vec<Value>>(),
        "model": request.model.as_deref().unwrap_or(&model.name),
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    Ok(Json(object).into_response())
}

async fn texts(model: &Model, input: Option<Prompt>) -> Result<Vec<Vec<u32>>, Problem> {
    let input = input.ok_or_else(|| Problem::value("input", "you must provide an input"))?;
    let texts = match input {
        Prompt::Text(text) => vec![prompt::of_text(model, &text).await?],
        Prompt::Texts(texts) => {
            check(texts.len())?;
            let mut all = Vec::with_capacity(texts.len());
            for text in &texts {
                all.push(prompt::of_text(model, text).await?);
            }
            all
        }
        Prompt::Tokens(tokens) => vec![prompt::of_tokens(model, tokens)?],
        Prompt::ManyTokens(many) => {
            check(many.len())?;
            many.into_iter().map(|tokens| prompt::of_tokens(model, tokens)).collect::<Result<_, _>>()?
        }
    };
    Ok(texts)
}

fn check(texts: usize) -> Result<(), Problem> {
    match texts {
        0 => Err(Problem::value("input", "there is no text")),
        n if n > TEXTS_MAX => Err(Problem::value("input", format!("{n} texts; the most is {TEXTS_MAX}"))),
        _ => Ok(()),
    }
}
