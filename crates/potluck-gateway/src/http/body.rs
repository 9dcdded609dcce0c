//! Bodies: JSON, whatever their content type says, with errors that name the field.

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{StatusCode, request::Parts},
    response::IntoResponse,
};
use serde::de::DeserializeOwned;

use super::BODY_BYTES_MAX;
use crate::{Problem, Whose};

/// A body that was read, or what is wrong with it: the handler's API says so in its own shape.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) Result<T, Problem>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = std::convert::Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(match Bytes::from_request(request, state).await {
            Ok(bytes) => parse(&bytes),
            Err(error) => Err(unreadable(error)),
        }))
    }
}

/// A request's body, and what was before it.
pub(crate) async fn read(request: Request) -> Result<(Parts, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    let again: Request<Body> = Request::from_parts(parts.clone(), body);
    Bytes::from_request(again, &()).await.map(|bytes| (parts, bytes)).map_err(unreadable)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let code = if error.is_data() { "invalid_value" } else { "invalid_json" };
        // serde_json names the line and the column, and quotes no content beyond the offending word.
        Problem::new(Whose::Request, code, format!("the body is not what this address takes: {error}"))
    })
}

fn unreadable(error: BytesRejection) -> Problem {
    if error.body_text().contains("length limit") || error.into_response().status() == StatusCode::PAYLOAD_TOO_LARGE {
        return too_large();
    }
    Problem::new(Whose::Request, "invalid_body", "the body could not be read")
}

/// The body exceeds [`BODY_BYTES_MAX`].
pub(crate) fn too_large() -> Problem {
    Problem::new(Whose::Size, "body_too_large", format!("the body has more than {BODY_BYTES_MAX} bytes"))
}

/// A field that clients of some languages send as `null` where they have nothing to say.
pub(crate) fn or_default<'de, D: serde::Deserializer<'de>, T: Default + serde::Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}
