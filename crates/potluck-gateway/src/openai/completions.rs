//! `/v1/completions`: a text goes on, without a template.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use potluck_client::{Outcome, Request, TokenEvent};
use potluck_engine::VocabularyClient;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{add_trace, chat::StreamOptions, chat_format::Head, finish_reason, new_id, params::Params, timings, usage};
use crate::{
    Model, Problem,
    access::Caller,
    answer::{Answers, CHOICES_MAX, Ended, Whole},
    http::{Asker, Json as Body, Shared, Site, either},
    logprobs,
    metrics::Metrics,
    overflow::{Dropped, Fit, Fitted},
    prompt,
    stream::{Format, Framing, Writer, respond},
};

/// Tokens of an answer where the request does not say: the reference's own number.
const MAX_TOKENS: u32 = 16;

/// Alternatives that one may ask to see of each token.
const LOGPROBS_MAX: u16 = 5;

/// What to go on with: a text, several, tokens, or several times tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    model: Option<String>,
    prompt: Option<Prompt>,
    #[serde(default)]
    suffix: Option<String>,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(default)]
    best_of: Option<usize>,
    #[serde(default)]
    logprobs: Option<u16>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(flatten)]
    params: Params,
}

#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest, responses((status = 200, description = "A text goes on")))]
pub(crate) async fn handle(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<CompletionRequest>,
) -> Response {
    let result = async { answer(&shared, &caller, body?).await };
    either(result.await, Problem::openai)
}

async fn answer(shared: &Shared, caller: &Caller, mut request: CompletionRequest) -> Result<Response, Problem> {
    let model = shared.named(request.model.as_deref())?;
    request.check()?;
    request.params.max_tokens = request.params.max_tokens.or(Some(MAX_TOKENS));
    let (prompts, dropped) = request.prompts(model, shared.fit(None, request.params.answer())).await?;
    let mut requests: Vec<Request> = Vec::new();
    for (_, tokens) in &prompts {
        requests.extend(shared.requests(model, &request.params, tokens, request.logprobs)?);
    }
    if requests.len() > CHOICES_MAX {
        let message = format!("{} answers are asked for; {CHOICES_MAX} are given at most", requests.len());
        return Err(Problem::value("prompt", message));
    }
    let each = requests.len() / prompts.len();
    let echo = |text: &String| if request.echo == Some(true) { text.clone() } else { String::new() };
    let echoes: Vec<String> = prompts.iter().flat_map(|(text, _)| std::iter::repeat_n(echo(text), each)).collect();
    let head = Head::with_id(new_id("cmpl"), request.model.as_deref().unwrap_or(&model.name), model);
    let answers = Answers::ask(&shared.jobs, caller, requests).await?;
    if request.stream == Some(true) {
        let usage = request.stream_options.is_some_and(|options| options.include_usage);
        let (vocabulary, metrics) = (model.vocabulary.clone(), shared.metrics.clone());
        let offsets = echoes.iter().map(|echo| echo.chars().count()).collect();
        let format = TextFormat { head, vocabulary, usage, metrics, echoes, offsets, outcomes: Vec::new() };
        return Ok(dropped.mark(respond(answers, Framing::Events, format).await?));
    }
    let whole = answers.whole().await?;
    whole.iter().for_each(|choice| shared.answered(&choice.ended));
    let mut choices = Vec::with_capacity(whole.len());
    for (index, (choice, echo)) in whole.iter().zip(&echoes).enumerate() {
        choices.push(self::choice(model, index, choice, echo).await);
    }
    let mut object = head.object("text_completion");
    object["choices"] = choices.into();
    object["usage"] = usage(whole.iter().map(|choice| &choice.ended.outcome));
    object["timings"] = whole.first().map_or(Value::Null, |choice| timings(&choice.ended.outcome));
    add_trace(&mut object, whole.first().map(|choice| &choice.ended.outcome));
    Ok(dropped.mark(Json(object).into_response()))
}

