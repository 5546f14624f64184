"""`make gpu-check`: what a CUDA device does to the texts, what a pass costs there, and the demo on it.

On a GPU kernels split their sums by shape, so that the same text may differ where two logits nearly tie. How often is
therefore measured and printed, not demanded; demanded is that the tokens are right by a plain float32 forward pass, and
that the demo answers. Exit status 0: all of it is so, or there is no CUDA device.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from services.cloud_verifier.torch_engine.model import Row, TargetModel, load_target
from services.edge_drafter.model import DraftModel, load_draft
from services.gateway.text.tokenizer import load_tokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from shared.runtime.home import default_models_dir
from tests.e2e.harness import running
from tests.e2e.prompts import read_prompts
from tests.e2e.ways import ALONE, SAMPLINGS, Way, texts
from tests.e2e.yardstick import PlainModel

WAYS = (ALONE, Way(0, num_at_once=8), Way(1), Way(3), Way(8), Way(16), Way(8, num_at_once=8), Way(16, num_at_once=8))
NUM_TOKENS = (1, 2, 4, 8, 16, 32, 64)  # of a pass
NUM_SESSIONS = (1, 4, 8)  # that share them
LOGIT_SHAPES = ((1, 1), (1, 5), (1, 16), (8, 1), (8, 5))  # (sessions, tokens of each) in a pass
CONTEXT, NUM_WARM_UPS = 256, 2
LEAST_BEST = 0.95
PROMPT = "Explain in a few sentences how rain is made."
DEMO_S = 600.0


@dataclass(frozen=True, slots=True)
class TextsOfWay:
    """The texts that one way gave, against those of the verifier alone with one session at a time."""

    way: Way
    sampling: Sampling
    texts: list[list[int]]
    num_accepted: int
    num_differing_texts: int
    num_differing_tokens: int  # everything behind a text's first difference may follow from it

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.texts))


@dataclass(frozen=True, slots=True)
class LogitsOfShape:
    """The logits of one text from passes of one shape, against those of a single pass over all of it."""

    num_sessions: int
    chunk: int
    num_rows: int
    num_differing_rows: int  # in any bit
    num_flips: int  # of the best token
    greatest_difference: float


@dataclass(frozen=True, slots=True)
class PassTime:
    """The median of some passes, draws included."""

    num_sessions: int
    num_tokens: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was measured."""

    fingerprint: str
    texts: list[TextsOfWay]
    logits: list[LogitsOfShape]
    passes: list[PassTime]
    share_of_best: float  # of the greedy tokens, the argmax of a plain float32 forward pass

    @property
    def are_right(self) -> bool:
        return self.share_of_best >= LEAST_BEST


# --- measure ---------------------------------------------------------------------------------------------------------


