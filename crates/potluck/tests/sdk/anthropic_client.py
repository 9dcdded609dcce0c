"""Anthropic's own Python client against a gateway: URL and model as arguments."""

import sys

import anthropic

URL, MODEL = sys.argv[1:]
client = anthropic.Anthropic(base_url=URL, api_key="unused", max_retries=0)
ASK = {"model": MODEL, "system": "You are brief.", "messages": [{"role": "user", "content": "What is 2+2?"}]}

message = client.messages.create(**ASK, max_tokens=32, extra_body={"temperature": 0})
assert message.role == "assistant" and message.content[0].type == "text", message
assert message.stop_reason in ("end_turn", "max_tokens") and message.usage.output_tokens > 0, message
assert client.messages.count_tokens(**ASK).input_tokens == message.usage.input_tokens

with client.messages.stream(**ASK, max_tokens=32, extra_body={"temperature": 0}) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == message.content[0].text == final.content[0].text, (text, final)
assert final.stop_reason == message.stop_reason and final.usage.output_tokens == message.usage.output_tokens

kinds = [event.type for event in client.messages.create(**ASK, max_tokens=3, stream=True)]
assert kinds[:2] == ["message_start", "content_block_start"] and kinds[-1] == "message_stop", kinds

short = client.messages.create(**ASK, max_tokens=2)
assert short.stop_reason == "max_tokens", short
stopped = client.messages.create(**ASK, max_tokens=64, extra_body={"temperature": 0}, stop_sequences=[text.split()[1]])
assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == text.split()[1], stopped

TOOL = {"name": "weather", "description": "The weather of a city", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
    "additionalProperties": False}}
WEATHER = {"model": MODEL, "messages": [{"role": "user", "content": "What is the weather in Rome?"}], "max_tokens": 64,
           "tools": [TOOL], "extra_body": {"temperature": 0}}
called = client.messages.create(**WEATHER, tool_choice={"type": "any"})
assert called.stop_reason == "tool_use", called
(use,) = called.content
assert use.type == "tool_use" and use.name == "weather" and list(use.input) == ["city"], use
with client.messages.stream(**WEATHER, tool_choice={"type": "tool", "name": "weather"}) as stream:
    streamed = stream.get_final_message()
assert streamed.stop_reason == "tool_use" and streamed.content[0].input == use.input, streamed
result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "12 degrees, rain"}]}
turns = [*WEATHER["messages"], {"role": "assistant", "content": [use.model_dump(exclude_none=True)]},
         {"role": "user", "content": [result]}]
assert client.messages.create(**{**WEATHER, "messages": turns}).content
assert client.messages.create(**WEATHER, tool_choice={"type": "none"}).content[0].type == "text"
assert client.messages.count_tokens(**{k: WEATHER[k] for k in ("model", "messages", "tools")}).input_tokens > 0
try:
    client.messages.create(**{**WEATHER, "tools": [{"type": "web_search_20250305", "name": "web_search"}]})
    raise AssertionError("a tool that runs elsewhere was taken")
except anthropic.BadRequestError as error:
    assert "web_search" in error.message, error

try:
    client.messages.create(**{**ASK, "model": "absent"}, max_tokens=2)
    raise AssertionError("a model that is not there answered")
except anthropic.NotFoundError as error:
    assert error.body["error"]["type"] == "not_found_error", error.body
print("ok")
