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
    finish_reason, message,
    params::Params,
    timings, usage,
};
use crate::{
    Model, Problem,
    access::Caller,
    answer::{Answers, Whole},
    http::{Asker, Json as Body, Shared, Site, either},
    logprobs,
    overflow::Fitted,
    prompt,
    stream::{Framing, respond},
    tools::{Call, Piece, Reader, Tools},
};

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
    /// What tools were before they were tools.
    #[serde(default)]
    functions: Option<Vec<Value>>,
    #[serde(default)]
    web_search_options: Option<Value>,
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
    let logprobs = logprobs::asked(request.logprobs, request.top_logprobs)?;
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
        let vocabulary = model.vocabulary.clone();
        let format = ChatFormat::new(head, vocabulary, usage, logprobs.is_some(), tools, shared.metrics.clone());
        return Ok(dropped.mark(respond(answers, Framing::Events, format).await?));
    }
    let whole = answers.whole().await?;
    whole.iter().for_each(|choice| shared.answered(&choice.ended));
    let mut choices = Vec::with_capacity(whole.len());
    for (index, choice) in whole.iter().enumerate() {
        choices.push(self::choice(model, index, choice, tools.as_ref()).await);
    }
    let mut object = head.object("chat.completion");
    object["choices"] = choices.into();
    object["usage"] = usage(whole.iter().map(|choice| &choice.ended.outcome));
    object["timings"] = whole.first().map_or(Value::Null, |choice| timings(&choice.ended.outcome));
    add_trace(&mut object, whole.first().map(|choice| &choice.ended.outcome));
    Ok(dropped.mark(Json(object).into_response()))
}

async fn choice(model: &Model, index: usize, choice: &Whole, tools: Option<&Arc<Tools>>) -> Value {
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
        let mut reader = Reader::new(Some(tools.clone()));
        let pieces = choice.ended.pieces(&mut reader);
        let text = pieces.iter().filter_map(Piece::text).collect::<String>();
        let calls = reader.calls();
        finish = finish_with(finish, tools, reader.has_called());
        message["content"] = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
        if !calls.is_empty() {
            message["tool_calls"] = calls.iter().map(Call::json).collect();
        }
    }
    json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish })
}

/// Why an answer with tools ended: a cut one has no call that anybody should make, a named one is what was asked for.
pub(super) fn finish_with(finish: &'static str, tools: &Tools, calls: bool) -> &'static str {
    if finish == "stop" && calls && !tools.is_named() { "tool_calls" } else { finish }
}

impl ChatRequest {
    /// What the template gets beside the messages. What this model cannot do is refused.
    fn variables(&self) -> Result<Map<String, Value>, Problem> {
        if self.audio.is_some() || self.modalities.iter().flatten().any(|modality| modality != "text") {
            return Err(Problem::unsupported("modalities", "this model writes text only"));
        }
        if self.functions.as_ref().is_some_and(|functions| !functions.is_empty()) {
            return Err(Problem::unsupported("functions", "functions are called as `tools` here"));
        }
        if self.web_search_options.is_some() {
            return Err(Problem::unsupported("web_search_options", "nothing is looked up here"));
        }
        Ok(self.chat_template_kwargs.clone().unwrap_or_default())
    }
}
