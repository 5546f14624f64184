"""A real verifier behind a real gateway: whatever troubles sessions have, nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.cloud_verifier.engine import Drawn
from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.service import Verifier
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.engine import TorchEngine
from services.cloud_verifier.torch_engine.kv import KvCache
from services.cloud_verifier.torch_engine.model import Row, TargetModel, load_target
from services.gateway.inspector import recent
from shared.protocol.messages import NO_TOKENS, Open, Sampling, TokenIds
from shared.protocol.subjects import new_instance_id, new_session_id
from shared.protocol.verifier_session import VerifierSession
from tests.fakes import Gate
from tests.gateway.conftest import World, a_world, until
from tests.gateway.fakes import MODEL
from tests.gateway.session.leaks import grown_bytes
from tests.gateway.session.test_robustness import a_client, told
from tests.gateway.tiny import make_folder
from tests.peers import Peer
from tests.verifier.torch_engine.tiny_models import SERVED, save_model

NUM_ROUNDS = 4
POISON = 3
PROMPT = [10 + n % 100 for n in range(300)]  # five chunks of a prefill
LENGTH = 400

pytestmark = pytest.mark.timeout(180)


class Troubled(TargetModel):
    """A real target whose passes a test can hold, which fails on rows with POISON, and whose caches are counted."""

    def __init__(self, model: TargetModel) -> None:
        vars(self).update(vars(model))
        self.gate = Gate()
        self.caches: WeakSet[KvCache] = WeakSet()

    def new_cache(self, capacity: int) -> KvCache:
        cache = super().new_cache(capacity)
        self.caches.add(cache)
        return cache

    def step(self, rows: Sequence[Row]) -> list[Drawn]:
        self.gate.pass_through()
        if any(POISON in row.token_ids for row in rows):
            raise RuntimeError("poisoned")
        return super().step(rows)


@dataclass
class Cloud:
    """A verifier, and the gateway that asks it."""

    world: World
    verifier: Verifier
    engine: TorchEngine
    model: Troubled
    silent: Peer = field(init=False)
    num_prompts: int = 0

    def __post_init__(self) -> None:
        self.silent = Peer(self.world.network.connect(), "gateway", "silent")

    @property
    def is_empty(self) -> bool:
        """No session, no tombstone, nothing to compute; all of the KV cache is free, and what is kept of it for its
        prefixes is all the memory that caches take."""
        table = self.verifier.table
        return (
            len(table) == len(table._tombstones) == self.verifier.loop.queue_tokens == 0
            and self.engine.free_kv_tokens == self.engine.info.kv_tokens
            and sum(cache.capacity for cache in self.model.caches) == self.engine.prefixes.reserved
        )

    def new_prompt(self) -> list[int]:
        """One of which nothing was kept."""
        self.num_prompts += 1
        return [10 + self.num_prompts, *PROMPT]

    async def opened(self, num: int) -> None:
        await until(lambda: len(self.verifier.table) == num)


@asynccontextmanager
async def a_cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    model = Troubled(load_target(str(save_model(SERVED["gpt_neox"](), tmp_path / "model")), "cpu", "float32", 1))
    settings = VerifierSettings(
        name="cloud", target="tiny", model_name=MODEL, heartbeat_s=0.1, lease_s=0.7, kv_tokens=2048
    )
    async with a_world(make_folder(tmp_path / "target")) as world:
        bus = world.network.connect()
        engine = TorchEngine(model, settings.kv_tokens)
        verifier = Verifier(new_instance_id("cloud"), settings, engine, bus, VerifierMetrics(CollectorRegistry()))
        running = asyncio.create_task(verifier.run())
        try:
            await until(lambda: world.knows(cast(Any, verifier)))
            world.answer = "Q#Z$X@" * 20  # what the drafter guesses, in ids that the target knows; mostly wrong
            await world.drafter()
            yield Cloud(world, verifier, engine, model)
            assert not running.done(), "the verifier ended"
        finally:
            model.gate.open()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def num_sessions_in_memory() -> int:
    """Those of the verifier, wherever they are held."""
    gc.collect()
    return sum(type(each) is VerifierSession for each in gc.get_objects())


def asked(prompt: Sequence[int] = PROMPT, **options: Any) -> dict[str, Any]:
    fixed = {"temperature": 0, "seed": 0, "ignore_eos": True, "max_tokens": LENGTH}
    return {"model": MODEL, "prompt": list(prompt), **fixed, **options}


async def post(client: aiohttp.ClientSession, body: dict[str, Any]) -> aiohttp.ClientResponse:
    return await client.post("/v1/completions", json=body)


async def leave_mid_prefill_before_a_twin(cloud: Cloud) -> None:
    """The twin waits for the prefill of the one that leaves."""
    prompt = cloud.new_prompt()
    cloud.model.gate.shut()
    async with a_client(cloud.world) as client, a_client(cloud.world) as other:
        leaving = asyncio.create_task(post(client, asked(prompt)))
        await cloud.opened(1)
        staying = asyncio.create_task(post(other, asked(prompt, max_tokens=5)))
        await cloud.opened(2)
        (first, twin) = cloud.verifier.table
        assert twin.context.source is first.context
        cloud.model.gate.let(1)
        await cloud.model.gate.held()
        assert 0 < first.state.computed < len(prompt) - 1
        leaving.cancel()
        await cloud.opened(1)
        cloud.model.gate.open()
        assert (await staying).status == 200


async def leave_mid_answer(cloud: Cloud) -> None:
    async with a_client(cloud.world) as client:
        response = await post(client, asked(stream=True, n=2))
        await response.content.readany()
        cloud.model.gate.shut()
        assert [slot.state.finish for slot in cloud.verifier.table] == [None, None]
        response.close()
        await cloud.opened(0)
        cloud.model.gate.open()


async def miss_a_deadline(cloud: Cloud) -> None:
    cloud.model.gate.shut()
    async with a_client(cloud.world) as client:
        response = await post(client, asked(dsd={"timeout_s": 0.1}))
        assert await told(response) == (504, "deadline_exceeded")
        cloud.model.gate.open()


async def fail_beside_another(cloud: Cloud) -> None:
    """Two in one pass: one can't be computed, and its gateway asks again until its deadline."""
    cloud.model.gate.shut()
    async with a_client(cloud.world) as client:
        failing = asyncio.create_task(post(client, asked([*PROMPT[:40], POISON], dsd={"timeout_s": 0.5})))
        well = asyncio.create_task(post(client, asked(max_tokens=5)))
        await cloud.opened(2)
        with capture_logs() as logs:
            cloud.model.gate.open()
            assert (await well).status == 200
            assert await told(await failing) == (504, "deadline_exceeded")
        assert "session can't be computed" in [log["event"] for log in logs]


async def fall_silent(cloud: Cloud) -> None:
    """A gateway opens a session and is never heard of again."""
    prompt, scope = TokenIds(PROMPT), "silent"
    order = Open(
        new_session_id(), 1, None, prompt, NO_TOKENS, Sampling(), NO_TOKENS, LENGTH, free_run=False, cache_scope=scope
    )
    await cloud.silent.say("verifier", cloud.verifier.instance_id, order)
    await cloud.opened(1)


async def test_after_rounds_of_all_kinds_of_trouble_a_verifier_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_REQUESTS", 2)  # what the inspector keeps is complete from the first round on
    of_other_tests = num_sessions_in_memory()
    async with a_cloud(tmp_path) as cloud:

        async def trouble() -> None:
            for kind in (leave_mid_prefill_before_a_twin, leave_mid_answer, miss_a_deadline, fail_beside_another):
                await kind(cloud)
                await cloud.opened(0)
            await fall_silent(cloud)
            await until(lambda: cloud.is_empty)
            assert num_sessions_in_memory() <= of_other_tests + 1, "the last one may stand in a loop's variable still"

        grown = await grown_bytes(cloud.world, trouble, NUM_ROUNDS)
        assert grown < NUM_ROUNDS * 10_000, "a session kept is more than that"
