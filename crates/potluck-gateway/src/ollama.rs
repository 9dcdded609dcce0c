//! Ollama's own API, for its clients: lines of JSON, errors that are a text.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use potluck_chain::sample::FinishReason;
use potluck_client::TokenEvent;
use potluck_engine::VocabularyClient;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::{
    LentModel, Model, Problem,
    access::Caller,
    answer::{Answers, Ended, Whole},
    http::{Asker, Json as Body, Shared, Site, either, or_default},
    lent::Question,
    logprobs,
    metrics::Metrics,
    openai::{OneOrMany, Params, for_template},
    overflow::Fitted,
    prompt,
    stream::{Format, Framing, Writer, respond},
    tools::{Call, Piece, Reader, Said, Tools},
};

/// The version of Ollama whose API this is like: clients ask for a version and expect three numbers.
const VERSION: &str = "0.12.0";

/// How a request's tokens are chosen.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
struct Options {
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    num_predict: Option<i64>,
    num_ctx: Option<u32>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaChatRequest)]
pub(crate) struct ChatRequest {
    model: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    messages: Vec<Value>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct GenerateRequest {
    model: Option<String>,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    suffix: String,
    #[serde(default)]
    system: String,
    #[serde(default)]
    raw: bool,
    #[serde(default, deserialize_with = "or_default")]
    images: Vec<Value>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Deserialize, ToSchema)]
struct Rest {
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    format: Value,
    #[serde(default, deserialize_with = "or_default")]
    options: Options,
    #[serde(default)]
    truncate: Option<bool>,
    #[serde(default, deserialize_with = "or_default")]
    tools: Vec<Value>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<u16>,
}

pub(crate) async fn hello() -> &'static str {
    "Ollama is running"
}

#[utoipa::path(get, path = "/api/version", tag = "Ollama", responses((status = 200, description = "The version of Ollama whose API this is like")))]
pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": VERSION }))
}

#[utoipa::path(get, path = "/api/tags", tag = "Ollama", responses((status = 200, description = "The models")))]
pub(crate) async fn tags(State(shared): Site) -> Json<Value> {
    let lent = shared.all_lent();
    let lent = lent.iter().map(|model| lent_entry(model, shared.lent_since()));
    Json(json!({ "models": shared.model.iter().map(entry).chain(lent).collect::<Vec<_>>() }))
}

