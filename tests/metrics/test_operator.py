"""An operator's questions, answered by the dashboards' panels and by what the console shows, of a live system.

One drafter computes slowly, another is far away, one verifier takes a single session, the gateway four. The questions
are those of docs/monitoring.md, *Where to look*.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import aiohttp
import pytest
import pytest_asyncio

from benchmarks.harness.cell_plan import standin_name
from benchmarks.harness.link import LinkConditions
from client.wire import DsdOptions
from deploy.grafana.every import DASHBOARDS
from shared.data.profiles import Profile, StepTimes
from tests.metrics.live import LOOK_S, TIMES, LiveSystem, Prometheus, live_system, prometheus, standin_plan

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.long]

GOOD, SLOW, FAR = "drafter-0", "drafter-1", "drafter-2"
ROOMY, FULL = "verifier-0", "verifier-1"
STEP_MS, RTT_MS = 90.0, 300.0  # of the slow one, of the far one; a pass takes 40 ms
RATE_INTERVAL, SEEN_S = "15s", 90.0
OFF, WHERE_IT_WAITED = DsdOptions("off"), "Why was an answer slow? Where it waited"
Figures: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Operator:
    """Sees what Grafana would show, and what the console asks for."""

    system: LiveSystem
    prometheus: Prometheus
    http: aiohttp.ClientSession

    async def panel(self, board: str, row: str, title: str) -> dict[str, float]:
        """The newest values of a panel, by instance."""
        (found,) = [
            panel
            for dashboard in DASHBOARDS
            for each in dashboard.rows
            for panel in each.panels
            if (dashboard.name, each.title.split(":")[0], panel.title) == (board, row, title)
        ]
        expr = found.queries[-1].expr.replace("$__rate_interval", RATE_INTERVAL)
        values = await self.prometheus.labelled(expr)
        by_instance: dict[str, float] = {}
        for labels, value in values:
            if math.isfinite(value):
                name = labels.get("instance", "")
                by_instance[name] = max(value, by_instance.get(name, 0.0))
        return by_instance

    async def fleet(self, service: str, figure: str) -> dict[str, float]:
        """A column of the console's table of drafters or verifiers, by name."""
        peers = (await self._get("dsd/fleet"))[service]
        return {each["name"].removeprefix(standin_name("")): each[figure] for each in peers if each[figure] is not None}

    async def gain(self, drafter: str) -> float:
        """As the console's table of pairs has it, the best of a drafter's verifiers."""
        reasons = [
            pair["reason"]
            for pair in (await self._get("dsd/fleet"))["windows"]
            if pair["drafter_id"].startswith(f"{standin_name(drafter)}.") and pair["reason"]
        ]
        return max((each["pass_ms"] / each["tpot_ms"] for each in reasons if each["tpot_ms"]), default=0.0)

    async def requests(self, **fields: str) -> list[dict[str, Any]]:
        """The rows of the console's list of requests with these fields."""
        rows = (await self._get("v1/dsd/requests"))["requests"]
        return [row for row in rows if fields.items() <= row.items()]

    async def timeline(self, request: dict[str, Any]) -> dict[str, Any]:
        return await self._get(f"v1/dsd/requests/{request['id']}")

    async def sees(self, look: Callable[[], Awaitable[Figures]], holds: Callable[[Figures], bool]) -> Figures:
        """Looks again until what is shown answers the question."""
        shown: Figures = []
        try:
            async with asyncio.timeout(SEEN_S):
                while not holds(shown := await look()):  # noqa: ASYNC110  other processes set no event here
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            pytest.fail(f"this answers nothing: {shown}")
        return shown

    async def _get(self, path: str) -> dict[str, Any]:
        async with self.http.get(f"{self.system.url('gateway')}/{path}") as response:
            told: dict[str, Any] = await response.json()
            return told


def drafted_by(name: str) -> DsdOptions:
    return DsdOptions("static", window=8, drafter=standin_name(name))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operator(
    promtool: str, default_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Operator]:
    folder = tmp_path_factory.mktemp("operator")
    plan = replace(
        standin_plan(default_models, folder / "standin"),
        drafts=("int8", "int8", "int8"),
        link=LinkConditions(delay_ms=RTT_MS / 2),
    )
    profile = folder / "slow.json"
    slow = Profile(name="slow", origin="made up", verifier=TIMES.pass_times, drafter=StepTimes(step_ms=STEP_MS))
    profile.write_text(slow.model_dump_json(), encoding="utf-8")
    settings = {
        "gateway": {"DSD_MAX_SESSIONS": "4"},
        SLOW: {"DSD_STANDIN_PROFILE": str(profile)},
        FULL: {"DSD_MAX_SESSIONS": "1"},
    }
    async with (
        live_system(plan, folder / "system", settings, far=(FAR,)) as system,
        prometheus(system, folder / "prometheus") as scraping,
        aiohttp.ClientSession() as http,
    ):
        yield Operator(system, scraping, http)


def tells_drafters_apart(shown: Figures) -> bool:
    """shown: time of a guess, round trip, and how much of what they guess is used or in time, by drafter."""
    guess, round_trip, used = shown
    if not guess.keys() == round_trip.keys() == {GOOD, SLOW, FAR}:
        return False
    return (
        guess[SLOW] > 2 * max(guess[GOOD], guess[FAR])
        and round_trip[FAR] > 2 * max(round_trip[GOOD], round_trip[SLOW])
        and used.get(GOOD, 0.0) > 2 * max(used.get(SLOW, 0.0), used.get(FAR, 0.0))
    )


