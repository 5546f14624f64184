"""The openai client's own ways with formats and tools, on a live gateway: parse, streams of events, loops of calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema_rs
import openai
import pytest
from openai.types.chat import ChatCompletion, ParsedFunctionToolCall
from pydantic import BaseModel, Field

from shared.runtime.home import DEFAULT_MODEL

pytestmark = pytest.mark.timeout(600)

TURNS, SEEDS = 5, (0, 100)
LEAST_ENDED = 0.6  # of a loop's answers; the others reach max_tokens
ASKED: list[Any] = [{"role": "user", "content": "Tell me about Vienna."}]


class City(BaseModel):
    name: str = Field(max_length=12)
    population: int = Field(ge=1000, le=40_000_000)
    is_capital: bool
    rivers: list[Literal["Danube", "Rhine", "Seine", "Tiber"]] = Field(max_length=3)


class Weather(BaseModel):
    """The weather in a city"""

    city: Literal["Oslo", "Paris", "Rome"]
    unit: Literal["celsius", "fahrenheit"]


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "distance",
            "description": "Kilometres between two cities",
            "parameters": {
                "type": "object",
                "properties": {"start": {"$ref": "#/$defs/city"}, "end": {"$ref": "#/$defs/city"}},
                "required": ["start", "end"],
                "additionalProperties": False,
                "$defs": {"city": {"type": "string", "enum": ["Oslo", "Paris", "Rome"]}},
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "remind",
            "description": "Reminds the user later",
            "parameters": {
                "type": "object",
                "properties": {
                    "minutes": {"type": "integer", "minimum": 1, "maximum": 600},
                    "text": {"type": "string", "maxLength": 30},
                    "loud": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
                },
                "required": ["minutes", "text"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time of day"}},
]
VALIDATORS = {
    tool["function"]["name"]: jsonschema_rs.validator_for(
        tool["function"].get("parameters") or {"type": "object", "maxProperties": 0}
    )
    for tool in TOOLS
}


@pytest.fixture
def client(gateway: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0) as made:
        yield made


def options(seed: int, temperature: float = 0.7, **more: Any) -> dict[str, Any]:
    return {"model": DEFAULT_MODEL, "max_tokens": 160, "temperature": temperature, "seed": seed, **more}


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 1])
def test_parse_gives_an_object_of_a_pydantic_model_and_a_stream_of_events_the_same(
    client: openai.OpenAI, temperature: float
) -> None:
    asked = options(4, temperature, messages=ASKED, response_format=City)
    whole = client.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(whole, City)
    with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert streamed == whole
    assert kinds.count("content.delta") > 1
    assert "content.done" in kinds


def test_beside_tools_an_answer_is_a_call_or_an_object_of_the_model(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    found: list[Any] = []
    for seed in range(4):
        asked = options(seed, messages=ASKED, response_format=City, tools=tools, parallel_tool_calls=False)
        message = client.chat.completions.parse(**asked).choices[0].message
        found += [message.parsed] if message.parsed else [call.function for call in message.tool_calls or []]
    assert len(found) == 4
    assert all(isinstance(getattr(each, "parsed_arguments", each), City | Weather) for each in found)


# --- responses --------------------------------------------------------------------------------------------------------


def test_responses_are_parsed_and_their_streams_end_with_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": DEFAULT_MODEL,
        "input": "Tell me about Vienna.",
        "max_output_tokens": 160,
        "temperature": 0.7,
        "extra_body": {"seed": 4},
        "store": False,
    }
    parsed = client.responses.parse(**asked, text_format=City)
    assert isinstance(parsed.output_parsed, City)
    with client.responses.stream(**asked, text_format=City) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_response()
    assert streamed.output_parsed == parsed.output_parsed
    assert kinds.count("response.output_text.delta") > 1
    assert kinds[-1] == "response.completed"


def test_a_function_is_called_in_a_response_and_its_result_goes_back(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": Weather.model_json_schema(), "strict": True}
    items: list[Any] = [{"role": "user", "content": "Is it warm in Rome?"}]
    asked: dict[str, Any] = {"model": DEFAULT_MODEL, "max_output_tokens": 160, "store": False, "tools": [tool]}
    named: Any = {"type": "function", "name": "weather"}
    first = client.responses.create(**asked, input=items, tool_choice=named, extra_body={"seed": 1})
    (call,) = [item for item in first.output if item.type == "function_call"]
    Weather.model_validate_json(call.arguments)
    items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}]
    second = client.responses.create(**asked, input=items, tool_choice="none", extra_body={"seed": 1})
    assert second.status in ("completed", "incomplete")
    assert second.output_text


# --- tools ------------------------------------------------------------------------------------------------------------


def test_a_stream_of_events_ends_with_the_parsed_arguments_of_its_call(client: openai.OpenAI) -> None:
    asked = options(
        2,
        messages=[{"role": "user", "content": "Is it warm in Rome?"}],
        tools=[openai.pydantic_function_tool(Weather, name="weather")],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (called,) = client.chat.completions.parse(**asked).choices[0].message.tool_calls or []
    with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    (call,) = choice.message.tool_calls or []
    assert isinstance(call, ParsedFunctionToolCall)
    assert isinstance(call.function.parsed_arguments, Weather)
    assert (call.function.name, choice.finish_reason) == ("weather", "tool_calls")
    assert call.function.parsed_arguments == called.function.parsed_arguments
    assert kinds.count("tool_calls.function.arguments.delta") > 1


@pytest.mark.parametrize("is_streamed", [False, True])
def test_calls_of_a_loop_of_five_turns_validate(client: openai.OpenAI, is_streamed: bool) -> None:
    ended = [is_ended for seed in SEEDS for is_ended in loop(client, seed, is_streamed=is_streamed)]
    assert sum(ended) >= LEAST_ENDED * len(ended), ended


def loop(client: openai.OpenAI, seed: int, *, is_streamed: bool) -> Iterator[bool]:
    """Plays a conversation in which every answer must call tools; tells of each whether it ended by itself."""
    messages: list[Any] = [{"role": "user", "content": "Plan my trip from Oslo to Rome and remind me in time."}]
    for turn in range(TURNS):
        asked = options(seed + turn, messages=messages, tools=TOOLS, tool_choice="required")
        completion = streamed(client, asked) if is_streamed else client.chat.completions.create(**asked)
        (choice,) = completion.choices
        calls = choice.message.tool_calls or []
        is_ended = choice.finish_reason == "tool_calls"
        assert calls if is_ended else choice.finish_reason == "length", choice
        for call in calls if is_ended else calls[:-1]:
            assert call.type == "function"
            VALIDATORS[call.function.name].validate(json.loads(call.function.arguments))
        messages.append(choice.message)
        messages += [{"role": "tool", "tool_call_id": call.id, "content": '{"done": true}'} for call in calls]
        yield is_ended


def streamed(client: openai.OpenAI, asked: dict[str, Any]) -> ChatCompletion:
    """The answer put together from its deltas."""
    calls: list[dict[str, Any]] = []
    content, finish, head = "", None, {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        head = chunk.model_dump(include={"id", "created", "model"})
        for choice in chunk.choices:
            content, finish = content + (choice.delta.content or ""), choice.finish_reason or finish
            for delta in choice.delta.tool_calls or []:
                assert delta.function is not None
                if delta.index == len(calls):
                    function = {"name": delta.function.name, "arguments": ""}
                    calls.append({"id": delta.id, "type": delta.type, "function": function})
                calls[delta.index]["function"]["arguments"] += delta.function.arguments or ""
    message = {"role": "assistant", "content": content or None, "tool_calls": calls or None}
    choices = [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}]
    return ChatCompletion.model_validate({**head, "object": "chat.completion", "choices": choices})
