//! `/v1/models`.

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{Model, http::Site};

#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, description = "The model and its aliases")))]
pub(crate) async fn list(State(shared): Site) -> Json<Value> {
    let names = std::iter::once(&shared.model.name).chain(&shared.model.aliases);
    let data: Vec<_> = names.map(|name| object(&shared.model, name)).collect();
    Json(json!({ "object": "list", "data": data }))
}

#[utoipa::path(get, path = "/v1/models/{id}", tag = "OpenAI", params(("id" = String, Path, description = "A model's name")), responses((status = 200, description = "The model")))]
pub(crate) async fn show(State(shared): Site, Path(id): Path<String>) -> Response {
    match shared.named(Some(&id)) {
        Ok(model) => Json(object(model, &id)).into_response(),
        Err(problem) => problem.openai(),
    }
}

fn object(model: &Model, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "potluck",
        "context_length": model.context,
        "max_model_len": model.context,
    })
}
