//! What the SDKs' own tests recorded of the real services, held against a gateway's answers: the same shapes in the same
//! order. And replayed by a server that is lent: what it said reaches the clients of every API.

use serde_json::{Map, Value, json};

use crate::machine::{
    Machine, Running,
    http::ask,
    model,
    odd::{Odd, Says},
};

const NAME: &str = "SmolLM2-135M-Instruct.Q4_1";

fn recorded(name: &str) -> String {
    let path = format!("{}/tests/sdk/recorded/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A stream's chunks; it has to end as the reference's do.
fn chunks(body: &str) -> Vec<Value> {
    let body = body.trim_end().strip_suffix("data: [DONE]").unwrap_or_else(|| panic!("no end: {body}"));
    let data = body.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}

/// Chunks of one choice, and those of none.
fn of_choice(chunks: Vec<Value>, index: usize) -> Vec<Value> {
    let of = |chunk: &Value| chunk["choices"].get(0).is_none_or(|choice| choice["index"] == index);
    chunks.into_iter().filter(of).collect()
}

/// Texts that are one of a few words, whatever the answer is.
const WORDS: [&str; 4] = ["finish_reason", "object", "role", "type"];

/// A value without what differs from answer to answer: texts, numbers and how many of a kind there are. Names and nulls stay.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let shape = |name: &str, value| if WORDS.contains(&name) { Value::clone(value) } else { shape(value) };
            fields.iter().map(|(name, value)| (name.clone(), shape(name, value))).collect::<Map<_, _>>().into()
        }
        Value::Array(values) => {
            let mut shapes: Vec<_> = values.iter().map(shape).collect();
            shapes.dedup();
            shapes.into()
        }
        Value::String(_) => "text".into(),
        Value::Number(_) => 0.into(),
        Value::Bool(_) | Value::Null => value.clone(),
    }
}

/// Whether a shape of ours is the recorded one. What clients add up field by field, a delta, has no field more, but a null;
/// elsewhere we may say more than there was to say when it was recorded.
fn is_like(ours: &Value, recorded: &Value, within_delta: bool) -> bool {
    match (ours, recorded) {
        (Value::Object(ours), Value::Object(recorded)) => {
            let has = |(name, value): (&String, &Value)| {
                let within = within_delta || name == "delta";
                ours.get(name).is_some_and(|ours| is_like(ours, value, within))
            };
            let spare = |(name, value): (&String, &Value)| !recorded.contains_key(name) && !value.is_null();
            recorded.iter().all(has) && !(within_delta && ours.iter().any(spare))
        }
        (Value::Array(ours), Value::Array(recorded)) => {
            ours.len() == recorded.len()
                && ours.iter().zip(recorded).all(|(ours, recorded)| is_like(ours, recorded, within_delta))
        }
        (ours, recorded) => ours == recorded,
    }
}

/// Ours goes through the same kinds of chunks, in their order; how many of a kind there are is the answer's.
fn goes_through(ours: &[Value], recorded: &[Value]) {
    let mut kinds: Vec<Value> = recorded.iter().map(shape).collect();
    kinds.dedup();
    let mut at = None;
    for chunk in ours {
        let is = |at: usize| kinds.get(at).is_some_and(|kind| is_like(&shape(chunk), kind, false));
        let next = at.map_or(0, |at| at + 1);
        at = Some(match at {
            _ if is(next) => next,
            Some(at) if is(at) => at,
            _ => panic!("neither one more of the kind before, nor\n{:?}\nbut\n{chunk}", kinds.get(next)),
        });
    }
    assert_eq!(at, Some(kinds.len() - 1), "the last kind is {:?}", kinds.last());
}

