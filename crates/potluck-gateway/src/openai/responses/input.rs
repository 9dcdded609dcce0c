//! What a response is asked for: items, as messages that templates know; tools, as functions.

use serde_json::{Value, json};

use crate::{
    Problem,
    openai::{for_template, text_of},
};

/// The conversation as a template reads it: calls belong to the assistant's message before them.
pub(super) fn conversation(instructions: Option<&str>, input: &Value) -> Result<Vec<Value>, Problem> {
    let mut read: Vec<Value> =
        instructions.map(|text| json!({ "role": "system", "content": text })).into_iter().collect();
    let items = match input {
        Value::String(text) => return for_template([read, vec![json!({ "role": "user", "content": text })]].concat()),
        Value::Array(items) => items,
        _ => return Err(Problem::value("input", "an input is a text or a list of messages")),
    };
    for item in items {
        match item["type"].as_str().unwrap_or("message") {
            "message" => read.push(item.clone()),
            "function_call" => {
                let function = json!({ "name": item["name"], "arguments": item["arguments"] });
                let call = json!({ "id": item["call_id"], "type": "function", "function": function });
                match read.last_mut() {
                    Some(last) if last["role"] == "assistant" => match last["tool_calls"].as_array_mut() {
                        Some(calls) => calls.push(call),
                        None => last["tool_calls"] = json!([call]),
                    },
                    _ => read.push(json!({ "role": "assistant", "content": "", "tool_calls": [call] })),
                }
            }
            "function_call_output" => read.push(json!({
                "role": "tool",
                "tool_call_id": item["call_id"],
                "content": text_of("input", item["output"].clone())?,
            })),
            // What a model thought is not said again.
            "reasoning" => {}
            kind => return Err(Problem::unsupported("input", format!("an item of type `{kind}` cannot be read"))),
        }
    }
    for_template(read)
}

/// Tools as chats have them. Those that OpenAI runs itself have nobody to run them here.
pub(super) fn functions(tools: &[Value]) -> Result<Vec<Value>, Problem> {
    let function = |(at, tool): (usize, &Value)| match tool["type"].as_str() {
        Some("function") => {
            let [name, description, parameters] = ["name", "description", "parameters"].map(|field| &tool[field]);
            let function = json!({ "name": name, "description": description, "parameters": parameters });
            Ok(json!({ "type": "function", "function": function }))
        }
        kind => {
            let message = format!("a tool of type `{}` cannot be called here: functions can", kind.unwrap_or("none"));
            Err(Problem::unsupported(format!("tools[{at}]"), message))
        }
    };
    tools.iter().enumerate().map(function).collect()
}

/// A choice as chats have it.
pub(super) fn choice(choice: &Value) -> Option<Value> {
    match choice {
        Value::Null => None,
        Value::Object(_) => Some(json!({ "type": "function", "function": { "name": choice["name"] } })),
        word => Some(word.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_belong_to_what_was_said_before_them() {
        let input = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"city\":\"Rome\"}"},
            {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call", "call_id": "c3", "name": "time", "arguments": "{}"},
        ]);
        let read = conversation(Some("Be brief."), &input).unwrap();
        let roles: Vec<_> = read.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
        assert_eq!(read[2]["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!(read[2]["tool_calls"][0]["function"]["arguments"], json!({"city": "Rome"}));
        assert_eq!(read[3], json!({"role": "tool", "content": "rain", "tool_call_id": "c1"}));
        let unknown = conversation(None, &json!([{"type": "computer_call"}])).unwrap_err();
        assert_eq!(unknown.code, "unsupported_parameter");
        assert!(functions(&[json!({"type": "web_search"})]).is_err());
        assert_eq!(choice(&json!({"type": "function", "name": "time"})).unwrap()["function"]["name"], "time");
    }
}
