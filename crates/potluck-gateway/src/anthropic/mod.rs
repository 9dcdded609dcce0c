//! Anthropic's Messages API: what coding agents of that house speak.

mod events;
mod messages;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::{
    LentModel, Model, Problem,
    access::Caller,
    answer::Answers,
    http::{Asker, Json as Body, Shared, Site, either, or_default},
    lent::Question,
    openai::{OneOrMany, Params, for_template},
    overflow::{Fit, Fitted},
    prompt,
    stream::{Framing, respond},
    tools::{Reader, Tools},
};
use events::Events;
use messages::{choice, conversation, functions};

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MessagesRequest {
    model: Option<String>,
    #[serde(default)]
    messages: Vec<Value>,
    #[serde(default)]
    system: Value,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    stop_sequences: Vec<String>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    top_k: Option<i64>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default, deserialize_with = "or_default")]
    tools: Vec<Value>,
    #[serde(default)]
    tool_choice: Value,
}

#[utoipa::path(post, path = "/v1/messages", tag = "Anthropic", request_body = MessagesRequest, responses((status = 200, description = "A message; with `stream`, server-sent events")))]
pub(crate) async fn handle(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<MessagesRequest>,
) -> Response {
    let result = async { answer(&shared, &caller, body?).await };
    either(result.await, problem)
}

#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "Anthropic", request_body = MessagesRequest, responses((status = 200, description = "How many tokens a message would have")))]
pub(crate) async fn count_tokens(State(shared): Site, Body(body): Body<MessagesRequest>) -> Response {
    let result = async {
        let request = body?;
        let model = shared.named(request.model.as_deref())?;
        // What it has, not what would be left of it.
        let fit = shared.fit(Some(false), None);
        let counted = request.tokens(model, request.tools()?.as_ref(), fit).await?;
        Ok(Json(json!({ "input_tokens": counted.tokens.len() })).into_response())
    };
    either(result.await, problem)
}

/// The error object that Anthropic's clients read.
pub(crate) fn problem(problem: Problem) -> Response {
    problem.respond(object(&problem))
}

fn object(problem: &Problem) -> Value {
    json!({ "type": "error", "error": { "type": problem.kind(), "message": problem.message } })
}

async fn answer(shared: &Arc<Shared>, caller: &Caller, request: MessagesRequest) -> Result<Response, Problem> {
    if let Some(lent) = shared.to_ask(request.model.as_deref()) {
        return answer_lent(shared, caller, request, lent).await;
    }
    let model = shared.named(request.model.as_deref())?;
    let params = request.params()?;
    let tools = request.tools()?.map(Arc::new);
    let fit = shared.fit(None, params.max_tokens);
    let Fitted { tokens, dropped } = request.tokens(model, tools.as_deref(), fit).await?;
    let mut requests = shared.requests(model, &params, &tokens, None)?;
    if let Some(grammar) = tools.as_deref().and_then(Tools::grammar) {
        requests.iter_mut().for_each(|request| request.grammar = Some(grammar.clone()));
    }
    let answers = Answers::ask(&shared.jobs, caller, requests).await?;
    let format = Events {
        prompt_tokens: tokens.len(),
        ends: model.vocabulary.info().ends.clone(),
        may_call: tools.is_some(),
        reader: Reader::new(tools),
        ..request.events(shared, &model.name)
    };
    Ok(dropped.mark(write(shared, answers, &request, format).await?))
}

/// The same, by a model that others lend: what it calls, its lender says.
async fn answer_lent(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: MessagesRequest,
    lent: LentModel,
) -> Result<Response, Problem> {
    let (params, tools) = (request.params()?, functions(&request.tools)?);
    let messages = for_template(conversation(&request.system, &request.messages)?)?;
    let format = Events { may_call: !tools.is_empty(), ..request.events(shared, &lent.name) };
    let question = Question::chat(messages)?.tools(tools, choice(&request.tool_choice)?)?.with(params);
    let answers = shared.ask_lent(caller, lent, question);
    write(shared, answers, &request, format).await
}

/// The answer, as it comes or whole.
async fn write(
    shared: &Shared,
    answers: Answers,
    request: &MessagesRequest,
    mut format: Events,
) -> Result<Response, Problem> {
    if request.stream == Some(true) {
        return respond(answers, Framing::Events, format).await;
    }
    let ended = answers.only().await?.ended;
    shared.answered(&ended);
    Ok(Json(format.whole(&ended)).into_response())
}

impl MessagesRequest {
    fn params(&self) -> Result<Params, Problem> {
        let limit = self.max_tokens.ok_or_else(|| Problem::value("max_tokens", "max_tokens: Field required"))?;
        Ok(Params {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: Some(OneOrMany::Many(self.stop_sequences.clone())),
            max_tokens: Some(limit),
            ..Params::default()
        })
    }

    /// Events of an answer of which nothing is known yet. `name`: what the model is called, where the request does not say.
    fn events(&self, shared: &Shared, name: &str) -> Events {
        Events {
            id: format!("msg_{:032x}", fastrand::u128(..)),
            model: self.model.clone().unwrap_or_else(|| name.to_owned()),
            prompt_tokens: 0,
            ends: Vec::new(),
            stops: self.stop_sequences.clone(),
            may_call: false,
            metrics: shared.metrics.clone(),
            reader: Reader::default(),
            blocks: 0,
            text_open: false,
        }
    }

    fn tools(&self) -> Result<Option<Tools>, Problem> {
        Tools::of(Some(&functions(&self.tools)?), choice(&self.tool_choice)?.as_ref())
    }

    async fn tokens(&self, model: &Model, tools: Option<&Tools>, fit: Fit) -> Result<Fitted, Problem> {
        let mut messages = for_template(conversation(&self.system, &self.messages)?)?;
        let mut variables = Map::new();
        if let Some(tools) = tools {
            tools.tell(model, &mut messages, &mut variables);
        }
        prompt::of_messages(model, messages, variables, fit).await
    }
}