fn with(body: &Value, more: &Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn ends(running: Running) {
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn our_answers_have_the_shapes_that_the_clients_tests_recorded() {
    let machine = Machine::new();
    let model = model();
    let args = ["gateway", "--model", &model, "--local", "--listen", "127.0.0.1:0", "--context", "1024"];
    let mut gateway = machine.start(&[&args[..], &["--threads", "1", "--json"]].concat());
    let url = gateway.object()["url"].as_str().unwrap().to_owned();

    let schema = json!({ "type": "object", "properties": { "city": { "type": "string", "maxLength": 12 } },
        "required": ["city"], "additionalProperties": false });
    let form = json!({ "type": "json_schema", "json_schema": { "name": "place", "strict": true, "schema": schema } });
    let tool = json!({ "type": "function", "function": { "name": "weather", "parameters": schema } });
    let call = json!({ "tools": [tool], "tool_choice": "required" });
    let usage = json!({ "include_usage": true });
    let question = json!({ "model": NAME, "messages": [{ "role": "user", "content": "What is 2+2?" }],
        "temperature": 0, "max_tokens": 48, "stream": true, "stream_options": usage });
    let stream = |more: &Value| {
        let answer = ask(&url, "POST", "/v1/chat/completions", &[], &with(&question, more).to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        chunks(&answer.body)
    };
    for (name, more) in [
        ("text", json!({})),
        ("schema", json!({ "response_format": form })),
        ("length", json!({ "max_tokens": 1 })),
        ("logprobs", json!({ "logprobs": true })),
    ] {
        goes_through(&stream(&more), &chunks(&recorded(&format!("openai_{name}.sse"))));
    }
    let three = stream(&json!({ "n": 3, "response_format": form }));
    let choices = chunks(&recorded("openai_choices.sse"));
    for index in 0..3 {
        goes_through(&of_choice(three.clone(), index), &of_choice(choices.clone(), index));
    }
    // Ours calls once where it must: the first of the two that were recorded.
    let second = |chunk: &Value| chunk.pointer("/choices/0/delta/tool_calls/0/index").is_some_and(|index| *index == 1);
    let mut tools = chunks(&recorded("openai_tools.sse"));
    tools.retain(|chunk| !second(chunk));
    let called = stream(&call);
    goes_through(&called, &tools);
    let arguments = called.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0/function/arguments"));
    assert!(arguments.count() > 3, "arguments come as they are written: {called:?}");

    // As `tests/lib/test_embeddings.py` has it: base64 where nothing else was asked for.
    let embedding = json!({ "data": [{ "embedding": "AAAAAA==", "index": 0, "object": "embedding" }],
        "model": "text-embedding-3-small", "object": "list", "usage": { "prompt_tokens": 1, "total_tokens": 1 } });
    let body = json!({ "model": NAME, "input": ["one", "two"], "encoding_format": "base64" }).to_string();
    let embedded = ask(&url, "POST", "/v1/embeddings", &[], &body).json();
    assert_eq!(embedded["data"].as_array().unwrap().len(), 2);
    assert!(is_like(&shape(&embedded), &shape(&embedding), false), "{embedded}");

    let requests: Vec<Value> = serde_json::from_str(&recorded("ollama_python.json")).unwrap();
    assert!(requests.len() > 10);
    let mut formed = 0;
    for Recorded { path, request, response } in requests.iter().map(Recorded::of) {
        let limit = if request.get("format").is_some() { 96 } else { 16 };
        let short = json!({ "model": NAME, "options": { "num_predict": limit, "temperature": 0 } });
        let answer = ask(&url, "POST", path, &[], &with(request, &short).to_string());
        let has_images = request.get("images").or(request.pointer("/messages/0/images")).is_some();
        if has_images || response[0].get("error").is_some() {
            // What this model cannot read is refused, in the words that the client raises.
            assert_eq!((answer.status, answer.json()["error"].is_string()), (400, true), "{request}: {}", answer.body);
            continue;
        }
        assert_eq!(answer.status, 200, "{request}: {}", answer.body);
        let lines: Vec<Value> = answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len() > 1, request["stream"] == true, "{request}: {}", answer.body);
        for line in &lines {
            assert!(
                is_like(&shape(line), &shape(&response[0]), false),
                "{request}: {line} is not like {}",
                response[0]
            );
        }
        let (last, others) = lines.split_last().unwrap();
        assert!(last["done"] == true && others.iter().all(|line| line["done"] == false), "{request}: {}", answer.body);
        let figures = [
            "total_duration",
            "load_duration",
            "prompt_eval_count",
            "prompt_eval_duration",
            "eval_count",
            "eval_duration",
        ];
        assert!(figures.iter().all(|figure| last[figure].is_u64()), "{request}: {last}");
        if request.get("format").is_some() && last["done_reason"] == "stop" {
            let said = last.pointer("/message/content").unwrap_or(&last["response"]).as_str().unwrap();
            assert!(serde_json::from_str::<Value>(said).unwrap().is_object(), "{said}");
            formed += 1;
        }
    }
    assert!(formed > 0, "no answer in a format was whole");
    ends(gateway);
}

/// A request of ollama-python's tests, and the lines of its answer.
struct Recorded<'a> {
    path: &'a str,
    request: &'a Value,
    response: &'a [Value],
}

impl<'a> Recorded<'a> {
    fn of(entry: &'a Value) -> Self {
        let (path, response) = (entry["path"].as_str().unwrap(), entry["response"].as_array().unwrap());
        Self { path, request: &entry["request"], response }
    }
}

#[test]
fn what_a_service_said_is_what_clients_of_a_lent_model_get() {
    let (owner, odd) = (Machine::new(), Odd::start());
    owner.json(&["swarm", "create"]);
    let mut lending = owner.start(&["serve", "--upstream", &odd.url, "--bind", "127.0.0.1:0", "--json"]);
    lending.object();
    let mut gateway = owner.start(&["gateway", "--listen", "127.0.0.1:0", "--json"]);
    let url = gateway.object()["url"].as_str().unwrap().to_owned();
    let functions = ["GetWeatherArgs", "get_stock_price"];
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    let post = |path: &str, body: Value, stream: bool| {
        let body = with(&body, &json!({ "model": "odd", "stream": stream }));
        let answer = ask(&url, "POST", path, &[], &body.to_string());
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    };
    let data = |body: &str| -> Vec<Value> {
        let data = body.lines().filter_map(|line| line.strip_prefix("data: {"));
        data.map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap()).collect()
    };
    let likely = json!({ "model": "odd", "messages": messages, "logprobs": true }).to_string();
    assert_eq!(ask(&url, "POST", "/api/chat", &[], &likely).status, 400, "only in the lender's own API");
    for name in ["text", "schema", "length", "refusal", "logprobs", "tool", "tools"] {
        let recording = recorded(&format!("openai_{name}.sse"));
        odd.says(Says::Stream(recording.clone()));
        let chat = json!({ "messages": messages, "stream_options": { "include_usage": true } });
        assert_eq!(post("/v1/chat/completions", chat, true), recording, "{name}: byte by byte");

        let recording = chunks(&recording);
        let all = |field: &str| -> String {
            let delta = recording.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str());
            delta.collect()
        };
        let said = all("content") + &all("refusal");
        let mut calls: Vec<(String, String)> = Vec::new();
        for call in recording.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0")) {
            if let Some(name) = call["function"]["name"].as_str() {
                calls.push((name.to_owned(), String::new()));
            }
            calls.last_mut().unwrap().1 += call["function"]["arguments"].as_str().unwrap();
        }
        assert!(!said.is_empty() || !calls.is_empty(), "{name}");
        let inputs = || -> Vec<Value> { calls.iter().map(|(_, text)| serde_json::from_str(text).unwrap()).collect() };
        let names: Vec<_> = calls.iter().map(|(name, _)| json!(name)).collect();
        let usage = &recording.last().unwrap()["usage"];
        let (prompt, completion) = (&usage["prompt_tokens"], &usage["completion_tokens"]);

        for stream in [false, true] {
            let tools = functions.map(|name| json!({ "name": name, "input_schema": { "type": "object" } }));
            let ask_it = json!({ "max_tokens": 99, "messages": messages, "tools": tools });
            let body = post("/v1/messages", ask_it, stream);
            let message = if stream { added_up(&data(&body)) } else { serde_json::from_str(&body).unwrap() };
            let blocks = message["content"].as_array().unwrap();
            let text: String = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            let used: Vec<_> = blocks.iter().filter(|block| block["type"] == "tool_use").collect();
            assert_eq!(text, said, "{name}: {body}");
            assert_eq!(used.iter().map(|block| block["name"].clone()).collect::<Vec<_>>(), names, "{name}: {body}");
            assert_eq!(used.iter().map(|block| block["input"].clone()).collect::<Vec<_>>(), inputs(), "{name}: {body}");
            assert_eq!((&message["usage"]["input_tokens"], &message["usage"]["output_tokens"]), (prompt, completion));
            let reason = if name == "length" {
                "max_tokens"
            } else if names.is_empty() {
                "end_turn"
            } else {
                "tool_use"
            };
            assert_eq!(message["stop_reason"], reason, "{name}: {body}");

            let tools = functions.map(|name| json!({ "type": "function", "name": name, "parameters": {} }));
            let body = post("/v1/responses", json!({ "input": "Hi", "tools": tools }), stream);
            let response = if stream {
                data(&body).pop().unwrap()["response"].take()
            } else {
                serde_json::from_str(&body).unwrap()
            };
            let output = response["output"].as_array().unwrap();
            let text: String = output.iter().filter_map(|item| item["content"][0]["text"].as_str()).collect();
            let called: Vec<_> = output.iter().filter(|item| item["type"] == "function_call").collect();
            assert_eq!(text, said, "{name}: {body}");
            assert_eq!(called.iter().map(|item| item["name"].clone()).collect::<Vec<_>>(), names, "{name}: {body}");
            let arguments: Vec<_> = called.iter().map(|item| item["arguments"].as_str().unwrap()).collect();
            assert_eq!(arguments, calls.iter().map(|(_, arguments)| arguments).collect::<Vec<_>>(), "{name}: {body}");
            assert_eq!((&response["usage"]["input_tokens"], &response["usage"]["output_tokens"]), (prompt, completion));

            let tools = functions.map(|name| json!({ "type": "function", "function": { "name": name } }));
            let body = post("/api/chat", json!({ "messages": messages, "tools": tools }), stream);
            let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let text: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
            let called = lines.iter().filter_map(|line| line["message"]["tool_calls"].as_array()).flatten();
            let called: Vec<_> = called.map(|call| &call["function"]).collect();
            assert_eq!(text, said, "{name}: {body}");
            assert_eq!(called.iter().map(|call| call["name"].clone()).collect::<Vec<_>>(), names, "{name}: {body}");
            assert_eq!(
                called.iter().map(|call| call["arguments"].clone()).collect::<Vec<_>>(),
                inputs(),
                "{name}: {body}"
            );
            let last = lines.last().unwrap();
            assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (prompt, completion), "{name}: {body}");
        }
    }
    ends(gateway);
    ends(lending);
}

/// The message that Anthropic's events add up to.
fn added_up(events: &[Value]) -> Value {
    let mut message = events[0]["message"].clone();
    let mut partial = String::new();
    for event in events {
        let at = event["index"].as_u64().unwrap_or_default() as usize;
        match event["type"].as_str().unwrap() {
            "content_block_start" => message["content"].as_array_mut().unwrap().push(event["content_block"].clone()),
            "content_block_delta" => match event["delta"]["text"].as_str() {
                Some(text) => {
                    let before = message["content"][at]["text"].as_str().unwrap().to_owned();
                    message["content"][at]["text"] = (before + text).into();
                }
                None => partial += event["delta"]["partial_json"].as_str().unwrap(),
            },
            "content_block_stop" if !partial.is_empty() => {
                message["content"][at]["input"] = serde_json::from_str(&std::mem::take(&mut partial)).unwrap();
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["usage"] = event["usage"].clone();
            }
            _ => {}
        }
    }
    message
}
