//! Messages, as clients send them, for the model's chat template.

use serde_json::{Map, Value, json};

use crate::Problem;

/// Messages that a template can read: each content one text, each role one that templates know.
pub(crate) fn for_template(messages: Vec<Value>) -> Result<Vec<Value>, Problem> {
    messages.into_iter().enumerate().map(|(at, message)| one(at, message)).collect()
}

fn one(at: usize, message: Value) -> Result<Value, Problem> {
    let param = |field: &str| format!("messages[{at}].{field}");
    let Value::Object(mut message) = message else {
        return Err(Problem::value(format!("messages[{at}]"), "a message is an object"));
    };
    let role = match message.get("role").and_then(Value::as_str) {
        Some("developer" | "system") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool" | "function") => "tool",
        Some(other) => return Err(Problem::value(param("role"), format!("the role `{other}` is not known"))),
        None => return Err(Problem::value(param("role"), "a message has a role")),
    };
    let content = match message.remove("content") {
        Some(content) => text(&param("content"), content)?,
        // It called a tool.
        None if role == "assistant" => String::new(),
        None => return Err(Problem::value(param("content"), "a message has a content")),
    };
    let mut known = Map::from_iter([("role".to_owned(), json!(role)), ("content".to_owned(), json!(content))]);
    for field in ["name", "tool_call_id", "tool_calls"] {
        if let Some(value) = message.remove(field).filter(|value| !value.is_null()) {
            known.insert(field.to_owned(), if field == "tool_calls" { calls(value) } else { value });
        }
    }
    Ok(known.into())
}

/// A content is a text, or parts of one.
pub(crate) fn text(param: &str, content: Value) -> Result<String, Problem> {
    match content {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        Value::Array(parts) => {
            let part = |part: Value| match part["type"].as_str() {
                Some("text" | "input_text" | "output_text") | None => {
                    let text = part["text"].as_str().or(part.as_str());
                    text.map(str::to_owned).ok_or_else(|| Problem::value(param.to_owned(), "a part has no text"))
                }
                Some("refusal") => Ok(part["refusal"].as_str().unwrap_or_default().to_owned()),
                Some(other) => {
                    let message = format!("text alone is read here; a part of type `{other}` is not");
                    Err(Problem::unsupported(param.to_owned(), message))
                }
            };
            Ok(parts.into_iter().map(part).collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        _ => Err(Problem::value(param.to_owned(), "a content is a text or a list of parts")),
    }
}

/// Templates want the arguments of a call as an object; clients send them as text.
fn calls(value: Value) -> Value {
    let Value::Array(mut calls) = value else { return value };
    for call in &mut calls {
        if let Some(arguments) = call["function"]["arguments"].as_str()
            && let Ok(object) = serde_json::from_str::<Value>(arguments)
        {
            call["function"]["arguments"] = object;
        }
    }
    calls.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_become_texts_and_roles_those_of_templates() {
        let messages = vec![
            json!({"role": "developer", "content": "be brief"}),
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
            json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
                "function": {"name": "f", "arguments": "{\"x\":1}"}}]}),
            json!({"role": "tool", "content": "3", "tool_call_id": "1"}),
        ];
        let read = for_template(messages).unwrap();
        assert_eq!(read[0], json!({"role": "system", "content": "be brief"}));
        assert_eq!(read[1], json!({"role": "user", "content": "a\nb"}));
        assert_eq!(read[2]["content"], "");
        assert_eq!(read[2]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(read[3]["tool_call_id"], "1");
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        for (message, param) in [
            (json!("hi"), "messages[0]"),
            (json!({"content": "x"}), "messages[0].role"),
            (json!({"role": "owner", "content": "x"}), "messages[0].role"),
            (json!({"role": "user"}), "messages[0].content"),
            (json!({"role": "user", "content": 3}), "messages[0].content"),
            (json!({"role": "user", "content": [{"type": "image_url"}]}), "messages[0].content"),
        ] {
            let problem = for_template(vec![message.clone()]).unwrap_err();
            assert_eq!(problem.param.as_deref(), Some(param), "{message}");
        }
    }
}
