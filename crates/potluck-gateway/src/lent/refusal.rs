//! Why a server that lends its model does not answer, in its own words where it has some.

use n0_future::StreamExt as _;
use serde_json::Value;

use super::LentAnswer;
use crate::{Problem, Whose, prompt::TOO_LONG};

/// Bytes of a refusal that are read, and characters of it that are passed on.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
const REFUSAL_CHARS_MAX: usize = 2_000;

/// Seconds after which it may go better, where nobody says.
const RETRY_SECONDS: u32 = 5;

/// What a server that has failed answers, whatever it is asked.
const FAILED: u16 = 500;

/// Why a server answered with another status.
pub(super) async fn refusal(answer: LentAnswer) -> Problem {
    let LentAnswer { status, retry_after, mut body, .. } = answer;
    let mut read = Vec::new();
    while let Some(Ok(piece)) = body.next().await
        && read.len() < REFUSAL_BYTES_MAX
    {
        read.extend_from_slice(&piece);
    }
    read.truncate(REFUSAL_BYTES_MAX);
    of(status, retry_after, &serde_json::from_slice(&read).unwrap_or_default())
}

/// The same, where the server says so in an answer that it had begun: some begin before they have looked at the request.
pub(super) fn within(chunk: &Value) -> Problem {
    let error = &chunk["error"];
    let status = error["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let status = status.filter(|status| (400..=599).contains(status));
    let request = error["type"] == "invalid_request_error";
    of(status.unwrap_or(if request { 400 } else { FAILED }), None, chunk)
}

/// What it sent is no answer.
pub(super) fn nonsense(what: impl std::fmt::Display) -> Problem {
    let message = format!("the server that lends this model gave no answer that can be read: {what}");
    Problem::new(Whose::Lenders(RETRY_SECONDS), "upstream_protocol", message)
}

fn of(status: u16, retry_after: Option<u32>, object: &Value) -> Problem {
    // Some say it one level up.
    let error = if object["error"].is_object() { &object["error"] } else { object };
    // llama.cpp's word for it, with one status or another.
    let too_long = error["type"] == "exceed_context_size_error";
    let (whose, otherwise) = match status {
        _ if too_long => (Whose::Request, TOO_LONG),
        400 | 422 => (Whose::Request, "upstream_error"),
        404 => (Whose::Missing, "upstream_error"),
        413 => (Whose::Size, "upstream_error"),
        429 => (Whose::Busy(retry_after.unwrap_or(RETRY_SECONDS)), "upstream_error"),
        _ => (Whose::Lenders(retry_after.unwrap_or(RETRY_SECONDS)), "upstream_error"),
    };
    let said = [&error["message"], &object["error"], &object["detail"]].into_iter().find_map(Value::as_str);
    let message = match said {
        Some(said) => cut(said),
        None => format!("the server that lends this model answered {status}"),
    };
    let word = |field: &Value| field.as_str().filter(|word| is_word(word)).map(str::to_owned);
    let code = word(&error["code"]).unwrap_or_else(|| otherwise.into());
    Problem { param: word(&error["param"]).map(Into::into), ..Problem::new(whose, code, message) }
}

/// True for a short word that machines read.
pub(super) fn is_word(word: &str) -> bool {
    (1..=64).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// The beginning of a stranger's words.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(REFUSAL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use n0_future::stream;
    use serde_json::json;

    use super::*;

    fn answer(status: u16, body: &str) -> LentAnswer {
        let body = Ok(Bytes::copy_from_slice(body.as_bytes()));
        LentAnswer { status, content_type: String::new(), retry_after: None, body: Box::pin(stream::iter([body])) }
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_status_and_its_words() {
        for (status, body, expected, code, words) in [
            (
                400,
                r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#,
                400,
                "context_length_exceeded",
                "too long",
            ),
            (
                500,
                r#"{"error":{"message":"long","type":"exceed_context_size_error","code":500}}"#,
                400,
                TOO_LONG,
                "long",
            ),
            (400, r#"{"object":"error","message":"no tools","code":400}"#, 400, "upstream_error", "no tools"),
            (404, r#"{"error":"no such model"}"#, 404, "upstream_error", "no such model"),
            (422, r#"{"detail":"top_k"}"#, 400, "upstream_error", "top_k"),
            (429, "{}", 429, "upstream_error", "answered 429"),
            (500, "<html>", 503, "upstream_error", "answered 500"),
            (400, r#"{"error":{"message":"x","code":"a b\n"}}"#, 400, "upstream_error", "x"),
        ] {
            let problem = refusal(answer(status, body)).await;
            assert_eq!((problem.status(), &*problem.code), (expected, code), "{body}");
            assert!(problem.message.contains(words), "{problem}");
        }
        let named = refusal(answer(400, r#"{"error":{"message":"hot","param":"temperature"}}"#)).await;
        assert_eq!(named.param.as_deref(), Some("temperature"));
    }

    #[tokio::test]
    async fn a_refusal_without_an_end_is_cut() {
        let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 1 << 12])));
        let problem = refusal(LentAnswer { body: Box::pin(endless), ..answer(400, "") }).await;
        assert_eq!(problem.message, "the server that lends this model answered 400");
        let long = json!({ "error": "x".repeat(9_000) }).to_string();
        assert_eq!(refusal(answer(400, &long)).await.message.len(), REFUSAL_CHARS_MAX);
    }

    #[test]
    fn within_an_answer_the_fault_is_the_request_s_where_the_server_says_so() {
        for (error, status, code) in [
            (json!("out of memory"), 503, "upstream_error"),
            (json!({ "message": "out of memory", "code": 500 }), 503, "upstream_error"),
            (json!({ "message": "no", "code": 400, "type": "BadRequestError" }), 400, "upstream_error"),
            (
                json!({ "message": "no", "type": "invalid_request_error", "code": "invalid_value" }),
                400,
                "invalid_value",
            ),
            (json!({ "message": "no", "code": 7 }), 503, "upstream_error"),
        ] {
            let problem = within(&json!({ "error": error }));
            assert_eq!((problem.status(), &*problem.code), (status, code), "{error}");
        }
    }
}
