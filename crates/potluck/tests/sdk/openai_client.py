"""OpenAI's own Python client against a gateway: URL and model as arguments."""

import asyncio
import json
import sys
import threading
import time
import urllib.request

import openai
from pydantic import BaseModel

URL, MODEL = sys.argv[1:]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0)
ASK = [{"role": "user", "content": "What is 2+2?"}]


def chat(**more):
    return client.chat.completions.create(**{"model": MODEL, "messages": ASK, "temperature": 0, "max_tokens": 16, **more})


def refused(kind, code, param=None, **more):
    try:
        chat(**more)
    except kind as error:
        assert error.code == code, error
        assert param is None or error.param == param, error
        assert error.request_id, "each response has an id"
        return
    raise AssertionError(f"{more} was not refused")


def models():
    listed = [model.id for model in client.models.list()]
    assert listed == [MODEL], listed
    assert client.models.retrieve(MODEL).owned_by == "potluck"


def whole():
    answer = chat()
    (choice,) = answer.choices
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion", answer
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason == "stop", choice
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    return choice.message.content


def streamed(expected):
    chunks = list(chat(stream=True))
    first, *middle, last = chunks
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in middle)
    assert last.choices[0].finish_reason == "stop" and last.choices[0].delta.content is None
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks), "usage only where it was asked for"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == expected, (text, expected)
    *chunks, total = list(chat(stream=True, stream_options={"include_usage": True}))
    assert total.choices == [] and total.usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks)


def parameters():
    two = chat(n=2, temperature=1, seed=7)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert chat(max_completion_tokens=3, max_tokens=9).choices[0].finish_reason == "length"
    assert chat(max_completion_tokens=3).usage.completion_tokens == 3
    plain = chat().choices[0].message.content
    stopped = chat(stop=[plain.split()[2]]).choices[0]
    assert stopped.finish_reason == "stop" and plain.split()[2] not in stopped.message.content, stopped
    some = chat(logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert len(some) == 4 and all(len(token.top_logprobs) == 3 for token in some), some
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in some), "greedy takes the likeliest"
    ended = chat(logprobs=True).choices[0]
    assert ended.finish_reason == "stop" and "".join(token.token for token in ended.logprobs.content) == ended.message.content
    assert chat(logprobs=True, max_tokens=2).choices[0].logprobs.content[0].top_logprobs == []
    parts = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert chat(messages=parts).choices[0].message.content


class Person(BaseModel):
    name: str
    age: int


def schemas():
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
              "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": schema}}
    place = json.loads(chat(response_format=form, max_tokens=64).choices[0].message.content)
    assert list(place) == ["city"], place
    parsed = client.chat.completions.parse(model=MODEL, messages=[{"role": "user", "content": "Bob is 7."}], temperature=0,
                                           max_tokens=64, response_format=Person)
    assert isinstance(parsed.choices[0].message.parsed, Person), parsed


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
    "additionalProperties": False}}}


