"""Replays recordings through rules. `python -m tests.autoscaling.replay` prints tables of docs/reports/autoscaling.md.

Invariant: a rule's value is what a real Prometheus finds in the recording at that time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.autoscaling.autoscaler import COMPONENTS, SYNC_S, Autoscaler, ScalingRule, read_rule
from tests.autoscaling.recording import START_S, Recording, read, replayed
from tests.metrics.live import Prometheus

VERIFIERS, GATEWAYS = (read_rule(COMPONENTS / "keda" / f"{name}.yaml") for name in ("verifier", "gateway"))
DRAFTERS = read_rule(COMPONENTS / "keda-drafters" / "drafter.yaml")
BY_QUEUE = replace(VERIFIERS, query="sum(dsd_verifier_queue_tokens)", threshold=256.0)  # in use before utilisation
SHOWN = {"capacity": "sum(dsd_verifier_capacity_sessions)", "running": "sum(dsd_verifier_num_requests_running)"}


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision of a rule. value: of its query; None: there was none."""

    at_s: float
    value: float | None
    replicas: int


@dataclass(frozen=True, slots=True)
class Replay:
    """A recording and the Prometheus that has it."""

    recording: Recording
    source: Prometheus

    async def value(self, query: str, at_s: float) -> float | None:
        values = [float(series["value"][1]) for series in await self.source.series(query, START_S + at_s)]
        assert len(values) <= 1, "KEDA takes one series"
        return values[0] if values else None

    async def decisions(self, rule: ScalingRule, start: int, first_s: float = SYNC_S) -> list[Decided]:
        """What a rule decides, from `start` replicas on."""
        scaler, decided, at_s = Autoscaler(rule, start), [], first_s
        while at_s < self.recording.end_s:
            value = await self.value(rule.query, at_s)
            decided.append(Decided(at_s, value, scaler.decide(at_s, value)))
            at_s += SYNC_S
        return decided

    def clients(self, at_s: float) -> int:
        """How many ask."""
        return [0, *(number for begun_s, number in self.recording.load if begun_s <= at_s)][-1]


async def table(replay: Replay) -> str:
    """A row whenever clients, capacity or replicas change."""
    rules = (VERIFIERS, BY_QUEUE, DRAFTERS)
    columns = [await replay.decisions(rule, rule.min_replicas) for rule in rules]
    lines = [
        "| s | clients | capacity | running | utilisation, sum | verifiers | by queued tokens | late | drafters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    last: tuple[object, ...] = ()
    for by_use, by_queue, by_lateness in zip(*columns, strict=True):
        at_s, clients = by_use.at_s, replay.clients(by_use.at_s)
        capacity, running = [await replay.value(query, at_s) for query in SHOWN.values()]
        now = (clients, capacity, by_use.replicas, by_queue.replicas, by_lateness.replicas)
        if now != last:
            cells = (at_s, clients, capacity, running, by_use.value, by_use.replicas, by_queue.replicas)
            told = " | ".join("–" if cell is None else f"{cell:.0f}" for cell in cells)
            late = "–" if by_lateness.value is None else f"{by_lateness.value:.0f} %"
            lines.append(f"| {told} | {late} | {by_lateness.replicas} |")
        last = now
    return "\n".join(lines)


async def main() -> None:
    for name in ("saturated", "scaled"):
        with TemporaryDirectory(prefix="dsd-replay-") as folder:
            async with replayed(read(name), Path(folder)) as source:
                told = await table(Replay(read(name), source))
        print(f"{name} ({read(name).source})\n\n{told}\n")


if __name__ == "__main__":
    asyncio.run(main())
