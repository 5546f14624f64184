"""Asks one system, or in turn all systems of a cell, the same prompts.

Invariant: only the asked system and this process compute meanwhile. Answers during which something else computed, or of
which one failed, are void: the system is asked again. If that does not help, the round is void, or, of a system that
fails, its part of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks.harness.latency import OK, RequestSample
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_text
from benchmarks.load import processor_time
from benchmarks.load.processor_time import foreign_share, is_void
from benchmarks.peers.cells import ANSWER_TOKENS, WARM_UP_TOKENS, Cell
from benchmarks.peers.results import Answers
from benchmarks.peers.serving import Way
from client.wire import AnswerOptions

ASK_S = 300.0  # for one system's part of a round, and more for long prompts
LEAST_PREFILL = 50.0  # tokens/s of all clients together
SETTLE_S = 0.2  # before a system is stopped: its drafters learn that the answers have ended
MAX_ATTEMPTS = 3  # at it


class Void(RuntimeError):
    """Why answers don't count: something else computed meanwhile."""


class Failed(Void):
    """The system itself gave no answers."""


async def ask_all(
    ways: Mapping[str, Way],
    prompts: Sequence[str],
    warm_up: Sequence[str],
    cell: Cell,
    order: random.Random,
    tell: Callable[[str], None],
    stop_all: Callable[[], None],
    *,
    may_be_busy: bool,
) -> dict[str, Answers] | None:
    """A round, in random order, without the systems that failed; None if it is void.

    warm_up: prompts of the answers before. tell: of void answers. stop_all: stops all servers, those that started again
    too. may_be_busy: other programs may compute.
    """
    found: dict[str, Answers] = {}
    for name in order.sample(list(ways), len(ways)):
        failures: list[Void] = []
        for _ in range(MAX_ATTEMPTS):
            stop_all()
            try:
                answers = await ask(ways[name], prompts, warm_up, cell)
                if is_void(answers.foreign_share, answers.seconds) and not may_be_busy:
                    raise Void(f"{name}: something else used {answers.foreign_share:.1%} of a core")
            except Void as error:
                tell(str(error))
                failures.append(error)
            else:
                found[name] = answers
                break
        if name not in found and not all(isinstance(each, Failed) for each in failures):
            return None
    return {name: found[name] for name in ways if name in found} or None


async def ask(way: Way, prompts: Sequence[str], warm_up: Sequence[str], cell: Cell) -> Answers:
    """Resumes the system, warms it up with short answers, asks, and stops it again. Raises Void or Failed."""
    most_s = ASK_S + cell.num_clients * cell.prompt_tokens / LEAST_PREFILL
    with on_one_core(), way.server.resumed():
        try:
            async with asyncio.timeout(most_s):
                await way.become_usable()
                await _answers(way, warm_up, WARM_UP_TOKENS, cell.temperature)
                before = processor_time.read(way.server.groups)
                measured = await _answers(way, prompts, ANSWER_TOKENS, cell.temperature)
                after = processor_time.read(way.server.groups)
                await asyncio.sleep(SETTLE_S)
        except TimeoutError as error:
            raise Failed(f"{way.system.name}: {str(error) or f'no answer within {most_s:.0f} s'}") from error
    samples = [sample for sample, _ in measured]
    return Answers(
        seconds=max(each.total_s for each in samples),
        ttft_ms=[each.ttft_ms or 0.0 for each in samples],
        tpot_ms=[each.tpot_ms or 0.0 for each in samples],
        prompt_tokens=[each.num_prompt_tokens for each in samples],
        texts=[hashlib.sha256(text.encode()).hexdigest()[:16] for _, text in measured],
        foreign_share=foreign_share(before, after),
        accepted=sum(each.accepted + each.late for each in samples),
        rejected=sum(each.rejected for each in samples),
    )


async def _answers(
    way: Way, prompts: Sequence[str], num_tokens: int, temperature: float
) -> list[tuple[RequestSample, str]]:
    """Of all prompts, asked at once."""
    started = time.monotonic()

    async def one(number: int, prompt: str) -> tuple[RequestSample, str]:
        seed = number if way.system.engine else None  # vLLM refuses seeds on a CPU
        options = AnswerOptions(num_tokens, temperature, seed=seed, speculation=way.speculation)
        template = RequestTemplate(way.model, options, ignore_eos=True)
        async with connected(way.server.url, next(way.keys)) as gateway:
            return await measure_text(gateway, template, ScheduledRequest(number, prompt, started, started))

    measured = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    for sample, _ in measured:
        if sample.status != OK or sample.num_tokens != num_tokens or not sample.ttft_ms or not sample.tpot_ms:
            raise Failed(f"{way.system.name}: a request failed: {sample.status}, {sample.num_tokens} tokens")
    return measured


@contextmanager
def on_one_core() -> Iterator[None]:
    """This thread, the client, computes on the first core meanwhile, where models of one thread are not."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