def tools():
    ask = [{"role": "user", "content": "What is the weather in Rome?"}]
    answer = chat(messages=ask, tools=[TOOL], tool_choice="required", max_tokens=64).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None, answer
    (call,) = answer.message.tool_calls
    assert call.type == "function" and call.function.name == "weather" and call.id, call
    assert list(json.loads(call.function.arguments)) == ["city"], call
    with client.chat.completions.stream(model=MODEL, messages=ask, tools=[TOOL], tool_choice="required", max_tokens=64,
                                        temperature=0) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls" and streamed.message.content is None, streamed
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    with client.chat.completions.stream(model=MODEL, messages=ask, tools=[TOOL], tool_choice="required", max_tokens=64,
                                        temperature=0, logprobs=True) as stream:
        likely = stream.get_final_completion().choices[0]
    assert likely.message.content is None and likely.logprobs.content, likely
    result = [*ask, answer.message.model_dump(exclude_none=True),
              {"role": "tool", "tool_call_id": call.id, "content": "12 degrees, rain"}]
    assert chat(messages=result, tools=[TOOL]).choices[0].message is not None
    assert chat(tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None


def texts():
    def complete(**more):
        return client.completions.create(**{"model": MODEL, "prompt": "Once upon a time", "temperature": 0, **more})

    one = complete()
    assert one.object == "text_completion" and one.usage.completion_tokens == 16, "the reference's own default"
    assert complete(echo=True).choices[0].text == "Once upon a time" + one.choices[0].text
    assert len(complete(prompt=["a", "b"], max_tokens=2).choices) == 2
    assert complete(prompt=[504, 6376], max_tokens=2).choices[0].text
    some = complete(max_tokens=3, logprobs=2).choices[0].logprobs
    assert len(some.tokens) == len(some.token_logprobs) == len(some.top_logprobs) == len(some.text_offset) == 3, some
    assert "".join(chunk.choices[0].text for chunk in complete(stream=True)) == one.choices[0].text
    streamed = [chunk.choices[0].logprobs for chunk in complete(max_tokens=3, logprobs=2, stream=True)]
    assert [offset for part in streamed if part for offset in part.text_offset] == some.text_offset, streamed


def responses():
    answer = client.responses.create(model=MODEL, input="What is 2+2?", temperature=0, max_output_tokens=16)
    assert answer.status == "completed" and answer.output_text, answer
    events = list(client.responses.create(model=MODEL, input=ASK, temperature=0, max_output_tokens=16, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed", events[-1]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == answer.output_text == events[-1].response.output_text


def responses_call_tools():
    tool = {"type": "function", **TOOL["function"], "strict": True}
    ask = {"model": MODEL, "temperature": 0, "max_output_tokens": 64, "tools": [tool], "tool_choice": "required"}
    question = {"role": "user", "content": "What is the weather in Rome?"}
    answer = client.responses.create(**ask, input=[question])
    (call,) = answer.output
    assert call.type == "function_call" and call.name == "weather" and list(json.loads(call.arguments)) == ["city"], call
    events = list(client.responses.create(**ask, input=[question], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done.arguments == call.arguments and events[-1].response.output[0].arguments == call.arguments, done
    turns = [question, call.model_dump(exclude_none=True),
             {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees, rain"}]
    assert client.responses.create(**{**ask, "tool_choice": "auto"}, input=turns).status == "completed"
    try:
        client.responses.create(**{**ask, "tools": [{"type": "web_search"}], "tool_choice": "auto"}, input="Hi")
        raise AssertionError("a tool that runs elsewhere was taken")
    except openai.BadRequestError as error:
        assert error.code == "unsupported_parameter" and error.param == "tools[0]", error


def errors():
    refused(openai.NotFoundError, "model_not_found", "model", model="gpt-4o")
    refused(openai.BadRequestError, "context_length_exceeded", messages=[{"role": "user", "content": "word " * 3000}])
    refused(openai.BadRequestError, "invalid_value", "temperature", temperature=7)
    refused(openai.BadRequestError, "invalid_value", "logit_bias", logit_bias={"1": 101})
    refused(openai.BadRequestError, "unsupported_parameter", "modalities", modalities=["audio"])
    refused(openai.BadRequestError, "unsupported_parameter", "functions", functions=[TOOL["function"]])
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    refused(openai.BadRequestError, "unsupported_parameter", messages=[{"role": "user", "content": image}])
    for kept in ({"conversation": "conv_1"}, {"prompt": {"id": "pmpt_1"}}, {"top_logprobs": 2},
                 {"include": ["message.output_text.logprobs"]}):
        try:
            client.responses.create(model=MODEL, input="Hi", **kept)
            raise AssertionError(f"{kept} was passed over")
        except openai.BadRequestError as error:
            assert error.code == "unsupported_parameter" and error.param in kept, error
    for wrong in ({"input": []}, {"input": "x", "dimensions": 8}, {"input": "x", "encoding_format": "hex"}):
        try:
            client.embeddings.create(model=MODEL, **wrong)
            raise AssertionError(f"{wrong} was not refused")
        except openai.BadRequestError as error:
            assert error.param in wrong, error


def embeddings():
    texts = ["The cat sat on the mat.", "A cat is sitting on a rug.", "Quarterly revenue fell by nine percent."]
    # Without a word about it the client asks for base64, and decodes it.
    answer = client.embeddings.create(model=MODEL, input=texts)
    assert [entry.index for entry in answer.data] == [0, 1, 2] and answer.usage.prompt_tokens > 10, answer.usage
    cat, other_cat, revenue = (entry.embedding for entry in answer.data)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert abs(dot(cat, cat) - 1) < 1e-3, "of length 1"
    assert dot(cat, other_cat) > dot(cat, revenue), "what is alike is near"
    floats = client.embeddings.create(model=MODEL, input=texts[0], encoding_format="float").data[0].embedding
    assert max(abs(x - y) for x, y in zip(floats, cat)) < 1e-6
    long = client.embeddings.create(model=MODEL, input="word " * 300).data[0].embedding
    assert len(long) == len(cat)
    assert len(client.embeddings.create(model=MODEL, input=[[504, 6376], [1]]).data) == 2


def running():
    with urllib.request.urlopen(f"{URL}/metrics") as response:
        lines = response.read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("vllm:num_requests_running ")))


def idle():
    given_up = time.monotonic() + 5
    while running() > 0:
        assert time.monotonic() < given_up, "the answer went on without anybody who listened"


# Without an end of its own, it takes many seconds.
LONG = {"messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 900, "extra_body": {"ignore_eos": True}}


def cancelled():
    stream = chat(**LONG, stream=True)
    next(iter(stream))
    assert running() == 1
    stream.close()
    idle()


def timed_out():
    outcome = []

    def ask():
        try:
            outcome.append(chat(**LONG, timeout=2))
        except openai.APITimeoutError as error:
            outcome.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while running() == 0:
        assert asking.is_alive(), outcome
    asking.join()
    assert isinstance(outcome[0], openai.APITimeoutError), outcome
    idle()


async def at_once():
    many = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0)
    asks = [many.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": f"Say {n}"}], max_tokens=8)
            for n in range(12)]
    answers = await asyncio.gather(*asks)
    assert all(answer.choices[0].message.content for answer in answers)
    stream = await many.chat.completions.create(model=MODEL, messages=ASK, max_tokens=8, stream=True)
    assert [chunk async for chunk in stream]


models()
streamed(whole())
parameters()
schemas()
tools()
texts()
responses()
responses_call_tools()
embeddings()
errors()
cancelled()
timed_out()
asyncio.run(at_once())
print("ok")