async def test_which_drafter_is_slow(operator: Operator) -> None:
    async def on_dashboard() -> Figures:
        titles = "Time of a guess", "Round trip", "Used"
        return [await operator.panel("fleet", "Drafters", title) for title in titles]

    async def on_console() -> Figures:
        return [await operator.fleet("drafters", figure) for figure in ("step_ms", "rtt_ms", "in_time")]

    async with AsyncExitStack() as stack:
        for name in (GOOD, SLOW, FAR):
            await stack.enter_async_context(operator.system.load(1, drafted_by(name)))
        for look in (on_dashboard, on_console):
            await operator.sees(look, tells_drafters_apart)


async def test_is_speculation_worth_it_now(operator: Operator) -> None:
    """The gain shown agrees with the TPOT of the same questions without speculation."""
    tpots, shown, on_console = {}, {}, {}
    for name, options in (("", OFF), (GOOD, drafted_by(GOOD)), (SLOW, drafted_by(SLOW))):
        async with operator.system.load(1, options):
            await asyncio.sleep(25.0)  # longer than the panels look back, and than two answers take
            shown[name] = (await operator.panel("speculation", "Is it worth it now?", "Gain"))[""]
            on_console[name] = await operator.gain(name) if name else 1.0
        rows = await operator.requests(speculation=options.speculation or "")
        newest = [row["tpot_ms"] for row in rows if row["tpot_ms"]][:2]
        tpots[name] = median(newest)
    told = f"TPOT {tpots}, gain on the dashboard {shown}, on the console {on_console}"
    true_gain = {name: tpots[""] / tpot for name, tpot in tpots.items()}
    assert true_gain[GOOD] > 1.5 > 1.2 > true_gain[SLOW], told
    assert all(shown[name] == pytest.approx(true_gain[name], rel=0.25) for name in tpots), told
    assert on_console[GOOD] > 1.3 > 1.2 > on_console[SLOW], told


def tells_verifiers_apart(shown: Figures) -> bool:
    dashboard, num_sessions, max_sessions = shown
    console = {name: num_sessions[name] / max_sessions[name] for name in num_sessions}
    return all(shares[FULL] >= 1 > 0.5 > shares[ROOMY] for shares in (dashboard, console))


async def test_which_verifier_is_full(operator: Operator) -> None:
    async def look() -> Figures:
        utilization = await operator.panel("fleet", "Verifiers", "Utilisation")
        return [utilization] + [await operator.fleet("verifiers", each) for each in ("num_sessions", "max_sessions")]

    async with operator.system.load(3):
        await operator.sees(look, tells_verifiers_apart)


async def test_why_was_this_answer_slow_it_waited_for_a_slot(operator: Operator) -> None:
    async def look() -> Figures:
        wait = await operator.panel("requests", WHERE_IT_WAITED, "Wait for a slot")
        return [wait, *(row for row in await operator.requests(outcome="length") if row["started_ms"] > 1000)]

    async with operator.system.load(7, OFF):
        _, waited, *_ = await operator.sees(look, lambda shown: len(shown) > 1 and shown[0].get("", 0) > 1)
    phases = phases_of(await operator.timeline(waited))
    assert phases["before"] > phases["opening"] + phases["prefill"], phases


@pytest.mark.parametrize("name", [SLOW, FAR])
async def test_why_was_this_answer_slow_its_guesses_came_late(operator: Operator, name: str) -> None:
    async def look() -> Figures:
        return await operator.requests(drafter=standin_name(name), speculation="static", outcome="length")

    before = len(await look())
    async with operator.system.load(1, drafted_by(name)):
        newest, *_ = await operator.sees(look, lambda shown: len(shown) > before)
    told = await operator.timeline(newest)
    accepted, late = (sum(each[what] for each in told["verdicts"]) for what in ("accepted", "late"))
    num_drafts = sum(each["held_ms"] is not None for each in told["verdicts"])
    assert accepted < 0.2 * told["num_tokens"], "as the page says"
    if name == FAR:
        assert late > accepted, "squares below the line"
    else:
        assert num_drafts < 0.1 * len(told["verdicts"]), "the lane of drafts is all but empty"
    assert told["num_tokens"] < 1.5 * told["num_verdicts"], "tokens of a pass"
    phases = phases_of(told)
    assert phases["decode"] > 0.8 * told["total_ms"], phases


async def test_why_was_this_answer_slow_its_verifier_was_lost(operator: Operator) -> None:
    async def look() -> Figures:
        (moves,) = await operator.prometheus.query("sum(increase(dsd_gateway_failovers_total[1m]))")
        return [{"moves": moves}, *(row for row in await operator.requests() if row["num_failovers"])]

    async with operator.system.load(3):
        while (await operator.fleet("verifiers", "num_sessions"))[FULL] < 1:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        operator.system.kill(FULL)
        _, moved, *_ = await operator.sees(look, lambda shown: len(shown) > 1 and shown[0]["moves"] > 0)
    steps = [step["kind"] for step in (await operator.timeline(moved))["steps"]]
    assert {"absent", "gone", "poll"} & set(steps), "the red lines"
    assert steps.count("opened") == 2


def phases_of(told: dict[str, Any]) -> dict[str, float]:
    """The phases of a timeline as the page draws them, in milliseconds."""
    opened = next((step["at_ms"] for step in told["steps"] if step["kind"] == "opened"), told["started_ms"])
    last = max(each["at_ms"] for each in told["verdicts"] if each["num_tokens"])
    bounds = [0.0, told["started_ms"], min(opened, told["ttft_ms"]), told["ttft_ms"], last, told["total_ms"]]
    names = ("before", "opening", "prefill", "decode", "end")
    return {name: until - since for name, (since, until) in zip(names, pairwise(bounds), strict=True)}
