"""How many users one verifier of a large target carries at a TPOT objective: python -m benchmarks.experiments.users.

Real services with replayed models: cloud-only, where no session speculates, against DSD with a drafter for each
`--users-per-drafter` users. Each user sends one request after the other. The most users are searched for whose 90th
percentile of TPOT is within the objective.

Two cores can't run the services of hundreds of users in real time. So all times of the models, the link and the
objective are stretched by `--slower`, which leaves numbers of users as they are. What the services themselves take is
not stretched: it counts for less than it would.

Invariant: every figure names its stand-ins. An overrun or an error in a log voids the run.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.cell import RunningCell, exit_on_signals, running
from benchmarks.harness.cell_plan import CellPlan, StandinPlan
from benchmarks.harness.files import REPORTS, ROOT, write_result
from benchmarks.harness.latency import OK, LatencyObjective, RunSummary, summarise
from benchmarks.harness.link import LinkConditions
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.harness.requests import RequestTemplate, connected, measure_request
from benchmarks.load.arrivals import closed_loop
from benchmarks.standins.stretched import stretched
from client.wire import AnswerOptions, DsdOptions
from model_zoo.prompt_file import read_prompts
from shared.data.profiles import read_profile
from shared.runtime.home import default_models_dir

WAYS = {"cloud-only": "off", "DSD": "adaptive"}
ANSWER_TOKENS = 128  # at most, as recorded
STEP = 8  # users: the search ends between two multiples of it
WARM_UP_S = 5.0  # of a load, whose answers do not count
# Limits of the services that would end the search too early.
ENV = {"DSD_MAX_SESSIONS": "512", "DSD_TOKEN_BUDGET": "1024", "DSD_KV_TOKENS": "1000000"}

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Load:
    """What so many users got. Times in ms of the stretched run."""

    num_users: int
    tpot_p90_ms: float
    summary: RunSummary

    def is_within(self, tpot_ms: float) -> bool:
        return self.summary.statuses.keys() == {OK} and self.tpot_p90_ms <= tpot_ms


@dataclass(frozen=True, slots=True)
class Users:
    """most: users within the objective and without a failed request, 0 if not even STEP of them are."""

    most: dict[str, int]
    limit: int  # more were not tried
    loads: dict[str, list[Load]]
    standins: str
    objective_ms: float  # not stretched
    slower: float
    complaints: list[str]
    origin: Origin


async def most_users(holds: Callable[[int], Awaitable[bool]], limit: int) -> int:
    """The most users, a multiple of STEP up to `limit`, for which it holds: doubles, then halves the interval. Pure."""
    good, bad = 0, limit + STEP
    while bad - good > STEP:
        tried = min(max(2 * good, STEP), limit) if bad > limit else (good + bad) // 2 // STEP * STEP
        if await holds(tried):
            good = tried
        else:
            bad = tried
    return good


async def load(cell: RunningCell, speculation: str, num_users: int, seconds: float) -> Load:
    """Users ask for a while; the answers that were asked for after the warm-up count."""
    async with connected(cell.url) as gateway:
        options = AnswerOptions(ANSWER_TOKENS, temperature=0.0, speculation=DsdOptions(speculation))
        send = partial(measure_request, gateway, RequestTemplate(await gateway.first_model(), options))
        samples = await closed_loop(send, read_prompts(DEFAULT_PROMPTS), num_users, None, 0.0, WARM_UP_S + seconds)
    counted = [sample for sample in samples if sample.due_s >= WARM_UP_S] or samples
    summary = summarise(counted, LatencyObjective())
    found = Load(num_users, summary.tpot_ms.p90 if summary.tpot_ms else math.inf, summary)
    told = f"p90 of TPOT {found.tpot_p90_ms:.1f} ms, {summary.tokens_per_s:.0f} tokens/s, {summary.statuses}"
    console.print(f"{speculation}: {num_users} users, {told}")
    return found


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for, and how. recording: int8, int4 or distilled."""

    verifier: Path
    drafter: Path
    recording: str
    objective_ms: float
    rtt_ms: float
    slower: float
    limit: int
    users_per_drafter: int
    seconds: float

    async def run(self) -> Users:
        origin = Origin.here("benchmarks.experiments.users")
        loads: dict[str, list[Load]] = {name: [] for name in WAYS}
        most = {}
        with TemporaryDirectory(prefix="dsd-bench-") as folder:
            plan = self._plan(Path(folder))
            async with running(plan, Path(folder), console.print) as cell:
                for name, speculation in WAYS.items():

                    async def holds(num_users: int, name: str = name, speculation: str = speculation) -> bool:
                        found = await load(cell, speculation, num_users, self.seconds)
                        loads[name].append(found)
                        return found.is_within(self.slower * self.objective_ms)

                    most[name] = await most_users(holds, self.limit)
                complaints = cell.complaints()
            standins = f"{plan.standin}: {read_profile(Path(folder) / 'profile.json').origin}"
        return Users(most, self.limit, loads, standins, self.objective_ms, self.slower, complaints, origin)

    def _plan(self, folder: Path) -> CellPlan:
        profile = folder / "profile.json"
        times = stretched("users", self.verifier, self.drafter, self.slower)
        profile.write_text(times.model_dump_json(), encoding="utf-8")
        recording = ROOT / "recordings" / f"smollm2-135m-{self.recording}.jsonl"
        num_drafters = -(-self.limit // self.users_per_drafter)
        return CellPlan(
            default_models_dir(),
            link=LinkConditions.of_round_trip(self.slower * self.rtt_ms),
            is_pinned=False,
            standin=StandinPlan("replayed", profile, recording),
            drafts=("int8",) * num_drafters,
            env=ENV,
        )


def table(found: Users) -> Table:
    title = f"users of one verifier, p90 of TPOT within {found.objective_ms:g} ms ({found.standins})"
    shown = Table("way", "users", "to cloud-only", "p90 of TPOT there, ms", "tokens/s there", title=title)
    for name, most in found.most.items():
        there = next((each for each in found.loads[name] if each.num_users == most), None)
        base = found.most["cloud-only"]
        speeds = ("", "")
        if there is not None:
            tokens_per_s = there.summary.tokens_per_s * found.slower
            speeds = (f"{there.tpot_p90_ms / found.slower:.1f}", f"{tokens_per_s:.0f}")
        users = f"{most} or more" if most == found.limit else str(most)
        shown.add_row(name, users, f"{most / base:.2f}" if base else "", *speeds)
    for complaint in found.complaints[:5]:
        shown.add_row("void", "", "", complaint)
    return shown


@app.command()
def main(
    verifier: Annotated[Path, typer.Option(help="Profile of the target.")] = ROOT
    / "profiles"
    / "roofline-a100x2-llama-2-70b.json",
    drafter: Annotated[Path, typer.Option(help="Profile of the draft.")] = ROOT
    / "profiles"
    / "roofline-a40-llama-2-7b.json",
    recording: Annotated[str, typer.Option(help="Acceptance: of int8, int4 or distilled.")] = "int4",
    tpot_ms: Annotated[float, typer.Option(min=1, help="Objective of the 90th percentile.")] = 50,
    rtt_ms: Annotated[float, typer.Option(min=0, help="Round trip between drafter and verifier.")] = 20,
    slower: Annotated[float, typer.Option(min=1, help="Factor of all times but the services' own.")] = 4,
    limit: Annotated[int, typer.Option(min=STEP, help="Most users that are tried.")] = 256,
    users_per_drafter: Annotated[int, typer.Option(min=1, help="Users for each drafter.")] = 8,
    seconds: Annotated[float, typer.Option(min=5, help="Of each load, beside its warm-up.")] = 40,
    output: Annotated[Path, typer.Option(help="File for the result.")] = REPORTS / "users.json",
) -> None:
    """Searches for the most users within the objective, cloud-only and with DSD."""
    exit_on_signals()
    search = Search(verifier, drafter, recording, tpot_ms, rtt_ms, slower, limit, users_per_drafter, seconds)
    found = asyncio.run(search.run())
    write_result(output, found)
    Console().print(table(found))


if __name__ == "__main__":
    app()
