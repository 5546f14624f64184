"""The HTTP endpoints against fake peers: answers, streams, limits, refusals."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from shared.protocol.messages import Close, FailureCode, Open, Speculate, Speculation, WindowDecision
from shared.protocol.subjects import new_instance_id, to
from tests.gateway.conftest import TOKENIZER, World, a_world, ids_of, until
from tests.gateway.fakes import CONTEXT, MODEL

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
READINESS = ("/readyz", "/health")


def chat(text: str = "hi", **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **options}


async def events(response) -> list[Any]:
    """The events of a stream, parsed; the last one must be [DONE]."""
    lines = (await response.text()).split("\n\n")
    assert all(line.startswith("data: ") for line in lines[:-1])
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_a_chat_is_answered_whole(world: World) -> None:
    verifier, _ = await world.verifier(), await world.drafter()
    response = await world.client.post(CHAT, json=chat(seed=7, temperature=0.5, top_k=3))
    body = await response.json()
    assert response.status == 200
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": world.answer, "refusal": None}
    assert (choice["finish_reason"], choice["index"], body["object"]) == ("stop", 0, "chat.completion")
    assert body["system_fingerprint"] == "verifier-numerics"
    usage = body["usage"]
    assert usage["completion_tokens"] == len(ids_of(world.answer)) + 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    dsd = body["dsd"]
    assert (dsd["seed"], response.headers["X-DSD-Seed"]) == (7, "7")
    assert (dsd["verifier"], dsd["drafter"], dsd["speculation"]) == ("verifier", "drafter", "adaptive")
    assert dsd["accepted"] > 0
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == dsd["accepted"]
    (opened,) = verifier.of(Open)
    assert (opened.sampling.seed, opened.sampling.temperature, opened.sampling.top_k) == (7, 0.5, 3)
    assert "user\nhi" in TOKENIZER.decode(list(opened.prompt_ids)), "it reads the prompt"
    await world.no_session_is_left()
    assert len(verifier.of(Close)) == 1


async def test_a_stream_tells_the_same_as_a_whole_answer(world: World) -> None:
    await world.verifier()
    await world.drafter()
    for options in ({}, {"stop": ["quick"]}, {"max_tokens": 5}):
        whole = await (await world.client.post(CHAT, json=chat(seed=1, **options))).json()
        asked = chat(seed=1, stream=True, stream_options={"include_usage": True}, **options)
        response = await world.client.post(CHAT, json=asked)
        assert response.content_type == "text/event-stream"
        chunks = await events(response)
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
        assert text == whole["choices"][0]["message"]["content"]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][-1] == whole["choices"][0][
            "finish_reason"
        ]
        assert chunks[-2]["dsd"]["seed"] == 1
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_is_left_out_of_a_stream_that_did_not_ask_for_it(world: World) -> None:
    await world.verifier()
    chunks = await events(await world.client.post(CHAT, json=chat(stream=True)))
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_stop_string_ends_answer_and_session(world: World) -> None:
    verifier = await world.verifier(pass_s=0.01)
    world.answer = "hello world " * 30
    body = await (await world.client.post(CHAT, json=chat(stop="lo wor"))).json()
    assert body["choices"][0]["message"]["content"] == "hel"
    assert body["choices"][0]["finish_reason"] == "stop"
    seen = body["usage"]["completion_tokens"]
    assert seen < 12
    await world.no_session_is_left()
    assert len(verifier.of(Close)) == 1


async def test_max_tokens_ends_with_length(world: World) -> None:
    await world.verifier()
    for names in (("max_tokens",), ("max_completion_tokens",), ("max_tokens", "max_completion_tokens")):
        body = await (await world.client.post(CHAT, json=chat(**dict.fromkeys(names, 3)))).json()
        assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 3)


@pytest.mark.parametrize("prompt", ["once upon", [260, 261, 262], ["once upon"], [[260, 261, 262]]])
async def test_a_completion_takes_text_or_tokens(world: World, prompt: Any) -> None:
    verifier = await world.verifier()
    response = await world.client.post(COMPLETIONS, json={"model": MODEL, "prompt": prompt, "max_tokens": 64})
    body = await response.json()
    assert body["choices"][0]["text"] == world.answer
    assert body["object"] == "text_completion"
    (opened,) = verifier.of(Open)
    inner = prompt[0] if isinstance(prompt[0], (list, str)) and isinstance(prompt, list) else prompt
    assert list(opened.prompt_ids) == (ids_of(inner) if isinstance(inner, str) else inner)


async def test_a_streamed_completion_is_text(world: World) -> None:
    await world.verifier()
    asked = {"model": MODEL, "prompt": "a", "stream": True}
    chunks = await events(await world.client.post(COMPLETIONS, json=asked))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == world.answer
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_an_answer_without_a_limit_may_fill_the_context(world: World) -> None:
    verifier = await world.verifier()
    await world.client.post(COMPLETIONS, json={"model": MODEL, "prompt": [5, 6, 7]})
    (opened,) = verifier.of(Open)
    assert opened.max_tokens == CONTEXT - 3


async def test_a_seed_is_drawn_when_none_is_given_and_differs(world: World) -> None:
    verifier = await world.verifier()
    bodies = [await (await world.client.post(CHAT, json=chat())).json() for _ in range(2)]
    seeds = [body["dsd"]["seed"] for body in bodies]
    assert seeds == [order.sampling.seed for order in verifier.of(Open)]
    assert seeds[0] != seeds[1]


async def test_the_dsd_object_chooses_speculation_window_and_drafter(world: World) -> None:
    verifier = await world.verifier()
    fast, slow = await world.drafter("fast"), await world.drafter("slow")
    off = await (await world.client.post(CHAT, json=chat(dsd={"speculation": "off"}))).json()
    assert (off["dsd"]["drafter"], off["dsd"]["speculation"], off["dsd"]["accepted"]) == (None, "off", 0)
    options = {"speculation": "static", "window": 5, "min_confidence": 0.5, "drafter": "slow"}
    static = await (await world.client.post(CHAT, json=chat(dsd=options))).json()
    assert (static["dsd"]["drafter"], static["dsd"]["window"]) == ("slow", 5)
    (order,) = slow.of(Speculate)
    assert order.speculation == Speculation("static", 5, 0.5)
    assert fast.of(Speculate) == []
    assert [opened.drafter_id for opened in verifier.of(Open)] == [None, slow.instance_id]


async def test_an_adaptive_answer_tells_the_window_that_a_controller_decided(world: World) -> None:
    verifier, drafter = await world.verifier(), await world.drafter("edge")
    undecided = await (await world.client.post(CHAT, json=chat())).json()
    assert undecided["dsd"]["window"] is None
    controller, controller_id = world.network.connect(), new_instance_id("controller")
    decision = WindowDecision(drafter.instance_id, verifier.instance_id, 12, 2, True, "test", 1)
    await controller.publish(to("drafter", drafter.instance_id, WindowDecision, controller_id), decision)
    decided = await (await world.client.post(CHAT, json=chat())).json()
    assert (decided["dsd"]["speculation"], decided["dsd"]["window"]) == ("adaptive", 12)


async def test_models_tell_name_and_context(world: World) -> None:
    await world.verifier()
    body = await (await world.client.get("/v1/models")).json()
    assert [(model["id"], model["root"], model["max_model_len"]) for model in body["data"]] == [(MODEL, MODEL, CONTEXT)]
    assert (await (await world.client.get(f"/v1/models/{MODEL}")).json())["id"] == MODEL
    assert (await world.client.get("/v1/models/other")).status == 404


async def test_readiness_follows_the_verifiers(world: World) -> None:
    assert (await world.client.get("/healthz")).status == 200
    for path in READINESS:
        assert "no verifier" in await (await world.client.get(path)).text()
    verifier = await world.verifier()
    for path in READINESS:
        assert (await world.client.get(path)).status == 200
    await verifier.kill()
    await until(lambda: not world.knows(verifier))
    await asyncio.sleep(0.1)  # the gateway checks with every heartbeat of its own
    for path in READINESS:
        assert (await world.client.get(path)).status == 503
    text = await (await world.client.get("/metrics")).text()
    assert "dsd_gateway_sessions 0.0" in text


async def test_without_a_verifier_the_answer_is_503_with_retry_after(world: World) -> None:
    response = await world.client.post(CHAT, json=chat())
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert (await response.json())["error"]["type"] == "server_error"


async def test_a_request_waits_for_a_verifier_that_fell_silent_moments_ago(world: World) -> None:
    verifier = await world.verifier()
    await verifier.kill()
    await until(lambda: not world.knows(verifier))
    async with asyncio.TaskGroup() as tasks:
        response = tasks.create_task(world.client.post(CHAT, json=chat()))
        await asyncio.sleep(0.1)
        assert not response.done()
        await world.verifier("another")
    assert response.result().status == 200


async def test_a_request_that_waits_for_a_verifier_has_its_deadline(world: World) -> None:
    verifier = await world.verifier()
    await verifier.kill()
    await until(lambda: not world.knows(verifier))
    assert (await world.client.post(CHAT, json=chat(dsd={"timeout_s": 0.05}))).status == 504


async def test_a_failing_verifier_is_500_and_a_final_refusal_400(world: World) -> None:
    verifier = await world.verifier()
    verifier.refuses = "internal"
    response = await world.client.post(CHAT, json=chat(stream=True))
    assert (response.status, (await response.json())["error"]["code"]) == (500, "internal")
    verifier.refuses, verifier.refuses_finally = "too_long", True
    assert (await world.client.post(CHAT, json=chat())).status == 400


@pytest.mark.parametrize("code", ["overloaded", "draining"])
async def test_a_request_waits_until_a_full_verifier_has_room(world: World, code: FailureCode) -> None:
    verifier = await world.verifier()
    verifier.refuses = code
    asking = asyncio.create_task(world.client.post(CHAT, json=chat()))
    await until(lambda: len(verifier.of(Open)) == 2)
    verifier.refuses = None
    assert (await asking).status == 200


async def test_a_client_that_leaves_ends_its_session(world: World) -> None:
    verifier, drafter = await world.verifier(pass_s=0.02), await world.drafter()
    world.answer = "hello world " * 40
    for stream in (True, False):
        asking = asyncio.create_task(world.client.post(CHAT, json=chat(stream=stream)))
        await until(lambda: len(verifier.sessions) == 1 and len(drafter.sessions) == 1)
        if stream:
            response = await asking
            await response.content.readany()
            response.close()
        else:
            asking.cancel()
        await world.no_session_is_left()
    assert verifier.num_cut_short == 2


async def test_draining_refuses_new_requests_and_finishes_those_under_way(world: World) -> None:
    await world.verifier(pass_s=0.02)
    first = await world.client.post(CHAT, json=chat(stream=True))
    draining = asyncio.create_task(world.gateway.drain())
    await asyncio.sleep(0.01)
    refused = await world.client.post(CHAT, json=chat())
    assert refused.status == 503
    assert not draining.done()
    chunks = await events(first)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == world.answer
    await draining


async def test_a_gateway_that_must_stop_tells_its_clients(folder: Any) -> None:
    async with a_world(folder) as world:
        await world.verifier(pass_s=0.05)
        world.answer = "hello world " * 40
        response = await world.client.post(CHAT, json=chat(stream=True))
        world.running.cancel()
        *_, last = await events(response)
        assert last["error"]["code"] == "draining"


async def test_options_with_a_value_that_changes_nothing_are_taken(world: World) -> None:
    await world.verifier()
    neutral = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "tools": None, "user": "me"}
    nulls = dict.fromkeys(["stop", "seed", "max_tokens", "temperature", "top_p", "stream", "stream_options", "dsd"])
    response = await world.client.post(CHAT, json=chat(**neutral, **nulls, response_format={"type": "text"}))
    assert response.status == 200, await response.text()


async def test_content_parts_are_joined_by_line_breaks(world: World) -> None:
    verifier = await world.verifier()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    await world.client.post(CHAT, json=chat(messages=[{"role": "user", "content": parts}]))
    await world.client.post(CHAT, json=chat("a\nb"))
    first, second = verifier.of(Open)
    assert first.prompt_ids == second.prompt_ids


async def test_a_body_that_is_too_large_is_413(folder: Any) -> None:
    async with a_world(folder, max_body_bytes=2048) as world:
        await world.verifier()
        response = await world.client.post(CHAT, json=chat("x" * 3000))
        assert response.status == 413
        assert "2048" in (await response.json())["error"]["message"]


async def test_a_client_that_does_not_send_its_body_is_dropped(folder: Any) -> None:
    async with a_world(folder, client_timeout_s=0.2) as world:
        reader, writer = await asyncio.open_connection(world.client.host, world.client.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        head = await asyncio.wait_for(reader.readline(), 5)
        assert b"408" in head
        writer.close()
