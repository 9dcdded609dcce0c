//! Answers that are written as they come: server-sent events, and lines of JSON.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    Problem,
    answer::{Answers, Ended},
    slots::Event,
};

/// Pieces that wait for a client that reads slowly. Beyond it, its answer's tokens wait in its own queue.
const PIECES_MAX: usize = 32;

/// How long a stream may say nothing: proxies cut what is silent for longer than half a minute.
const SILENCE: Duration = Duration::from_secs(10);

/// How long the status may wait for the first token: an error that comes within it has a status of its own.
const PLACEMENT: Duration = Duration::from_secs(2);

/// How a stream is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events.
    Events,
    /// A line of JSON each.
    Lines,
}

/// Where a stream is written to. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    pieces: mpsc::Sender<Bytes>,
    framing: Framing,
    text: String,
}

/// The client is gone: there is nobody to write to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone;

/// Turns what happens into what one API's clients read.
pub(crate) trait Format: Send + 'static {
    /// The stream begins.
    fn begin(&mut self, writer: &mut Writer);
    /// A choice got a token.
    fn token(
        &mut self,
        index: usize,
        token: potluck_client::TokenEvent,
        writer: &mut Writer,
    ) -> impl Future<Output = ()> + Send;
    /// A choice is done.
    fn done(&mut self, index: usize, ended: &Ended, writer: &mut Writer);
    /// All are done.
    fn end(&mut self, writer: &mut Writer);
    /// There will be no more: why.
    fn failed(&mut self, problem: &Problem, writer: &mut Writer);
    /// Nothing has happened for a while.
    fn beat(&mut self, writer: &mut Writer);
}

impl Writer {
    /// Where nothing is written to.
    pub(crate) fn nobody() -> Self {
        Self { pieces: mpsc::channel(1).0, framing: Framing::Events, text: String::new() }
    }

    /// Adds an event without a name.
    pub(crate) fn data(&mut self, data: &impl Serialize) {
        let json = serde_json::to_string(data).unwrap_or_default();
        match self.framing {
            Framing::Events => self.raw(&format!("data: {json}\n\n")),
            Framing::Lines => self.raw(&format!("{json}\n")),
        }
    }

    /// Adds an event with a name.
    pub(crate) fn event(&mut self, name: &str, data: &impl Serialize) {
        self.raw(&format!("event: {name}\n"));
        self.data(data);
    }

    /// Adds text as it is.
    pub(crate) fn raw(&mut self, text: &str) {
        self.text += text;
    }

    /// Sends what was added; false where that is nothing.
    async fn flush(&mut self) -> Result<bool, Gone> {
        if self.text.is_empty() {
            return Ok(false);
        }
        let text = std::mem::take(&mut self.text);
        self.pieces.send(text.into()).await.map_err(|_| Gone)?;
        Ok(true)
    }
}

/// A response that is written while the answers come. An error that comes before anything else, and soon, is a response of its own.
///
/// # Errors
/// What kept the first token from coming.
pub(crate) async fn respond(mut answers: Answers, framing: Framing, format: impl Format) -> Result<Response, Problem> {
    let first = async {
        loop {
            match answers.next().await {
                Some((_, Event::Started)) => {}
                other => return other,
            }
        }
    };
    // Waiting for longer, the stream begins, and says now and then that it is alive.
    let first = match tokio::time::timeout(PLACEMENT, first).await {
        Ok(Some((_, Event::Failed(problem)))) => return Err(problem),
        Ok(first) => first,
        Err(_) => None,
    };
    let (pieces, read) = mpsc::channel(PIECES_MAX);
    tokio::spawn(write(first, answers, format, Writer { pieces, framing, text: String::new() }, SILENCE));
    let body = n0_future::stream::unfold(read, async |mut read| {
        let piece = read.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), read))
    });
    let kind = match framing {
        Framing::Events => "text/event-stream; charset=utf-8",
        Framing::Lines => "application/x-ndjson",
    };
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// Writes until the end, or until nobody reads: then the answers are dropped, and so cancelled.
async fn write(
    mut first: Option<(usize, Event)>,
    mut answers: Answers,
    mut format: impl Format,
    mut writer: Writer,
    silence: Duration,
) -> Result<(), Gone> {
    format.begin(&mut writer);
    let mut silent_since = Instant::now();
    loop {
        // Tokens that are held back, since they may become a call, are a silence too.
        if writer.flush().await? {
            silent_since = Instant::now();
        }
        let gone = writer.pieces.clone();
        let next = tokio::select! {
            biased;
            first = async { first.take() }, if first.is_some() => first,
            () = gone.closed() => return Err(Gone),
            next = answers.next() => next,
            () = tokio::time::sleep_until(silent_since + silence) => {
                format.beat(&mut writer);
                silent_since = Instant::now();
                continue;
            }
        };
        match next {
            Some((_, Event::Started | Event::Embedded(_))) => {}
            Some((index, Event::Token(token))) => format.token(index, token, &mut writer).await,
            Some((index, Event::Done(ended))) => format.done(index, &ended, &mut writer),
            Some((_, Event::Failed(problem))) => {
                format.failed(&problem, &mut writer);
                return writer.flush().await.map(drop);
            }
            None => {
                format.end(&mut writer);
                return writer.flush().await.map(drop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use potluck_client::TokenEvent;

    use super::*;

    /// Says nothing of tokens: they may become a call.
    struct Holds;

    impl Format for Holds {
        fn begin(&mut self, _: &mut Writer) {}
        async fn token(&mut self, _: usize, _: TokenEvent, _: &mut Writer) {}
        fn done(&mut self, _: usize, _: &Ended, _: &mut Writer) {}
        fn end(&mut self, _: &mut Writer) {}
        fn failed(&mut self, _: &Problem, _: &mut Writer) {}
        fn beat(&mut self, writer: &mut Writer) {
            writer.raw(": waiting");
        }
    }

    #[tokio::test]
    async fn a_stream_whose_tokens_are_held_back_says_that_it_is_alive() {
        let (events, answers) = mpsc::unbounded_channel();
        let (pieces, mut read) = mpsc::channel(PIECES_MAX);
        let writer = Writer { pieces, framing: Framing::Events, text: String::new() };
        let silence = Duration::from_millis(50);
        tokio::spawn(write(None, Answers::made_by_another(answers), Holds, writer, silence));
        // Tokens come all the time, and more often than that.
        let beat = async {
            loop {
                let token = TokenEvent { token: 0, text: "x".into(), logprobs: None };
                drop(events.send((0, Event::Token(token))));
                tokio::time::sleep(silence / 10).await;
            }
        };
        let said = tokio::select! {
            said = tokio::time::timeout(Duration::from_secs(20), read.recv()) => said.expect("it is silent"),
            () = beat => None,
        };
        assert_eq!(said.as_deref(), Some(&b": waiting"[..]));
    }
}
