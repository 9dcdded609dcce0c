"""OpenAI's own Python client reads what its tests recorded of the real service, and then a gateway: URL and model as arguments.

Both go through the client's helper for streams, and it has to see the same kinds of events in the same order.
"""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import openai

URL, MODEL = sys.argv[1:]
RECORDED = Path(__file__).parent / "recorded"


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
    # How many pieces there are is the answer's own.
    return [kind for kind, before in zip(kinds, [None, *kinds]) if kind != before], final


def alike(name, **more):
    recorded, final = events(f"http://127.0.0.1:{replay.server_port}/{name}", **more)
    ours, our_final = events(f"{URL}/v1", **more)
    # A chunk comes before what the client makes of it.
    distinct = [list(dict.fromkeys(kinds)) for kinds in (recorded, ours)]
    assert distinct[0] == distinct[1], f"{name}: {recorded} is not {ours}"
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
SCHEMA = {"name": "weather", "strict": True, "schema": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"],
    "additionalProperties": False}}
alike("schema", response_format={"type": "json_schema", "json_schema": SCHEMA})
alike("choices", n=3, response_format={"type": "json_schema", "json_schema": SCHEMA})
TOOL = {"type": "function", "function": {"name": "GetWeatherArgs", "parameters": SCHEMA["schema"]}}
alike("tool", tools=[TOOL], tool_choice="required")
print("ok")
