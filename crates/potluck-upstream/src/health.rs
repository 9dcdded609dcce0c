//! Which models an upstream has: asked again and again. While it does not say, it has none.

use std::{collections::BTreeSet, time::Duration};

use potluck_core::PASSED_ON;
use potluck_wire::{Failure, FailureCode, UPSTREAM_MODELS_MAX, Upstream as State, UpstreamModel};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{Upstream, UpstreamError};

/// How often an upstream is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Between two looks at least, however often something goes wrong.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(250);

/// Longest wait for its list of models. A server at work may take a while.
const LIST_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a list of models.
const LIST_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Deserialize)]
struct List {
    data: Vec<Listed>,
}

/// A model, with the words that servers have for its context.
#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    owned_by: Option<String>,
    #[serde(default)]
    max_model_len: Option<u32>,
    #[serde(default)]
    context_length: Option<u32>,
    #[serde(default)]
    meta: Option<Meta>,
}

/// What `llama-server` adds.
#[derive(Debug, Deserialize)]
struct Meta {
    #[serde(default)]
    n_ctx: Option<u32>,
    #[serde(default)]
    n_ctx_train: Option<u32>,
}

impl Listed {
    fn model(self) -> UpstreamModel {
        let (kept, trained) = self.meta.map_or((None, None), |meta| (meta.n_ctx, meta.n_ctx_train));
        let context = self.max_model_len.or(self.context_length).or(kept).or(trained);
        UpstreamModel { name: self.id, context }
    }
}

impl Upstream {
    /// The models that it has now.
    ///
    /// # Errors
    /// `Silent`, `Key` or `NoList`.
    pub async fn models(&self) -> Result<Vec<UpstreamModel>, UpstreamError> {
        let late = |_| UpstreamError::Silent(format!("no list of models within {} s", LIST_PATIENCE.as_secs()));
        let bytes = timeout(LIST_PATIENCE, self.list()).await.map_err(late)??;
        let no_list = |what: &dyn std::fmt::Display| UpstreamError::NoList(what.to_string());
        let list: List = serde_json::from_slice(&bytes).map_err(|error| no_list(&error))?;
        let mut known = BTreeSet::new();
        // What a gateway passes on is its lenders' to lend.
        let own = list.data.into_iter().filter(|listed| listed.owned_by.as_deref() != Some(PASSED_ON));
        let fit = own.filter(|listed| UpstreamModel::is_fit(&listed.id) && known.insert(listed.id.clone()));
        let models: Vec<_> = fit.take(UPSTREAM_MODELS_MAX).map(Listed::model).collect();
        if models.is_empty() { Err(no_list(&"it has none that could be lent")) } else { Ok(models) }
    }

    async fn list(&self) -> Result<Vec<u8>, UpstreamError> {
        let mut response = self.request(Method::GET, "/v1/models").send().await.map_err(UpstreamError::silent)?;
        match response.status() {
            status if status.is_success() => {}
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(UpstreamError::Key(status.as_u16()));
            }
            status => return Err(UpstreamError::NoList(format!("it answers {status}"))),
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(UpstreamError::silent)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > LIST_BYTES_MAX {
                return Err(UpstreamError::NoList(format!("the list has more than {LIST_BYTES_MAX} bytes")));
            }
        }
        Ok(bytes)
    }

    /// Looks after it, and says what it has. Never returns.
    pub(crate) async fn watch(&self, state: watch::Sender<State>) {
        loop {
            let looked = match self.models().await {
                Ok(models) => State { models, ..State::default() },
                // Cut as a detail is: members read it.
                Err(error) => {
                    let trouble = Failure::new(FailureCode::EngineLost, error).detail;
                    State { trouble: Some(trouble), ..State::default() }
                }
            };
            state.send_if_modified(|known| {
                let new = *known != looked;
                *known = looked;
                new
            });
            sleep(LOOK_AT_MOST_EVERY).await;
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = self.look.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_its_own_word_for_the_context() {
        let context = |text: &str| serde_json::from_str::<Listed>(text).unwrap().model().context;
        assert_eq!(context(r#"{"id":"a","object":"model","created":1,"owned_by":"library"}"#), None, "Ollama");
        assert_eq!(context(r#"{"id":"a","owned_by":"vllm","max_model_len":4096}"#), Some(4_096), "vLLM");
        assert_eq!(context(r#"{"id":"a","meta":{"n_vocab":3,"n_ctx_train":8192}}"#), Some(8_192), "llama-server");
        assert_eq!(context(r#"{"id":"a","meta":{"n_ctx":2048,"n_ctx_train":8192}}"#), Some(2_048), "a newer one");
        assert_eq!(context(r#"{"id":"a","meta":null,"context_length":1024}"#), Some(1_024), "our own");
    }
}
