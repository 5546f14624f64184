"""The comparison as Markdown: the cells, where DSD is behind, what it must reach, then all figures.

Invariant: each cell in which DSD is behind a peer has a line with its cause. Causes are text of `causes.toml` beside
the cells: `"CELL" = "…"`, or `"CELL MEASURE" = "…"` for one measure.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness.markdown import markdown_table
from benchmarks.harness.paired import Ratio
from benchmarks.load.processor_time import MAX_FOREIGN_SHARE, TICKS_S
from benchmarks.peers.cells import ANSWER_TOKENS, WARM_UP_TOKENS, Cell
from benchmarks.peers.findings import SPEED, TPOT, TTFT, Behind, CellFigures, Measure
from benchmarks.peers.requirements import Check, checks
from benchmarks.peers.results import CellResult
from benchmarks.peers.systems import ALL_GIB, Choice, System, systems

CAUSES = "causes.toml"
NONE_COUNTS = "No cell is measured yet."
UNKNOWN = "**cause not known**"
HOW = f"""
One client program asks every system over HTTP with OpenAI's streaming API. Answers have {ANSWER_TOKENS} tokens.
In a round each system answers the same prompts, one from each client at once; their order is random. A system is
stopped (SIGSTOP) while others answer, and warmed up with answers of {WARM_UP_TOKENS} tokens before. No system finds
a prompt in a cache. DSD's controller keeps what it knows of a pair while it is stopped. Answers are void, and asked
for again, if anything else used more than
{MAX_FOREIGN_SHARE * 100:.0f} % of a core meanwhile (beside {TICKS_S * 1e3:.0f} ms, since the kernel counts in ticks
of 10 ms). All systems compute
with the same weights, in the dtype named above; llama.cpp's are bfloat16, made from the same Q4_1 file, which is also
its draft. vLLM runs as its
package comes, alone and under DSD: without another allocator or OpenMP library.

Figures are geometric means over answers with 95 % bootstrap intervals over prompts, paired. tokens/s: of all clients
together, from the requests to the last token. TTFT and TPOT: of each answer. Ratios are ours / theirs: above 1 is
better for tokens/s, below 1 for times. *Best peer*: by the figure in question, of the peers that do not run DSD's
draft. *To plain*: tokens/s / those of the same system without speculation.
""".strip()
COLUMNS = (
    "system",
    "tokens/s",
    "to best peer",
    "to plain",
    "TTFT ms",
    "to best peer",
    "TPOT ms",
    "same texts",
    "acceptance",
)


def read_causes(folder: Path) -> dict[str, str]:
    """Raises ValueError, naming the file, if it holds anything but text."""
    path = folder / CAUSES
    if not path.is_file():
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if wrong := [name for name, cause in found.items() if not isinstance(cause, str)]:
        raise ValueError(f"{path}: the cause of {wrong[0]} must be text")
    return found


def cause_of(behind: Behind, causes: Mapping[str, str]) -> str:
    name = behind.cell.name
    return causes.get(f"{name} {behind.measure.name}") or causes.get(name) or UNKNOWN


def markdown(plan: Sequence[Cell], results: Sequence[CellResult], causes: Mapping[str, str], folder_name: str) -> str:
    """Of the plan's cells and of those that were measured."""
    found = [CellFigures.of(each) for each in results if len(each.rounds) > 1]
    valid = [each for each in found if each.result.counts]
    unjudged = [cell.name for cell in plan if cell.name not in {each.cell.name for each in valid}]
    parts = ["# Against peers", *_mixed(results), "## Where DSD is behind", _behind(valid, causes)]
    parts += [
        "## What must hold",
        _checks(valid),
        *_unjudged(unjudged),
        *_uncompared(valid),
        "## How",
        *_origins(results),
        HOW,
    ]
    parts += ["## Cells", _cells(plan, results, folder_name), "## Systems", _systems(results)]
    for each in found:
        parts += [f"## {each.cell}", *_voids(each.result), *_failed(each.result), _figures(each), *_lengths(each)]
    return "\n\n".join(parts) + "\n"


def _mixed(results: Sequence[CellResult]) -> list[str]:
    if len({each.inputs for each in results}) < 2:
        return []
    return ["**The cells come from different code, machines or models: they are no one comparison.**"]


def _unjudged(names: Sequence[str]) -> list[str]:
    return [f"Not judged, since not measured or void: {', '.join(names)}."] if names else []


def _uncompared(found: Sequence[CellFigures]) -> list[str]:
    missing = [f"{each.cell.name} has no {', no '.join(each.result.failed)}" for each in found if each.result.failed]
    return [f"Judged without systems that failed: {'; '.join(missing)}."] if missing else []


