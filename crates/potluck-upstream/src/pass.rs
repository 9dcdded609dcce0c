//! Members' requests on their way to an upstream, and its answers on their way back.

use std::time::Duration;

use bytes::Bytes;
use potluck_core::Endpoint;
use potluck_net::{Asked, Reply};
use potluck_wire::{Failure, FailureCode, Head, NAME_BYTES_MAX};
use reqwest::{
    Method, Response,
    header::{ACCEPT, CONTENT_TYPE, HeaderName, RETRY_AFTER},
};
use tokio::{
    sync::mpsc::{Receiver, Sender},
    task::JoinSet,
    time::timeout,
};

use crate::{Upstream, UpstreamError};

/// Longest wait for an answer to begin. One that is not streamed begins when all of it is made.
const HEAD_PATIENCE: Duration = Duration::from_secs(600);

/// Longest silence in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(300);

/// What came to nothing, or its reply's receiver is gone.
type Passed = Result<(), Failure>;

impl Upstream {
    /// Passes requests on until nobody can send one.
    pub(crate) async fn pass_on(&self, mut asked: Receiver<Asked>) {
        let mut under_way = JoinSet::new();
        loop {
            tokio::select! {
                next = asked.recv() => match next {
                    Some(asked) => under_way.spawn(self.clone().answer(asked)),
                    None => break,
                },
                Some(_) = under_way.join_next(), if !under_way.is_empty() => continue,
            };
        }
    }

    async fn answer(self, Asked { endpoint, body, reply }: Asked) {
        let passed = tokio::select! {
            biased;
            // Dropped, the request's connection is closed: the upstream stops.
            () = reply.closed() => return,
            passed = self.pass(endpoint, body, &reply) => passed,
        };
        if let Err(failure) = passed {
            tracing::info!(code = %failure.code, "{}", failure.detail);
            let _ = reply.send(Err(failure)).await;
        }
    }

    async fn pass(&self, endpoint: Endpoint, body: Bytes, reply: &Sender<Result<Reply, Failure>>) -> Passed {
        let request = self.request(Method::POST, endpoint.path());
        let request = request.header(CONTENT_TYPE, "application/json").header(ACCEPT, "*/*").body(body);
        let late = |_| silent_for(HEAD_PATIENCE);
        let response = timeout(HEAD_PATIENCE, request.send()).await.map_err(late)?;
        let mut response = response.map_err(|error| self.lost(error))?;
        let gone = |_| Failure::new(FailureCode::Cancelled, "whoever asked is gone");
        reply.send(Ok(Reply::Head(head(&response)))).await.map_err(gone)?;
        loop {
            let piece = timeout(SILENCE, response.chunk()).await.map_err(|_| silent_for(SILENCE))?;
            match piece.map_err(|error| self.lost(error))? {
                Some(bytes) => reply.send(Ok(Reply::Body(bytes))).await.map_err(gone)?,
                None => return reply.send(Ok(Reply::End)).await.map_err(gone),
            }
        }
    }

    /// It did not answer, or broke off: how it is is looked at anew.
    fn lost(&self, error: reqwest::Error) -> Failure {
        self.look.notify_one();
        Failure::new(FailureCode::EngineLost, UpstreamError::silent(error))
    }
}

fn silent_for(patience: Duration) -> Failure {
    Failure::new(FailureCode::Deadline, format!("the upstream said nothing for {} s", patience.as_secs()))
}

fn head(response: &Response) -> Head {
    let text = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    let mut content_type = text(CONTENT_TYPE).unwrap_or_default().to_owned();
    if content_type.len() > NAME_BYTES_MAX {
        content_type.clear();
    }
    let retry_after = text(RETRY_AFTER).and_then(|text| text.trim().parse().ok());
    Head { status: response.status().as_u16(), content_type, retry_after }
}
