"""Bodies of /v1/responses: what is refused by its field, what has no effect, and the messages that items stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.gateway.bodies.responses_body import ResponsesBody
from services.gateway.http.routes import IGNORED_HEADER
from tests.gateway.conftest import World, a_world
from tests.gateway.fakes import CONTEXT
from tests.gateway.http.test_responses import CALL, FLAT, RESPONSES, asking

USER = {"role": "user", "content": "hi"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Why?"}]}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}


async def error_of(world: World, body: dict[str, Any]) -> dict[str, Any]:
    response = await world.client.post(RESPONSES, json=body)
    error: dict[str, Any] = (await response.json())["error"]
    assert response.status == 400, error
    return error


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
async def test_what_needs_more_than_a_stateless_answer_is_refused_by_its_name(
    world: World, options: dict[str, Any], param: str
) -> None:
    error = await error_of(world, asking(**options))
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert param in error["message"]


@pytest.mark.parametrize(
    ("options", "param", "reason"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "web_search"),
        ({"tools": [*FLAT, {"type": "mcp", "server_label": "x"}]}, "tools.2.type", "mcp"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools.0.type", "file_search"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools.0.name", "missing"),
        ({"tools": [FLAT[0], FLAT[0]]}, "tools", "different names"),
        ({"tools": FLAT, "tool_choice": {"type": "web_search"}}, "tool_choice", "function"),
        ({"tools": FLAT, "tool_choice": {"type": "function", "name": "other"}}, "tool_choice", "other"),
        ({"tool_choice": "required"}, "tool_choice", "only allowed with tools"),
        ({"include": ["message.output_text.logprobs"]}, "include.0", "reasoning.encrypted_content"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "xml"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "missing"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "foo"}}}}, "text.format", "foo"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "medium"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "low"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "stream is true"),
        ({"stream": True, "dsd": {"sources": True}}, "dsd.sources", "not supported"),
        ({"dsd": {"window": 3}}, "dsd.window", "static"),
        ({"max_output_tokens": CONTEXT}, "max_output_tokens", "exceed the context"),
        ({"max_output_tokens": -1}, "max_output_tokens", "greater"),
        ({"max_tokens": 5}, "max_tokens", "Unknown"),
        ({"n": 2}, "n", "Unknown"),
        ({"said": "x" * 4 * CONTEXT}, "input", "tokens"),
        ({"said": []}, "input", "at least 1"),
        ({"said": 5}, "input", "string or a list"),
        ({"said": [5]}, "input.0", "an object with a type"),
        ({"said": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", "item_reference"),
        ({"said": [{**USER, "role": "tool"}]}, "input.0.role", "user"),
        ({"said": [{**USER, "content": [{"type": "input_image"}]}]}, "input.0.content.0.type", "text"),
        ({"said": [USER, {**CALL, "arguments": {}}]}, "input.1.arguments", "string"),
        ({"said": [{**OUTPUT, "call_id": None}]}, "input.0.call_id", "string"),
        ({"said": [{**THOUGHT, "encrypted_content": "x"}]}, "input.0.encrypted_content", "None"),
        ({"said": [USER] * 4096}, "input", "4095"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named(world: World, options: dict[str, Any], param: str, reason: str) -> None:
    await world.verifier()
    error = await error_of(world, asking(**options))
    assert error["param"] == param, error
    assert reason in error["message"], error


async def test_the_input_is_required_and_the_model_is_the_one_that_is_served(world: World) -> None:
    error = await error_of(world, {"model": "tiny"})
    assert (error["param"], error["code"]) == ("input", "missing_parameter")
    response = await world.client.post(RESPONSES, json=asking(model="other"))
    assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


async def test_a_template_that_refuses_the_items_and_unknown_calls_are_errors_of_input_and_tools(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ tools }}{{ raise_exception('no') if messages[0].content == 'x' }}")
    async with a_world(folder) as world:
        await world.verifier()
        assert (await error_of(world, asking("x")))["param"] == "input"
        error = await error_of(world, asking(tools=FLAT))
        assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")


async def test_what_has_no_effect_is_named(world: World) -> None:
    await world.verifier()
    options = {
        "include": ["reasoning.encrypted_content"],
        "max_tool_calls": 3,
        "metadata": {"a": "b"},  # the response has it
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "auto"},
        "store": False,
        "text": {"verbosity": "medium"},
        "truncation": "disabled",
        "user": "me",
    }
    response = await world.client.post(RESPONSES, json=asking([THOUGHT, USER], **options))
    assert response.status == 200, await response.text()
    assert response.headers[IGNORED_HEADER].split(", ") == [
        "prompt_cache_key",
        "user",
        "input.reasoning_content",
        "reasoning.effort",
        "include.reasoning.encrypted_content",
        "max_tool_calls",
        "reasoning.summary",
    ]
    plain = await world.client.post(RESPONSES, json=asking())
    assert IGNORED_HEADER not in plain.headers


async def test_unknown_fields_are_left_out_at_every_depth_where_the_gateway_is_set_so(folder: Path) -> None:
    async with a_world(folder, unknown_fields="ignore") as world:
        await world.verifier()
        part = {"type": "input_text", "text": "hi", "cache_control": {}}
        items = [{**USER, "mood": 1}, {"role": "user", "content": [part]}, {**THOUGHT, "mood": 1}, USER]
        body = asking(items, text={"x": 1}, reasoning={"y": 1}, dsd={"z": 1}, modalities=["text"])
        response = await world.client.post(RESPONSES, json=body)
        assert response.status == 200, await response.text()
        ignored = set(response.headers[IGNORED_HEADER].split(", ")) - {"input.reasoning_content"}
        assert ignored == {
            "modalities",
            "input.0.mood",
            "input.1.content.0.cache_control",
            "input.2.mood",
            "text.x",
            "reasoning.y",
            "dsd.z",
        }
        for wrong in ([{"type": ["a"]}], [{"type": "other", "mood": 1}]):
            assert (await error_of(world, asking(wrong)))["param"] == "input.0"


def messages(*items: Any) -> list[tuple[str, str | None, str | None, int]]:
    """Role, content, reasoning and number of calls of the messages that items stand for."""
    return [
        (
            message.role,
            None if message.content is None else "\n".join(part.text for part in message.content),
            message.reasoning_content,
            len(message.tool_calls or ()),
        )
        for message in ResponsesBody.model_validate(asking(list(items))).chat.messages
    ]


def test_items_of_the_assistant_that_follow_each_other_are_one_message() -> None:
    said = {"role": "assistant", "content": "I look."}
    assert messages(USER, THOUGHT, said, CALL, CALL, OUTPUT, OUTPUT, said, USER) == [
        ("user", "hi", None, 0),
        ("assistant", "I look.", "Why?", 2),
        ("tool", "rain", None, 0),
        ("tool", "rain", None, 0),
        ("assistant", "I look.", None, 0),
        ("user", "hi", None, 0),
    ]


def test_another_message_or_more_reasoning_begins_another_turn() -> None:
    said = {"role": "assistant", "content": "a"}
    assert messages(said, said) == [("assistant", "a", None, 0)] * 2
    assert messages(THOUGHT, CALL, THOUGHT, CALL) == [("assistant", None, "Why?", 1)] * 2
    assert messages(CALL, said) == [("assistant", "a", None, 1)], "text behind a call is of the same message"
    assert messages(THOUGHT, THOUGHT) == [("assistant", "", "Why?Why?", 0)]
    assert [each[3] for each in messages(*[CALL] * 1500)] == [1024, 476]
