//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    add_trace,
    chat_format::{ChatFormat, Head},
    finish_reason, logprobs, message,
    params::Params,
    timings, usage,
};
use crate::{
    Model, Problem,
    access::Caller,
    answer::{Answers, Whole},
    http::{Asker, Json as Body, Shared, Site, either},
    overflow::Fitted,
    prompt,
    stream::{Framing, respond},
    tools::{Call, Said, Tools},
};

/// Alternatives that one may ask to see of each token.
const TOP_LOGPROBS_MAX: u16 = 20;

/// A request, as OpenAI's clients send it. What is not known is ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    model: Option<String>,
    #[serde(default)]
    messages: Vec<Value>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<u16>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(default)]
    modalities: Option<Vec<String>>,
    #[serde(default)]
    audio: Option<Value>,
    #[serde(flatten)]
    params: Params,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
}

#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest, responses((status = 200, description = "An answer; with `stream`, server-sent events")))]
pub(crate) async fn handle(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<ChatRequest>,
) -> Response {
    let result = async { answer(&shared, &caller, body?).await };
    either(result.await, Problem::openai)
}

async fn answer(shared: &Shared, caller: &Caller, request: ChatRequest) -> Result<Response, Problem> {
    let model = shared.named(request.model.as_deref())?;
    let logprobs = request.logprobs()?;
    let tools = Tools::of(request.tools.as_deref(), request.tool_choice.as_ref())?.map(Arc::new);
    let (mut messages, mut variables) = (message::for_template(request.messages.clone())?, request.variables()?);
    if let Some(tools) = &tools {
        tools.tell(model, &mut messages, &mut variables);
    }
    let fit = shared.fit(None, request.params.answer());
    let Fitted { tokens, dropped } = prompt::of_messages(model, messages, variables, fit).await?;
    let mut requests = shared.requests(model, &request.params, &tokens, logprobs)?;
    if let Some(grammar) = tools.as_deref().and_then(Tools::grammar) {
        requests.iter_mut().for_each(|request| request.grammar = Some(grammar.clone()));
    }
    let head = Head::new(request.model.as_deref().unwrap_or(&model.name), model);
    let answers = Answers::ask(&shared.jobs, caller, requests).await?;
    if request.stream == Some(true) {
        let usage = request.stream_options.is_some_and(|options| options.include_usage);
        let format = ChatFormat::new(head, model.vocabulary.clone(), usage, tools, shared.metrics.clone());
        return Ok(dropped.mark(respond(answers, Framing::Events, format).await?));
    }
    let whole = answers.whole().await?;
    whole.iter().for_each(|choice| shared.answered(&choice.ended));
    let mut choices = Vec::with_capacity(whole.len());
    for (index, choice) in whole.iter().enumerate() {
        choices.push(self::choice(model, index, choice, tools.as_deref()).await);
    }
    let mut object = head.object("chat.completion");
    object["choices"] = choices.into();
    object["usage"] = usage(whole.iter().map(|choice| &choice.ended.outcome));
    object["timings"] = whole.first().map_or(Value::Null, |choice| timings(&choice.ended.outcome));
    add_trace(&mut object, whole.first().map(|choice| &choice.ended.outcome));
    Ok(dropped.mark(Json(object).into_response()))
}

async fn choice(model: &Model, index: usize, choice: &Whole, tools: Option<&Tools>) -> Value {
    let (mut content, outcome) = (Vec::new(), &choice.ended.outcome);
    for token in &choice.tokens {
        content.extend(logprobs::entries(&model.vocabulary, token).await.map(logprobs::chat));
    }
    let logprobs = match outcome.logprobs {
        Some(_) => json!({ "content": content, "refusal": null }),
        None => Value::Null,
    };
    let mut message = json!({ "role": "assistant", "content": outcome.text, "refusal": null });
    let mut finish = finish_reason(outcome);
    if let Some(tools) = tools {
        let Said { text, calls } = tools.read(&outcome.text);
        finish = finish_with(finish, tools, &calls);
        message["content"] = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
        if !calls.is_empty() {
            message["tool_calls"] = calls.iter().map(Call::json).collect();
        }
    }
    json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish })
}

/// Why an answer with tools ended: a cut one has no call that anybody should make, a named one is what was asked for.
pub(super) fn finish_with(finish: &'static str, tools: &Tools, calls: &[Call]) -> &'static str {
    if finish == "stop" && !calls.is_empty() && !tools.is_named() { "tool_calls" } else { finish }
}

impl ChatRequest {
    /// How many alternatives to report of each token; none: no log-probabilities.
    fn logprobs(&self) -> Result<Option<u16>, Problem> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (_, Some(top)) if top > TOP_LOGPROBS_MAX => {
                let message = format!("top_logprobs is {top}; it must be between 0 and {TOP_LOGPROBS_MAX}");
                Err(Problem::value("top_logprobs", message))
            }
            (false, Some(top)) if top > 0 => {
                Err(Problem::value("top_logprobs", "top_logprobs needs logprobs to be true"))
            }
            (true, top) => Ok(Some(top.unwrap_or(0))),
            (false, _) => Ok(None),
        }
    }

    /// What the template gets beside the messages. What this model cannot do is refused.
    fn variables(&self) -> Result<Map<String, Value>, Problem> {
        if self.audio.is_some() || self.modalities.iter().flatten().any(|modality| modality != "text") {
            return Err(Problem::unsupported("modalities", "this model writes text only"));
        }
        Ok(self.chat_template_kwargs.clone().unwrap_or_default())
    }
}
