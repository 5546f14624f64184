"""A chaos run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.chaos.leftovers import GROWN_MIB
from benchmarks.chaos.records import CauseFigures, ChaosResult
from benchmarks.harness.markdown import markdown_table

NONE = "none"


def as_markdown(result: ChaosResult) -> str:
    parts = [_head(result), _totals(result), _causes(result)]
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
    texts, left, rolling, moves = result.texts, result.leftovers, result.rolling, result.moves
    grown = max(left.grown_mib, key=lambda name: left.grown_mib[name])
    rows: list[tuple[str, object]] = [
        ("requests, choices, tokens", f"{texts.num_requests}, {texts.num_choices}, {texts.num_tokens}"),
        ("texts wrong, with lost, with doubled tokens", f"{texts.wrong}, {texts.lost}, {texts.doubled}"),
        ("failed requests, by cause", _listed(result.failed)),
        ("refused by a gateway, then asked at the other", _listed(result.retried)),
        ("longest time between two pieces without faults", f"{result.undisturbed_pause_s:.2f} s"),
        (
            "sessions that moved, opened too late, untold answers",
            f"{moves.num_moves}, {moves.num_late}, {moves.num_untold}",
        ),
        (
            "longest until opened elsewhere, then until the first token",
            f"{_seconds(moves.longest_opening_s)}, {_seconds(moves.longest_prefill_s)}",
        ),
        ("sessions, KV tokens, subscriptions left", f"{left.sessions:g}, {left.kv_tokens:g}, {left.subscriptions}"),
        (f"most memory beyond the start (at most {GROWN_MIB:.0f} MiB)", f"{left.grown_mib[grown]:.0f} MiB ({grown})"),
    ]
    if rolling is not None:
        rows += [
            ("rolling restart: processes, requests", f"{rolling.num_restarts}, {rolling.num_requests}"),
            ("rolling restart: failed requests", _listed(rolling.failed)),
            ("rolling restart: longest time between two pieces", f"{rolling.longest_pause_s:.2f} s"),
        ]
    return markdown_table(("what", "figure"), [*rows, ("violations", len(result.violations))])


def _causes(result: ChaosResult) -> str:
    names = ("fault", "faults", "pauses", "longest, s", "longest alone, s", "allowed, s", "too long")
    return markdown_table(names, [_row(cause) for cause in result.causes])


def _row(cause: CauseFigures) -> tuple[object, ...]:
    allowed = "" if cause.allowed_s is None else f"{cause.allowed_s:g}"
    longest = [f"{seconds:.2f}" if seconds else "" for seconds in (cause.longest_s, cause.longest_alone_s)]
    return cause.kind, cause.num_faults, cause.num_pauses, *longest, allowed, cause.num_too_long if allowed else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _listed(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in sorted(counts.items())) or NONE
