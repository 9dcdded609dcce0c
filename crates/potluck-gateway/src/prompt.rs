//! From messages or text to a prompt's tokens.

use potluck_client::{RenderOptions, TemplateError, prompt_tokens};
use serde_json::{Map, Value};

use crate::{Model, Problem, Whose, tools::in_words};

/// Tokens of messages, through the model's chat template. `variables`: more for the template, such as `tools`.
pub(crate) async fn of_messages(
    model: &Model,
    messages: Vec<Value>,
    variables: Map<String, Value>,
) -> Result<Vec<u32>, Problem> {
    if messages.is_empty() {
        return Err(Problem::value("messages", "there is no message"));
    }
    let (template, special) = (model.template.clone(), model.special.clone());
    let messages = if template.reads("tools") { messages } else { in_words(messages) };
    let options = RenderOptions { variables, ..RenderOptions::now() };
    // A stranger's template may take its time: not on the thread that all answers share.
    let rendering = tokio::task::spawn_blocking(move || template.render_all(&messages, &special, &options));
    let text = rendering.await.map_err(|error| Problem::new(Whose::Ours, "internal", error))??;
    check(model, prompt_tokens(&model.vocabulary, &text).await?)
}

/// Tokens of a text as it is.
pub(crate) async fn of_text(model: &Model, text: &str) -> Result<Vec<u32>, Problem> {
    check(model, model.vocabulary.tokenize(text, true, false).await.map_err(potluck_client::GenerateError::from)?)
}

/// The same, cut to what the context holds.
pub(crate) async fn of_cut_text(model: &Model, text: &str) -> Result<Vec<u32>, Problem> {
    let tokens = model.vocabulary.tokenize(text, true, false).await.map_err(potluck_client::GenerateError::from)?;
    let kept = tokens.len().min(model.context as usize);
    check(model, tokens[..kept].to_vec())
}

/// Tokens that the caller made itself.
pub(crate) fn of_tokens(model: &Model, tokens: Vec<u32>) -> Result<Vec<u32>, Problem> {
    let vocabulary = model.vocabulary.info().tokens;
    match tokens.iter().find(|&&token| token >= vocabulary) {
        Some(token) => Err(Problem::value("prompt", format!("token {token} is not in the vocabulary of {vocabulary}"))),
        None => check(model, tokens),
    }
}

/// Refused here, a prompt that is too long never waits for a slot.
fn check(model: &Model, tokens: Vec<u32>) -> Result<Vec<u32>, Problem> {
    match tokens.len() {
        0 => Err(Problem::value("prompt", "the prompt has no token")),
        n if n > model.context as usize => Err(Problem::context(n, model.context)),
        _ => Ok(tokens),
    }
}

impl From<TemplateError> for Problem {
    fn from(error: TemplateError) -> Self {
        match &error {
            TemplateError::Refused(_) => Self::value("messages", error),
            TemplateError::PromptTooLong | TemplateError::TooMany(_) => {
                Self::of("messages", "context_length_exceeded", error)
            }
            _ => Self::new(Whose::Ours, error.code(), error),
        }
    }
}