def _origins(results: Sequence[CellResult]) -> list[str]:
    origins = dict.fromkeys((each.origin, tuple(each.versions.items())) for each in results)
    lines = []
    for origin, versions in origins:
        told = ", ".join(f"{name} {version}" for name, version in versions)
        where = f"commit {origin.commit}, {origin.date}, {origin.machine}, Python {origin.python}"
        lines.append(f"* `{origin.command}`, {where}; {told}")
    return ["\n".join(lines)] if lines else []


def _cells(plan: Sequence[Cell], results: Sequence[CellResult], folder_name: str) -> str:
    by_name = {each.cell.name: each for each in results}
    rows = []
    for cell in plan:
        result = by_name.get(cell.name)
        name = f"[{cell.name}]({folder_name}/{cell.name}.json)" if result else cell.name
        rounds = f"{len(result.rounds)} of {cell.num_rounds}" if result else f"0 of {cell.num_rounds}"
        rows.append((name, str(cell), rounds, len(result.voids) if result else 0, _state(result)))
    return markdown_table(("cell", "is", "rounds", "asked again", "counts"), rows)


def _state(result: CellResult | None) -> str:
    if result is None:
        return "not measured"
    if result.complaints:
        return f"**void**: {result.complaints[0]}"
    return "yes" if result.is_finished else "not finished"


def _behind(found: Sequence[CellFigures], causes: Mapping[str, str]) -> str:
    rows = [
        (each.cell.name, each.measure.name, each.ours, each.theirs, each.ratio, _surely(each), cause_of(each, causes))
        for figures in found
        for each in figures.behind()
    ]
    if not rows:
        return NONE_COUNTS if not found else "In no measured cell: DSD's fastest way against the best peer."
    note = "DSD's fastest way in the cell against the best peer. *Open*: the interval reaches 1."
    return f"{note}\n\n" + markdown_table(("cell", "figure", "DSD", "peer", "ratio", "behind", "cause"), rows)


def _surely(behind: Behind) -> str:
    nearest = behind.ratio.high if behind.measure.is_better_high else behind.ratio.low
    return "yes" if behind.measure.is_behind(nearest) else "open"


def _checks(found: Iterable[CellFigures]) -> str:
    rows = [
        (each.cell, each.what, _limit(each), each.aim, each.ratio, each.verdict)
        for figures in found
        for each in checks(figures)
    ]
    return markdown_table(("cell", "what", "limit", "aim", "ratio", "holds"), rows) if rows else NONE_COUNTS


def _limit(check: Check) -> str:
    return f"{'≥' if check.is_least else '≤'} {check.limit:g}"


def _systems(results: Sequence[CellResult]) -> str:
    found = dict.fromkeys(system for each in results for system in each.systems)
    table = markdown_table(("system", "its use of the two cores"), [(_name(each), each.cores) for each in found])
    names = {each.name for each in found}
    absent = [each for each in systems(Choice()) if names and each.name not in names]
    if not absent:
        return table
    told = [each.name if each.is_counted else f"{each.name} (it needs {ALL_GIB} GiB of memory)" for each in absent]
    return f"{table}\n\nNot compared: {'; '.join(told)}."


def _name(system: System) -> str:
    return system.name if system.is_counted else f"{system.name} (not counted: DSD's draft)"


def _voids(result: CellResult) -> list[str]:
    return [f"**Void**: {'; '.join(result.complaints[:3])}"] if result.complaints else []


def _failed(result: CellResult) -> list[str]:
    return [f"**Left out**, since it failed: {why}" for why in result.failed.values()]


def _figures(found: CellFigures) -> str:
    return markdown_table(COLUMNS, [_row(found, system) for system in found.result.systems])


def _row(found: CellFigures, system: System) -> tuple[str, ...]:
    name = system.name

    def to_best(measure: Measure) -> str:
        peer = found.best_peer(measure)
        return "" if peer is None else "best peer" if peer == name else str(found.ratio(measure, name, peer))

    has_plain = system.plain in found.figures[SPEED.name]
    to_plain = str(found.ratio(SPEED, name, system.plain)) if has_plain and system.plain else ""
    speed, ttft, tpot = (_value(found.value(measure, name)) for measure in (SPEED, TTFT, TPOT))
    shares = (_share(found.same_texts(system)), _share(found.acceptance(system)))
    return (_name(system), speed, to_best(SPEED), to_plain, ttft, to_best(TTFT), tpot, *shares)


def _value(found: Ratio) -> str:
    digits = 0 if found.value >= 100 else 1
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} … {found.high:.{digits}f})"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2f}"


def _lengths(found: CellFigures) -> list[str]:
    """A line if systems count different numbers of prompt tokens."""
    lengths = found.prompt_tokens()
    if len(set(lengths.values())) == 1:
        return [f"Prompts have {next(iter(lengths.values())):.0f} tokens in the mean."]
    return [f"**Prompts differ**: {', '.join(f'{name} {length:.1f}' for name, length in lengths.items())} tokens."]