async fn choice(model: &Model, index: usize, choice: &Whole, echo: &str) -> Value {
    let mut offset = echo.chars().count();
    let (mut tokens, mut token_logprobs, mut top, mut offsets) = (vec![], vec![], vec![], vec![]);
    for token in &choice.tokens {
        let Some((chosen, alternatives)) = logprobs::entries(&model.vocabulary, token).await else { continue };
        offsets.push(offset);
        offset += chosen.text.chars().count();
        top.push(alternatives.iter().map(|entry| (entry.text.clone(), json!(entry.logprob))).collect::<Value>());
        token_logprobs.push(chosen.logprob);
        tokens.push(chosen.text);
    }
    let logprobs = match choice.ended.outcome.logprobs {
        Some(_) => {
            json!({ "tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top, "text_offset": offsets })
        }
        None => Value::Null,
    };
    json!({
        "index": index,
        "text": format!("{echo}{}", choice.ended.outcome.text),
        "logprobs": logprobs,
        "finish_reason": finish_reason(&choice.ended.outcome),
    })
}

impl CompletionRequest {
    fn check(&self) -> Result<(), Problem> {
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(Problem::unsupported("suffix", "this model goes on with a text; it fills no gap"));
        }
        if self.best_of.is_some_and(|best_of| best_of > self.params.n.unwrap_or(1)) {
            return Err(Problem::unsupported("best_of", "answers are not made to be thrown away: use n"));
        }
        match self.logprobs {
            Some(n) if n > LOGPROBS_MAX => {
                Err(Problem::value("logprobs", format!("logprobs is {n}; the most is {LOGPROBS_MAX}")))
            }
            _ => Ok(()),
        }
    }

    /// Each prompt as a text, where it was one, and as tokens; and what was left out of them.
    async fn prompts(&mut self, model: &Model, fit: Fit) -> Result<(Vec<(String, Vec<u32>)>, Dropped), Problem> {
        let (texts, tokens) = match self.prompt.take() {
            None => return Err(Problem::value("prompt", "you must provide a prompt")),
            Some(Prompt::Text(text)) => (vec![text], vec![]),
            Some(Prompt::Texts(texts)) => (texts, vec![]),
            Some(Prompt::Tokens(tokens)) => (vec![], vec![tokens]),
            Some(Prompt::ManyTokens(many)) => (vec![], many),
        };
        let (mut prompts, mut all) = (Vec::new(), Dropped::default());
        if texts.len().max(tokens.len()) > CHOICES_MAX {
            return Err(Problem::value("prompt", format!("more than {CHOICES_MAX} prompts")));
        }
        for text in texts {
            let Fitted { tokens, dropped } = prompt::of_end_of_text(model, &text, fit).await?;
            // What was cut is not echoed: the model has not seen it.
            let text = if dropped.tokens == 0 { text } else { prompt::text_of(model, &tokens).await? };
            prompts.push((text, tokens));
            all = all + dropped;
        }
        for tokens in tokens {
            let Fitted { tokens, dropped } = prompt::of_last_tokens(model, tokens, fit)?;
            prompts.push((String::new(), tokens));
            all = all + dropped;
        }
        if prompts.is_empty() { Err(Problem::value("prompt", "there is no prompt")) } else { Ok((prompts, all)) }
    }
}

/// The chunks of a text.
struct TextFormat {
    head: Head,
    vocabulary: VocabularyClient,
    usage: bool,
    metrics: Arc<Metrics>,
    /// What each choice begins with; taken when it was sent.
    echoes: Vec<String>,
    /// Characters of each choice, its echo's too, that its tokens so far had.
    offsets: Vec<usize>,
    outcomes: Vec<Outcome>,
}

impl TextFormat {
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.head.object("text_completion");
        chunk["choices"] = choices;
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl Format for TextFormat {
    fn begin(&mut self, writer: &mut Writer) {
        for index in 0..self.echoes.len() {
            let echo = std::mem::take(&mut self.echoes[index]);
            if !echo.is_empty() {
                let choice = json!({ "index": index, "text": echo, "logprobs": null, "finish_reason": null });
                writer.data(&self.chunk(json!([choice])));
            }
        }
    }

    async fn token(&mut self, index: usize, token: TokenEvent, writer: &mut Writer) {
        let entry = logprobs::entries(&self.vocabulary, &token).await;
        if token.text.is_empty() && entry.is_none() {
            return;
        }
        let logprobs = entry.map_or(Value::Null, |(chosen, top)| {
            let top: Value = top.iter().map(|entry| (entry.text.clone(), json!(entry.logprob))).collect();
            let offset = self.offsets[index];
            self.offsets[index] += chosen.text.chars().count();
            json!({
                "tokens": [chosen.text], "token_logprobs": [chosen.logprob], "top_logprobs": [top],
                "text_offset": [offset],
            })
        });
        let choice = json!({ "index": index, "text": token.text, "logprobs": logprobs, "finish_reason": null });
        writer.data(&self.chunk(json!([choice])));
    }

    fn done(&mut self, index: usize, ended: &Ended, writer: &mut Writer) {
        self.metrics.answered(ended);
        let outcome = &ended.outcome;
        let finish = finish_reason(outcome);
        let choice = json!({ "index": index, "text": "", "logprobs": null, "finish_reason": finish });
        let mut chunk = self.chunk(json!([choice]));
        add_trace(&mut chunk, Some(outcome));
        writer.data(&chunk);
        self.outcomes.push(outcome.clone());
    }

    fn end(&mut self, writer: &mut Writer) {
        if self.usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(self.outcomes.iter());
            writer.data(&chunk);
        }
        writer.raw("data: [DONE]\n\n");
    }

    fn failed(&mut self, problem: &Problem, writer: &mut Writer) {
        writer.data(&problem.object());
        writer.raw("data: [DONE]\n\n");
    }

    fn beat(&mut self, writer: &mut Writer) {
        writer.raw(": waiting\n\n");
    }
}
