//! Tools: told to the model through its template, or in words where the template knows none; and calls, found in its answer.

mod reader;

use potluck_engine::GrammarSource;
use serde_json::{Map, Value, json};

use crate::{Model, Problem};

pub(crate) use reader::{Piece, Reader};

/// Tools of one request. More are refused.
pub(crate) const TOOLS_MAX: usize = 128;

/// What a call begins and ends with, in the form that most models were trained on.
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Whether the model calls tools.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// As it likes.
    Auto,
    /// One, whichever.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request that has some and lets them be called.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    list: Vec<Value>,
    choice: Choice,
}

/// A call that the model made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON, as text.
    pub(crate) arguments: String,
}

/// What an answer says, beside what it calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
}

impl Tools {
    /// What the request says of tools; none where the model is to call none.
    pub(crate) fn of(tools: Option<&[Value]>, choice: Option<&Value>) -> Result<Option<Self>, Problem> {
        let tools = tools.unwrap_or_default();
        if tools.len() > TOOLS_MAX {
            return Err(Problem::value("tools", format!("{} tools; the most is {TOOLS_MAX}", tools.len())));
        }
        let choice = match choice {
            None | Some(Value::Null) => Choice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => Choice::Auto,
                "required" => Choice::Required,
                other => return Err(Problem::value("tool_choice", format!("`{other}` is no choice of tools"))),
            },
            Some(object) => {
                let name = object["function"]["name"].as_str();
                let missing = || Problem::value("tool_choice", "a choice names a function");
                Choice::Named(name.ok_or_else(missing)?.to_owned())
            }
        };
        if tools.is_empty() {
            return match choice {
                Choice::Auto => Ok(None),
                _ => Err(Problem::value("tool_choice", "a tool must be called, and there is none")),
            };
        }
        for (at, tool) in tools.iter().enumerate() {
            if tool["type"] != "function" || tool["function"]["name"].as_str().is_none_or(str::is_empty) {
                return Err(Problem::value(format!("tools[{at}]"), "a tool is a function with a name"));
            }
        }
        let tools = Self { list: tools.to_vec(), choice };
        match &tools.choice {
            Choice::Named(name) if tools.find(name).is_none() => {
                Err(Problem::value("tool_choice", format!("no tool is called `{name}`")))
            }
            _ => Ok(Some(tools)),
        }
    }

    /// True where the model decides whether it calls one.
    pub(crate) fn is_auto(&self) -> bool {
        self.choice == Choice::Auto
    }

    /// True where one function was named: such a call ends with `stop`, as the reference has it.
    pub(crate) fn is_named(&self) -> bool {
        matches!(self.choice, Choice::Named(_))
    }

    /// Tells the model of its tools: a variable for its template, or words before the conversation.
    pub(crate) fn tell(&self, model: &Model, messages: &mut Vec<Value>, variables: &mut Map<String, Value>) {
        if model.template.reads("tools") {
            variables.insert("tools".into(), self.list.clone().into());
            return;
        }
        let list: Vec<String> = self.list.iter().map(|tool| tool["function"].to_string()).collect();
        let words = format!(
            "You can call these functions:\n{}\nTo call one, answer with nothing but\n\
             {OPEN}{{\"name\": NAME, \"arguments\": {{...}}}}{CLOSE}",
            list.join("\n")
        );
        match messages.first_mut() {
            Some(first) if first["role"] == "system" => {
                let before = first["content"].as_str().unwrap_or_default();
                first["content"] = format!("{before}\n\n{words}").into();
            }
            _ => messages.insert(0, json!({ "role": "system", "content": words })),
        }
    }

    /// What an answer must follow where a tool has to be called: one call, as JSON.
    pub(crate) fn grammar(&self) -> Option<GrammarSource> {
        let call = |tool: &Value, above: &str| {
            let function = &tool["function"];
            let mut arguments = match &function["parameters"] {
                parameters @ Value::Object(fields) if !fields.is_empty() => parameters.clone(),
                _ => json!({ "type": "object" }),
            };
            // What refers to the root of its own schema is further down now.
            point_below(&mut arguments, &format!("#{above}/properties/arguments"));
            json!({
                "type": "object",
                "properties": { "name": { "const": function["name"] }, "arguments": arguments },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        let schema = match &self.choice {
            Choice::Auto => return None,
            Choice::Named(name) => call(self.find(name)?, ""),
            Choice::Required => match &self.list[..] {
                [only] => call(only, ""),
                all => {
                    let calls = all.iter().enumerate().map(|(at, tool)| call(tool, &format!("/anyOf/{at}")));
                    json!({ "anyOf": calls.collect::<Vec<_>>() })
                }
            },
        };
        Some(GrammarSource::JsonSchema(schema.to_string()))
    }

    /// The call that this JSON is, if it names a tool.
    fn call(&self, json: &str) -> Option<Call> {
        let call: Value = serde_json::from_str(json.trim()).ok()?;
        let name = call["name"].as_str().filter(|name| self.find(name).is_some())?.to_owned();
        let arguments = call.get("arguments").or(call.get("parameters"))?;
        let arguments = match arguments {
            Value::String(text) if text.trim().is_empty() => "{}".to_owned(),
            Value::String(text) => text.clone(),
            object => object.to_string(),
        };
        Some(Call { id: Call::new_id(), name, arguments })
    }

    fn find(&self, name: &str) -> Option<&Value> {
        self.list.iter().find(|tool| tool["function"]["name"] == name)
    }
}

impl Call {
    /// A name for a call, which no other has.
    pub(crate) fn new_id() -> String {
        format!("call_{:024x}", fastrand::u128(..) >> 32)
    }

    /// True if its arguments are whole: those of a call that was cut off, or that the model got wrong, are no JSON.
    pub(crate) fn is_whole(&self) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(&self.arguments).is_ok()
    }

    /// The arguments as an object: what is none has no arguments.
    pub(crate) fn input(&self) -> Value {
        serde_json::from_str(&self.arguments).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
    }

    /// As a whole reply of OpenAI's has it.
    pub(crate) fn json(&self) -> Value {
        let function = json!({ "name": self.name, "arguments": self.arguments });
        json!({ "id": self.id, "type": "function", "function": function })
    }
}

/// References within a schema, once it is a part of another.
fn point_below(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(to) if name == "$ref" => {
                        if let Some(rest) = to.strip_prefix('#') {
                            *to = format!("{place}{rest}");
                        }
                    }
                    value => point_below(value, place),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| point_below(value, place)),
        _ => {}
    }
}

