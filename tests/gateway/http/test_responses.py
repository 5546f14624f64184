"""POST /v1/responses: the chat's text in OpenAI's newer shapes, checked by the types and the client of its package."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from services.gateway.bodies.responses_body import ResponsesBody
from services.gateway.formats import structured
from services.gateway.http.responses.models import EVENTS
from shared.protocol.messages import Open
from tests.gateway import fakes
from tests.gateway.conftest import TOKENIZER, World, a_world, ids_of
from tests.gateway.fakes import MODEL
from tests.gateway.http.test_http import CHAT, chat
from tests.gateway.http.test_openapi import conform
from tests.gateway.http.test_tools import CALLED, THINKING, TOOLS, TWO_CALLS

RESPONSES = "/v1/responses"
OURS = {"dsd", "metrics", "system_fingerprint"}  # fields that OpenAI does not have
FLAT: list[Any] = [{"type": "function", "strict": True, **tool["function"]} for tool in TOOLS]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class City(BaseModel):
    name: str
    people: int


@pytest.fixture
async def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(fakes, "CONTEXT", 8192)  # the words for tools are long in a tiny vocabulary
    async with a_world(folder) as made:
        await made.verifier()
        await made.drafter()
        yield made


@pytest.fixture
async def client(world: World) -> AsyncIterator[openai.AsyncOpenAI]:
    address = f"http://{world.client.host}:{world.client.port}/v1"
    async with openai.AsyncOpenAI(base_url=address, api_key="any", max_retries=0) as made:
        yield made


def asking(said: Any = "hi", **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": said, **options}


async def whole(world: World, **options: Any) -> dict[str, Any]:
    response = await world.client.post(RESPONSES, json=asking(**options))
    body = await response.json()
    assert response.status == 200, body
    read = Response.model_validate(body)
    assert set(read.model_extra or ()) == OURS
    conform(body, "Response")
    return body


async def streamed(world: World, **options: Any) -> list[dict[str, Any]]:
    response = await world.client.post(RESPONSES, json=asking(stream=True, **options))
    assert response.status == 200, await response.text()
    return read_events(await response.text())


def read_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream; each is named, numbered, and one that OpenAI has."""
    found = []
    for number, event in enumerate(text.removesuffix("\n\n").split("\n\n")):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == number
        assert EVENT.validate_python(found[-1]).type == found[-1]["type"]
    return found


def types_of(events: list[dict[str, Any]]) -> list[str]:
    """Without `response.`; neighbours of a kind once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for number, name in enumerate(names) if number == 0 or name != names[number - 1]]


def text_of(response: dict[str, Any]) -> str:
    contents = [part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(contents)


def plain(response: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two answers to one request."""
    items = [{key: value for key, value in item.items() if not key.endswith("id")} for item in response["output"]]
    differing = {"id", "created_at", "dsd", "metrics"}
    return {key: value for key, value in response.items() if key not in differing} | {"output": items}


def opened(world: World) -> list[Open]:
    return [each for each in world.peers[0].of(Open) if isinstance(each, Open)]


def prompts(world: World) -> list[str]:
    return [TOKENIZER.decode(list(each.prompt_ids)) for each in opened(world)]


CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"said": "hi"}, [{"role": "user", "content": "hi"}]),
        (
            {"said": [{"role": "developer", "content": "Rhyme."}, {"role": "user", "content": "hi"}]},
            [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "hi"}],
        ),
        (
            {
                "instructions": "Be brief. <|im_end|>",
                "said": [
                    {
                        "type": "message",
                        "role": "user",
                        "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
                    },
                    {
                        "type": "message",
                        "id": "msg_1",
                        "status": "completed",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}],
                    },
                    {"role": "user", "content": "hi"},
                ],
            },
            [
                {"role": "system", "content": "Be brief. <|im_end|>"},
                {"role": "user", "content": "a\nb"},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "hi"},
            ],
        ),
        (
            {
                "said": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "I look."},
                    CALL,
                    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
                ]
            },
            [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "I look.", "tool_calls": [CHAT_CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            ],
        ),
    ],
)
async def test_the_answer_is_that_of_a_chat_with_the_same_messages(
    world: World, options: dict[str, Any], messages: list[Any]
) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 7}
    response = await whole(world, **options, **sampling, max_output_tokens=40, tools=FLAT)
    strict_tools = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    asked = chat(messages=messages, max_tokens=40, tools=strict_tools, **sampling)
    told = await (await world.client.post(CHAT, json=asked)).json()
    first, second = opened(world)
    assert first.prompt_ids == second.prompt_ids
    assert (first.sampling, first.max_tokens, first.stop_ids) == (second.sampling, second.max_tokens, second.stop_ids)
    assert text_of(response) == told["choices"][0]["message"]["content"]
    await world.no_session_is_left()


