"""What an answer reports on its speculation: `dsd`, and `metrics` under vLLM's names."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.http.answer import acceptance
from shared.protocol.messages import Tally
from tests.gateway.conftest import World
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat, events

NAMES = {
    "time_to_first_token_ms",
    "generation_time_ms",
    "queue_time_ms",
    "mean_itl_ms",
    "tokens_per_second",
    "speculative_decoding",
}


async def whole(world: World, **options: Any) -> dict[str, Any]:
    return await (await world.client.post(CHAT, json=chat(**options))).json()


async def test_accepted_guesses_are_told_by_their_place_in_a_pass(world: World) -> None:
    await world.verifier()
    await world.drafter()
    body = await whole(world)
    dsd, metrics = body["dsd"], body["metrics"]
    positions = dsd["accepted_per_position"]
    assert sum(positions) == dsd["accepted"] > 0
    assert positions == sorted(positions, reverse=True)
    assert set(metrics) == NAMES
    assert (metrics["time_to_first_token_ms"], metrics["mean_itl_ms"]) == (dsd["ttft_ms"], dsd["tpot_ms"])
    assert 0 < metrics["queue_time_ms"] < metrics["time_to_first_token_ms"]
    assert metrics["tokens_per_second"] > 0
    speculative = metrics["speculative_decoding"]
    assert speculative["num_accepted_draft_tokens"] == dsd["accepted"]
    histogram = speculative["acceptance_histogram"]
    assert [sum(histogram[place + 1 :]) for place in range(len(positions))] == positions
    assert (sum(histogram), len(histogram) - 1) == (speculative["num_spec_steps"], speculative["num_spec_tokens"])


async def test_the_usage_chunk_of_a_stream_tells_it_and_no_other(world: World) -> None:
    await world.verifier()
    await world.drafter()
    asked = chat(stream=True, stream_options={"include_usage": True})
    *chunks, last, usage = await events(await world.client.post(CHAT, json=asked))
    assert not any("metrics" in chunk for chunk in (*chunks, last))
    assert set(usage["metrics"]) == NAMES
    assert sum(last["dsd"]["accepted_per_position"]) == last["dsd"]["accepted"]


async def test_several_choices_have_sums_and_as_in_vllm_no_metrics(world: World) -> None:
    await world.verifier()
    await world.drafter()
    body = await whole(world, n=3)
    assert body["metrics"] is None
    positions = [each["accepted_per_position"] for each in body["dsd"]["choices"]]
    longest = max(map(len, positions))
    padded = [each + [0] * (longest - len(each)) for each in positions]
    assert body["dsd"]["accepted_per_position"] == [sum(each) for each in zip(*padded, strict=True)]
    asked = chat(n=2, stream=True, stream_options={"include_usage": True})
    chunks = await events(await world.client.post(CHAT, json=asked))
    assert not any("metrics" in chunk for chunk in chunks)


async def test_without_a_drafter_there_are_times_alone(world: World) -> None:
    await world.verifier()
    body = await whole(world)
    assert (body["dsd"]["accepted_per_position"], body["metrics"]["speculative_decoding"]) == ([], None)
    asked = {"model": body["model"], "prompt": "a", "echo": True, "max_tokens": 0}
    silent = await (await world.client.post(COMPLETIONS, json=asked)).json()
    assert silent["metrics"]["time_to_first_token_ms"] is None


@pytest.mark.parametrize(
    ("histogram", "tally", "told"),
    [
        ([], Tally(late=3), None),
        ([2], Tally(rejected=2, discarded=3), (1.0, 0.0, 2, 0, 5, 0)),
        ([1, 0, 3], Tally(accepted=6, rejected=1, late=1), (2.5, 0.75, 4, 6, 8, 2)),
    ],
)
def test_figures_are_those_of_vllm(histogram: list[int], tally: Tally, told: tuple[float, ...] | None) -> None:
    figures = acceptance(histogram, tally)
    assert told == (
        figures
        and (
            figures.mean_acceptance_length,
            figures.draft_acceptance_rate,
            figures.num_spec_steps,
            figures.num_accepted_draft_tokens,
            figures.num_draft_tokens,
            figures.num_spec_tokens,
        )
    )
