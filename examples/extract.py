"""Facts out of a text, in a form that a program can rely on: pip install openai pydantic; python3 extract.py "Ada, 36, lives in Turin."

The gateway enforces the schema while the model writes: what comes back always parses.
"""

import os
import sys

from openai import OpenAI
from pydantic import BaseModel, Field

url = os.environ.get("POTLUCK_URL", "http://127.0.0.1:7575")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("POTLUCK_API_KEY", "none"))


class Person(BaseModel):
    """What is wanted of each text."""

    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=150)
    city: str = Field(max_length=30)


text = " ".join(sys.argv[1:]) or "Ada Rossi is 36 years old and lives in Turin."
answer = client.chat.completions.parse(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": f"Who is this, how old, and where? {text}"}],
    response_format=Person,
    temperature=0,
)
print(answer.choices[0].message.parsed.model_dump_json())
