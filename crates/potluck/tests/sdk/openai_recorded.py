"""OpenAI's own Python client reads what its tests recorded of the real service, and then a gateway: URL and model as arguments.

Both go through the client's helper for streams. It has to see the same kinds of events, which begin and end in the same order.
"""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Annotated, Literal

import openai
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:]
RECORDED = Path(__file__).parent / "recorded"


class Location(BaseModel):
    city: Annotated[str, Field(max_length=20)]
    temperature: Annotated[int, Field(ge=0, le=99)]
    units: Literal["c", "f"]


class Replay(BaseHTTPRequestHandler):
    """The service as it was recorded: it answers with the file that its path names."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        name = self.path.split("/")[1]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write((RECORDED / f"openai_{name}.sse").read_bytes())

    def log_message(self, *_):
        pass


replay = HTTPServer(("127.0.0.1", 0), Replay)
threading.Thread(target=replay.serve_forever, daemon=True).start()


def events(url, **more):
    client = openai.OpenAI(base_url=url, api_key="unused", max_retries=0)
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "What is 2+2?"}], "temperature": 0,
           "max_tokens": 64, "stream_options": {"include_usage": True}, **more}
    with client.chat.completions.stream(**ask) as stream:
        kinds = [event.type for event in stream]
        try:
            final = stream.get_final_completion()
        except openai.LengthFinishReasonError:
            final = None
    return kinds, final


def alike(name, **more):
    recorded, final = events(f"http://127.0.0.1:{replay.server_port}/{name}", **more)
    ours, our_final = events(f"{URL}/v1", **more)
    for theirs, mine in zip(*((dict.fromkeys(kinds), dict.fromkeys(reversed(kinds))) for kinds in (recorded, ours))):
        assert list(theirs) == list(mine), f"{name}: {recorded} is not {ours}"
    assert (final is None) == (our_final is None), name
    for one, other in zip(final.choices if final else [], our_final.choices if our_final else []):
        assert one.finish_reason == other.finish_reason, (name, one, other)
        assert (one.message.content is None) == (other.message.content is None), (name, one, other)
        assert (one.message.parsed is None) == (other.message.parsed is None), (name, one, other)
        called = [[call.type for call in choice.message.tool_calls or []] for choice in (one, other)]
        assert called[0] == called[1], (name, called)


alike("text")
alike("logprobs", logprobs=True)
alike("length", max_tokens=1)
alike("schema", response_format=Location)
alike("choices", n=3, response_format=Location)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"],
          "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "GetWeatherArgs", "parameters": SCHEMA}}
alike("tool", tools=[TOOL], tool_choice="required")
print("ok")
