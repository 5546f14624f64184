"""Logprobs in answers, in OpenAI's two shapes, whole and streamed."""

from __future__ import annotations

from typing import Any

from tests.gateway.conftest import EOS, World, ids_of
from tests.gateway.fakes import MODEL, logprobs_of
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat, events


async def test_a_chat_tells_every_token_s_logprob_and_the_likeliest(world: World) -> None:
    await world.verifier()
    body = await (await world.client.post(CHAT, json=chat(logprobs=True, top_logprobs=2))).json()
    ids = [*ids_of(world.answer), EOS]
    content = body["choices"][0]["logprobs"]["content"]
    assert [token["logprob"] for token in content] == [logprobs_of(token_id, 2).logprob for token_id in ids]
    assert b"".join(bytes(token["bytes"] or []) for token in content).decode() == world.answer
    assert content[-1] == {
        "token": "<|im_end|>",
        "logprob": -EOS / 64,
        "bytes": None,
        "top_logprobs": [
            {"token": "<|im_end|>", "logprob": -EOS / 64, "bytes": None},
            {"token": "!", "logprob": -EOS / 64 - 1, "bytes": [33]},
        ],
    }
    assert body["choices"][0]["logprobs"]["refusal"] is None


async def test_without_top_logprobs_only_the_chosen_tokens_are_told(world: World) -> None:
    await world.verifier()
    for options in ({}, {"top_logprobs": 0}, {"top_logprobs": None}):
        body = await (await world.client.post(CHAT, json=chat(logprobs=True, **options))).json()
        assert all(token["top_logprobs"] == [] for token in body["choices"][0]["logprobs"]["content"])
    body = await (await world.client.post(CHAT, json=chat(logprobs=False))).json()
    assert body["choices"][0]["logprobs"] is None


async def test_streamed_chunks_carry_the_logprobs_of_their_tokens(world: World) -> None:
    await world.verifier()
    await world.drafter()
    for options in ({}, {"stop": ["brown"]}, {"max_tokens": 7}):
        asked = chat(logprobs=True, top_logprobs=1, **options)
        whole = await (await world.client.post(CHAT, json=asked)).json()
        chunks = await events(await world.client.post(CHAT, json={**asked, "stream": True}))
        told: list[Any] = []
        for chunk in chunks:
            choice = chunk["choices"][0]
            tokens = choice["logprobs"]["content"] if choice["logprobs"] else []
            text = choice["delta"].get("content", "")
            assert not text or tokens
            told += tokens
        assert told == whole["choices"][0]["logprobs"]["content"]
        assert len(told) == whole["usage"]["completion_tokens"]
    assert len(chunks) > 2


async def test_a_completion_tells_them_in_the_older_shape(world: World) -> None:
    await world.verifier()
    asked = {"model": MODEL, "prompt": "x", "logprobs": 2}
    choice = (await (await world.client.post(COMPLETIONS, json=asked)).json())["choices"][0]
    logprobs, ids = choice["logprobs"], [*ids_of(world.answer), EOS]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert logprobs["token_logprobs"] == [-token_id / 64 for token_id in ids]
    assert logprobs["tokens"][-1] == "<|im_end|>"
    assert logprobs["top_logprobs"][-1] == {"<|im_end|>": -EOS / 64, "!": -EOS / 64 - 1}
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith(("bytes:", "<|")) or choice["text"][offset:].startswith(token)
    chunks = await events(await world.client.post(COMPLETIONS, json={**asked, "stream": True}))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    for name, values in logprobs.items():
        assert [value for each in streamed for value in each[name]] == values


async def test_zero_logprobs_of_a_completion_tell_the_chosen_token(world: World) -> None:
    await world.verifier()
    body = await (await world.client.post(COMPLETIONS, json={"model": MODEL, "prompt": "x", "logprobs": 0})).json()
    logprobs = body["choices"][0]["logprobs"]
    named = [dict([pair]) for pair in zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)]
    assert logprobs["top_logprobs"] == named
