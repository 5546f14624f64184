"""A tool agent of LangChain, once whole and once streamed. argv: the gateway's URL, the model.

Its first turns must call a tool, one call each, whose results go back; then it must answer.
"""

import json
import sys
from typing import Literal

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

NUM_CALLS = 3
SETTINGS = {"parallel_tool_calls": False, "strict": True}
POPULATIONS = {"Oslo": 709_000, "Paris": 2_103_000, "Rome": 2_749_000}


@tool
def population(city: Literal["Oslo", "Paris", "Rome"]) -> int:
    """How many people live in a city."""
    return POPULATIONS[city]


class Turns(AgentMiddleware):
    """Asks for calls until there are enough results, and then for an answer."""

    def wrap_model_call(self, request, handler):
        num_results = sum(isinstance(message, ToolMessage) for message in request.messages)
        choice = "any" if num_results < NUM_CALLS else "none"
        return handler(request.override(tool_choice=choice, model_settings=SETTINGS))


def check(messages: list) -> str:
    """The answer. The turns before it must be calls with their results."""
    _, *turns, answer = messages
    assert len(turns) == 2 * NUM_CALLS, messages
    for asked, result in zip(turns[::2], turns[1::2], strict=True):
        (call,) = asked.tool_calls
        assert isinstance(asked, AIMessage), asked
        assert isinstance(result, ToolMessage), result
        assert result.tool_call_id == call["id"], (asked, result)
        assert result.content == str(POPULATIONS[call["args"]["city"]]), result
    assert not answer.tool_calls, answer
    assert answer.text.strip(), answer
    return answer.text


def main(url: str, model_name: str) -> None:
    model = ChatOpenAI(
        model=model_name, base_url=f"{url}/v1", api_key="none", temperature=0.7, seed=3, max_tokens=64, max_retries=0
    )
    agent = create_agent(model, [population], system_prompt="Be brief.", middleware=[Turns()])
    asked = {"messages": [HumanMessage("How many people live in Paris, Rome and Oslo?")]}
    whole = check(agent.invoke(asked)["messages"])
    pieces, states = [], []
    for kind, told in agent.stream(asked, stream_mode=["messages", "values"]):
        (pieces if kind == "messages" else states).append(told)
    streamed = check(states[-1]["messages"])
    num_chunks = sum(isinstance(message, AIMessageChunk) for message, _ in pieces)
    assert num_chunks > 2 * (NUM_CALLS + 1), f"{num_chunks} chunks: the answers did not stream"
    print(json.dumps({"whole": whole, "streamed": streamed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
