"""The cost of decisions, of every policy and of a real controller."""

from __future__ import annotations

import random

import pytest

from awc.registry import POLICIES
from benchmarks.experiments import decisions
from benchmarks.experiments.decisions import cores_of_controller, cost_of, reports
from shared.protocol import subjects
from shared.protocol.messages import Heartbeat, Message, Service
from shared.protocol.subjects import new_instance_id


@pytest.mark.parametrize("num_pairs", [1, 16])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_measured_alone_and_in_a_batch(name: str, num_pairs: int) -> None:
    assert 0 < cost_of(name, num_pairs) < 10_000


def test_reports_change_from_one_to_the_next() -> None:
    chance, names = random.Random(1), [new_instance_id("cloud")]
    first, second = reports(names, chance), reports(names, chance)
    assert first != second


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("num_drafters", "pairs_each"), [(2, 150), (300, 1)])
async def test_a_controller_is_measured_with_pairs_that_it_knows(num_drafters: int, pairs_each: int) -> None:
    assert 0 < await cores_of_controller(num_drafters, pairs_each, seconds=4) < 2


@pytest.mark.timeout(60)
async def test_a_controller_without_pairs_is_an_invalid_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(kind: type[Message], service: Service, sender_id: str) -> str:
        """Heartbeats come from somebody else than the verifiers, so no verifier is known."""
        return subjects.broadcast(kind, service, new_instance_id("nobody") if kind is Heartbeat else sender_id)

    monkeypatch.setattr(decisions, "broadcast", broadcast)
    with pytest.raises(RuntimeError, match="knows 0 of 300 pairs"):
        await cores_of_controller(2, 150, seconds=4)


@pytest.mark.timeout(60)
async def test_reports_sent_too_slowly_are_an_invalid_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_SLOWDOWN", 0.5)
    with pytest.raises(RuntimeError, match=r"sending the reports of 4 s took"):
        await cores_of_controller(2, 10, seconds=4)
