"""The part of a chaos run in which one fault hits a calm system at a time, so that its own effect is seen."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from benchmarks.chaos import judging, pauses
from benchmarks.chaos.faults import FaultPlan, Injector
from benchmarks.chaos.load import Run
from benchmarks.chaos.questions import KEYS, Asking, Lengths, make_questions
from benchmarks.chaos.records import SinglePart
from benchmarks.harness.latency import OK
from services.gateway.text.tokenizer import TargetTokenizer

NUM_CLIENTS = 2
NUM_QUESTIONS = 24
LENGTHS = Lengths((20, 200), (48, 64))
REPEATS = 2  # faults of each kind


def make_askings(tokenizer: TargetTokenizer, texts: Sequence[str], seed: int) -> list[Asking]:
    """Streams, each question with two API keys."""
    questions = make_questions(tokenizer, texts, NUM_QUESTIONS, seed, LENGTHS)
    return [
        Asking(number, question, True, key)
        for number, (key, question) in enumerate(itertools.product(KEYS[:2], questions))
    ]


async def one_at_a_time(run: Run, askings: Sequence[Asking], plan: FaultPlan) -> tuple[SinglePart, list[str]]:
    """What the faults did, and violations. Raises RuntimeError if an answer fails without faults."""
    run.tell(f"{len(askings)} requests without faults, then one fault at a time")
    calm = await run.ask(askings, NUM_CLIENTS)
    expected = {record.question: record.answer for record in calm}
    if any(record.answer.status != OK for record in calm):
        raise RuntimeError("an answer failed without faults")
    over = asyncio.Event()
    injector = Injector(run.system, plan, run.now, run.tell)
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(
            run.ask(itertools.takewhile(lambda _: not over.is_set(), itertools.cycle(askings)), NUM_CLIENTS)
        )
        await injector.one_by_one(REPEATS * len(plan.kinds))
        over.set()
        records = await asking
    usual_gap_s = pauses.longest_gap_s(pauses.attempts_of(calm))
    usual_ttft_s = max(pauses.first_piece_s(attempt) for attempt in pauses.attempts_of(calm))
    texts, differences = judging.compare(records, expected)
    failed, retried, unexcused = judging.failures(records, injector.faults)
    kinds, too_long = pauses.by_single(injector.faults, records, usual_gap_s, usual_ttft_s)
    part = SinglePart(usual_gap_s, usual_ttft_s, texts, failed, retried, kinds, injector.faults)
    return part, [f"one at a time: {each}" for each in (*differences, *unexcused, *too_long)]
