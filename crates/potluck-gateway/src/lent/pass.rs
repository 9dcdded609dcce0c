//! A request for a model that is lent, on its way past the handlers, and its answer back.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use n0_future::{StreamExt as _, boxed::BoxStream, stream::unfold};
use potluck_core::Endpoint;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::{LentAnswer, LentModel, turns::Turn};
use crate::{
    BODY_BYTES_MAX, Problem, Whose,
    access::Caller,
    http::{Asker, Shared, Site, read, too_large},
};

/// How long a stream of events may say nothing: proxies cut what is silent for longer than half a minute.
const SILENCE: Duration = Duration::from_secs(10);

/// What a lender's answer may call itself. Anything else is bytes: no browser is to run it in the gateway's name.
const CONTENT_TYPES: [&str; 3] = ["application/json", EVENTS, "text/plain"];

const EVENTS: &str = "text/event-stream";

/// All that is read of a request.
#[derive(Debug, Deserialize)]
struct Named {
    model: String,
}

/// Takes requests that name a model which is lent; all others go on to their handlers.
pub(crate) async fn pass(State(shared): Site, request: Request, next: Next) -> Response {
    let Some(endpoint) = Endpoint::of_path(request.uri().path()).filter(|_| shared.lending.is_some()) else {
        return next.run(request).await;
    };
    let caller = request.extensions().get::<Asker>().map(|Asker(caller)| caller.clone());
    let (parts, body) = match read(request).await {
        Ok(read) => read,
        Err(problem) => return problem.openai(),
    };
    // What is wrong with any other request is for its handler to say.
    let name = serde_json::from_slice::<Named>(&body).ok().map(|named| named.model);
    if let (Some(name), Some(caller)) = (name, caller)
        && let Some(model) = shared.to_pass_on(&name)
    {
        let answer = ask(&shared, &caller, &name, model, endpoint, body).await;
        return answer.unwrap_or_else(Problem::openai);
    }
    next.run(Request::from_parts(parts, Body::from(body))).await
}

async fn ask(
    shared: &Arc<Shared>,
    caller: &Caller,
    name: &str,
    model: LentModel,
    endpoint: Endpoint,
    body: Bytes,
) -> Result<Response, Problem> {
    let gone = || Problem::new(Whose::Lenders(1), "shutting_down", "the gateway is shutting down");
    let lending = shared.lending.as_ref().ok_or_else(gone)?;
    let body = if model.name == name { body } else { renamed(&body, &model.name)? };
    caller.may_ask_lent()?;
    caller.charge(tokens_in(body.len()))?;
    let turn = lending.turns.take(caller, &model.name, lending.lent.places(&model.name)).await?;
    let answer = lending.lent.ask(model.name, endpoint, body).await?;
    Ok(respond(paid(answer, caller), turn))
}

/// The request, with the name that its lender knows.
fn renamed(body: &[u8], name: &str) -> Result<Bytes, Problem> {
    let invalid = |what: &dyn std::fmt::Display| Problem::new(Whose::Request, "invalid_json", what);
    let mut request: Map<String, Value> = serde_json::from_slice(body).map_err(|error| invalid(&error))?;
    request.insert("model".into(), name.into());
    let request = Value::Object(request);
    let body = request.to_string();
    // Written anew, it may be a little longer: lenders take as much as this gateway does.
    if body.len() > BODY_BYTES_MAX { Err(too_large()) } else { Ok(body.into()) }
}

/// Tokens that so many bytes count as, where they pass unread: what a limit of tokens takes them for.
pub(super) fn tokens_in(bytes: usize) -> usize {
    bytes.div_ceil(4)
}

/// The answer, each piece of which is counted before it is passed on.
pub(super) fn paid(answer: LentAnswer, caller: &Caller) -> LentAnswer {
    let caller = caller.clone();
    let pay = move |piece: Result<Bytes, Problem>| {
        piece.and_then(|bytes| caller.charge(tokens_in(bytes.len())).map(|()| bytes))
    };
    LentAnswer { body: answer.body.map(pay).boxed(), ..answer }
}

fn respond(answer: LentAnswer, turn: Turn) -> Response {
    let LentAnswer { status, content_type, retry_after, body } = answer;
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let known = CONTENT_TYPES.contains(&kind.as_str()).then(|| HeaderValue::from_str(&content_type).ok()).flatten();
    let kind_header = known.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let pieces = Pieces { body, _turn: turn, events: kind == EVENTS, between: true };
    let mut response = Body::from_stream(unfold(Some(pieces), next)).into_response();
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind_header);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An answer's body on its way to whoever asked. Dropped, it stops the lender, and its turn is the next one's.
struct Pieces {
    body: BoxStream<Result<Bytes, Problem>>,
    _turn: Turn,
    events: bool,
    /// The last piece ended with an event.
    between: bool,
}

