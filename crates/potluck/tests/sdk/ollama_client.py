"""Ollama's own Python client against a gateway: URL and model as arguments."""

import os
import sys

import ollama

URL, MODEL = sys.argv[1:]
client = ollama.Client(host=URL)
ASK = [{"role": "user", "content": "What is 2+2?"}]
IMAGE = os.environ["POTLUCK_TEST_IMAGE"]
OPTIONS = {"temperature": 0, "num_predict": 16}

assert [model.model for model in client.list().models] == [MODEL]
assert client.ps().models[0].context_length > 0
shown = client.show(MODEL)
assert shown.details.format == "gguf" and shown.details.quantization_level, shown

whole = client.chat(MODEL, ASK, options=OPTIONS)
assert whole.done and whole.done_reason == "stop" and whole.message.content, whole
assert whole.eval_count > 0 and whole.prompt_eval_count > 0 and whole.total_duration > 0
*parts, last = client.chat(MODEL, ASK, options=OPTIONS, stream=True)
assert "".join(part.message.content for part in parts) == whole.message.content
assert last.done and not any(part.done for part in parts)

text = client.generate(MODEL, "Once upon a time", raw=True, options={**OPTIONS, "num_predict": 4})
assert text.response and text.done_reason == "length", text
schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
assert client.chat(MODEL, ASK, format=schema, options={**OPTIONS, "num_predict": 32}).message.content.startswith("{")

some = client.chat(MODEL, ASK, options={**OPTIONS, "num_predict": 4}, logprobs=True, top_logprobs=2)
assert len(some.logprobs) == 4 and all(len(token.top_logprobs) == 2 for token in some.logprobs), some.logprobs
ended = client.chat(MODEL, ASK, options={"temperature": 0}, logprobs=True)
assert ended.done_reason == "stop" and "".join(token.token for token in ended.logprobs) == ended.message.content, ended
*parts, last = client.generate(MODEL, "Once", raw=True, options={**OPTIONS, "num_predict": 4}, logprobs=True, stream=True)
assert len(parts) == 4 and all(part.logprobs[0].logprob <= 0 for part in parts) and last.done, parts


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Its name.
    """
    return f"rain in {city}"


assert "tools" in client.show(MODEL).capabilities
told = client.chat(MODEL, ASK, tools=[weather], options=OPTIONS)
assert told.message.content or told.message.tool_calls, told
call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
turns = [*ASK, {"role": "assistant", "content": "", "tool_calls": [call]},
         {"role": "tool", "tool_name": "weather", "content": "rain"}]
*parts, last = client.chat(MODEL, turns, tools=[weather], options=OPTIONS, stream=True)
assert last.done and parts, (parts, last)

one, two = client.embed(MODEL, ["The cat sat on the mat.", "word " * 5000]).embeddings
assert len(one) == len(two) and abs(sum(x * x for x in one) - 1) < 1e-3
assert len(client.embeddings(MODEL, "The cat sat on the mat.").embedding) == len(one)

for wrong in (lambda: client.chat("absent", ASK), lambda: list(client.chat("absent", ASK, stream=True))):
    try:
        wrong()
        raise AssertionError("a model that is not there answered")
    except ollama.ResponseError as error:
        assert error.status_code == 404 and "absent" in error.error, error

steps = list(client.pull(IMAGE, stream=True))
assert steps[0].status == "pulling manifest" and steps[-1].status == "success", steps
coming = [step for step in steps if step.digest]
assert all(step.status == f"pulling {step.digest[7:19]}" and step.completed <= step.total for step in coming), steps
assert max(step.total for step in coming) > 1_000_000, steps
assert client.pull(IMAGE).status == "success", "what is here is here"
assert client.delete(IMAGE).status == "success"
assert client.pull(MODEL).status == "success", "what is served is here"
for wrong, status in ((lambda: client.delete(IMAGE), 404), (lambda: client.delete(MODEL), 409)):
    try:
        wrong()
        raise AssertionError("it was deleted")
    except ollama.ResponseError as error:
        assert error.status_code == status, error
try:
    list(client.pull(IMAGE + "-absent", stream=True))
    raise AssertionError("a model that is nowhere came")
except ollama.ResponseError as error:
    assert "not found" in error.error, error
print("ok")
