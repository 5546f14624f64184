"""llguidance beside xgrammar: which schemas each takes, how right it is about them, and how long its masks take.

    .venv-vllm/bin/python -m benchmarks.formats.libraries --suite FOLDER

xgrammar needs torch, so this runs with vLLM's Python, which has both. FOLDER: drafts of the JSON-Schema-Test-Suite (of
npm's json-schema-test-suite). Invariant: both libraries get the same tokenizer, schemas and texts, on one thread.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import llguidance
import numpy as np
import typer
import xgrammar as xgr
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.harness.origin import Origin
from services.gateway.formats.json_schema import LAYOUT
from shared.grammar.grammars import BadGrammar, Grammars, Started
from shared.grammar.running_grammar import RunningGrammar
from shared.runtime.home import default_models_dir
from tests.e2e.formats.schemas import SCHEMAS

MAX_TOKENS = 300
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Library(Protocol):
    name: str

    def compile(self, schema: Any) -> Any:
        """Raises ValueError."""

    def masks(self, compiled: Any, token_ids: list[int]) -> Iterator[None]:
        """Computes a mask at each position; ends early where a token is not allowed."""

    def accepts(self, compiled: Any, text: str, token_ids: list[int]) -> bool: ...


class Llguidance:
    """As DSD uses it, with its limits of work."""

    name = "llguidance"

    def __init__(self, folder: Path, vocab_size: int, stop_ids: list[int]) -> None:
        self._grammars, self._vocab_size, self._stop_ids = Grammars(folder, vocab_size), vocab_size, stop_ids

    def compile(self, schema: Any) -> Started:
        own = schema if isinstance(schema, dict) else ({} if schema else {"not": {}})
        return self._grammars.start(llguidance.grammar_from("json_schema", json.dumps({**own, "x-guidance": LAYOUT})))

    def masks(self, compiled: Started, token_ids: list[int]) -> Iterator[None]:
        matcher = compiled.matcher.deep_copy()
        for token_id in token_ids:
            matcher.compute_bitmask()
            yield
            if not matcher.consume_token(token_id):
                return

    def accepts(self, compiled: Started, text: str, token_ids: list[int]) -> bool:
        matcher = compiled.matcher.deep_copy()
        return bool(matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting())

    def text(self, compiled: Started, rng: random.Random) -> list[int]:
        """A text drawn evenly from the allowed tokens."""
        running = RunningGrammar(compiled, self._stop_ids, self._vocab_size)
        drawn: list[int] = []
        while len(drawn) < MAX_TOKENS and (allowed := running.allowed) is not None:
            token_id = int(rng.choice(np.flatnonzero(allowed)))
            if token_id in self._stop_ids:
                break
            drawn.append(token_id)
            running.extend([token_id])
        return drawn


class Xgrammar:
    """With any white space, and as open as the schema says: as llguidance takes a schema."""

    name = "xgrammar"

    def __init__(self, folder: Path, vocab_size: int) -> None:
        info = xgr.TokenizerInfo.from_huggingface(AutoTokenizer.from_pretrained(folder), vocab_size=vocab_size)
        self._compiler = xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._bits = xgr.allocate_token_bitmask(1, vocab_size)

    def compile(self, schema: Any) -> xgr.CompiledGrammar:
        try:
            return self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=True, strict_mode=False)
        except RuntimeError as error:
            raise BadGrammar(str(error)) from error

    def masks(self, compiled: xgr.CompiledGrammar, token_ids: list[int]) -> Iterator[None]:
        matcher = xgr.GrammarMatcher(compiled)
        for token_id in token_ids:
            matcher.fill_next_token_bitmask(self._bits, 0)
            yield
            if not matcher.accept_token(token_id):
                return

    def accepts(self, compiled: xgr.CompiledGrammar, text: str, token_ids: list[int]) -> bool:
        matcher = xgr.GrammarMatcher(compiled, terminate_without_stop_token=True)
        return bool(matcher.accept_string(text) and matcher.is_terminated())


@dataclass(slots=True)
class Found:
    """Of one library. Times in ms."""

    compile_ms: list[float] = field(default_factory=list)
    mask_ms: list[float] = field(default_factory=list)
    refused: int = 0  # schemas of ours
    refused_suite: int = 0
    wrongly_accepted: int = 0  # invalid instances
    wrongly_rejected: int = 0


def timed(times: list[float], action: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    result = action()
    times.append((time.perf_counter() - begun) * 1e3)
    return result


def measure_masks(library: Library, compiled: Any, token_ids: list[int], times: list[float]) -> None:
    begun = time.perf_counter()
    for _ in library.masks(compiled, token_ids):
        times.append((time.perf_counter() - begun) * 1e3)
        begun = time.perf_counter()


def cases(suite: Path) -> Iterator[tuple[Any, list[tuple[Any, bool]]]]:
    """Each schema of the suite that refers to no other document, with its instances."""
    for path in sorted(suite.rglob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            if "http" not in json.dumps(group["schema"]):
                yield group["schema"], [(test["data"], test["valid"]) for test in group["tests"]]


@app.command()
def main(
    suite: Annotated[Path | None, typer.Option(help="Folder of the JSON-Schema-Test-Suite, of one draft.")] = None,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Compares the two libraries on the 200 schemas of the tests, and on a suite."""
    folder = default_models_dir() / "target"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours, writer = (Llguidance(folder, len(tokenizer), [tokenizer.eos_token_id]) for _ in range(2))
    libraries: list[Library] = [ours, Xgrammar(folder, len(tokenizer))]
    ours.compile(True)  # reads the tokenizer, as the other one has
    found = {library.name: Found() for library in libraries}
    rng = random.Random(seed)
    for schema in SCHEMAS:
        text = writer.text(writer.compile(schema), rng)
        for library in libraries:
            mine = found[library.name]
            try:
                compiled = timed(mine.compile_ms, partial(library.compile, schema))
            except ValueError:
                mine.refused += 1
                continue
            measure_masks(library, compiled, text, mine.mask_ms)
    num_schemas = num_instances = 0
    for schema, instances in cases(suite) if suite else ():
        num_schemas, num_instances = num_schemas + 1, num_instances + len(instances)
        for library in libraries:
            judge(library, schema, instances, tokenizer, found[library.name])
    show(found, num_schemas, num_instances)


