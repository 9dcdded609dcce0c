//! From messages or text to a prompt's tokens.

use potluck_client::{RenderOptions, TemplateError, prompt_tokens};
use serde_json::{Map, Value};

use crate::{
    Model, Problem, Whose,
    overflow::{Dropped, Fit, Fitted, Halving, end_of, groups, without},
    tools::in_words,
};

/// The code of a prompt that is too long.
pub(crate) const TOO_LONG: &str = "context_length_exceeded";

/// Tokens of messages, through the model's chat template. `variables`: more for the template, such as `tools`. Of those that are
/// too many, the oldest messages are left out where that was asked for.
pub(crate) async fn of_messages(
    model: &Model,
    messages: Vec<Value>,
    variables: Map<String, Value>,
    fit: Fit,
) -> Result<Fitted, Problem> {
    if messages.is_empty() {
        return Err(Problem::value("messages", "there is no message"));
    }
    // Kept only where some of it may have to go: a conversation may be long.
    let again = fit.truncates().then(|| (messages.clone(), variables.clone()));
    let all = render(model, messages, variables).await.and_then(|tokens| check(model, tokens));
    let (messages, variables, too_long) = match (all, again) {
        (Err(problem), Some((messages, variables))) if problem.code == TOO_LONG => (messages, variables, problem),
        (all, _) => return Ok(Fitted { tokens: all?, dropped: Dropped::default() }),
    };
    let groups = groups(&messages);
    let (mut halving, mut found) = (Halving::up_to(groups.len()), None);
    while let Some(count) = halving.next() {
        let left = rendered(model, without(&messages, &groups[..count]), &variables).await?;
        let fits = left.as_ref().is_some_and(|tokens| tokens.len() <= fit.room(model.context));
        halving.tried(count, fits);
        // Where all that may go has gone, less room is left to the answer.
        if fits || count == groups.len() {
            found = left.map(|tokens| (count, tokens));
        }
    }
    let (count, tokens) = found.ok_or(too_long)?;
    let messages = groups[..count].iter().map(Vec::len).sum();
    Ok(Fitted { tokens: check(model, tokens)?, dropped: Dropped { messages, tokens: 0 } })
}

/// The same; none where the template has had too much of them.
async fn rendered(
    model: &Model,
    messages: Vec<Value>,
    variables: &Map<String, Value>,
) -> Result<Option<Vec<u32>>, Problem> {
    match render(model, messages, variables.clone()).await {
        Err(problem) if problem.code == TOO_LONG => Ok(None),
        rendered => rendered.map(Some),
    }
}

/// Tokens of messages, however many they are.
async fn render(model: &Model, messages: Vec<Value>, variables: Map<String, Value>) -> Result<Vec<u32>, Problem> {
    let (template, special) = (model.template.clone(), model.special.clone());
    let messages = if template.reads("tools") { messages } else { in_words(messages) };
    let options = RenderOptions { variables, ..RenderOptions::now() };
    // A stranger's template may take its time: not on the thread that all answers share.
    let rendering = tokio::task::spawn_blocking(move || template.render_all(&messages, &special, &options));
    let text = rendering.await.map_err(|error| Problem::new(Whose::Ours, "internal", error))??;
    Ok(prompt_tokens(&model.vocabulary, &text).await?)
}

/// Tokens of a text as it is.
pub(crate) async fn of_text(model: &Model, text: &str) -> Result<Vec<u32>, Problem> {
    check(model, model.vocabulary.tokenize(text, true, false).await.map_err(potluck_client::GenerateError::from)?)
}

/// The same; of too long a text, its end where that was asked for.
pub(crate) async fn of_end_of_text(model: &Model, text: &str, fit: Fit) -> Result<Fitted, Problem> {
    let tokens = model.vocabulary.tokenize(text, true, false).await.map_err(potluck_client::GenerateError::from)?;
    let Fitted { tokens, dropped } = end_of(tokens, model.context, fit);
    Ok(Fitted { tokens: check(model, tokens)?, dropped })
}

/// The text of tokens.
pub(crate) async fn text_of(model: &Model, tokens: &[u32]) -> Result<String, Problem> {
    let pieces = model.vocabulary.pieces(tokens, false).await.map_err(potluck_client::GenerateError::from)?;
    Ok(String::from_utf8_lossy(&pieces.concat()).into_owned())
}

/// A text as it is, cut to what the context holds.
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

/// Tokens that the caller made itself; of too many, the last ones where that was asked for.
pub(crate) fn of_last_tokens(model: &Model, tokens: Vec<u32>, fit: Fit) -> Result<Fitted, Problem> {
    let Fitted { tokens, dropped } = end_of(tokens, model.context, fit);
    Ok(Fitted { tokens: of_tokens(model, tokens)?, dropped })
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
            TemplateError::PromptTooLong | TemplateError::TooMany(_) => Self::of("messages", TOO_LONG, error),
            _ => Self::new(Whose::Ours, error.code(), error),
        }
    }
}
