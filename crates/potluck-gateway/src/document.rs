//! `/openapi.json`: the addresses and their parameters, for programs that read such a document.

use axum::Json;
use utoipa::OpenApi;

use crate::{anthropic, ollama, ollama_embed, ollama_models, openai};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Potluck's gateway",
        description = "OpenAI's, Anthropic's and Ollama's APIs; docs/api.md says which parameter is supported, refused or ignored."
    ),
    paths(
        openai::chat::handle,
        openai::completions::handle,
        openai::embeddings::handle,
        openai::responses::handle,
        openai::models::list,
        openai::models::show,
        anthropic::handle,
        anthropic::count_tokens,
        ollama::version,
        ollama::tags,
        ollama::ps,
        ollama::show,
        ollama::chat,
        ollama::generate,
        ollama_embed::embed,
        ollama_embed::embeddings,
        ollama_models::pull,
        ollama_models::delete,
    )
)]
struct Document;

pub(crate) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_and_its_parameters_are_in_it() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        assert_eq!(document["paths"].as_object().unwrap().len(), 18, "{document:#}");
        let chat = &document["components"]["schemas"]["ChatRequest"].to_string();
        for field in ["messages", "tools", "response_format", "temperature", "logit_bias"] {
            assert!(
                chat.contains(field) || document["components"]["schemas"]["Params"].to_string().contains(field),
                "{field}"
            );
        }
    }
}