#[utoipa::path(get, path = "/api/ps", tag = "Ollama", responses((status = 200, description = "The models that are loaded")))]
pub(crate) async fn ps(State(shared): Site) -> Json<Value> {
    let until = rfc3339(SystemTime::now() + Duration::from_secs(365 * 24 * 3_600));
    let running = |model: &Model| {
        let mut entry = entry(model);
        entry["size_vram"] = 0.into();
        entry["context_length"] = model.context.into();
        entry["expires_at"] = until.clone().into();
        entry
    };
    Json(json!({ "models": shared.model.iter().map(running).collect::<Vec<_>>() }))
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Named {
    #[serde(default)]
    model: Option<String>,
    /// The older name of the same; Ollama's own client sends both, one of them empty.
    #[serde(default)]
    name: Option<String>,
}

#[utoipa::path(post, path = "/api/show", tag = "Ollama", request_body = Named, responses((status = 200, description = "What a model is")))]
pub(crate) async fn show(State(shared): Site, Body(body): Body<Named>) -> Response {
    let answer = body.and_then(|Named { model, name }| {
        let name = model.filter(|model| !model.is_empty()).or(name);
        if let Some(lent) = name.as_deref().and_then(|name| shared.lent(name)) {
            return Ok(Json(lent_details(&lent, shared.lent_since())).into_response());
        }
        let model = shared.named(name.as_deref())?;
        let family = &model.family;
        let info = Map::from_iter([
            ("general.architecture".to_owned(), json!(family)),
            (format!("{family}.context_length"), json!(model.context)),
        ]);
        let object = json!({
            "modelfile": "", "parameters": "", "template": "", "details": details(model),
            "model_info": info, "capabilities": ["completion", "tools"], "modified_at": rfc3339(since(model)),
        });
        Ok(Json(object).into_response())
    });
    either(answer, Problem::ollama)
}

#[utoipa::path(post, path = "/api/chat", tag = "Ollama", request_body = ChatRequest, responses((status = 200, description = "An answer, as lines of JSON unless `stream` is false")))]
pub(crate) async fn chat(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<ChatRequest>,
) -> Response {
    let result = async {
        let ChatRequest { model, messages, rest } = body?;
        let images = |message: &Value| message["images"].as_array().is_some_and(|images| !images.is_empty());
        if messages.iter().any(images) {
            return Err(Problem::unsupported("images", "text alone is read here"));
        }
        if let Some(lent) = shared.to_ask(model.as_deref()) {
            if messages.is_empty() {
                return Ok(loaded(&lent.name, &Kind::Chat(None)));
            }
            let messages = for_template(messages.into_iter().map(with_name).collect())?;
            let question = Question::chat(messages)?.tools(rest.tools.clone(), None)?;
            return answer_lent(&shared, &caller, lent, question, rest, Kind::Chat(None)).await;
        }
        let known = shared.named(model.as_deref())?;
        // Asked for nothing, Ollama loads the model: it is loaded.
        if messages.is_empty() {
            return Ok(loaded(&known.name, &Kind::Chat(None)));
        }
        let tools = Tools::of(Some(&rest.tools), None)?.map(Arc::new);
        let (mut messages, mut variables) = (for_template(messages)?, Map::new());
        if let Some(tools) = &tools {
            tools.tell(known, &mut messages, &mut variables);
        }
        // Ollama's server leaves out the oldest messages, unless it is told otherwise.
        let fit = shared.fit(rest.truncate.or(Some(true)), rest.options.max_tokens());
        let prompt = prompt::of_messages(known, messages, variables, fit).await?;
        answer(&shared, &caller, known, prompt, rest, Kind::Chat(tools)).await
    };
    either(result.await, Problem::ollama)
}

#[utoipa::path(post, path = "/api/generate", tag = "Ollama", request_body = GenerateRequest, responses((status = 200, description = "A text, as lines of JSON unless `stream` is false")))]
pub(crate) async fn generate(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<GenerateRequest>,
) -> Response {
    let result = async {
        let GenerateRequest { model, prompt, suffix, system, raw, images, rest } = body?;
        if !rest.tools.is_empty() {
            return Err(Problem::unsupported("tools", "a text calls no tools: ask at /api/chat"));
        }
        if !suffix.is_empty() || !images.is_empty() {
            let param = if suffix.is_empty() { "images" } else { "suffix" };
            return Err(Problem::unsupported(param, "this model goes on with a text, and reads nothing else"));
        }
        let system = (!system.is_empty()).then(|| json!({ "role": "system", "content": system }));
        let messages =
            |prompt: &str| system.into_iter().chain([json!({ "role": "user", "content": prompt })]).collect();
        if let Some(lent) = shared.to_ask(model.as_deref()) {
            if prompt.is_empty() {
                return Ok(loaded(&lent.name, &Kind::Generate));
            }
            let question = if raw { Question::text(prompt) } else { Question::chat(messages(&prompt))? };
            return answer_lent(&shared, &caller, lent, question, rest, Kind::Generate).await;
        }
        let known = shared.named(model.as_deref())?;
        if prompt.is_empty() {
            return Ok(loaded(&known.name, &Kind::Generate));
        }
        let fit = shared.fit(rest.truncate, rest.options.max_tokens());
        let prompt = match raw {
            true => prompt::of_end_of_text(known, &prompt, fit).await?,
            false => prompt::of_messages(known, messages(&prompt), Map::new(), fit).await?,
        };
        answer(&shared, &caller, known, prompt, rest, Kind::Generate).await
    };
    either(result.await, Problem::ollama)
}

/// A result of a tool, which Ollama's clients name by a field of their own.
fn with_name(mut message: Value) -> Value {
    if let Some(name) = message.get_mut("tool_name").map(Value::take) {
        message["name"] = name;
    }
    message
}

async fn answer(
    shared: &Shared,
    caller: &Caller,
    model: &Model,
    prompt: Fitted,
    rest: Rest,
    kind: Kind,
) -> Result<Response, Problem> {
    if let Some(wanted) = rest.options.num_ctx.filter(|&wanted| wanted as usize > model.context as usize) {
        tracing::info!(wanted, context = model.context, "num_ctx is more than the context that is served");
    }
    let Fitted { tokens, dropped } = prompt;
    let logprobs = rest.logprobs()?;
    let params = rest.options.params(rest.format)?;
    let requests = shared.requests(model, &params, &tokens, logprobs)?;
    let answers = Answers::ask(&shared.jobs, caller, requests).await?;
    let whole = rest.stream == Some(false);
    let format = Lines::new(shared, model.name.clone(), Some(model.vocabulary.clone()), kind);
    Ok(dropped.mark(write(shared, answers, format, whole).await?))
}

/// The same, by a model that others lend: what it calls, its lender says.
async fn answer_lent(
    shared: &Arc<Shared>,
    caller: &Caller,
    lent: LentModel,
    question: Question,
    rest: Rest,
    kind: Kind,
) -> Result<Response, Problem> {
    if rest.logprobs()?.is_some() {
        let message = "this model's lender reports them in its own API alone: ask at /v1/chat/completions";
        return Err(Problem::unsupported("logprobs", message));
    }
    let format = Lines::new(shared, lent.name.clone(), None, kind);
    let answers = shared.ask_lent(caller, lent, question.with(rest.options.params(rest.format)?));
    write(shared, answers, format, rest.stream == Some(false)).await
}

/// The answer, as it comes or whole.
async fn write(shared: &Shared, answers: Answers, mut format: Lines, whole: bool) -> Result<Response, Problem> {
    if !whole {
        return respond(answers, Framing::Lines, format).await;
    }
    let Whole { tokens, ended } = answers.only().await?;
    shared.answered(&ended);
    let mut line = format.last(&ended);
    let pieces = ended.pieces(&mut format.reader);
    format.put(&mut line, &format.reader.said(&pieces));
    let mut logprobs = Vec::new();
    for token in &tokens {
        logprobs.extend(format.logprobs(token).await);
    }
    if !logprobs.is_empty() {
        line["logprobs"] = logprobs.into();
    }
    Ok(Json(line).into_response())
}

impl Rest {
    /// Alternatives to report of each token. Their number alone asks for nothing here.
    fn logprobs(&self) -> Result<Option<u16>, Problem> {
        logprobs::asked(self.logprobs, self.top_logprobs.filter(|_| self.logprobs == Some(true)))
    }
}

impl Options {
    /// Tokens of the answer, where it says so. Negative: as many as the context holds.
    fn max_tokens(&self) -> Option<u32> {
        self.num_predict.and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0)
    }

    fn params(self, format: Value) -> Result<Params, Problem> {
        let response_format = match format {
            Value::Null => None,
            Value::String(text) if text.is_empty() => None,
            Value::String(text) if text == "json" => Some(json!({ "type": "json_object" })),
            schema @ Value::Object(_) => Some(json!({ "type": "json_object", "schema": schema })),
            _ => return Err(Problem::value("format", "a format is `json` or a JSON schema")),
        };
        let max_tokens = self.max_tokens();
        Ok(Params {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            stop: self.stop,
            max_tokens,
            response_format,
            ..Params::default()
        })
    }
}