def judge(library: Library, schema: Any, instances: list[tuple[Any, bool]], tokenizer: Any, found: Found) -> None:
    try:
        compiled = library.compile(schema)
    except ValueError:
        found.refused_suite += 1
        return
    for data, valid in instances:
        text = json.dumps(data)
        accepted = library.accepts(compiled, text, tokenizer.encode(text, add_special_tokens=False))
        found.wrongly_accepted += accepted and not valid
        found.wrongly_rejected += valid and not accepted


def show(found: dict[str, Found], num_schemas: int, num_instances: int) -> None:
    origin = Origin.here("benchmarks.formats.libraries")
    table = Table("", *found, title=f"{origin.command}, {origin.machine}, {origin.date}")
    rows: dict[str, Callable[[Found], str]] = {
        f"of {len(SCHEMAS)} schemas refused": lambda each: str(each.refused),
        "compiling, ms: median, longest": lambda each: _times(each.compile_ms, 100),
        "a mask and its step, ms: median, 99th percentile, longest": lambda each: _times(each.mask_ms, 99, 100),
        f"of {num_schemas} schemas of the suite refused": lambda each: str(each.refused_suite),
        f"of {num_instances} instances accepted though invalid": lambda each: str(each.wrongly_accepted),
        "rejected though valid": lambda each: str(each.wrongly_rejected),
    }
    for name, tell in rows.items():
        table.add_row(name, *map(tell, found.values()))
    Console().print(table)


def _times(values: list[float], *percentiles: float) -> str:
    return ", ".join(f"{value:.3f}" for value in np.percentile(values, [50, *percentiles]))


if __name__ == "__main__":
    app()
