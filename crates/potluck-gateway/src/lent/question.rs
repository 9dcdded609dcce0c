//! What a model that is lent is asked, by APIs that its lenders do not speak: in OpenAI's words, which all of them do.

use std::collections::VecDeque;

use potluck_core::Endpoint;
use serde_json::{Map, Value, json};

use crate::{
    Problem,
    openai::{OneOrMany, Params},
    tools::Tools,
};

/// Tokens of a text that goes on where nobody sets a limit: servers differ in what they do then, and some stop after 16.
const TEXT_TOKENS: u32 = 128;

/// A request to a lender, but for the model's name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    pub(super) endpoint: Endpoint,
    pub(super) request: Map<String, Value>,
    /// Functions that may be called.
    pub(super) functions: Vec<String>,
}

impl Question {
    /// A chat of messages as templates know them.
    pub(crate) fn chat(messages: Vec<Value>) -> Result<Self, Problem> {
        if messages.is_empty() {
            return Err(Problem::value("messages", "there is no message"));
        }
        Ok(Self::new(Endpoint::ChatCompletions, "messages", as_sent(messages)?.into()))
    }

    /// A text that goes on.
    pub(crate) fn text(prompt: String) -> Self {
        let mut question = Self::new(Endpoint::Completions, "prompt", prompt.into());
        question.request.insert("max_tokens".into(), TEXT_TOKENS.into());
        question
    }

    fn new(endpoint: Endpoint, field: &str, value: Value) -> Self {
        let streamed = json!({ "stream": true, "stream_options": { "include_usage": true } });
        let mut question = Self { endpoint, request: Map::new(), functions: Vec::new() };
        question.request.extend(streamed.as_object().cloned().unwrap_or_default());
        question.request.insert(field.into(), value);
        question
    }

    /// With these functions, and this choice among them.
    pub(crate) fn tools(mut self, mut tools: Vec<Value>, choice: Option<Value>) -> Result<Self, Problem> {
        // What is wrong with them is wrong whoever answers. Some servers heed no choice: what is not to be called is not sent.
        if Tools::of(Some(&tools), choice.as_ref())?.is_none() {
            return Ok(self);
        }
        for tool in &mut tools {
            if let Some(function) = tool["function"].as_object_mut() {
                // Servers read what is null as a word that they do not know.
                function.retain(|_, value| !value.is_null());
                self.functions.extend(function.get("name").and_then(Value::as_str).map(str::to_owned));
            }
        }
        self.request.insert("tools".into(), tools.into());
        self.request.extend(choice.map(|choice| ("tool_choice".to_owned(), choice)));
        Ok(self)
    }

    /// With what these parameters say; what they leave open is the lender's to choose.
    pub(crate) fn with(mut self, params: Params) -> Self {
        let numbers = [
            ("temperature", params.temperature),
            ("top_p", params.top_p),
            ("min_p", params.min_p),
            ("typical_p", params.typical_p),
            ("repeat_penalty", params.repeat_penalty),
            ("presence_penalty", params.presence_penalty),
            ("frequency_penalty", params.frequency_penalty),
        ];
        let stop = match params.stop {
            Some(OneOrMany::Many(texts)) if texts.is_empty() => None,
            stop => stop.map(|stop| json!(stop)),
        };
        let others = [
            ("top_k", params.top_k.map(Value::from)),
            ("seed", params.seed.map(Value::from)),
            ("max_tokens", params.max_completion_tokens.or(params.max_tokens).map(Value::from)),
            ("stop", stop),
            ("response_format", params.response_format.map(format)),
        ];
        let given = numbers.into_iter().map(|(name, number)| (name, number.map(decimal))).chain(others);
        self.request.extend(given.filter_map(|(name, value)| Some((name.to_owned(), value?))));
        self
    }
}

/// A number as it was written, without what its narrower type added to it.
fn decimal(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// A schema has a name where OpenAI's API is taken at its word.
fn format(format: Value) -> Value {
    let schema = match format["type"].as_str() {
        Some("json_object") => format.get("schema"),
        Some("json_schema") => format["json_schema"].get("schema").or(format.get("schema")),
        _ => None,
    };
    match schema {
        Some(schema) => json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema } }),
        None => format,
    }
}