async fn next(pieces: Option<Pieces>) -> Option<(Result<Bytes, Problem>, Option<Pieces>)> {
    let mut pieces = pieces?;
    let piece = loop {
        match timeout(SILENCE, pieces.body.next()).await {
            Ok(piece) => break piece?,
            Err(_) if pieces.events && pieces.between => {
                return Some((Ok(Bytes::from_static(b": waiting\n\n")), Some(pieces)));
            }
            Err(_) => {}
        }
    };
    match piece {
        Ok(bytes) => {
            pieces.between = bytes.ends_with(b"\n\n") || bytes.ends_with(b"\r\n\r\n");
            Some((Ok(bytes), Some(pieces)))
        }
        // A stream of events says what is wrong, and ends; of anything else it shows by the body that breaks off.
        Err(problem) if pieces.events => {
            let event = format!("\n\ndata: {}\n\ndata: [DONE]\n\n", problem.object());
            Some((Ok(event.into()), None))
        }
        Err(problem) => Some((Err(problem), None)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::to_bytes;
    use n0_future::stream;

    use super::*;
    use crate::{access::Caller, lent::Turns};

    async fn answer(content_type: &str, pieces: Vec<Result<Bytes, Problem>>) -> (Response, Turns) {
        let turns = Turns::new(Arc::new(crate::metrics::Metrics::new(None)));
        let turn = turns.take(&Caller::Key([1; 32]), "m", 1).await.unwrap();
        let body: BoxStream<_> = Box::pin(stream::iter(pieces));
        let answer = LentAnswer { status: 200, content_type: content_type.into(), retry_after: Some(7), body };
        (respond(answer, turn), turns)
    }

    fn lost() -> Problem {
        Problem::new(Whose::Lenders(5), "peer_lost", "it is gone")
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_says_so_and_a_body_is_not_taken_for_whole() {
        let pieces = || vec![Ok(Bytes::from_static(b"data: {}")), Err(lost())];
        let (response, _turns) = answer("text/event-stream; charset=utf-8", pieces()).await;
        let text = to_bytes(response.into_body(), 1_000).await.unwrap();
        let text = std::str::from_utf8(&text).unwrap();
        assert!(text.starts_with("data: {}\n\ndata: {\"error\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(text.contains("peer_lost"), "{text}");
        let (response, _turns) = answer("application/json", pieces()).await;
        assert!(to_bytes(response.into_body(), 1_000).await.is_err());
    }

    #[tokio::test]
    async fn what_passes_unread_is_counted_by_its_bytes() {
        let (guest, _) = crate::granted::tests::guest(Some(50));
        let pieces = (0..3).map(|_| Ok(Bytes::from_static(&[b'x'; 100])));
        let (content_type, body) = ("text/plain".into(), Box::pin(stream::iter(pieces)) as BoxStream<_>);
        let answer = LentAnswer { status: 200, content_type, retry_after: None, body };
        let came: Vec<_> = paid(answer, &Caller::Granted(guest)).body.collect().await;
        assert!(came[0].is_ok() && came[1].is_ok(), "fifty tokens are two hundred bytes");
        assert_eq!(came[2].as_ref().unwrap_err().code, "insufficient_quota");
    }

    #[tokio::test]
    async fn a_lender_puts_no_page_into_the_gateway_s_mouth() {
        for (sent, passed) in [
            ("application/json", "application/json"),
            ("text/event-stream; charset=utf-8", "text/event-stream; charset=utf-8"),
            ("text/html", "application/octet-stream"),
            ("application/json\r\nx: y", "application/octet-stream"),
            ("", "application/octet-stream"),
        ] {
            let (response, _turns) = answer(sent, Vec::new()).await;
            assert_eq!(response.headers()["content-type"], passed, "{sent}");
            assert_eq!(response.headers()["x-content-type-options"], "nosniff");
            assert_eq!(response.headers()["retry-after"], "7");
        }
    }

    #[test]
    fn a_request_keeps_all_but_the_name() {
        let body = br#"{"messages":[{"role":"user","content":"hi"}],"model":"a","top_k":3}"#;
        let renamed: Value = serde_json::from_slice(&renamed(body, "a:latest").unwrap()).unwrap();
        assert_eq!((&renamed["model"], &renamed["top_k"]), (&"a:latest".into(), &3.into()));
        assert_eq!(renamed["messages"][0]["content"], "hi");
        // A list is no request, whatever it can be read as.
        assert_eq!(super::renamed(br#"["a"]"#, "b").unwrap_err().status(), 400);
    }
}