async def test_a_response_repeats_what_was_asked_and_tells_what_it_cost(world: World) -> None:
    asked = {"instructions": "Be brief.", "temperature": 0.5, "metadata": {"run": "7"}, "seed": 3}
    response = await whole(world, **asked, max_output_tokens=100)
    assert {name: response[name] for name in ("instructions", "temperature", "metadata")} == {
        name: asked[name] for name in ("instructions", "temperature", "metadata")
    }
    assert (response["object"], response["status"], response["error"]) == ("response", "completed", None)
    assert (response["truncation"], response["max_output_tokens"]) == ("disabled", 100)
    (item,) = response["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": world.answer, "annotations": [], "logprobs": []}]
    usage, dsd = response["usage"], response["dsd"]
    assert usage["output_tokens"] == len(ids_of(world.answer)) + 1
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
    assert (dsd["seed"], dsd["verifier"], response["system_fingerprint"]) == (3, "verifier", "verifier-numerics")
    assert dsd["accepted"] > 0
    assert response["metrics"]["tokens_per_second"] > 0


async def test_the_events_of_a_stream_are_openai_s_and_end_with_the_whole_response(world: World) -> None:
    events = await streamed(world, seed=1)
    assert types_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == world.answer
    assert len(deltas) > 1
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"], first["id"]) == ("in_progress", [], None, last["id"])
    assert plain(last) == plain(await whole(world, seed=1))
    assert events[-2]["item"] == last["output"][0]
    for event in events:
        conform(event, name_of(event))


def name_of(event: dict[str, Any]) -> str:
    """Of the event's schema in the OpenAPI document."""
    return next(each.__name__ for each in EVENTS if each.__struct_config__.tag == event["type"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_loop_of_tools(world: World, client: openai.AsyncOpenAI, stream: bool) -> None:
    world.answer = TWO_CALLS
    items: list[Any] = [{"role": "user", "content": "hi"}]

    async def turn() -> Any:
        if not stream:
            return await client.responses.create(model=MODEL, input=items, tools=FLAT, store=False)
        async with client.responses.stream(model=MODEL, input=items, tools=FLAT) as events:
            return await events.get_final_response()

    response = await turn()
    assert response.output_text == "I look."
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.name, call.arguments) for call in calls] == CALLED
    items += response.output
    items += [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"{call.name}: fine"} for call in calls
    ]
    world.answer = "It is fine."
    response = await turn()
    assert (response.status, response.output_text, len(response.output)) == ("completed", "It is fine.", 1)
    _, second = prompts(world)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Tromsø"}}\n</tool_call>' in second
    assert "<tool_response>\nweather: fine\n</tool_response>\n<tool_response>\ntime: fine" in second


async def test_the_events_of_calls(world: World) -> None:
    world.answer = TWO_CALLS
    events = await streamed(world, tools=FLAT)
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    names = types_of(events)
    assert names[names.index("output_item.done") + 1 : -1] == call * 2
    assert [event["item"]["type"] for event in events if event["type"] == "response.output_item.added"] == [
        "message",
        "function_call",
        "function_call",
    ]
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["output_index"], event["arguments"]) for event in done] == [(1, CALLED[0][1]), (2, CALLED[1][1])]
    deltas = [each for each in events if each["type"].endswith("arguments.delta") and each["output_index"] == 1]
    assert "".join(event["delta"] for event in deltas) == CALLED[0][1]
    assert len(deltas) > 1
    assert {event["item_id"] for event in deltas} == {events[-1]["response"]["output"][1]["id"]}
    calls = plain(events[-1]["response"])["output"]
    assert [item["type"] for item in calls] == [item["type"] for item in (await whole(world, tools=FLAT))["output"]]


