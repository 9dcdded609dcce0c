"""A conversation, streamed, with the official client: pip install openai; python3 chat.py "Why is the sky blue?" "And at sunset?"

POTLUCK_URL names another gateway than the one on this machine, POTLUCK_API_KEY its key.
"""

import os
import sys

from openai import OpenAI

url = os.environ.get("POTLUCK_URL", "http://127.0.0.1:7575")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("POTLUCK_API_KEY", "none"))
model = client.models.list().data[0].id

messages = []
for question in sys.argv[1:] or ["Why is the sky blue?"]:
    print(f"> {question}")
    messages.append({"role": "user", "content": question})
    stream = client.chat.completions.create(model=model, messages=messages, stream=True, max_tokens=120)
    answer = ""
    for chunk in stream:
        text = chunk.choices[0].delta.content or ""
        answer += text
        print(text, end="", flush=True)
    print("\n")
    messages.append({"role": "assistant", "content": answer})
