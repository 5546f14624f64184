"""An operator's questions, answered by the dashboards' panels and by the cells of the console's page, of a live system.

One drafter computes slowly, another is far away, one verifier takes a single session, the gateway four. The questions
are those of docs/monitoring.md, *Where to look*.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from benchmarks.harness.cell_plan import standin_name
from benchmarks.harness.link import LinkConditions
from client.wire import DsdOptions
from deploy.grafana.every import DASHBOARDS
from shared.data.profiles import Profile, StepTimes
from tests.console.browser import Row, Visit, chromium, figure, visit_of
from tests.metrics.live import LOOK_S, TIMES, LiveSystem, Prometheus, live_system, prometheus, standin_plan
from tests.metrics.reading import SPEED

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.long]

GOOD, SLOW, FAR = "drafter-0", "drafter-1", "drafter-2"
ROOMY, FULL = "verifier-0", "verifier-1"
STEP_MS, RTT_MS = 90.0, 300.0  # of the slow one, of the far one; a pass takes 40 ms
RATE_INTERVAL, SEEN_S, ANNOUNCE_S = "15s", 90.0, 5.0 / SPEED
OFF, WHERE_IT_WAITED = DsdOptions("off"), "Why was an answer slow? Where it waited"
Figures: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Operator:
    """Sees what Grafana would show, and the console in a browser."""

    system: LiveSystem
    prometheus: Prometheus
    console: Visit

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

    async def fleet(self, caption: str) -> list[Row]:
        """The rows of a table of the console's fleet."""
        await self.console.open("fleet", "#fleet-tables tbody tr")
        return await self.console.table_again(caption)

    async def column(self, caption: str, column: str) -> dict[str, float]:
        """Of the console's drafters or verifiers, by name; of `sessions` those that are open."""
        rows = await self.fleet(caption)
        found = {row["name"].removeprefix(standin_name("")): figure(row[column].split(" / ")[0]) for row in rows}
        return {name: each.value for name, each in found.items() if each is not None}

    async def gain(self, drafter: str) -> float:
        """In the console's table of pairs, the best of a drafter's verifiers."""
        rows = await self.fleet("Pairs and their windows")
        gains = [figure(row["gain (1 min)"]) for row in rows if row["drafter"] == standin_name(drafter)]
        return max((each.value for each in gains if each is not None), default=0.0)

    async def requests(self, **cells: str) -> list[Row]:
        """The rows of the console's list of requests with these cells, the newest first."""
        await self.console.open("requests", "#refresh")
        rows = await self.console.table_again("Requests, the newest first", "#refresh")
        return [row for row in rows if cells.items() <= row.items()]

    async def timeline(self, row: Row) -> dict[str, float]:
        """Opens the timeline of a request; the phases of its time in milliseconds."""
        view = row["link"].removeprefix("#")
        await self.console.open(view, f".timeline h3:has-text('{view.removeprefix('requests/')[:8]}')")
        return {name: each.value for name, each in (await self.console.phases()).items()}

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
        "controller": {"DSD_ANNOUNCE_S": str(ANNOUNCE_S)},
        SLOW: {"DSD_STANDIN_PROFILE": str(profile)},
        FULL: {"DSD_MAX_SESSIONS": "1"},
    }
    async with (
        live_system(plan, folder / "system", settings, far=(FAR,)) as system,
        prometheus(system, folder / "prometheus") as scraping,
        chromium() as browser,
        visit_of(browser, system.url("gateway")) as console,
    ):
        yield Operator(system, scraping, console)


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
        return [await operator.column("Drafters", column) for column in ("draft step", "round trip", "in time")]

    async with AsyncExitStack() as stack:
        for name in (GOOD, SLOW, FAR):
            await stack.enter_async_context(operator.system.load(1, drafted_by(name)))
        for look in (on_dashboard, on_console):
            await operator.sees(look, tells_drafters_apart)


