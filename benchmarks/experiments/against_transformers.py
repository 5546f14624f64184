"""Compares DSD with `generate` of transformers: python -m benchmarks.experiments.against_transformers.

Invariant: the same prompts, greedy, the same number of tokens, in one run and in turn. transformers has both cores and
this process to itself; DSD is as `python -m services` starts it, verifier and drafter with a core each. Every request
to DSD has an API key of its own, so that none finds its prompt in a KV cache: transformers reads each anew as well.
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

import msgspec
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.harness import cell as cells
from benchmarks.harness.asking import Asking, Due, connected, measure
from benchmarks.harness.cell_plan import CellPlan
from benchmarks.harness.latency import OK, Sample
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio, compare
from benchmarks.harness.prompts import OWN
from benchmarks.policies.measure import write_keys
from client.wire import AnswerOptions
from model_zoo.prompt_file import read_prompts
from services.gateway.admission.api_keys import new_key
from services.gateway.text.chat_template import ChatMessage
from services.gateway.text.tokenizer import load_tokenizer
from shared.runtime.home import default_models_dir

FOLDER = Path(__file__).parents[2] / "docs" / "reports" / "benchmarks"
NUM_AT_ONCE = 8
LEAST, AIM = (2.2, 4.0), (3.0, 6.0)  # times as fast: one session, and several in all

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """Seconds for the answers to each round's prompts, and how many times as fast DSD is."""

    num_tokens: int
    theirs_s: list[float]
    alone_s: list[float]
    together_s: list[float]
    alone: Ratio
    together: Ratio
    complaints: list[str]
    origin: Origin


def generating(place: Path, num_threads: int, max_tokens: int) -> Callable[[list[int]], None]:
    """Greedy generate of a prompt's ids by transformers as one would write it, to `max_tokens` tokens."""
    torch.set_num_threads(num_threads)
    model: Any = AutoModelForCausalLM.from_pretrained(str(place), dtype=torch.bfloat16)
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


async def answer(url: str, keys: Iterator[str], asking: Asking, prompts: Sequence[str]) -> float:
    """Seconds until all of them are answered, asked at once, each with the next key."""
    started = time.monotonic()

    async def ask(number: int, prompt: str) -> Sample:
        async with connected(url, next(keys)) as gateway:
            return await measure(gateway, asking, Due(number, prompt, started, started))

    samples = await asyncio.gather(*(ask(number, prompt) for number, prompt in enumerate(prompts)))
    wrong = [each for each in samples if each.status != OK or each.num_tokens != asking.options.max_tokens]
    if wrong:
        raise RuntimeError(f"an answer came to {wrong[0].status} with {wrong[0].num_tokens} tokens")
    return time.monotonic() - started


async def run(models: Path, draft: str, num_rounds: int, max_tokens: int, seed: int) -> Finding:
    """A round: the same prompts by transformers one by one, by DSD one by one, and by DSD at once."""
    prompts, order = read_prompts(OWN), random.Random(seed)
    tokenizer = load_tokenizer(models / "target")
    generate = generating(models / "target", num_threads=2, max_tokens=max_tokens)
    theirs_s: list[float] = []
    alone_s: list[float] = []
    together_s: list[float] = []
    own, *others = (new_key() for _ in range(1 + 2 * NUM_AT_ONCE * (num_rounds + 1)))
    keys = iter(others)
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        env = {"DSD_API_KEYS_FILE": str(write_keys(Path(folder), [own, *others]))}
        async with (
            cells.running(CellPlan(models, draft, env=env, api_key=own), Path(folder), console.print) as cell,
            connected(cell.url, own) as gateway,
        ):
            asking = Asking(await gateway.first_model(), AnswerOptions(max_tokens, temperature=0.0), ignore_eos=True)

            async def theirs(texts: list[str]) -> None:
                started = time.monotonic()
                for text in texts:
                    generate(list(tokenizer.encode_chat([ChatMessage(role="user", content=text)])))
                theirs_s.append(time.monotonic() - started)

            async def alone(texts: list[str]) -> None:
                alone_s.append(sum([await answer(cell.url, keys, asking, [text]) for text in texts]))

            async def together(texts: list[str]) -> None:
                together_s.append(await answer(cell.url, keys, asking, texts))

            for number in range(num_rounds + 1):
                first = number * NUM_AT_ONCE
                texts = [prompts[(first + each) % len(prompts)] for each in range(NUM_AT_ONCE)]
                for way in order.sample((theirs, alone, together), 3):
                    await way(texts)
                if number == 0:
                    cell.begin()
                console.print(f"round {number}: {theirs_s[-1]:.1f}, {alone_s[-1]:.1f}, {together_s[-1]:.1f} s")
            complaints = cell.complaints()
    columns = [[[each] for each in figures[1:]] for figures in (theirs_s, alone_s, together_s)]
    return Finding(
        max_tokens,
        theirs_s[1:],
        alone_s[1:],
        together_s[1:],
        compare(columns[0], columns[1], seed=seed),
        compare(columns[0], columns[2], seed=seed),
        complaints,
        Origin.here("benchmarks.experiments.against_transformers"),
    )


def table(found: Finding) -> Table:
    """For a terminal."""
    shown = Table("", "tokens/s", "times transformers'", "must be", "aim", title="against transformers' generate")
    num_tokens = NUM_AT_ONCE * found.num_tokens * len(found.theirs_s)
    shown.add_row("transformers, one after the other", f"{num_tokens / sum(found.theirs_s):.1f}", "", "", "")
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
    folder: Annotated[Path, typer.Option(help="Where against_transformers.json goes.")] = FOLDER,
    seed: Annotated[int, typer.Option(help="Of the order within a round.")] = 1,
) -> None:
    """Compares the default pair with plain transformers on this machine."""
    found = asyncio.run(run(default_models_dir(), draft, rounds, max_tokens, seed))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "against_transformers.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    Console().print(table(found))


if __name__ == "__main__":
    app()
