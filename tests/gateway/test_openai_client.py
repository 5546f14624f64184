"""The real openai client against the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from tests.gateway.conftest import World
from tests.gateway.fakes import MODEL

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(world: World) -> AsyncIterator[openai.AsyncOpenAI]:
    await world.verifier()
    await world.drafter()
    address = f"http://{world.client.host}:{world.client.port}/v1"
    async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as made:
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
