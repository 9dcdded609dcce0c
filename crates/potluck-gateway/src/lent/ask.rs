//! Asking for a model that is lent, by an API that its lenders do not speak.

use std::sync::Arc;

use axum::body::Bytes;
use potluck_core::Endpoint;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    LentAnswer, LentModel, Question,
    pass::{paid, tokens_in},
    refusal::{nonsense, refusal},
    reply::{follow, whole},
    turns::Turn,
};
use crate::{
    BODY_BYTES_MAX, Problem, Whose,
    access::Caller,
    answer::Answers,
    http::{Shared, too_large},
    slots::Event,
};

/// Bytes of the embedding of one text, as JSON: several times what the widest models give.
const EMBEDDING_BYTES_MAX: usize = 256 << 10;

/// Bytes of all of them.
const EMBEDDINGS_BYTES_MAX: usize = 128 << 20;

#[derive(Debug, Deserialize)]
struct Embeddings {
    data: Vec<Embedding>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
}

#[derive(Debug, Deserialize)]
struct Embedding {
    embedding: Vec<f32>,
    #[serde(default)]
    index: usize,
}

impl Shared {
    /// The answer of one of those who lend that model, when it is this caller's turn. It ends where nobody wants it any more.
    pub(crate) fn ask_lent(self: &Arc<Self>, caller: &Caller, model: LentModel, question: Question) -> Answers {
        let (shared, caller) = (self.clone(), caller.clone());
        let (events, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let Question { endpoint, mut request, functions } = question;
            request.insert("model".into(), model.name.clone().into());
            let answered = async {
                match shared.send_lent(&caller, model, endpoint, &Value::from(request)).await {
                    // Its turn is over when it is read.
                    Ok((answer, _turn)) => follow(answer, functions, &events).await,
                    Err(problem) => drop(events.send((0, Event::Failed(problem)))),
                }
            };
            tokio::select! {
                () = answered => {}
                () = events.closed() => {}
            }
        });
        Answers::made_by_another(receiver)
    }

    /// The embeddings of these texts, in their order, and how many tokens they have, if that was said.
    pub(crate) async fn embed_lent(
        &self,
        caller: &Caller,
        model: LentModel,
        texts: Vec<String>,
    ) -> Result<(Vec<Vec<f32>>, usize), Problem> {
        if texts.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let request = json!({ "model": model.name, "input": texts, "encoding_format": "float" });
        let (answer, _turn) = self.send_lent(caller, model, Endpoint::Embeddings, &request).await?;
        let bytes_max = (texts.len() + 1).saturating_mul(EMBEDDING_BYTES_MAX).min(EMBEDDINGS_BYTES_MAX);
        let body = whole(answer.body, bytes_max).await?;
        let Embeddings { mut data, usage } = serde_json::from_slice(&body).map_err(nonsense)?;
        data.sort_by_key(|one| one.index);
        if data.len() != texts.len() {
            return Err(nonsense(format!("{} embeddings for {} texts", data.len(), texts.len())));
        }
        // JSON knows no other numbers: whoever asked would get `null`.
        if data.iter().flat_map(|one| &one.embedding).any(|number| !number.is_finite()) {
            return Err(nonsense("a number of an embedding is too large"));
        }
        let tokens = usage.map_or(0, |usage| usage.prompt_tokens) as usize;
        Ok((data.into_iter().map(|one| one.embedding).collect(), tokens))
    }

    async fn send_lent(
        &self,
        caller: &Caller,
        model: LentModel,
        endpoint: Endpoint,
        request: &Value,
    ) -> Result<(LentAnswer, Turn), Problem> {
        let gone = || Problem::new(Whose::Lenders(1), "shutting_down", "the gateway is shutting down");
        let lending = self.lending.as_ref().ok_or_else(gone)?;
        let body = request.to_string();
        // Said in other words, it may be a little longer: lenders take as much as this gateway does.
        if body.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        caller.may_ask_lent()?;
        caller.charge(tokens_in(body.len()))?;
        let turn = lending.turns.take(caller, &model.name, lending.lent.places(&model.name)).await?;
        let answer = paid(lending.lent.ask(model.name, endpoint, Bytes::from(body)).await?, caller);
        if (200..300).contains(&answer.status) { Ok((answer, turn)) } else { Err(refusal(answer).await) }
    }
}
