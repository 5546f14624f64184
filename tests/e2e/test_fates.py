"""Verifier and drafter together, with fake models: every guess has one fate on both sides, and both tell the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from awc.policy import DEFAULT_CHOICE
from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.service import Verifier
from services.cloud_verifier.settings import VerifierSettings
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.service import Drafter
from services.edge_drafter.settings import DrafterSettings
from shared.bus.bus import Absent
from shared.protocol import subjects
from shared.protocol.messages import Draft, Message
from tests.e2e.harness import Client, Generated
from tests.fakes import FakeDraft, FakeTarget, answer, fake_engine
from tests.peers import until
from tests.plugins.networks import Network

pytestmark = pytest.mark.timeout(60)

FATES = ("accepted", "rejected", "late", "discarded")
NUM_TOKENS = 60
NUM_SESSIONS = 6
WINDOW = DEFAULT_CHOICE.window
PASS_S = 0.01  # long enough for guesses to come in time


@dataclass
class Pair:
    """One verifier, one drafter, a client, and a tap on what the drafter sends."""

    verifier: Verifier
    drafter: Drafter
    draft_model: FakeDraft
    client: Client
    registry: CollectorRegistry
    sent: list[Draft] = field(default_factory=list)

    def tap(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, Draft):
            self.sent.append(message)

    def count(self, name: str, **labels: str) -> int:
        return int(self.registry.get_sample_value(f"dsd_{name}_total", labels) or 0)

    def fates(self, service: str) -> dict[str, int]:
        return {fate: self.count(f"{service}_guesses", fate=fate) for fate in FATES}

    async def generate(self, number: int, drafter_id: str | None) -> Generated:
        return await self.client.generate(
            (number + 1, 2, 3), verifier_id=self.verifier.instance_id, drafter_id=drafter_id, max_tokens=NUM_TOKENS
        )

    async def generate_all(self, drafter_id: str | None) -> list[Generated]:
        """Texts of all sessions at once, checked; returns when the drafter has closed them too."""
        answers = await asyncio.gather(*(self.generate(number, drafter_id) for number in range(NUM_SESSIONS)))
        for number, generated in enumerate(answers):
            assert generated.token_ids == answer((number + 1, 2, 3), NUM_TOKENS)
        await until(lambda: not len(self.drafter.table) and not len(self.verifier.table))
        return answers


@asynccontextmanager
async def running(network: Network) -> AsyncIterator[Pair]:
    registry, draft_model = CollectorRegistry(), FakeDraft()
    verifier_bus, drafter_bus = await network.join(CollectorRegistry()), await network.join(CollectorRegistry())
    outside = await network.join(CollectorRegistry())
    verifier_id, drafter_id = subjects.new_instance_id("cloud"), subjects.new_instance_id("edge")
    verifier_settings = VerifierSettings(target="fake", name="cloud")
    drafter_settings = DrafterSettings(draft="fake", name="edge")
    engine = fake_engine(FakeTarget(pass_s=PASS_S))
    verifier = Verifier(verifier_id, verifier_settings, engine, verifier_bus, VerifierMetrics(registry))
    drafter = Drafter(drafter_id, drafter_settings, draft_model, drafter_bus, DrafterMetrics(registry))
    pair = Pair(verifier, drafter, draft_model, Client(outside), registry)
    await outside.subscribe(subjects.inbox("verifier", verifier_id), pair.tap)
    await pair.client.start()
    tasks = [asyncio.create_task(verifier.run()), asyncio.create_task(drafter.run())]
    try:
        await pair.client.wait_for({verifier_id, drafter_id})
        yield pair
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def pair(network: Network) -> AsyncIterator[Pair]:
    async with running(network) as pair:
        yield pair


@pytest.mark.parametrize("wrong_every", [1, 2, 5, 1000])
async def test_every_guess_has_one_fate_at_the_drafter_and_at_the_verifier(pair: Pair, wrong_every: int) -> None:
    pair.draft_model.is_right = lambda position: position % wrong_every > 0
    answers = await pair.generate_all(pair.drafter.instance_id)
    of_drafter, of_verifier = pair.fates("drafter"), pair.fates("verifier")
    drafted = pair.count("drafter_drafted_tokens")
    assert drafted == sum(of_drafter.values())
    assert drafted > NUM_SESSIONS
    heard = [
        (draft.session_id, draft.epoch, draft.base + i) for draft in pair.sent for i in range(len(draft.token_ids))
    ]
    num_too_late = WINDOW * pair.count("verifier_dropped_messages", reason="closed")  # at most: drafts behind a Close
    # What was sent twice may count twice.
    assert len(set(heard)) - num_too_late <= sum(of_verifier.values()) <= len(heard)
    assert of_drafter["accepted"] == of_verifier["accepted"]
    assert sum(generated.tally.accepted for generated in answers) == of_verifier["accepted"]
    if wrong_every == 1:
        assert of_verifier["accepted"] == of_verifier["late"] == 0
    if wrong_every >= 5:  # with less, a right guess behind a wrong one comes late: the verifier did not wait
        assert of_verifier["accepted"] > 0


async def test_without_a_drafter_nothing_is_counted(pair: Pair) -> None:
    await pair.generate_all(None)
    assert pair.sent == []
    assert sum(pair.fates("verifier").values()) == pair.count("drafter_drafted_tokens") == 0


async def test_a_session_cut_off_in_the_middle_leaves_no_guess_without_a_fate(pair: Pair) -> None:
    pair.draft_model.is_right = lambda position: position % 4 > 0
    cut_off = asyncio.create_task(pair.generate(7, pair.drafter.instance_id))
    await until(lambda: pair.count("drafter_drafted_tokens") > 8)
    cut_off.cancel()
    await asyncio.gather(cut_off, return_exceptions=True)
    await until(lambda: not len(pair.drafter.table) and not len(pair.verifier.table))
    assert pair.count("drafter_drafted_tokens") == sum(pair.fates("drafter").values())
    await pair.generate_all(pair.drafter.instance_id)
