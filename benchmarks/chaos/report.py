"""A chaos run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.chaos.leftovers import GROWN_MIB
from benchmarks.chaos.records import ChaosResult, Leftovers, SinglePart
from benchmarks.harness.markdown import markdown_table

NONE = "none"


def as_markdown(result: ChaosResult) -> str:
    parts = [_head(result), _totals(result), _causes(result)]
    if result.single is not None:
        parts.append(_single(result.single))
    if result.not_run:
        parts.append(f"Not run: {_listed(result.not_run)}.")
    if result.violations:
        parts.append("Violations:\n\n" + "\n".join(f"* {each}" for each in result.violations))
    return "\n\n".join(parts)


def _head(result: ChaosResult) -> str:
    origin, texts = result.origin, result.texts
    return (
        f"`{origin.command}`, {origin.date}, {origin.machine}, Python {origin.python}. Engine {result.engine}, "
        f"seed {result.seed}, {texts.num_requests} requests compared, {len(result.faults)} faults in "
        f"{result.duration_s:.0f} s."
    )


def _totals(result: ChaosResult) -> str:
    texts, rolling, moves = result.texts, result.rolling, result.moves
    rows: list[tuple[str, object]] = [
        ("requests, choices, tokens", f"{texts.num_requests}, {texts.num_choices}, {texts.num_tokens}"),
        ("texts wrong, with lost, with doubled tokens", f"{texts.wrong}, {texts.lost}, {texts.doubled}"),
        ("failed requests, by cause", _listed(result.failed)),
        ("refused by a gateway, then asked at the other", _listed(result.retried)),
        (
            "longest without faults: between two pieces, to the first one",
            f"{_seconds(result.undisturbed_pause_s)}, {_seconds(result.undisturbed_ttft_s)}",
        ),
        ("sessions that moved; answers whose gateway could not be asked", f"{moves.num_moves}; {moves.num_unknown}"),
        (
            "longest until opened elsewhere, then until the first token",
            f"{_seconds(moves.longest_opening_s)}, {_seconds(moves.longest_prefill_s)}",
        ),
        *_left("behind the faults under load", result.leftovers),
    ]
    if rolling is not None:
        rows += [
            ("rolling restart: processes, requests", f"{rolling.num_restarts}, {rolling.num_requests}"),
            ("rolling restart: failed requests", _listed(rolling.failed)),
            ("rolling restart: refused, then asked at the other", _listed(rolling.retried)),
            ("rolling restart: longest time between two pieces", f"{rolling.longest_pause_s:.2f} s"),
        ]
    if result.last_leftovers != result.leftovers:
        rows += _left("at the end", result.last_leftovers)
    return markdown_table(("what", "figure"), [*rows, ("violations", len(result.violations))])


def _left(when: str, left: Leftovers) -> list[tuple[str, object]]:
    grown = max(left.grown_mib, key=lambda name: left.grown_mib[name])
    tasks = max(0, *left.tasks.values())
    found = f"{left.sessions:g}, {left.kv_tokens:g}, {left.subscriptions}, {tasks}"
    return [
        (f"left {when}: sessions, KV tokens, subscriptions, tasks", found),
        (f"most memory {when} (at most {GROWN_MIB:.0f} MiB more)", f"{left.grown_mib[grown]:.0f} MiB ({grown})"),
    ]


def _causes(result: ChaosResult) -> str:
    rows = [(each.kind, each.num_faults, each.num_pauses, _figure(each.longest_s)) for each in result.causes]
    return markdown_table(("fault under load", "faults", "pauses", "longest, s"), rows)


def _single(part: SinglePart) -> str:
    head = (
        f"One fault at a time: {part.texts.num_requests} requests, {part.texts.num_tokens} tokens; texts wrong, with "
        f"lost, with doubled tokens: {part.texts.wrong}, {part.texts.lost}, {part.texts.doubled}. Failed: "
        f"{_listed(part.failed)}. Refused: {_listed(part.retried)}. Longest without faults: {part.usual_gap_s:.2f} s "
        f"between two pieces, {part.usual_ttft_s:.2f} s to the first one."
    )
    names = ("fault", "faults", "longest wait, s", "allowed beyond, s", "moves", "longest opening, s", "too long")
    rows = [
        (
            each.kind,
            each.num_faults,
            _figure(each.longest_s),
            f"{each.allowed_s:g}",
            each.num_moves,
            _figure(each.longest_opening_s),
            each.num_too_long,
        )
        for each in part.kinds
    ]
    return f"{head}\n\n{markdown_table(names, rows)}"


def _figure(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _listed(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in sorted(counts.items())) or NONE