/// A conversation with calls and their results, for a template that knows neither: in words, and each speaker in turn.
pub(crate) fn in_words(messages: Vec<Value>) -> Vec<Value> {
    if !messages.iter().any(|message| message["role"] == "tool" || message["tool_calls"].is_array()) {
        return messages;
    }
    let mut said: Vec<Value> = Vec::new();
    for mut message in messages {
        one_in_words(&mut message);
        match said.last_mut() {
            Some(last) if last["role"] == message["role"] => {
                let texts = [&*last, &message].map(|message| message["content"].as_str().unwrap_or_default());
                last["content"] = texts.join("\n").into();
            }
            _ => said.push(message),
        }
    }
    said
}

fn one_in_words(message: &mut Value) {
    if let Some(calls) = message["tool_calls"].as_array() {
        let call = |call: &Value| {
            let function = &call["function"];
            format!("{OPEN}{}{CLOSE}", json!({ "name": function["name"], "arguments": function["arguments"] }))
        };
        let said: Vec<String> = calls.iter().map(call).collect();
        let before = message["content"].as_str().unwrap_or_default();
        *message = json!({ "role": "assistant", "content": format!("{before}{}", said.join("\n")) });
    } else if message["role"] == "tool" {
        let result = message["content"].as_str().unwrap_or_default();
        *message = json!({ "role": "user", "content": format!("<tool_response>{result}</tool_response>") });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weather() -> Vec<Value> {
        let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
        vec![
            json!({ "type": "function", "function": { "name": "weather", "parameters": parameters } }),
            json!({ "type": "function", "function": { "name": "time" } }),
        ]
    }

    fn tools(choice: Value) -> Result<Option<Tools>, Problem> {
        Tools::of(Some(&weather()), Some(&choice))
    }

    #[test]
    fn a_choice_is_one_that_can_be_made() {
        assert!(tools(json!("none")).unwrap().is_none());
        assert!(tools(json!("auto")).unwrap().unwrap().grammar().is_none());
        let named = tools(json!({ "type": "function", "function": { "name": "time" } })).unwrap().unwrap();
        let Some(GrammarSource::JsonSchema(schema)) = named.grammar() else { panic!("a named tool has to be called") };
        assert!(schema.contains("time") && !schema.contains("weather"), "{schema}");
        for choice in [json!("perhaps"), json!({ "function": { "name": "absent" } }), json!({})] {
            assert_eq!(tools(choice.clone()).unwrap_err().param.as_deref(), Some("tool_choice"), "{choice}");
        }
        assert!(Tools::of(None, Some(&json!("required"))).is_err());
        assert!(Tools::of(Some(&[json!({ "type": "retrieval" })]), None).is_err());
    }

    #[test]
    fn references_of_a_schema_find_their_place_in_the_grammar_s() {
        let parameters = json!({ "type": "object", "properties": { "at": { "$ref": "#/$defs/Place" } },
            "$defs": { "Place": { "type": "string", "enum": ["Rome"] } } });
        let tool = json!({ "type": "function", "function": { "name": "go", "parameters": parameters } });
        let grammar = |list: &[Value]| {
            let Some(GrammarSource::JsonSchema(schema)) =
                Tools::of(Some(list), Some(&json!("required"))).unwrap().unwrap().grammar()
            else {
                panic!("a tool has to be called")
            };
            serde_json::from_str::<Value>(&schema).unwrap()
        };
        let (one, two) = (grammar(std::slice::from_ref(&tool)), grammar(&[weather()[1].clone(), tool]));
        for (schema, above) in [(one, ""), (two, "/anyOf/1")] {
            let at = schema.pointer(&format!("{above}/properties/arguments/properties/at/$ref")).unwrap().as_str();
            let place = at.unwrap().strip_prefix('#').unwrap();
            assert_eq!(schema.pointer(place).unwrap()["enum"][0], "Rome", "{schema}");
        }
    }

    #[test]
    fn a_template_that_knows_no_tools_hears_of_them_in_words_and_in_turn() {
        let call = json!({ "id": "1", "type": "function", "function": { "name": "time", "arguments": {} } });
        let said = in_words(vec![
            json!({ "role": "user", "content": "When?" }),
            json!({ "role": "assistant", "content": "", "tool_calls": [call.clone(), call] }),
            json!({ "role": "tool", "content": "noon" }),
            json!({ "role": "tool", "content": "twelve" }),
            json!({ "role": "user", "content": "So?" }),
        ]);
        let roles: Vec<_> = said.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "user"]);
        assert_eq!(said[1]["content"].as_str().unwrap().matches(OPEN).count(), 2);
        assert!(
            said[2]["content"].as_str().unwrap().contains("twelve")
                && said[2]["content"].as_str().unwrap().ends_with("So?")
        );
        let plain = vec![json!({ "role": "user", "content": "a" }), json!({ "role": "user", "content": "b" })];
        assert_eq!(in_words(plain.clone()), plain, "what calls nothing is left as it is");
    }
}
