"""Search by meaning: pip install openai; python3 search.py "something to eat" notes.txt

Each line of the file gets an embedding, made by the same peers that answer; the closest lines come first. A model that was
trained for it finds more than a chat model does.
"""

import os
import sys

from openai import OpenAI

url = os.environ.get("POTLUCK_URL", "http://127.0.0.1:7575")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("POTLUCK_API_KEY", "none"))
model = client.models.list().data[0].id

question, path = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    lines = [line.strip() for line in file if line.strip()]
asked, *vectors = [item.embedding for item in client.embeddings.create(model=model, input=[question, *lines]).data]


def likeness(vector):
    """The cosine: embeddings have length 1."""
    return sum(a * b for a, b in zip(asked, vector))


for score, line in sorted(((likeness(vector), line) for vector, line in zip(vectors, lines)), reverse=True)[:5]:
    print(f"{score:.3f}  {line}")