async def measure(
    models: Path,
    device: str,
    num_prompts: int = 8,
    ways: Sequence[Way] = WAYS,
    num_repeats: int = 20,
    context: int = CONTEXT,
    most_compared: int | None = None,
) -> Findings:
    """Everything but the demo, with the default pair: the target on `device`, the draft on the CPU as always.

    context: tokens before timed passes; most_compared: tokens of the text whose logits are compared.
    """
    tokenizer = load_tokenizer(models / "target")
    prompts = read_prompts(tokenizer)
    prompts = prompts[:: len(prompts) // num_prompts]
    target = load_target(str(models / "target"), device, num_threads=1)
    draft = load_draft(str(models / "draft-int8"), 1)
    texts_of_ways = await measure_texts(target, draft, prompts, tokenizer.stop_ids, ways)
    greedy = texts_of_ways[0].texts
    return Findings(
        target.fingerprint,
        texts_of_ways,
        measure_logits(target, (prompts[0] + greedy[0])[:most_compared]),
        measure_passes(target, num_repeats, context),
        share_of_best(PlainModel(models / "target", device), prompts, greedy),
    )


async def measure_texts(
    target: TargetModel,
    draft: DraftModel,
    prompts: Sequence[list[int]],
    stop_ids: Sequence[int],
    ways: Sequence[Way],
) -> list[TextsOfWay]:
    """The texts of all ways, the first of which is the yardstick."""
    found = []
    async with running(MemoryNetwork().connect, [target], [draft]) as cell:
        for sampling in SAMPLINGS:
            expected: list[list[int]] = []
            for way in ways:
                got, accepted = await texts(cell, prompts, sampling, stop_ids, way)
                expected = expected or got
                counts = [count_differing(*pair) for pair in zip(expected, got, strict=True)]
                found.append(TextsOfWay(way, sampling, got, accepted, sum(map(bool, counts)), sum(counts)))
    return found


def count_differing(expected: Sequence[int], got: Sequence[int]) -> int:
    """Positions at which the texts differ, those that only the longer one has included."""
    differing = sum(ours != theirs for ours, theirs in zip(expected, got, strict=False))
    return differing + abs(len(expected) - len(got))


def measure_logits(target: TargetModel, text: Sequence[int]) -> list[LogitsOfShape]:
    """The text's logits from passes of all LOGIT_SHAPES; every session is fed the same text."""
    whole = next(iter(passes(target, text, 1, len(text))))
    found = []
    for num_sessions, chunk in LOGIT_SHAPES:
        logits = torch.cat(list(passes(target, text, num_sessions, chunk)), dim=1)  # [sessions, text, vocab]
        differing = (logits != whole).any(dim=-1)
        flips = logits.argmax(dim=-1) != whole.argmax(dim=-1)
        gap = (logits - whole).abs().max()
        counts = (differing.numel(), int(differing.sum()), int(flips.sum()))
        found.append(LogitsOfShape(num_sessions, chunk, *counts, float(gap)))
    return found


def passes(target: TargetModel, text: Sequence[int], num_sessions: int, chunk: int) -> Iterator[torch.Tensor]:
    """Logits [sessions, chunk, vocab] of one pass after the other."""
    caches = [target.new_cache(len(text)) for _ in range(num_sessions)]
    for start in range(0, len(text), chunk):
        fed = text[start : start + chunk]
        yield torch.stack(target.forward([Row(cache, start, fed, len(fed), Sampling()) for cache in caches]))


def measure_passes(target: TargetModel, num_repeats: int, context: int) -> list[PassTime]:
    """The time of passes of NUM_TOKENS over NUM_SESSIONS, as evenly as it goes, behind `context` tokens each."""
    rng = random.Random(0)
    ids = [rng.randrange(target.vocab_size) for _ in range(context + max(NUM_TOKENS))]
    caches = [target.new_cache(len(ids)) for _ in range(max(NUM_SESSIONS))]
    for cache in caches:
        target.forward([Row(cache, 0, ids[:context], 0, Sampling())])
    times = []
    for num_sessions in NUM_SESSIONS:
        for num_tokens in NUM_TOKENS:
            shares = [len(range(i, num_tokens, num_sessions)) for i in range(num_sessions)]
            if min(shares):
                pairs = zip(caches, shares, strict=False)
                rows = [Row(cache, context, ids[context:][:share], share, Sampling()) for cache, share in pairs]
                times.append(PassTime(num_sessions, num_tokens, time_pass(target, rows, num_repeats)))
    return times


def time_pass(target: TargetModel, rows: Sequence[Row], num_repeats: int) -> float:
    """Median milliseconds; a step ends with its draws on the host, so a GPU is waited for."""
    elapsed_ms = []
    for _ in range(num_repeats + NUM_WARM_UPS):
        started = time.perf_counter()
        target.step(rows)
        elapsed_ms.append((time.perf_counter() - started) * 1e3)
    return statistics.median(elapsed_ms[NUM_WARM_UPS:])


def share_of_best(plain: PlainModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> float:
    """How many of the answers' tokens are the argmax of a plain float32 forward over the same text."""
    num_best = sum(plain.num_best(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
    return num_best / sum(map(len, answers))


def run_demo(models: Path, device: str, max_tokens: int = 160) -> int:
    """`python -m services --ask` on the device, in a home of its own beside whatever runs already; its exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="dsd-gpu-check-") as home:
        (Path(home) / "models").symlink_to(models.parent, target_is_directory=True)
        command = [sys.executable, "-m", "services", "--ask", PROMPT, "--max-tokens", str(max_tokens)]
        env = os.environ | {"DSD_HOME": home, "DSD_DEVICE": device}
        with subprocess.Popen([*command, "--port", str(port)], env=env) as demo:
            try:
                return demo.wait(DEMO_S)
            except subprocess.TimeoutExpired:
                demo.terminate()  # not killed: it has to end its services
                raise


# --- print -----------------------------------------------------------------------------------------------------------


def table_of_texts(found: Sequence[TextsOfWay]) -> Table:
    table = Table(title="Texts, against the verifier alone")
    for heading in ("temperature", "window", "at once", "tokens", "accepted", "differing texts", "differing tokens"):
        table.add_column(heading, justify="right")
    for one in found:
        facts = [one.sampling.temperature, one.way.window or "off", one.way.num_at_once, one.num_tokens]
        facts += [one.num_accepted, f"{one.num_differing_texts} of {len(one.texts)}", one.num_differing_tokens]
        table.add_row(*map(str, facts))
    return table


def table_of_logits(found: Sequence[LogitsOfShape]) -> Table:
    table = Table(title="Logits of one text, against a single pass over it")
    for heading in ("sessions", "tokens of each", "rows", "not bit-equal", "other best token", "greatest difference"):
        table.add_column(heading, justify="right")
    for one in found:
        facts = [one.num_sessions, one.chunk, one.num_rows, one.num_differing_rows, one.num_flips]
        table.add_row(*map(str, facts), f"{one.greatest_difference:.2g}")
    return table


def table_of_passes(times: Sequence[PassTime]) -> Table:
    """Sessions as columns; empty where a pass has fewer tokens than sessions."""
    table = Table(title="Milliseconds of a pass")
    table.add_column("tokens in all", justify="right")
    for num_sessions in NUM_SESSIONS:
        table.add_column(f"{num_sessions} sessions" if num_sessions > 1 else "1 session", justify="right")
    cells = {(one.num_tokens, one.num_sessions): f"{one.elapsed_ms:.2f}" for one in times}
    for num_tokens in NUM_TOKENS:
        table.add_row(str(num_tokens), *(cells.get((num_tokens, num_sessions), "") for num_sessions in NUM_SESSIONS))
    return table


def show(console: Console, findings: Findings) -> None:
    """Prints all of it."""
    console.print(f"numerics {findings.fingerprint}, torch {torch.__version__}", highlight=False)
    console.print(table_of_texts(findings.texts))
    console.print(table_of_logits(findings.logits))
    console.print(table_of_passes(findings.passes))
    verdict = f"{findings.share_of_best:.1%} of the greedy tokens are a plain float32 forward's argmax"
    console.print(
        verdict if findings.are_right else f"{verdict}: too few, {LEAST_BEST:.0%} are expected", highlight=False
    )


def main() -> int:
    """The exit status."""
    if not torch.cuda.is_available():
        print("not run: no CUDA device")
        return 0
    subprocess.run([sys.executable, "-m", "model_zoo", "prepare"], check=True)
    console, models = Console(), default_models_dir()
    console.print(f"on {torch.cuda.get_device_name()}", highlight=False)
    findings = asyncio.run(measure(models, "cuda"))
    show(console, findings)
    return run_demo(models, "cuda") or int(not findings.are_right)


if __name__ == "__main__":
    sys.exit(main())
