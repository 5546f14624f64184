"""Bad requests: each is refused with a clear 4xx in OpenAI's shape that names the field at fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.conftest import World
from tests.gateway.fakes import CONTEXT, MODEL
from tests.gateway.test_http import CHAT, COMPLETIONS, chat


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'{"model": "tiny", "messages": "\xff"}', None),
        (b"[" * 5000, None),
        ({"messages": [{"role": "user", "content": "hi"}]}, "model"),
        ({"model": MODEL}, "messages"),
        (chat(messages=[]), "messages"),
        (chat(messages=[{"role": "tool", "content": "x"}]), "messages.0.role"),
        (chat(messages=[{"role": "user", "content": 5}]), "messages.0.content"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages.0.content.0.type"),
        (chat(messages=[{"role": "user", "content": "x", "name": "y"}]), "messages.0.name"),
        (chat(model=5), "model"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(max_tokens="5"), "max_tokens"),
        (chat(max_tokens=5.5), "max_tokens"),
        (chat(max_tokens=5, max_completion_tokens=5), "max_tokens"),
        (chat(max_tokens=CONTEXT), "max_tokens"),
        (chat(max_completion_tokens=CONTEXT), "max_completion_tokens"),
        (chat("x" * 4 * CONTEXT), "messages"),
        (chat(temperature=-1), "temperature"),
        (chat(temperature=2.5), "temperature"),
        (chat(temperature="1"), "temperature"),
        (chat(temperature=True), "temperature"),
        (chat(top_p=0), "top_p"),
        (chat(top_p=1.1), "top_p"),
        (chat(top_k=-2), "top_k"),
        (chat(min_p=1.5), "min_p"),
        (chat(seed=1 << 63), "seed"),
        (chat(seed="1"), "seed"),
        (chat(stop=[""]), "stop.0"),
        (chat(stop=["a"] * 17), "stop"),
        (chat(stop=[1]), "stop.0"),
        (chat(n=2), "n"),
        (chat(n=True), "n"),
        (chat(logprobs=True), "logprobs"),
        (chat(frequency_penalty=0.5), "frequency_penalty"),
        (chat(response_format={"type": "json_object"}), "response_format"),
        (chat(tools=[{"type": "function"}]), "tools"),
        (chat(stream="yes"), "stream"),
        (chat(stream_options={"include_usage": True}), "stream_options"),
        (chat(stream=True, stream_options={"include": True}), "stream_options.include"),
        (chat(surprise=1), "surprise"),
        (chat(dsd={"speculation": "maybe"}), "dsd.speculation"),
        (chat(dsd={"speculation": "static"}), "dsd.window"),
        (chat(dsd={"speculation": "static", "window": 65}), "dsd.window"),
        (chat(dsd={"window": 3}), "dsd.window"),
        (chat(dsd={"speculation": "off", "drafter": "d"}), "dsd.drafter"),
        (chat(dsd={"drafter": "Nobody!"}), "dsd.drafter"),
        (chat(dsd={"drafter": "nobody"}), "dsd.drafter"),
        (chat(dsd={"gamma": 4}), "dsd.gamma"),
    ],
)
async def test_a_bad_chat_is_refused_by_the_field_at_fault(world: World, body: Any, param: str | None) -> None:
    await world.verifier()
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await world.client.post(CHAT, data=raw, headers={"Content-Type": "application/json"})
    error = (await response.json())["error"]
    assert response.status == 400, error
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    assert param is None or param.split(".")[-1] in error["message"] or "tokens" in error["message"], error


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("", "empty"),
        ([], "empty"),
        ([""], "empty"),
        (["a", "b"], "one prompt"),
        ([[1], [2]], "one prompt"),
        (5, "string"),
        (None, "string"),
        ([1, "a"], "string"),
        ([True], "string"),
        ([-1], "vocabulary"),
        ([320], "vocabulary"),
        ([1 << 70], "vocabulary"),
        ([5] * CONTEXT, f"{CONTEXT} tokens"),
    ],
)
async def test_a_bad_prompt_is_refused(world: World, prompt: Any, told: str) -> None:
    await world.verifier()
    response = await world.client.post(COMPLETIONS, json={"model": MODEL, "prompt": prompt})
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "prompt"), error
    assert told in error["message"]


async def test_an_unknown_model_is_404_and_named(world: World) -> None:
    await world.verifier()
    response = await world.client.post(CHAT, json=chat(model="gpt-9"))
    error = (await response.json())["error"]
    assert (response.status, error["param"], error["code"]) == (404, "model", "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", CHAT, 405), ("POST", "/v1/embeddings", 404), ("DELETE", "/v1/models", 405)]
)
async def test_wrong_endpoints_answer_in_the_same_shape(world: World, method: str, path: str, status: int) -> None:
    response = await world.client.request(method, path)
    assert response.status == status
    assert (await response.json())["error"]["type"] == "invalid_request_error"
