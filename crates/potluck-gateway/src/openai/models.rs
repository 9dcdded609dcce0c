//! `/v1/models`.

use std::time::UNIX_EPOCH;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use potluck_core::PASSED_ON;
use serde_json::{Value, json};

use crate::{
    LentModel, Model,
    http::{Shared, Site},
};

#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, description = "The model and its aliases, and the models that others lend")))]
pub(crate) async fn list(State(shared): Site) -> Json<Value> {
    let own = shared.model.iter().flat_map(|model| {
        let names = std::iter::once(&model.name).chain(&model.aliases);
        names.map(|name| object(model, name)).collect::<Vec<_>>()
    });
    let lent = shared.all_lent().into_iter().map(|model| passed_on(&shared, &model));
    Json(json!({ "object": "list", "data": own.chain(lent).collect::<Vec<_>>() }))
}

#[utoipa::path(get, path = "/v1/models/{id}", tag = "OpenAI", params(("id" = String, Path, description = "A model's name")), responses((status = 200, description = "The model")))]
pub(crate) async fn show(State(shared): Site, Path(id): Path<String>) -> Response {
    match (shared.lent(&id), shared.named(Some(&id))) {
        (Some(model), _) => Json(passed_on(&shared, &model)).into_response(),
        (None, Ok(model)) => Json(object(model, &id)).into_response(),
        (None, Err(problem)) => problem.openai(),
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

fn passed_on(shared: &Shared, model: &LentModel) -> Value {
    let created = shared.lent_since().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut object = json!({ "id": model.name, "object": "model", "created": created, "owned_by": PASSED_ON });
    if let Some(context) = model.context {
        object["context_length"] = context.into();
        object["max_model_len"] = context.into();
    }
    object
}
