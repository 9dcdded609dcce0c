"""LangChain's OpenAI classes against a gateway: URL and model as arguments."""

import sys

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:]
chat = ChatOpenAI(base_url=f"{URL}/v1", api_key="unused", model=MODEL, temperature=0, max_tokens=24, max_retries=0)
ASK = [SystemMessage("You are brief."), HumanMessage("What is 2+2?")]

whole = chat.invoke(ASK)
assert whole.content and whole.usage_metadata["output_tokens"] > 0, whole
chunks = list(chat.stream(ASK))
assert "".join(chunk.content for chunk in chunks) == whole.content
counted = sum((chunk for chunk in chat.stream(ASK, stream_usage=True)), start=chunks[0].__class__(content=""))
assert counted.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"], counted
assert len(chat.batch([ASK, ASK, ASK])) == 3


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


asked = [HumanMessage("What is the weather in Rome?")]
called = chat.bind_tools([weather], tool_choice="weather").bind(max_tokens=64).invoke(asked)
(call,) = called.tool_calls
assert call["name"] == "weather" and list(call["args"]) == ["city"], call
result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
assert chat.bind_tools([weather]).invoke([*asked, called, result]) is not None


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int


for method in ("json_schema", "function_calling"):
    person = chat.bind(max_tokens=64).bound.with_structured_output(Person, method=method).invoke("Bob is 7 years old.")
    assert isinstance(person, Person), (method, person)

embeddings = OpenAIEmbeddings(base_url=f"{URL}/v1", api_key="unused", model=MODEL, check_embedding_ctx_length=False)
one, two = embeddings.embed_documents(["The cat sat on the mat.", "Revenue fell."])
assert len(one) == len(two) > 100 and one == embeddings.embed_query("The cat sat on the mat.")
print("ok")
