"""Fields that change no answer are accepted and named in a header. A setting accepts unknown ones, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.gateway.http.parsing import MAX_ROUNDS
from services.gateway.http.routes import IGNORED_HEADER, MAX_IGNORED_CHARACTERS
from shared.protocol.messages import Open
from tests.gateway.conftest import World, a_world
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
    "early_stopping": False,
    "function_call": "auto",
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "store": False,
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
    rich = await world.client.post(path, json={**body, "seed": 1, **HARMLESS, **NEUTRAL})
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
        body = chat(messages=[{"role": "user", "content": "hi", "mood": "good"}], verbosity="low", dsd={"x\r\ny": 1})
        response = await world.client.post(CHAT, json=body)
        assert response.status == 200, await response.text()
        assert set(response.headers[IGNORED_HEADER].split(", ")) == {"verbosity", "dsd.x%0D%0Ay", "messages.0.mood"}
        wrong = await world.client.post(CHAT, json={**body, "temperature": 3})
        assert (wrong.status, (await wrong.json())["error"]["param"]) == (400, "temperature")


async def test_unknown_fields_are_looked_for_a_few_times_and_the_header_is_bounded(folder: Path) -> None:
    async with a_world(folder, unknown_fields="ignore") as world:
        await world.verifier()
        many = chat(**{f"field-{number}": 0 for number in range(1000)})
        response = await world.client.post(CHAT, data=json.dumps(many))
        assert response.status == 200
        assert len(response.headers[IGNORED_HEADER]) == MAX_IGNORED_CHARACTERS
        messages = [{"role": "user", "content": "hi", "mood": "good"}] * (
            MAX_ROUNDS + 1
        )  # validation ends at the first
        refused = await world.client.post(CHAT, json=chat(messages=messages))
        assert (refused.status, (await refused.json())["error"]["code"]) == (400, "unknown_parameter")
