"""Fields that change no answer are accepted and named in a header. A setting accepts unknown ones, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.gateway.http.routes import IGNORED_HEADER, MAX_IGNORED_CHARACTERS
from shared.protocol.messages import Open
from tests.gateway.conftest import TOKENIZER, World, a_world
from tests.gateway.fakes import MODEL
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat, events

HARMLESS: dict[str, Any] = {
    "metadata": {"run": "7"},
    "parallel_tool_calls": True,
    "priority": 3,
    "prompt_cache_key": "me",
    "prompt_cache_retention": "24h",
    "request_id": "r1",
    "safety_identifier": "hash",
    "service_tier": "flex",
    "user": "me",
}
NEUTRAL: dict[str, Any] = {
    "add_generation_prompt": True,
    "allowed_token_ids": None,
    "audio": None,
    "bad_words": [],
    "cache_salt": None,
    "chat_template": None,
    "continue_final_message": False,
    "documents": [],
    "early_stopping": False,
    "function_call": "auto",
    "include_reasoning": True,
    "include_stop_str_in_output": False,
    "length_penalty": 1.0,
    "mm_processor_kwargs": None,
    "return_token_ids": False,
    "return_tokens_as_token_ids": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "store": False,
    "truncate_prompt_tokens": None,
    "verbosity": "medium",
    "prediction": None,
    "web_search_options": None,
    "tool_choice": "auto",
    "tools": [],
    "use_beam_search": False,
    "max_tokens": -1,
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_what_changes_no_answer_is_accepted_and_named(world: World, path: str) -> None:
    verifier = await world.verifier()
    body = chat() if path == CHAT else {"model": MODEL, "prompt": "hi"}
    plain = await world.client.post(path, json={**body, "seed": 1})
    assert plain.status == 200
    assert IGNORED_HEADER not in plain.headers
    rich = await world.client.post(
        path, json={**body, "seed": 1, **HARMLESS, **NEUTRAL, "add_special_tokens": path == COMPLETIONS}
    )
    assert rich.status == 200, await rich.text()
    assert rich.headers[IGNORED_HEADER].split(", ") == sorted(HARMLESS)
    assert (await rich.json())["choices"] == (await plain.json())["choices"]
    first, second = verifier.of(Open)
    assert (first.prompt_ids, first.max_tokens, first.sampling) == (
        second.prompt_ids,
        second.max_tokens,
        second.sampling,
    )


async def test_a_developer_is_the_system_and_the_name_of_a_speaker_is_left_out(world: World) -> None:
    verifier = await world.verifier()
    for role, more in (("system", {}), ("developer", {"name": "me"})):
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "hi", **more}]
        response = await world.client.post(CHAT, json=chat(messages=messages))
        assert response.headers.get(IGNORED_HEADER) == ("messages.name" if more else None)
    first, second = verifier.of(Open)
    assert first.prompt_ids == second.prompt_ids


@pytest.mark.parametrize("includes_usage", [True, False])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_tells_its_usage_so_far(world: World, path: str, includes_usage: bool) -> None:
    await world.verifier()
    body = chat() if path == CHAT else {"model": MODEL, "prompt": "hi"}
    options = {"include_usage": includes_usage, "continuous_usage_stats": True}
    chunks = await events(await world.client.post(path, json={**body, "stream": True, "stream_options": options}))
    told = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    counts = [usage["completion_tokens"] for usage in told]
    assert len(counts) >= 3
    assert counts == sorted(counts)
    assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in told)
    assert (chunks[-1]["choices"] == []) == includes_usage


async def test_unknown_fields_are_left_out_and_named_where_the_gateway_is_set_so(folder: Path) -> None:
    async with a_world(folder, unknown_fields="ignore") as world:
        await world.verifier()
        body = chat(messages=[{"role": "user", "content": "hi", "mood": "good"}], surprise="low", dsd={"x\r\ny": 1})
        response = await world.client.post(CHAT, json=body)
        assert response.status == 200, await response.text()
        assert set(response.headers[IGNORED_HEADER].split(", ")) == {"surprise", "dsd.x%0D%0Ay", "messages.0.mood"}
        wrong = await world.client.post(CHAT, json={**body, "temperature": 3})
        assert (wrong.status, (await wrong.json())["error"]["param"]) == (400, "temperature")


async def test_unknown_fields_are_left_out_at_every_depth_and_the_header_is_bounded(folder: Path) -> None:
    async with a_world(folder, unknown_fields="ignore") as world:
        await world.verifier()
        many = chat(**{f"field-{number}": 0 for number in range(1000)})
        response = await world.client.post(CHAT, data=json.dumps(many))
        assert response.status == 200
        assert response.headers[IGNORED_HEADER].startswith("field-0, field-1, ")
        assert MAX_IGNORED_CHARACTERS - 2 <= len(response.headers[IGNORED_HEADER]) <= MAX_IGNORED_CHARACTERS
        part = {"type": "text", "text": "hi", "cache_control": {}}
        messages = [{"role": "user", "content": [part], "mood": 1}] * 50
        response = await world.client.post(CHAT, json=chat(messages=messages))
        assert response.status == 200, await response.text()
        names = response.headers[IGNORED_HEADER].split(", ")
        assert names[:3] == ["messages.0.mood", "messages.0.content.0.cache_control", "messages.1.mood"]
        schema = {"name": "x", "schema": {"type": "object"}, "mood": 1}
        formats = {"response_format": {"type": "json_schema", "json_schema": schema, "mood": 2}}
        response = await world.client.post(CHAT, json=chat(**formats))
        names = response.headers[IGNORED_HEADER].split(", ")
        assert names == ["response_format.mood", "response_format.json_schema.mood"]
        nested = await world.client.post(CHAT, json=chat(messages=[[{"mood": 1}]]))
        assert nested.status == 400


HISTORY = [
    {"role": "user", "content": "hi", "name": "me"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "The weather is asked for.",
        "annotations": [],
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"x": [1]}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    {"role": "user", "content": "And now?"},
]
SHOWING = (
    "{% for message in messages %}{{ message.role }}:{{ message.content }}:{{ message.name }}:"
    "{{ message.tool_call_id }}:{{ message.reasoning_content }}:"
    "{{ message.tool_calls | tojson if message.tool_calls else '' }}\n{% endfor %}"
    "{{ reasoning_effort }} {{ enable_thinking }}"
)


async def test_a_history_with_calls_and_reasoning_and_options_reach_the_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(SHOWING)
    async with a_world(folder) as world:
        verifier = await world.verifier()
        options = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False, "style": 1}}
        response = await world.client.post(CHAT, json=chat(messages=HISTORY, **options))
        assert response.status == 200, await response.text()
        assert response.headers[IGNORED_HEADER] == "chat_template_kwargs.style"
        (opened,) = verifier.of(Open)
        assert TOKENIZER.decode(list(opened.prompt_ids), skip_special_tokens=False).splitlines() == [
            "user:hi:me:::",
            "assistant:None::"
            ":The weather is asked for.:"
            '[{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"x": [1]}}}]',
            "tool:rain::c1::",
            "user:And now?::::",
            "low False",
        ]


async def test_a_history_that_the_template_does_not_use_is_named(world: World) -> None:
    await world.verifier()
    response = await world.client.post(CHAT, json=chat(messages=[HISTORY[0]], reasoning_effort="high"))
    assert response.headers[IGNORED_HEADER] == "messages.name, reasoning_effort"


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "assistant", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": "x", "tool_calls": HISTORY[1]["tool_calls"]}], "messages.0.tool_calls"),
        ([{"role": "tool", "content": "x"}], "messages.0.tool_call_id"),
        ([{"role": "user", "content": "x", "tool_call_id": "c1"}], "messages.0.tool_call_id"),
        ([{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}],
         "messages.0.tool_calls.0.function.arguments"),
    ],
)  # fmt: skip
async def test_a_history_that_makes_no_sense_is_refused(world: World, messages: list[Any], field: str) -> None:
    response = await world.client.post(CHAT, json=chat(messages=messages))
    assert (response.status, (await response.json())["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    "options", [{"messages": 1}, {"tools": 1}, {"x": {"y": 1}}, {"x": []}, {str(number): 1 for number in range(17)}, 3]
)
async def test_template_options_that_the_gateway_sets_itself_are_refused(world: World, options: Any) -> None:
    response = await world.client.post(CHAT, json=chat(chat_template_kwargs=options))
    assert (response.status, (await response.json())["error"]["param"]) == (400, "chat_template_kwargs")
