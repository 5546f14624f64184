"""The real openai client against the gateway, one open to all and one with keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from services.gateway.admission.api_keys import digest, new_key
from shared.protocol.messages import Open
from tests.gateway.conftest import World, a_world
from tests.gateway.fakes import MODEL

HI: list[Any] = [{"role": "user", "content": "hi"}]
KEY = new_key()


@pytest.fixture(params=["open", "keyed"])
async def world(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    file = tmp_path / "keys.toml"
    file.write_text(f'[alice]\nsha256 = "{digest(KEY).hex()}"\n')
    async with a_world(folder, api_keys_file=str(file) if request.param == "keyed" else "") as made:
        yield made


@pytest.fixture
async def client(world: World) -> AsyncIterator[openai.AsyncOpenAI]:
    await world.verifier()
    await world.drafter()
    address = f"http://{world.client.host}:{world.client.port}/v1"
    async with openai.AsyncOpenAI(base_url=address, api_key=KEY, max_retries=0) as made:
        yield made


async def test_chat_whole_and_streamed(world: World, client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model=MODEL, messages=HI, seed=3, extra_body={"dsd": {"window": 4, "speculation": "static"}}
    )
    assert whole.choices[0].message.content == world.answer
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.accepted_prediction_tokens == whole.dsd["accepted"]
    assert (whole.dsd["seed"], whole.dsd["window"]) == (3, 4)
    stream = await client.chat.completions.create(
        model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == world.answer
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


async def test_an_answer_s_message_is_taken_back_into_the_conversation(
    world: World, client: openai.AsyncOpenAI
) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HI)
    again = await client.chat.completions.create(model=MODEL, messages=[*HI, answer.choices[0].message, *HI])
    spelt = [*HI, {"role": "assistant", "content": world.answer}, *HI]
    await client.chat.completions.create(model=MODEL, messages=spelt)
    assert again.choices[0].message.content == world.answer
    (verifier, _) = world.peers
    orders = [order.prompt_ids for order in verifier.of(Open) if isinstance(order, Open)]
    assert orders[1] == orders[2] != orders[0]


async def test_choices_with_logprobs_whole_and_streamed(world: World, client: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {"n": 2, "seed": 5, "presence_penalty": 1, "logit_bias": {"5": 1}}
    chat = await client.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=2, **options)
    assert [choice.message.content for choice in chat.choices] == [world.answer] * 2
    for choice in chat.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert b"".join(bytes(token.bytes or []) for token in choice.logprobs.content).decode() == world.answer
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    stream = await client.completions.create(model=MODEL, prompt="x", logprobs=1, stream=True, **options)
    texts, num_scored = ["", ""], 0
    async for chunk in stream:
        (part,) = chunk.choices
        texts[part.index] += part.text
        num_scored += len(part.logprobs.tokens or []) if part.logprobs else 0
    assert texts == [world.answer] * 2
    assert chat.usage is not None
    assert num_scored == chat.usage.completion_tokens


async def test_completion_and_models(world: World, client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt="once", stop=["quick"], max_tokens=50)
    assert answer.choices[0].text == world.answer[: world.answer.index("quick")]
    assert [model.id async for model in client.models.list()] == [MODEL]


async def test_errors_arrive_as_the_client_s_own(world: World, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model=MODEL, messages=HI, presence_penalty=3.0)
    assert refused.value.param == "presence_penalty"
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="other", messages=HI)
    for peer in world.peers:
        peer.refuses = "internal"
    with pytest.raises(openai.InternalServerError, match="says no"):
        await client.chat.completions.create(model=MODEL, messages=HI)