/// Messages as they go over HTTP: arguments are a text, each call has an id, and each result that of its call.
fn as_sent(mut messages: Vec<Value>) -> Result<Vec<Value>, Problem> {
    let (mut count, mut unanswered) = (0usize, VecDeque::new());
    for (at, message) in messages.iter_mut().enumerate() {
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            if !call.is_object() || !call["function"].is_object() {
                return Err(Problem::value(format!("messages[{at}].tool_calls"), "a call has a function"));
            }
            if !call["id"].is_string() {
                call["id"] = format!("call_{count}").into();
            }
            count += 1;
            unanswered.push_back((call["id"].clone(), call["function"]["name"].clone()));
            call["type"] = "function".into();
            let arguments = call["function"]["arguments"].take();
            call["function"]["arguments"] = match arguments {
                Value::String(text) => text.into(),
                Value::Null => "{}".into(),
                object => object.to_string().into(),
            };
        }
        if message["role"] == "tool" {
            match message.get("tool_call_id").and_then(Value::as_str) {
                Some(id) => unanswered.retain(|(call, _)| call != id),
                // That of the tool that it names, else the first that has none.
                None => {
                    let of = unanswered.iter().position(|(_, tool)| *tool == message["name"]).unwrap_or(0);
                    let (id, _) = unanswered.remove(of).unwrap_or_else(|| ("call_0".into(), Value::Null));
                    message["tool_call_id"] = id;
                }
            }
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_sent_as_every_server_reads_them() {
        let call = |name: &str| json!({ "function": { "name": name, "arguments": { "a": 1 } } });
        let messages = vec![
            json!({ "role": "user", "content": "hi" }),
            json!({ "role": "assistant", "content": "", "tool_calls": [call("f"), call("g")] }),
            json!({ "role": "tool", "content": "1" }),
            json!({ "role": "tool", "content": "2" }),
            json!({ "role": "assistant", "content": "", "tool_calls": [{ "id": "x", "function": { "name": "f", "arguments": "{}" } }] }),
            json!({ "role": "tool", "content": "3", "tool_call_id": "x" }),
        ];
        let Question { endpoint, request, .. } = Question::chat(messages).unwrap();
        assert_eq!((endpoint, &request["stream"]), (Endpoint::ChatCompletions, &json!(true)));
        let sent = &request["messages"];
        assert_eq!(sent[0], json!({ "role": "user", "content": "hi" }));
        assert_eq!(sent[1]["tool_calls"][1]["id"], "call_1");
        assert_eq!(sent[1]["tool_calls"][1]["function"]["arguments"], r#"{"a":1}"#);
        let ids = [2, 3, 5].map(|at| sent[at]["tool_call_id"].as_str().unwrap());
        assert_eq!(ids, ["call_0", "call_1", "x"]);
        let result = |name: &str| json!({ "role": "tool", "content": "", "name": name });
        let crossed = vec![
            json!({ "role": "assistant", "content": "", "tool_calls": [call("f"), call("g")] }),
            result("g"),
            result("absent"),
            result("f"),
        ];
        let sent = Value::from(Question::chat(crossed).unwrap().request);
        let ids = [1, 2, 3].map(|at| sent["messages"][at]["tool_call_id"].as_str().unwrap());
        assert_eq!(ids, ["call_1", "call_0", "call_0"], "of the tool that it names, then in turn");
        assert!(Question::chat(Vec::new()).is_err());
        for call in [json!("x"), json!({}), json!({ "function": "f" }), json!(7)] {
            let messages = vec![json!({ "role": "assistant", "content": "", "tool_calls": [call] })];
            assert_eq!(Question::chat(messages).unwrap_err().status(), 400, "{call}");
        }
        let bare = json!({ "role": "assistant", "content": "", "tool_calls": [{ "function": { "name": "f" } }] });
        let sent = Value::from(Question::chat(vec![bare]).unwrap().request);
        assert_eq!(sent["messages"][0]["tool_calls"][0]["function"]["arguments"], "{}");
    }

    #[test]
    fn parameters_that_were_given_are_passed_on_and_no_others() {
        let given = json!({ "temperature": 0.7, "top_k": 3, "stop": ["a"], "max_tokens": 5,
            "response_format": { "type": "json_object", "schema": { "type": "object" } } });
        let question = Question::text("x".into()).with(serde_json::from_value(given).unwrap());
        let request = Value::from(question.request.clone());
        assert_eq!(
            (&request["temperature"], &request["top_k"], &request["stop"]),
            (&json!(0.7), &json!(3), &json!(["a"]))
        );
        assert_eq!(
            request["response_format"]["json_schema"],
            json!({ "name": "answer", "schema": { "type": "object" } })
        );
        assert_eq!((question.endpoint, request.get("seed"), request.get("tools")), (Endpoint::Completions, None, None));
        let none = Question::text("x".into()).with(Params { stop: Some(OneOrMany::Many(vec![])), ..Params::default() });
        assert_eq!(Ok(none), Question::text("x".into()).tools(Vec::new(), Some("auto".into())));
        let tool = json!({ "type": "function", "function": { "name": "f", "description": null, "parameters": null } });
        let called = Question::text("x".into()).tools(vec![tool], Some("required".into())).unwrap();
        assert_eq!(called.request["tools"], json!([{ "type": "function", "function": { "name": "f" } }]));
        assert_eq!((&called.request["tool_choice"], &*called.functions), (&json!("required"), &["f".to_owned()][..]));
        let tool = json!({ "type": "function", "function": { "name": "f" } });
        let silent = Question::text("x".into()).tools(vec![tool], Some("none".into()));
        assert_eq!(silent, Ok(Question::text("x".into())), "what is not to be called is not sent");
        assert_eq!((&request["max_tokens"], &silent.unwrap().request["max_tokens"]), (&json!(5), &json!(TEXT_TOKENS)));
    }
}
