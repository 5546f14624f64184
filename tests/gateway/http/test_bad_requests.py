"""Bad requests: each is refused with a clear 4xx in OpenAI's shape that names the field at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import World, a_world
from tests.gateway.fakes import CONTEXT, MODEL, VOCABULARY
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat


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
        (chat(messages=[{"role": "critic", "content": "x"}]), "messages.0.role"),
        (chat(messages=[{"role": "user", "content": 5}]), "messages.0.content"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages.0.content.0.type"),
        (chat(messages=[{"role": "user", "content": "x", "name": 3}]), "messages.0.name"),
        (chat(model=5), "model"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(max_tokens="5"), "max_tokens"),
        (chat(max_tokens=5.5), "max_tokens"),
        (chat(max_tokens=5, max_completion_tokens=6), "max_tokens"),
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
        (chat(n=0), "n"),
        (chat(n=17), "n"),
        (chat(n=True), "n"),
        (chat(best_of=2), "best_of"),
        (chat(logprobs=1), "logprobs"),
        (chat(top_logprobs=2), "top_logprobs"),
        (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
        (chat(frequency_penalty=2.5), "frequency_penalty"),
        (chat(presence_penalty=-2.5), "presence_penalty"),
        (chat(repetition_penalty=0), "repetition_penalty"),
        (chat(repetition_penalty=10.5), "repetition_penalty"),
        (chat(logit_bias=[5]), "logit_bias"),
        (chat(logit_bias={"five": 5}), "logit_bias"),
        (chat(logit_bias={"05": 5}), "logit_bias"),
        (chat(logit_bias={"5": 101}), "logit_bias"),
        (chat(logit_bias={str(VOCABULARY): 1}), "logit_bias"),
        (chat(logit_bias={str(1 << 33): 1}), "logit_bias"),
        (chat(logit_bias={str(n): 1 for n in range(1025)}), "logit_bias"),
        (chat(min_tokens=-1), "min_tokens"),
        (chat(min_tokens=6, max_tokens=5), "min_tokens"),
        (chat(min_tokens=CONTEXT), "min_tokens"),
        (chat(stop_token_ids=[VOCABULARY]), "stop_token_ids"),
        (chat(stop_token_ids=[-1]), "stop_token_ids.0"),
        (chat(stop_token_ids=[1] * 65), "stop_token_ids"),
        (chat(ignore_eos=1), "ignore_eos"),
        (chat(echo=True), "echo"),
        (chat(store=0), "store"),
        (chat(suffix="x"), "suffix"),
        (chat(dsd={"sources": True}), "dsd.sources"),
        (chat(tools=[{"type": "function"}]), "tools.0.function"),
        (chat(stream="yes"), "stream"),
        (chat(stream_options={"include_usage": True}), "stream_options"),
        (chat(stream=True, stream_options={"include": True}), "stream_options.include"),
        (chat(surprise=1), "surprise"),
        (chat(dsd={"speculation": "maybe"}), "dsd.speculation"),
        (chat(dsd={"speculation": "static"}), "dsd.window"),
        (chat(dsd={"speculation": "static", "window": 65}), "dsd.window"),
        (chat(dsd={"window": 3}), "dsd.window"),
        (chat(dsd={"speculation": "static", "window": 3, "min_confidence": 1.5}), "dsd.min_confidence"),
        (chat(dsd={"min_confidence": 0.5}), "dsd.min_confidence"),
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
        (["a"] * 17, "16 choices"),
        (["a", [1]], "string"),
        ([[1], [-2]], "vocabulary"),
        ([["a"]], "string"),
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


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 9, "prompt": ["a", "b"]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": False, "logprobs": 1}, "max_tokens"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"echo": True, "stream": True, "dsd": {"sources": True}}, "echo"),
        ({"echo": 1}, "echo"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"messages": []}, "messages"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
    ],
)
async def test_a_bad_completion_is_refused_by_the_field_at_fault(
    world: World, options: dict[str, Any], param: str
) -> None:
    await world.verifier()
    response = await world.client.post(COMPLETIONS, json={"model": MODEL, "prompt": "a", **options})
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param), error
    assert param in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        (CHAT, '{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 1, "seed": 2}', "seed"),
        (CHAT, '{"model": "tiny", "messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
        (CHAT, '{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "dsd": {}, "dsd": {}}', "dsd"),
        (COMPLETIONS, '{"model": "tiny", "prompt": "a", "logit_bias": {"5": 1, "5": -1}}', "5"),
        (COMPLETIONS, '{"model": "tiny", "prompt": "a", "se\\u0065d": 1, "seed": 2}', "seed"),
    ],
)
async def test_a_key_that_is_there_twice_is_refused(world: World, path: str, body: str, key: str) -> None:
    await world.verifier()
    response = await world.client.post(path, data=body, headers={"Content-Type": "application/json"})
    error = (await response.json())["error"]
    assert (response.status, error["param"], error["code"]) == (400, key, "repeated_parameter"), error
    assert f"'{key}'" in error["message"]


async def test_keys_of_one_name_in_different_objects_are_no_repetition(world: World) -> None:
    await world.verifier()
    turns = [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}] * 2
    assert (await world.client.post(CHAT, json=chat(messages=turns))).status == 200


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, chat()), (COMPLETIONS, {"model": MODEL, "prompt": "a"}), (CHAT, "not even a body")]
)
async def test_options_in_the_address_are_refused_by_their_name(world: World, path: str, body: Any) -> None:
    await world.verifier()
    response = await world.client.post(f"{path}?temperature=0&seed=1", json=body)
    error = (await response.json())["error"]
    assert (response.status, error["param"], error["code"]) == (400, "temperature", "unknown_parameter"), error
    assert "'temperature'" in error["message"]
    assert (await world.client.post(f"{path}?x", json=body)).status == 400


async def test_a_conversation_at_which_the_template_fails_is_told_what_it_says(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages | length / (messages | length - 1) }}")
    async with a_world(folder) as world:
        await world.verifier()
        response = await world.client.post(CHAT, json=chat())
        error = (await response.json())["error"]
        assert (response.status, error["param"], error["code"]) == (400, "messages", "invalid_value"), error
        assert "division by zero" in error["message"]


async def test_a_body_that_is_not_what_its_headers_say_is_refused(world: World) -> None:
    await world.verifier()
    response = await world.client.post(CHAT, data=b"no gzip", headers={"Content-Encoding": "gzip"})
    assert response.status == 400
    assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_an_unknown_model_is_404_and_named(world: World) -> None:
    await world.verifier()
    response = await world.client.post(CHAT, json=chat(model="gpt-9"))
    error = (await response.json())["error"]
    assert (response.status, error["param"], error["code"]) == (404, "model", "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("POST", "/v1/embeddings", 404),
        ("DELETE", "/v1/models", 405),
        ("POST", "/chat/completions", 404),
        ("GET", "/", 404),
    ],
)
async def test_wrong_endpoints_answer_in_the_same_shape(world: World, method: str, path: str, status: int) -> None:
    response = await world.client.request(method, path)
    assert response.status == status
    assert ("Allow" in response.headers) == (status == 405)
    assert (await response.json())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_expectation_that_nobody_can_meet_is_refused_in_openai_s_shape(world: World, method: str) -> None:
    path = CHAT if method == "POST" else "/v1/models"
    response = await world.client.request(method, path, headers={"Expect": "a miracle"})
    error = (await response.json())["error"]
    assert (response.status, error["type"], error["code"]) == (417, "invalid_request_error", None)
    assert "Expect" in error["message"]


async def test_a_client_that_waits_to_send_its_body_is_told_to(world: World) -> None:
    await world.verifier()
    response = await world.client.post(CHAT, json=chat(), expect100=True)
    assert response.status == 200
