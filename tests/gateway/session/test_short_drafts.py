"""A real drafter whose model sees less text than the target, behind a gateway and a real verifier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.service import Verifier
from services.cloud_verifier.settings import VerifierSettings
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.service import Drafter
from services.edge_drafter.settings import DrafterSettings
from shared.protocol.messages import Speculate
from shared.protocol.subjects import all_said, new_instance_id
from tests.fakes import FakeDraft, FakeTarget, fake_engine
from tests.gateway.conftest import World, a_world, until
from tests.gateway.fakes import MODEL

PROMPT = [5, 6, 7]
TARGET_CONTEXT, DRAFT_CONTEXT = 120, 40


@asynccontextmanager
async def a_pair(world: World, draft_context: int) -> AsyncIterator[Drafter]:
    """A verifier and a drafter that know the same text, and see different lengths of it."""
    target, draft = FakeTarget(max_context=TARGET_CONTEXT, pass_s=0.01), FakeDraft(max_context=draft_context)
    cloud = VerifierSettings(name="cloud", target="fake", model_name=MODEL, heartbeat_s=0.1)
    edge = DrafterSettings(name="edge", draft="fake", model_name=MODEL, heartbeat_s=0.1)
    verifier = Verifier(
        new_instance_id("cloud"),
        cloud,
        fake_engine(target),
        world.network.connect(),
        VerifierMetrics(CollectorRegistry()),
    )
    drafter = Drafter(
        new_instance_id("edge"), edge, draft, world.network.connect(), DrafterMetrics(CollectorRegistry())
    )
    running = [asyncio.create_task(peer.run()) for peer in (verifier, drafter)]
    try:
        await until(lambda: world.knows(verifier) and world.knows(drafter))
        yield drafter
        assert not any(task.done() for task in running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def ask(world: World, **options: Any) -> dict[str, Any]:
    """An answer of the greatest length there is, in token ids that are no end."""
    asked = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "seed": 0, "ignore_eos": True, **options}
    response = await world.client.post("/v1/completions", json=asked)
    assert response.status == 200, await response.text()
    return await response.json()


async def test_a_draft_of_short_context_guesses_what_it_can_see_and_the_text_goes_on_to_the_end(folder: Path) -> None:
    async with a_world(folder) as world, a_pair(world, DRAFT_CONTEXT) as drafter:
        told = await ask(world)
        assert told["usage"]["completion_tokens"] == TARGET_CONTEXT - len(PROMPT)
        assert told["choices"][0]["finish_reason"] == "length"
        assert 0 < told["dsd"]["accepted"] <= DRAFT_CONTEXT - len(PROMPT) - told["dsd"]["late"]
        assert told["dsd"]["rejected"] == 0
        assert len(drafter.table) == 0
        alone = await ask(world, dsd={"speculation": "off"})
        assert alone["choices"] == told["choices"]
        assert alone["dsd"]["accepted"] == 0


@pytest.mark.parametrize("room", [0, 1])
async def test_a_draft_is_only_asked_where_it_can_see_one_token_of_the_answer(folder: Path, room: int) -> None:
    asked: list[Any] = []
    async with a_world(folder) as world, a_pair(world, len(PROMPT) + room):
        await world.network.connect().subscribe(all_said("drafter", Speculate), lambda _, said: asked.append(said))
        told = await ask(world)
        assert told["usage"]["completion_tokens"] == TARGET_CONTEXT - len(PROMPT)
        assert [type(each) for each in asked] == [Speculate] * room