#[derive(Debug)]
enum Kind {
    Chat(Option<Arc<Tools>>),
    Generate,
}

/// The lines of an answer.
struct Lines {
    model: String,
    /// Tokens' texts; a lender's are its own.
    vocabulary: Option<VocabularyClient>,
    kind: Kind,
    metrics: Arc<Metrics>,
    begun: SystemTime,
    reader: Reader,
}

impl Lines {
    fn new(shared: &Shared, model: String, vocabulary: Option<VocabularyClient>, kind: Kind) -> Self {
        let reader = Reader::new(if let Kind::Chat(tools) = &kind { tools.clone() } else { None });
        Self { model, vocabulary, kind, metrics: shared.metrics.clone(), begun: SystemTime::now(), reader }
    }

    /// How likely a token was, where that was asked for.
    async fn logprobs(&self, token: &TokenEvent) -> Option<Value> {
        logprobs::entries(self.vocabulary.as_ref()?, token).await.map(logprobs::chat)
    }

    fn line(&self, said: &Said, done: bool) -> Value {
        let mut line = json!({ "model": self.model, "created_at": rfc3339(SystemTime::now()), "done": done });
        self.put(&mut line, said);
        line
    }

    fn put(&self, line: &mut Value, said: &Said) {
        match self.kind {
            Kind::Chat(_) => {
                line["message"] = json!({ "role": "assistant", "content": said.text });
                if !said.calls.is_empty() {
                    // Arguments are an object here, and calls have no id.
                    let call = |call: &Call| json!({ "function": { "name": call.name, "arguments": call.input() } });
                    line["message"]["tool_calls"] = said.calls.iter().map(call).collect();
                }
            }
            Kind::Generate => line["response"] = said.text.clone().into(),
        }
    }

