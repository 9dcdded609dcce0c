//! Anthropic's messages and tools, as OpenAI's, which templates know.

use serde_json::{Value, json};

use crate::{Problem, openai::text_of};

/// The conversation as a template reads it: results of tools are messages of their own.
pub(super) fn conversation(system: &Value, messages: &[Value]) -> Result<Vec<Value>, Problem> {
    let system = text_of("system", system.clone())?;
    let mut read: Vec<Value> =
        (!system.is_empty()).then(|| json!({ "role": "system", "content": system })).into_iter().collect();
    for (at, message) in messages.iter().enumerate() {
        let blocks = match &message["content"] {
            Value::Array(blocks) => blocks.as_slice(),
            _ => {
                read.push(message.clone());
                continue;
            }
        };
        let param = || format!("messages[{at}].content");
        let (mut texts, mut calls) = (Vec::new(), Vec::new());
        for block in blocks {
            match block["type"].as_str() {
                Some("tool_use") => calls.push(json!({
                    "id": block["id"],
                    "type": "function",
                    "function": { "name": block["name"], "arguments": block["input"] },
                })),
                Some("tool_result") => read.push(json!({
                    "role": "tool",
                    "tool_call_id": block["tool_use_id"],
                    "content": text_of(&param(), block["content"].clone())?,
                })),
                // What a model thought is not said again.
                Some("thinking" | "redacted_thinking") => {}
                _ => texts.push(text_of(&param(), json!([block]))?),
            }
        }
        if texts.is_empty() && calls.is_empty() {
            continue;
        }
        let mut said = json!({ "role": message["role"], "content": texts.join("\n") });
        if !calls.is_empty() {
            said["tool_calls"] = calls.into();
        }
        read.push(said);
    }
    Ok(read)
}

/// Tools as functions. Those that Anthropic runs itself have no schema, and nobody to run them here.
pub(super) fn functions(tools: &[Value]) -> Result<Vec<Value>, Problem> {
    let function = |(at, tool): (usize, &Value)| {
        if let Some(kind) = tool["type"].as_str().filter(|&kind| kind != "custom") {
            let message = format!("a tool of type `{kind}` runs at Anthropic; this gateway has none of them");
            return Err(Problem::unsupported(format!("tools[{at}]"), message));
        }
        let [name, description, parameters] = ["name", "description", "input_schema"].map(|field| &tool[field]);
        Ok(json!({
            "type": "function",
            "function": { "name": name, "description": description, "parameters": parameters },
        }))
    };
    tools.iter().enumerate().map(function).collect()
}

/// A choice of tools in OpenAI's words.
pub(super) fn choice(choice: &Value) -> Result<Option<Value>, Problem> {
    Ok(match choice["type"].as_str() {
        None if choice.is_null() => None,
        Some("auto") => Some("auto".into()),
        Some("none") => Some("none".into()),
        Some("any") => Some("required".into()),
        Some("tool") => Some(json!({ "type": "function", "function": { "name": choice["name"] } })),
        _ => return Err(Problem::value("tool_choice", "a choice is `auto`, `any`, `none`, or a tool's name")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_their_results_become_messages_of_their_own() {
        let messages = [
            json!({"role": "user", "content": "weather?"}),
            json!({"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}]}),
            json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "And now?"}]}),
        ];
        let read = conversation(&json!([{"type": "text", "text": "Be brief."}]), &messages).unwrap();
        let roles: Vec<_> = read.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(read[2]["content"], "I look.");
        assert_eq!(read[2]["tool_calls"][0]["function"], json!({"name": "weather", "arguments": {"city": "Rome"}}));
        assert_eq!((&read[3]["content"], &read[3]["tool_call_id"]), (&json!("rain"), &json!("toolu_1")));
        let image = [json!({"role": "user", "content": [{"type": "image", "source": {}}]})];
        assert_eq!(conversation(&Value::Null, &image).unwrap_err().code, "unsupported_parameter");
    }

    #[test]
    fn tools_become_functions_and_those_of_anthropic_s_own_are_refused() {
        let tools = [json!({"name": "weather", "description": "says it", "input_schema": {"type": "object"}})];
        let function = json!({"name": "weather", "description": "says it", "parameters": {"type": "object"}});
        assert_eq!(functions(&tools).unwrap(), [json!({"type": "function", "function": function})]);
        let search = [tools[0].clone(), json!({"type": "web_search_20250305", "name": "web_search"})];
        assert_eq!(functions(&search).unwrap_err().param.as_deref(), Some("tools[1]"));
        assert_eq!(choice(&json!({"type": "any"})).unwrap(), Some(json!("required")));
        assert_eq!(choice(&Value::Null).unwrap(), None);
        assert!(choice(&json!({"type": "perhaps"})).is_err());
    }
}
