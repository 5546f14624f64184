"""Compares DSD with `generate` of transformers: python -m benchmarks.experiments.against_transformers.

Invariant: both answer the same prompts with greedy decoding and the same number of tokens, in turn in one run.
transformers has two threads; DSD runs as `python -m services` starts it, verifier and drafter on a core each. Every
request to DSD has its own API key, so none reuses a KV cache: transformers prefills every prompt as well.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.harness.cell import running
from benchmarks.harness.cell_plan import CellPlan
from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.latency import OK, RequestSample
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio, compare
from benchmarks.harness.prompts import DEFAULT_PROMPTS, encode_prompts
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from client.wire import AnswerOptions
from model_zoo.prompt_file import read_prompts
from services.gateway.admission.api_keys import new_key
from services.gateway.text.tokenizer import load_tokenizer
from shared.runtime.home import default_models_dir

NUM_AT_ONCE = 8
LEAST, AIM = (2.2, 4.0), (3.0, 6.0)  # speed / transformers' with one session, and with NUM_AT_ONCE

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class TransformersComparison:
    """Seconds for the prompts of each round, and the speed of DSD / transformers."""

    num_tokens: int
    theirs_s: list[float]
    alone_s: list[float]
    together_s: list[float]
    alone: Ratio
    together: Ratio
    complaints: list[str]
    origin: Origin


def generating(folder: Path, num_threads: int, max_tokens: int) -> Callable[[list[int]], None]:
    """Plain `generate` of transformers: greedy, `max_tokens` tokens after the prompt."""
    torch.set_num_threads(num_threads)
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16)
    model.eval()

    def run(prompt_ids: list[int]) -> None:
        ids = torch.tensor([prompt_ids])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            min_new_tokens=max_tokens,
        )
        assert made.shape[1] == len(prompt_ids) + max_tokens

    return run


async def answer(url: str, keys: Iterator[str], template: RequestTemplate, prompts: Sequence[str]) -> float:
    """Seconds to answer all prompts at once, each with the next key."""
    started = time.monotonic()

    async def one(number: int, prompt: str) -> RequestSample:
        async with connected(url, next(keys)) as gateway:
            return await measure_request(gateway, template, ScheduledRequest(number, prompt, started, started))

    samples = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    wrong = [each for each in samples if each.status != OK or each.num_tokens != template.options.max_tokens]
    if wrong:
        raise RuntimeError(f"a request failed: {wrong[0].status}, {wrong[0].num_tokens} tokens")
    return time.monotonic() - started


async def run(models: Path, draft: str, num_rounds: int, max_tokens: int, seed: int) -> TransformersComparison:
    """Each round runs the same prompts with transformers one by one, with DSD one by one, and with DSD at once."""
    prompts, order = read_prompts(DEFAULT_PROMPTS), random.Random(seed)
    tokenizer = load_tokenizer(models / "target")
    generate = generating(models / "target", num_threads=2, max_tokens=max_tokens)
    rounds: list[list[float]] = []  # seconds of theirs, alone and together
    own, *others = (new_key() for _ in range(1 + 2 * NUM_AT_ONCE * (num_rounds + 1)))
    keys = iter(others)
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        async with (
            running(CellPlan(models, drafts=(draft,), api_keys=(own, *others)), Path(folder), console.print) as cell,
            connected(cell.url, own) as gateway,
        ):
            template = RequestTemplate(
                await gateway.first_model(), AnswerOptions(max_tokens, temperature=0.0), ignore_eos=True
            )

            async def theirs(texts: list[str]) -> float:
                started = time.monotonic()
                for prompt_ids in encode_prompts(tokenizer, texts):
                    generate(prompt_ids)
                return time.monotonic() - started

            async def alone(texts: list[str]) -> float:
                return sum([await answer(cell.url, keys, template, [text]) for text in texts])

            async def together(texts: list[str]) -> float:
                return await answer(cell.url, keys, template, texts)

            ways = (theirs, alone, together)
            for number in range(num_rounds + 1):
                first = number * NUM_AT_ONCE
                texts = [prompts[(first + each) % len(prompts)] for each in range(NUM_AT_ONCE)]
                took_s = {way: await way(texts) for way in order.sample(ways, 3)}
                rounds.append([took_s[way] for way in ways])
                if number == 0:
                    cell.begin()
                console.print(f"round {number}: {', '.join(f'{each:.1f}' for each in rounds[-1])} s")
            complaints = cell.complaints()
    theirs_s, alone_s, together_s = np.array(rounds[1:]).T
    ratios = [compare(theirs_s[:, None], each[:, None], seed=seed) for each in (alone_s, together_s)]
    origin = Origin.here("benchmarks.experiments.against_transformers")
    times = (theirs_s.tolist(), alone_s.tolist(), together_s.tolist())
    return TransformersComparison(max_tokens, *times, ratios[0], ratios[1], complaints, origin)


def table(found: TransformersComparison) -> Table:
    shown = Table("", "tokens/s", "times transformers'", "limit", "aim", title="against transformers' generate")
    num_tokens = NUM_AT_ONCE * found.num_tokens * len(found.theirs_s)
    shown.add_row("transformers, one by one", f"{num_tokens / sum(found.theirs_s):.1f}", "", "", "")
    rows = (("one session", found.alone_s, found.alone), (f"{NUM_AT_ONCE} at once", found.together_s, found.together))
    for (name, took_s, ratio), least, aim in zip(rows, LEAST, AIM, strict=True):
        shown.add_row(f"DSD, {name}", f"{num_tokens / sum(took_s):.1f}", str(ratio), f"≥ {least}", str(aim))
    for complaint in found.complaints:
        shown.add_row("void", complaint, "", "", "")
    return shown


@app.command()
def main(
    draft: Annotated[str, typer.Option(help="Draft model: int8 or int4.")] = "int8",
    rounds: Annotated[int, typer.Option(min=3, help=f"Rounds of {NUM_AT_ONCE} prompts.")] = 6,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    folder: Annotated[Path, typer.Option(help="Folder for against_transformers.json.")] = REPORTS,
    seed: Annotated[int, typer.Option(help="Seed of the order within a round.")] = 1,
) -> None:
    """Compares the default pair with plain transformers on this machine."""
    found = asyncio.run(run(default_models_dir(), draft, rounds, max_tokens, seed))
    write_result(folder / "against_transformers.json", found)
    Console().print(table(found))


if __name__ == "__main__":
    app()
