"""The verifier's forward pass against plain transformers: python -m benchmarks.experiments.verify_pass.

Invariant: both compute the same tokens after the same context with the same weights, in one process and in random
order. Plain transformers uses its default attention and its own cache, cropped after each pass.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio, compare, ratio_of_medians
from services.cloud_verifier.torch_engine.model import Row, TargetModel, load_target
from shared.protocol.messages import Sampling
from shared.runtime.home import default_models_dir

SHAPES = ((1, 1), (1, 5), (8, 1), (8, 5))  # sessions, tokens per session
NUM_WARM_UPS = 3
NUM_BLOCKS = 10  # clusters of the bootstrap: consecutive repeats

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class PassRatio:
    """Median times of a pass, and the ratio ours / plain."""

    num_sessions: int
    num_tokens: int
    ours_ms: float
    plain_ms: float
    ratio: Ratio


@dataclass(frozen=True, slots=True)
class VerifyPassResult:
    """All shapes, and the settings."""

    context: int
    dtype: str
    num_threads: int
    passes: list[PassRatio]
    origin: Origin


def our_pass(target: TargetModel, texts: list[list[int]], num_tokens: int) -> Callable[[], object]:
    """The verifier's pass over num_tokens - 1 guesses of each session, draws included."""
    rows = []
    for text in texts:
        cache = target.new_cache(len(text) + num_tokens)
        target.step([Row(cache, 0, text, 0, Sampling())])
        rows.append(Row(cache, len(text), text[:num_tokens], num_tokens, Sampling()))
    return lambda: target.step(rows)


def plain_pass(model: PreTrainedModel, texts: list[list[int]], num_tokens: int) -> Callable[[], object]:
    """The same tokens with transformers, argmax included."""
    cache, num_cached = DynamicCache(config=model.config), len(texts[0])
    ids = torch.tensor([text[:num_tokens] for text in texts])

    @torch.inference_mode()
    def run() -> Tensor:
        logits = model(ids, cache=cache, use_cache=True).logits
        cache.crop(num_cached - cache.get_seq_length())
        best: Tensor = logits.argmax(dim=-1)
        return best

    with torch.inference_mode():
        model(torch.tensor(texts), cache=cache, use_cache=True)
    return run


def measure(passes: list[Callable[[], object]], num_repeats: int, order: random.Random) -> list[list[float]]:
    """Times in milliseconds, [passes][repeats]. Each repeat runs all passes in random order."""
    took: list[list[float]] = [[] for _ in passes]
    for repeat in range(-NUM_WARM_UPS, num_repeats):
        for index in order.sample(range(len(passes)), len(passes)):
            started = time.perf_counter()
            passes[index]()
            if repeat >= 0:
                took[index].append(1000 * (time.perf_counter() - started))
    return took


def in_blocks(figures: list[float]) -> list[list[float]]:
    """[NUM_BLOCKS][repeats of a block]."""
    size = len(figures) // NUM_BLOCKS
    return [figures[start : start + size] for start in range(0, NUM_BLOCKS * size, size)]


@app.command()
def main(
    context: Annotated[int, typer.Option(min=1, help="Cached tokens of each session.")] = 256,
    repeats: Annotated[int, typer.Option(min=NUM_BLOCKS, help="Repeats of each shape.")] = 100,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    folder: Annotated[Path, typer.Option(help="Folder for verify_pass.json.")] = REPORTS,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Times verify passes of the default target."""
    torch.set_num_threads(threads)
    path = str(default_models_dir() / "target")
    plain: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    plain.eval()
    target = load_target(path, "cpu", dtype)
    order = random.Random(seed)
    found = []
    for num_sessions, num_tokens in SHAPES:
        texts = [[order.randrange(1000, 40_000) for _ in range(context)] for _ in range(num_sessions)]
        passes = [our_pass(target, texts, num_tokens), plain_pass(plain, texts, num_tokens)]
        ours, theirs = map(in_blocks, measure(passes, repeats, order))
        ratio = compare(ours, theirs, ratio_of_medians, seed=seed)
        found.append(PassRatio(num_sessions, num_tokens, _median(ours), _median(theirs), ratio))
    result = VerifyPassResult(context, dtype, threads, found, Origin.here("benchmarks.experiments.verify_pass"))
    write_result(folder / "verify_pass.json", result)
    Console().print(table(result))


def _median(figures: list[list[float]]) -> float:
    return float(torch.tensor(figures).flatten().median())


def table(result: VerifyPassResult) -> Table:
    title = f"verify pass, context {result.context}, {result.dtype}, threads: {result.num_threads}"
    shown = Table("sessions x tokens", "ours, ms", "transformers, ms", "ratio", title=title)
    for each in result.passes:
        shape = f"{each.num_sessions} x {each.num_tokens}"
        shown.add_row(shape, f"{each.ours_ms:.1f}", f"{each.plain_ms:.1f}", str(each.ratio))
    return shown


if __name__ == "__main__":
    app()
