"""Recorded metrics through the queries of the manifests, in a real Prometheus, and the replica formula.

The recordings are made by `python -m tests.autoscaling.record`, which says what they hold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise

import pytest
import pytest_asyncio

from tests.autoscaling.autoscaler import SYNC_S, TOLERANCE, Autoscaler, ScalingRule
from tests.autoscaling.recording import read, replayed
from tests.autoscaling.replay import BY_QUEUE, DRAFTERS, GATEWAYS, VERIFIERS, Decided, Replay

pytestmark = pytest.mark.asyncio(loop_scope="module")

SATURATED, SCALED = read("saturated"), read("scaled")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def saturated(promtool: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replay]:
    async with replayed(SATURATED, tmp_path_factory.mktemp("saturated")) as source:
        yield Replay(SATURATED, source)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scaled(promtool: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replay]:
    async with replayed(SCALED, tmp_path_factory.mktemp("scaled")) as source:
        yield Replay(SCALED, source)


def numbers(decided: list[Decided]) -> list[int]:
    """The numbers of replicas in order, each once."""
    return [decided[0].replicas, *(after.replicas for _, after in steps(decided))]


def steps(decided: list[Decided]) -> list[tuple[Decided, Decided]]:
    """The decisions that changed the number, each behind the one before."""
    return [(before, after) for before, after in pairwise(decided) if after.replicas != before.replicas]


def asked_s(replay: Replay, num_clients: int) -> float:
    """When so many clients began to ask."""
    return next(at_s for at_s, number in replay.recording.load if number == num_clients)


async def test_sessions_that_a_full_verifier_has_refused_count(saturated: Replay) -> None:
    """8 sessions allowed, 24 asked for: no figure of the verifier tells of the other 16."""
    at_s = saturated.recording.end_s - 30
    assert await saturated.value("sum(dsd_verifier_num_requests_running)", at_s) == 8
    assert await saturated.value("sum(dsd_verifier_num_requests_waiting)", at_s) == 0
    assert await saturated.value("sum(dsd_gateway_num_requests_waiting)", at_s) == 0
    assert await saturated.value(VERIFIERS.query, at_s) == pytest.approx(100 * 24 / 8)


@pytest.mark.parametrize("offset_s", [0.0, 5.0, 10.0])
async def test_verifiers_are_added_within_two_scrape_intervals(saturated: Replay, offset_s: float) -> None:
    decided = await saturated.decisions(replace(VERIFIERS, min_replicas=1), 1, SYNC_S + offset_s)
    assert numbers(decided) == [1, 4]
    ((_, added),) = steps(decided)
    assert added.at_s - asked_s(saturated, 24) <= 2 * saturated.recording.scrape_s


async def test_queued_tokens_told_of_prompts_alone(saturated: Replay) -> None:
    """The rule before this one: it never asks for more than the two verifiers that are always there."""
    decided = await saturated.decisions(BY_QUEUE, 2)
    assert numbers(decided) == [2]
    assert max(each.value or 0 for each in decided[-10:]) < 32


async def test_replicas_follow_the_load_up_and_down(scaled: Replay) -> None:
    decided = await scaled.decisions(VERIFIERS, 2)
    assert numbers(decided) == [2, 4, 3, 2]
    grown, shrunk, again = [after for _, after in steps(decided)]
    scrape_s, quiet_s = scaled.recording.scrape_s, scaled.recording.load[-1][0]
    assert grown.at_s - asked_s(scaled, 24) <= 2 * scrape_s
    assert shrunk.at_s - quiet_s == pytest.approx(VERIFIERS.window_s, abs=2 * scrape_s)
    assert again.at_s - shrunk.at_s == pytest.approx(VERIFIERS.down_period_s, abs=SYNC_S)


async def test_the_replay_decides_what_was_decided_live(scaled: Replay) -> None:
    scaler = Autoscaler(VERIFIERS, VERIFIERS.min_replicas)
    replicas = [
        scaler.decide(each.at_s, await scaled.value(VERIFIERS.query, each.at_s)) for each in scaled.recording.decisions
    ]
    assert replicas == [each.replicas for each in scaled.recording.decisions]


async def test_a_verifier_that_loads_or_drains_is_no_capacity(scaled: Replay) -> None:
    for name in ("verifier-2", "verifier-3"):
        capacity = scaled.recording.instances[name].series["dsd_verifier_capacity_sessions"]
        assert numbers_of(capacity) == [0, 8, 0]
    per_verifier = 'dsd_verifier_capacity_sessions{instance="verifier-3"}'
    assert await scaled.value(per_verifier, scaled.recording.end_s) is None


def numbers_of(values: list[float | None]) -> list[float]:
    """The values in order, each once."""
    known = [value for value in values if value is not None]
    return [known[0], *(after for before, after in pairwise(known) if after != before)]


async def test_no_session_failed_while_verifiers_came_and_went(scaled: Replay) -> None:
    """A verifier was told to stop with a session that outlasts its drain: it moved."""
    gateway = scaled.recording.instances["gateway"].series
    failed = {name: max(value or 0 for value in values) for name, values in gateway.items() if "failed" in name}
    assert failed
    assert set(failed.values()) == {0}
    assert set(scaled.recording.answers) == {"ok"}
    assert gateway["dsd_gateway_failovers_total"][-1]


async def test_gateways_are_added_by_connections(scaled: Replay) -> None:
    """24 clients are no load for gateways. With a twentieth of the threshold they are."""
    assert numbers(await scaled.decisions(GATEWAYS, 2)) == [2]
    assert numbers(await scaled.decisions(replace(GATEWAYS, threshold=GATEWAYS.threshold / 20), 2)) == [2, 3, 2]
    connections = await scaled.value(GATEWAYS.query, asked_s(scaled, 24) + 60)
    assert connections == 24 + 1  # Prometheus has the other


async def test_a_drafter_is_added_while_guesses_come_too_late(scaled: Replay) -> None:
    decided = await scaled.decisions(DRAFTERS, 1)
    assert numbers(decided) == [1, 2]
    ((before, added),) = steps(decided)
    assert asked_s(scaled, 24) < added.at_s < asked_s(scaled, 24) + 120  # the query's range
    assert before.value is not None
    assert added.value is not None
    assert before.value <= (1 + TOLERANCE) * DRAFTERS.threshold < added.value


async def test_a_drafter_that_guesses_nothing_is_a_reason_to_take_one_away(saturated: Replay) -> None:
    at_s = asked_s(saturated, 24) - 15
    assert await saturated.value(DRAFTERS.query, at_s) == 0
    decided = await saturated.decisions(replace(DRAFTERS, window_s=0.0), 2)
    assert [each.replicas for each in decided if each.at_s <= at_s][-1] == 1


@pytest.mark.parametrize("rule", [VERIFIERS, GATEWAYS, DRAFTERS])
async def test_without_metrics_there_is_no_value(scaled: Replay, rule: ScalingRule) -> None:
    assert await scaled.value(rule.query, -3600.0) is None