async def test_is_speculation_worth_it_now(operator: Operator) -> None:
    """The gains shown agree with the TPOT of answers with and without speculation."""
    tpots, shown, on_console = {}, {}, {}
    for name, options in (("", OFF), (GOOD, drafted_by(GOOD)), (SLOW, drafted_by(SLOW))):
        before = {row["link"] for row in await operator.requests()} if tpots else set()
        await operator.console.page.reload()  # a gain is of the time that the page is open
        await operator.fleet("Drafters")
        async with operator.system.load(1, options):
            await asyncio.sleep(25.0)  # longer than the panels look back, and than two answers take
            shown[name] = (await operator.panel("speculation", "Is it worth it now?", "Gain"))[""]
            on_console[name] = await operator.gain(name) if name else 1.0
        rows = await operator.requests(outcome="length", speculation=options.speculation or "")
        newest = [figure(row["TPOT"]) for row in rows if row["link"] not in before]
        tpots[name] = fmean(tpot.value for tpot in newest if tpot is not None)
    told = f"TPOT {tpots}, gain on the dashboard {shown}, on the console {on_console}"
    true_gain = {name: tpots[""] / tpot for name, tpot in tpots.items()}
    assert true_gain[GOOD] > 1.5 > 1.2 > true_gain[SLOW], told
    for gains in (shown, on_console):
        assert all(gains[name] == pytest.approx(true_gain[name], rel=0.25) for name in tpots), told


def tells_verifiers_apart(shown: Figures) -> bool:
    dashboard, console = shown
    return all(shares[FULL] >= 1 > 0.5 > shares[ROOMY] for shares in (dashboard, console))


async def test_which_verifier_is_full(operator: Operator) -> None:
    async def look() -> Figures:
        utilization = await operator.panel("fleet", "Verifiers", "Utilisation")
        rows = await operator.fleet("Verifiers")
        sessions = {
            row["name"].removeprefix(standin_name("")): map(float, row["sessions"].split(" / ")) for row in rows
        }
        return [utilization, {name: num / most for name, (num, most) in sessions.items()}]

    async with operator.system.load(3):
        await operator.sees(look, tells_verifiers_apart)


async def test_why_was_this_answer_slow_it_waited_for_a_slot(operator: Operator) -> None:
    async def look() -> Figures:
        wait = await operator.panel("requests", WHERE_IT_WAITED, "Wait for a slot")
        first = [(row, figure(row["TTFT"])) for row in await operator.requests(outcome="length")]
        return [wait, *(row for row, ttft in first if ttft is not None and ttft.value > 1000)]

    async with operator.system.load(7, OFF):
        _, waited, *_ = await operator.sees(look, lambda shown: len(shown) > 1 and shown[0].get("", 0) > 1)
    phases = await operator.timeline(waited)
    assert phases["before"] > phases["opening"] + phases["prefill"], phases


@pytest.mark.parametrize("name", [SLOW, FAR])
async def test_why_was_this_answer_slow_its_guesses_came_late(operator: Operator, name: str) -> None:
    async def look() -> Figures:
        return await operator.requests(drafter=standin_name(name), speculation="static", outcome="length")

    before = len(await look())
    async with operator.system.load(1, drafted_by(name)):
        newest, *_ = await operator.sees(look, lambda shown: len(shown) > before)
    phases, verdicts = await operator.timeline(newest), await operator.console.table("Verdicts")
    accepted, late = (sum(int(each[column]) for each in verdicts) for column in ("accepted", "late"))
    assert accepted < 0.2 * int(newest["tokens"]), "the squares above the line"
    if name == FAR:
        assert late > accepted, "the squares below the line"
    else:
        num_drafts = sum(each["draft lay"] != "–" for each in verdicts)
        assert num_drafts < 0.1 * len(verdicts), "the lane of drafts is all but empty"
    assert float(newest["tokens/verdict"]) < 1.5
    assert phases["decode"] > 0.8 * sum(phases.values()), phases


async def test_why_was_this_answer_slow_its_verifier_was_lost(operator: Operator) -> None:
    async def look() -> Figures:
        (moves,) = await operator.prometheus.query("sum(increase(dsd_gateway_failovers_total[1m]))")
        for row in (await operator.requests())[:4]:
            await operator.timeline(row)
            if "1 failover" in await operator.console.text(".timeline"):
                return [{"moves": moves}, row]
        return [{"moves": moves}]

    async with operator.system.load(3):
        while (await operator.column("Verifiers", "sessions"))[FULL] < 1:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        operator.system.kill(FULL)
        await operator.sees(look, lambda shown: len(shown) > 1 and shown[0]["moves"] > 0)
    lines = await operator.console.page.locator(".timeline .mark text").all_text_contents()
    assert {"absent", "gone", "poll"} & {line.split()[0] for line in lines}, "the red lines"
    steps = await operator.console.table("Other messages")
    assert [step["what"] for step in steps].count("opened") == 2
