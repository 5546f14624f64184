"""What a JSON Schema costs, and what speculation brings with one: python -m benchmarks.formats.

Invariant: each round asks the same prompt in every way, in random order, greedily. Time per token is the gateway's own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from aiohttp import ClientSession
from rich.console import Console

from benchmarks.formats.guesses import acceptance_with_and_without
from benchmarks.harness.cell import exit_on_signals, running
from benchmarks.harness.cell_plan import CellPlan
from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio, compare
from services.gateway.formats import structured
from services.gateway.text.chat_template import ChatMessage, Conversation
from services.gateway.text.tokenizer import load_tokenizer
from shared.grammar.grammars import Grammars
from shared.grammar.running_grammar import RunningGrammar
from shared.runtime.home import DEFAULT_MODEL, default_models_dir

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "country": {"type": "string", "maxLength": 40},
        "population": {"type": "integer", "minimum": 0, "maximum": 100_000_000},
        "sights": {"type": "array", "items": {"type": "string", "maxLength": 40}, "minItems": 2, "maxItems": 4},
        "has_airport": {"type": "boolean"},
        "climate": {"enum": ["cold", "mild", "warm", "hot"]},
    },
    "required": ["name", "country", "population", "sights", "has_airport", "climate"],
    "additionalProperties": False,
}
CITIES = ("Oslo", "Cairo", "Lima", "Osaka", "Perth", "Quito", "Turin", "Delhi", "Boston", "Lagos", "Hanoi", "Riga")
MAX_TOKENS = 128
PLAIN_ALONE, SCHEMA_ALONE, PLAIN, SCHEMA_HELPED = "plain, target-only", "schema, target-only", "plain", "schema"
WAYS = {PLAIN_ALONE: (False, "off"), SCHEMA_ALONE: (True, "off"), PLAIN: (False, "adaptive")}
WAYS |= {SCHEMA_HELPED: (True, "adaptive")}
COMPARED = ((SCHEMA_ALONE, PLAIN_ALONE, 0.9), (SCHEMA_HELPED, PLAIN, 0.9), (SCHEMA_HELPED, SCHEMA_ALONE, 1.4))

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class FormatFigures:
    """tpot_ms: of each way in each round. speeds: of the first way to the second."""

    tpot_ms: dict[str, list[float]]
    speeds: dict[str, Ratio]
    acceptance: dict[str, float]
    drafter_knows: float  # share of right guesses where the schema leaves a choice
    drafter_ignorant: float  # the same of a drafter that does not know the schema
    mask_ms: float  # median of a mask's time
    worst_mask_ms: float
    origin: Origin


def wish_of(city: str) -> str:
    return f"Describe {city} as JSON with name, country, population, sights, has_airport and climate."


async def ask(http: ClientSession, url: str, city: str, way: str) -> dict[str, Any]:
    has_schema, speculation = WAYS[way]
    body: dict[str, Any] = {
        "model": DEFAULT_MODEL,
        "messages": [{"role": "user", "content": wish_of(city)}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "dsd": {"speculation": speculation},
    }
    if has_schema:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        answer: dict[str, Any] = await response.json()
        return answer


def mask_times(models: Path) -> list[float]:
    """Milliseconds of each mask along 40 texts that the schema allows."""
    tokenizer, times, rng = load_tokenizer(models / "target"), [], random.Random(1)
    grammars, stop_ids = Grammars(models / "target"), tokenizer.stop_ids
    for _ in range(40):
        started = grammars.start(structured.of_json_schema(SCHEMA))
        running_grammar = RunningGrammar(started, stop_ids, tokenizer.vocab_size)
        for _ in range(MAX_TOKENS):
            begun = time.perf_counter()
            allowed = running_grammar.allowed
            times.append((time.perf_counter() - begun) * 1e3)
            assert allowed is not None
            token_id = int(rng.choice(np.flatnonzero(allowed)))
            if token_id in stop_ids:
                break
            running_grammar.extend([token_id])
    return times


def guess_shares(models: Path, draft: str, texts: Mapping[str, str]) -> tuple[float, float]:
    tokenizer = load_tokenizer(models / "target")
    answers = [
        (
            tokenizer.encode_chat(Conversation([ChatMessage("user", wish_of(city))])),
            tokenizer.encode_text(text, add_special_tokens=False),
        )
        for city, text in texts.items()
    ]
    return acceptance_with_and_without(models, draft, structured.of_json_schema(SCHEMA), tokenizer.stop_ids, answers)


async def measure(num_rounds: int, draft: str, seed: int) -> FormatFigures:
    origin, order = Origin.here("benchmarks.formats"), random.Random(seed)
    tpot: dict[str, list[float]] = {way: [] for way in WAYS}
    fates: dict[str, list[int]] = {way: [0, 0] for way in WAYS}
    texts: dict[str, str] = {}  # with schema, by city
    models = default_models_dir()
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        async with (
            running(CellPlan(models, drafts=(draft,)), Path(folder), console.print) as cell,
            ClientSession() as http,
        ):
            for number in range(-1, num_rounds):  # the first one warms up
                for way in order.sample(list(WAYS), len(WAYS)):
                    city = CITIES[number % len(CITIES)]
                    answer = await ask(http, cell.url, city, way)
                    report = answer["dsd"]
                    if way == SCHEMA_HELPED:
                        texts[city] = answer["choices"][0]["message"]["content"]
                    if number >= 0:
                        tpot[way].append(report["tpot_ms"])
                        fates[way][0] += report["accepted"] + report["late"]
                        fates[way][1] += report["rejected"]
            if complaints := cell.complaints():
                raise RuntimeError(complaints[0])
    speeds = {
        f"{ours} / {theirs}": compare([[each] for each in tpot[theirs]], [[each] for each in tpot[ours]], seed=seed)
        for ours, theirs, _ in COMPARED
    }
    times, guesses = mask_times(models), guess_shares(models, draft, texts)
    acceptance = {way: right / max(1, right + wrong) for way, (right, wrong) in fates.items()}
    return FormatFigures(tpot, speeds, acceptance, *guesses, median(times), max(times), origin)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=3, help="Rounds.")] = 36,
    draft: Annotated[str, typer.Option(help="int8, int4 or distilled.")] = "int8",
    folder: Annotated[Path, typer.Option(help="Folder for formats.json.")] = REPORTS,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Compares requests with and without a JSON Schema, and speculation with one, on the built-in engine."""
    exit_on_signals()
    found = asyncio.run(measure(rounds, draft, seed))
    write_result(folder / "formats.json", found)
    out = Console()
    for way, times in found.tpot_ms.items():
        out.print(f"{way}: {median(times):.1f} ms per token, acceptance {found.acceptance[way]:.3f}")
    for (ours, theirs, least), ratio in zip(COMPARED, found.speeds.values(), strict=True):
        out.print(f"{ours} / {theirs}: {ratio} (required: {least})")
    out.print(f"right guesses where the schema leaves a choice: {found.drafter_knows:.3f} of a drafter that knows it")
    out.print(f"and {found.drafter_ignorant:.3f} of one that does not")
    out.print(f"a mask: median {found.mask_ms:.3f} ms, longest {found.worst_mask_ms:.2f} ms (required: 0.2)")


if __name__ == "__main__":
    app()
