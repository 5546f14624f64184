"""A whole chaos run: undisturbed answers, faults under load, one fault at a time, the restart of every service in turn.

What is left is looked at behind the faults under load, before other processes take the place of these, and at the end.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.chaos import judging, leftovers, pauses, single
from benchmarks.chaos.faults import SIGNALS, not_runnable
from benchmarks.chaos.load import Askings, Load, Run
from benchmarks.chaos.questions import KEYS, TIMES_ASKED, asked, make_questions, undisturbed
from benchmarks.chaos.records import ChaosResult, Fault, RequestRecord, RollingFigures
from benchmarks.chaos.system import ChaosPlan, ChaosSystem, running
from benchmarks.harness.cell import write_api_keys
from benchmarks.harness.latency import OK
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import load_tokenizer

DRAIN_S = 300.0  # answers are slow while verifiers start again
ERROR = "(see "  # in what the supervisor tells of an error in a log


async def run(
    plan: ChaosPlan, load: Load, tell: Callable[[str], None], logs: Path | None = None
) -> tuple[ChaosResult, list[RequestRecord]]:
    """Raises TimeoutError if the system does not start, RuntimeError if an undisturbed answer fails. logs: a folder
    that does not exist, for a copy of all logs."""
    tokenizer = load_tokenizer(plan.models / "target")
    num_questions, texts = math.ceil(load.num_requests / TIMES_ASKED), read_prompts(DEFAULT_PROMPTS)
    questions = make_questions(tokenizer, texts, num_questions, load.seed, load.lengths)
    askings = Askings(
        calm=undisturbed(questions),
        loaded=asked(questions, load.num_requests, load.seed),
        single=single.make_askings(tokenizer, texts, load.seed) if load.has_single else [],
    )
    with TemporaryDirectory(prefix="dsd-chaos-") as folder:
        keys = {"DSD_API_KEYS_FILE": str(write_api_keys(Path(folder), KEYS))}
        plan = replace(plan, env={"DSD_DRAIN_S": f"{DRAIN_S:g}", **plan.env, **keys})
        async with running(plan, Path(folder), tell) as system:
            try:
                return await _measured(Run(system, load, tell, time.monotonic()), plan, askings)
            finally:
                if logs is not None:
                    shutil.copytree(Path(folder) / "logs", logs)


async def _measured(run: Run, plan: ChaosPlan, askings: Askings) -> tuple[ChaosResult, list[RequestRecord]]:
    system, load = run.system, run.load
    run.tell(f"{len(askings.calm)} requests without faults")
    calm = await run.ask(askings.calm, load.num_clients, len(askings.calm))
    expected = {record.question: record.answer for record in calm}
    if failed := [record.number for record in calm if record.answer.status != OK]:
        raise RuntimeError(f"without faults no answer came to requests {failed}")
    before = await leftovers.idle_holdings(system)
    not_run = not_runnable(system, plan.fake_clock is not None)
    fault_plan = replace(load.faults, kinds=[kind for kind in load.faults.kinds if kind not in not_run])
    run.tell(f"{len(askings.loaded)} requests under faults, seed {fault_plan.seed}: {', '.join(fault_plan.kinds)}")
    begun_s = run.now()
    records, faults = await run.ask_under_faults(askings.loaded, fault_plan)
    duration_s = run.now() - begun_s
    await system.whole()
    left = last_left = await leftovers.settled(system, before)
    part, part_complaints = (
        await single.one_at_a_time(run, askings.single, fault_plan) if askings.single else (None, [])
    )
    rolled, restarts = await run.ask_while_rolling(askings.loaded) if load.has_rolling else ([], [])
    if part or rolled:
        last_left = await leftovers.settled(system, before)

    usual_s = pauses.longest_gap_s(expected.values())
    texts, differences = judging.compare([*records, *rolled], expected)
    failed_by, retried, unexcused = judging.failures(records, faults)
    rolling, rolling_complaints = rolling_figures(rolled, restarts) if rolled else (None, [])
    all_faults = [*faults, *(part.faults if part else ()), *restarts]
    result = ChaosResult(
        origin=Origin.here("benchmarks.chaos"),
        engine=str(plan.engine.name),
        seed=load.seed,
        duration_s=duration_s,
        texts=texts,
        statuses=dict(Counter(attempt.status for attempt in pauses.attempts_of(records))),
        failed=failed_by,
        retried=retried,
        undisturbed_pause_s=usual_s,
        undisturbed_ttft_s=max(pauses.first_piece_s(attempt) for attempt in expected.values()),
        causes=pauses.by_cause(faults, records, usual_s),
        moves=pauses.by_move(records),
        faults=faults,
        not_run={kind: reason for kind, reason in not_run.items() if kind in load.faults.kinds},
        leftovers=left,
        single=part,
        rolling=rolling,
        last_leftovers=last_left,
        violations=[
            *differences,
            *unexcused,
            *part_complaints,
            *rolling_complaints,
            *leftovers.complaints(left),
            *(f"at the end: {each}" for each in leftovers.complaints(last_left) if last_left is not left),
            *unexpected_ends(system, all_faults),
            *(notice for notice in system.notices if ERROR in notice),
        ],
    )
    return result, records


def rolling_figures(records: Sequence[RequestRecord], restarts: Sequence[Fault]) -> tuple[RollingFigures, list[str]]:
    failed, retried, unexcused = judging.failures(records, restarts)
    longest_s = pauses.longest_gap_s(pauses.attempts_of(records))
    figures = RollingFigures(len(restarts), len(records), failed, retried, longest_s)
    return figures, [f"rolling: {each}" for each in unexcused]


def unexpected_ends(system: ChaosSystem, faults: Sequence[Fault]) -> list[str]:
    """Processes that ended more often than a fault ended them."""
    ended: Mapping[str, int] = Counter(fault.target for fault in faults if fault.kind.partition("-")[0] in SIGNALS)
    surplus = {name: child.num_starts - 1 - ended[name] for name, child in system.children.items()}
    return [f"{name} ended {number} times by itself" for name, number in surplus.items() if number > 0]
