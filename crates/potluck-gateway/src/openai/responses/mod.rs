//! `/v1/responses`, without a memory: each request brings its whole conversation.

mod events;
mod input;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::params::Params;
use crate::{
    LentModel, Problem,
    access::Caller,
    answer::Answers,
    http::{Asker, Json as Body, Shared, Site, either, or_default},
    lent::Question,
    overflow::Fitted,
    prompt,
    stream::{Framing, respond},
    tools::Tools,
};
use events::Events;

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ResponsesRequest {
    model: Option<String>,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    instructions: Option<String>,
    #[serde(default)]
    max_output_tokens: Option<u32>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    text: Value,
    #[serde(default, deserialize_with = "or_default")]
    tools: Vec<Value>,
    #[serde(default)]
    tool_choice: Value,
    #[serde(default)]
    previous_response_id: Option<String>,
    #[serde(default)]
    background: Option<bool>,
    #[serde(default)]
    conversation: Value,
    #[serde(default)]
    prompt: Value,
    #[serde(default)]
    top_logprobs: Option<u16>,
    #[serde(default, deserialize_with = "or_default")]
    include: Vec<String>,
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    truncation: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
}

#[utoipa::path(post, path = "/v1/responses", tag = "OpenAI", request_body = ResponsesRequest, responses((status = 200, description = "A response; nothing is kept between requests")))]
pub(crate) async fn handle(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<ResponsesRequest>,
) -> Response {
    let result = async { answer(&shared, &caller, body?).await };
    either(result.await, Problem::openai)
}

async fn answer(shared: &Arc<Shared>, caller: &Caller, request: ResponsesRequest) -> Result<Response, Problem> {
    request.check()?;
    if let Some(lent) = shared.to_ask(request.model.as_deref()) {
        return answer_lent(shared, caller, request, lent).await;
    }
    let model = shared.named(request.model.as_deref())?;
    let tools = Tools::of(Some(&input::functions(&request.tools)?), input::choice(&request.tool_choice).as_ref())?;
    let tools = tools.map(Arc::new);
    let mut messages = input::conversation(request.instructions.as_deref(), &request.input)?;
    let mut variables = Map::new();
    if let Some(tools) = &tools {
        tools.tell(model, &mut messages, &mut variables);
    }
    let fit = shared.fit(request.truncates()?, request.max_output_tokens);
    let Fitted { tokens, dropped } = prompt::of_messages(model, messages, variables, fit).await?;
    let mut requests = shared.requests(model, &request.params()?, &tokens, None)?;
    if let Some(grammar) = tools.as_deref().and_then(Tools::grammar) {
        requests.iter_mut().for_each(|request| request.grammar = Some(grammar.clone()));
    }
    let answers = Answers::ask(&shared.jobs, caller, requests).await?;
    let format = Events::new(&request, fit, &model.name, tools, shared.metrics.clone());
    Ok(dropped.mark(write(shared, answers, &request, format).await?))
}

/// The same, by a model that others lend: what it calls, its lender says.
async fn answer_lent(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: ResponsesRequest,
    lent: LentModel,
) -> Result<Response, Problem> {
    if request.truncates()? == Some(true) {
        let message = "how long a conversation this model takes is known to its lender: send one that fits";
        return Err(Problem::unsupported("truncation", message));
    }
    let messages = input::conversation(request.instructions.as_deref(), &request.input)?;
    let (functions, choice) = (input::functions(&request.tools)?, input::choice(&request.tool_choice));
    let question = Question::chat(messages)?.tools(functions, choice)?.with(request.params()?);
    let format = Events::new(&request, shared.fit(Some(false), None), &lent.name, None, shared.metrics.clone());
    let answers = shared.ask_lent(caller, lent, question);
    write(shared, answers, &request, format).await
}

/// The answer, as it comes or whole.
async fn write(
    shared: &Shared,
    answers: Answers,
    request: &ResponsesRequest,
    mut format: Events,
) -> Result<Response, Problem> {
    if request.stream == Some(true) {
        return respond(answers, Framing::Events, format).await;
    }
    let ended = answers.only().await?.ended;
    shared.answered(&ended);
    Ok(Json(format.whole(&ended)).into_response())
}

impl ResponsesRequest {
    fn params(&self) -> Result<Params, Problem> {
        Ok(Params {
            temperature: self.temperature,
            top_p: self.top_p,
            max_tokens: self.max_output_tokens,
            response_format: self.format()?,
            ..Params::default()
        })
    }

    fn check(&self) -> Result<(), Problem> {
        if self.previous_response_id.is_some() {
            let message = "nothing is kept here between requests: send the whole conversation as input";
            return Err(Problem::unsupported("previous_response_id", message));
        }
        if !self.conversation.is_null() {
            let message = "no conversation is kept here: send the whole of it as input";
            return Err(Problem::unsupported("conversation", message));
        }
        if !self.prompt.is_null() {
            return Err(Problem::unsupported("prompt", "no prompts are kept here: send it as input"));
        }
        let included = self.include.iter().any(|what| what == "message.output_text.logprobs");
        if included || self.top_logprobs.is_some_and(|top| top > 0) {
            let message = "responses come without log-probabilities: ask at /v1/chat/completions";
            return Err(Problem::unsupported(if included { "include" } else { "top_logprobs" }, message));
        }
        if self.background == Some(true) {
            return Err(Problem::unsupported("background", "answers are made while you wait"));
        }
        Ok(())
    }

    /// Whether too long a conversation is cut, where the request says.
    fn truncates(&self) -> Result<Option<bool>, Problem> {
        match self.truncation.as_deref() {
            None => Ok(None),
            Some("auto") => Ok(Some(true)),
            Some("disabled") => Ok(Some(false)),
            Some(_) => Err(Problem::value("truncation", "a truncation is `auto` or `disabled`")),
        }
    }

    /// A response format, as chats have it.
    fn format(&self) -> Result<Option<Value>, Problem> {
        let format = &self.text["format"];
        Ok(match format["type"].as_str() {
            None | Some("text") => None,
            Some("json_schema") => {
                Some(json!({ "type": "json_schema", "json_schema": { "schema": format["schema"] } }))
            }
            Some(_) => Some(format.clone()),
        })
    }
}