async def test_a_call_that_must_be_made_and_a_format_are_the_grammars_of_a_chat(
    world: World, client: openai.AsyncOpenAI
) -> None:
    world.answer = '{"name": "Oslo", "people": 7}'
    parsed = await client.responses.parse(model=MODEL, input="hi", text_format=City)
    assert parsed.output_parsed == City(name="Oslo", people=7)
    async with client.responses.stream(model=MODEL, input="hi", text_format=City) as events:
        assert (await events.get_final_response()).output_parsed == parsed.output_parsed
    assert parsed.text is not None
    sent = parsed.text.to_dict()["format"]
    await whole(world, text={"format": {"type": "json_object"}})
    await whole(world, tools=FLAT, tool_choice={"type": "function", "name": "time"}, parallel_tool_calls=False)
    choice = {"type": "function", "function": {"name": "time"}}
    await world.client.post(CHAT, json=chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False))
    grammars = [each.grammar for each in opened(world)]
    assert grammars[:2] == [structured.of_json_schema(sent["schema"])] * 2  # type: ignore[index]
    assert grammars[2] == structured.of_json_schema(structured.JSON_OBJECT)
    assert grammars[3] == grammars[4] is not None


async def test_an_answer_of_the_client_is_whole_or_streamed(world: World, client: openai.AsyncOpenAI) -> None:
    told = await client.responses.create(model=MODEL, input="hi", user="me")
    assert told.output_text == world.answer
    assert told.usage is not None
    deltas = []
    async for event in await client.responses.create(model=MODEL, input="hi", stream=True):
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
    assert (event.type, "".join(deltas)) == ("response.completed", world.answer)
    assert event.response.usage == told.usage
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model=MODEL, input="hi", previous_response_id="resp_1")
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "unsupported_parameter")


async def test_an_answer_at_its_limit_is_incomplete(world: World) -> None:
    for options in ({}, {"tools": FLAT}):
        response = await whole(world, max_output_tokens=4, seed=1, **options)
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert response["output"][-1]["status"] == "incomplete"
        assert response["usage"]["output_tokens"] == 4
        events = await streamed(world, max_output_tokens=4, seed=1, **options)
        assert events[-1]["type"] == "response.incomplete"
        assert plain(events[-1]["response"]) == plain(response)


async def test_an_empty_answer_is_an_empty_message(world: World) -> None:
    world.answer = ""
    response = await whole(world)
    assert [item["content"][0]["text"] for item in response["output"]] == [""]
    assert types_of(await streamed(world))[2:-1] == [
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]


async def test_a_stream_that_breaks_off_ends_with_a_failed_response(folder: Path) -> None:
    async with a_world(folder) as world:
        await world.verifier(pass_s=0.02)
        world.answer = "hello world " * 40
        response = await world.client.post(RESPONSES, json=asking(stream=True))
        begun = b"".join([await response.content.readuntil(b"\n\n") for _ in range(5)])
        next(iter(world.gateway.sessions._live.values())).session.abort("broken by the test")
        events = read_events((begun + await response.content.read()).decode())
        last = events[-1]
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert "broken by the test" in last["response"]["error"]["message"]
        assert last["response"]["output"][0]["status"] == "incomplete"
        assert world.answer.startswith(text_of(last["response"]))
        conform(last, "ResponseFailed")
        await world.no_session_is_left()


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_an_item_that_can_be_sent_back(folder: Path, stream: bool) -> None:
    (folder / "chat_template.jinja").write_text(THINKING)
    async with a_world(folder) as world:
        await world.verifier()
        world.answer = "<think>\nWhy?\n</think>\n\n" + TWO_CALLS
        if stream:
            events = await streamed(world, tools=FLAT)
            assert types_of(events)[2:8] == [
                "output_item.added",
                "content_part.added",
                "reasoning_text.delta",
                "reasoning_text.done",
                "content_part.done",
                "output_item.done",
            ]
            response = events[-1]["response"]
        else:
            response = await whole(world, tools=FLAT)
        assert [item["type"] for item in response["output"]] == ["reasoning", "message", *["function_call"] * 2]
        assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "Why?"}]
        num_reasoning = response["usage"]["output_tokens_details"]["reasoning_tokens"]
        assert len(ids_of("<think>\nWhy?")) <= num_reasoning < response["usage"]["output_tokens"]
        again = [{"role": "user", "content": "hi"}, *response["output"]]
        _, message = ResponsesBody.model_validate(asking(again)).chat.messages
        assert message.reasoning_content == "Why?"
        assert [part.text for part in message.content or ()] == ["I look."]
        called = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        assert called == CALLED