    /// The last line, with the figures in nanoseconds.
    fn last(&self, ended: &Ended) -> Value {
        let outcome = &ended.outcome;
        let mut line = self.line(&said(String::new()), true);
        let ns = |tokens: usize, rate: f64| if rate > 0.0 { (tokens as f64 / rate * 1e9) as u64 } else { 0 };
        let evaluated = outcome.prompt_tokens - outcome.reused_tokens;
        let following = outcome.completion_tokens.saturating_sub(1);
        line["done_reason"] = if outcome.finish_reason == FinishReason::Length { "length" } else { "stop" }.into();
        line["total_duration"] = (self.begun.elapsed().unwrap_or_default().as_nanos() as u64).into();
        line["load_duration"] = 0.into();
        if !ended.is_counted() {
            return line;
        }
        line["prompt_eval_count"] = outcome.prompt_tokens.into();
        line["prompt_eval_duration"] = ns(evaluated, outcome.prefill_tokens_per_s).into();
        line["eval_count"] = outcome.completion_tokens.into();
        line["eval_duration"] = ns(following, outcome.decode_tokens_per_s).into();
        line
    }
}

impl Format for Lines {
    fn begin(&mut self, _: &mut Writer) {}

    async fn token(&mut self, _: usize, token: TokenEvent, writer: &mut Writer) {
        // Calls come whole here, at the end.
        let text: String = self.reader.read(&token.text).iter().filter_map(Piece::text).collect();
        let logprobs = self.logprobs(&token).await;
        if text.is_empty() && logprobs.is_none() {
            return;
        }
        let mut line = self.line(&said(text), false);
        if let Some(logprobs) = logprobs {
            line["logprobs"] = json!([logprobs]);
        }
        writer.data(&line);
    }

    fn done(&mut self, _: usize, ended: &Ended, writer: &mut Writer) {
        self.metrics.answered(ended);
        let pieces = ended.rest(&mut self.reader);
        let rest = self.reader.said(&pieces);
        if !rest.text.is_empty() || !rest.calls.is_empty() {
            writer.data(&self.line(&rest, false));
        }
        writer.data(&self.last(ended));
    }

    fn end(&mut self, _: &mut Writer) {}

    fn failed(&mut self, problem: &Problem, writer: &mut Writer) {
        writer.data(&json!({ "error": problem.message }));
    }

    // A line is an answer's, and there is no comment in this format.
    fn beat(&mut self, _: &mut Writer) {}
}

impl Problem {
    /// The error that Ollama's clients read: a text.
    pub(crate) fn ollama(self) -> Response {
        let object = json!({ "error": self.message });
        self.respond(object)
    }
}

fn said(text: String) -> Said {
    Said { text, calls: Vec::new() }
}

fn loaded(name: &str, kind: &Kind) -> Response {
    let mut line =
        json!({ "model": name, "created_at": rfc3339(SystemTime::now()), "done": true, "done_reason": "load" });
    match kind {
        Kind::Chat(_) => line["message"] = json!({ "role": "assistant", "content": "" }),
        Kind::Generate => line["response"] = "".into(),
    }
    Json(line).into_response()
}

fn entry(model: &Model) -> Value {
    json!({
        "name": model.name, "model": model.name, "modified_at": rfc3339(since(model)),
        "size": model.bytes, "digest": model.id, "details": details(model),
    })
}

/// A model that others lend: what its files are is known to its lenders.
fn lent_entry(model: &LentModel, since: SystemTime) -> Value {
    let digest = blake3::hash(model.name.as_bytes()).to_string();
    json!({
        "name": model.name, "model": model.name, "modified_at": rfc3339(since), "size": 0, "digest": digest,
        "details": unknown_details(),
    })
}

fn lent_details(model: &LentModel, since: SystemTime) -> Value {
    let mut info = Map::from_iter([("general.architecture".to_owned(), json!("unknown"))]);
    info.extend(model.context.map(|context| ("unknown.context_length".to_owned(), json!(context))));
    json!({
        "modelfile": "", "parameters": "", "template": "", "details": unknown_details(), "model_info": info,
        "capabilities": ["completion", "tools"], "modified_at": rfc3339(since),
    })
}

fn unknown_details() -> Value {
    json!({
        "parent_model": "", "format": "", "family": "unknown", "families": [], "parameter_size": "",
        "quantization_level": "",
    })
}

fn details(model: &Model) -> Value {
    json!({
        "parent_model": "", "format": "gguf", "family": model.family, "families": [model.family],
        "parameter_size": "", "quantization_level": model.quantization,
    })
}

fn since(model: &Model) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(model.created)
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_micros(at).to_string()
}
