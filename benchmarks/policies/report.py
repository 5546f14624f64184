"""Findings as Markdown tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl

from benchmarks.harness.markdown import markdown_table
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio
from benchmarks.policies.findings import CellFinding, ModeFinding
from benchmarks.policies.plan import ADAPTIVE, SLIDING_FREE, TARGET_ONLY

mpl.use("agg")  # draw to files

from matplotlib import pyplot

NEVER_SLOWER, NEVER_SLOWER_LOW = 0.97, 0.95  # least ratio to target-only, and least lower end
TTFT_LIMIT = 1.1
TO_RIVAL, TO_RIVAL_LOW = 0.97, 0.93  # least ratio of adaptive to the best rival, and least lower end
SLIDING_GAIN, SLIDING_LOW = 1.2, 1.1  # least ratio to the best stop-and-wait window, and least lower end
STANDIN_GAIN, STANDIN_LOW = 1.3, 1.0  # the same for stand-ins of large models
ABOUT = (
    "Ratios are geometric means over answers to the same prompts in one run, with 95 % bootstrap intervals over "
    "rounds; above 1 is faster than target-only. An int8 or int4 draft is a quantised copy of the target: it proves "
    "nothing about a small draft for a large target."
)
ANSWERS = {True: "yes", False: "**no**", None: "**open**: too few rounds"}
MAX_STEPS = {0: 1.35, 30: 1.5, 100: 1.9}  # TPOT of sliding / draft step time, by RTT in ms


def markdown(findings: Sequence[CellFinding], plots: Sequence[str]) -> str:
    """The report of one or more cells."""
    parts = ["# Benchmark run", _origins(findings), ABOUT, "## Requirements", _requirements(findings)]
    parts += [f"![{plot.removesuffix('.png')}]({plot})" for plot in plots]
    for finding in sorted(findings, key=lambda each: (each.num_sessions, each.draft, each.rtt_ms)):
        parts += [f"## {_title(finding)}", *_void(finding), _table(finding)]
    return "\n\n".join(parts) + "\n"


def _origins(findings: Sequence[CellFinding]) -> str:
    """Command, day and machine of all cells."""
    cells: dict[Origin, list[str]] = {}
    for finding in findings:
        made = finding.origin
        cells.setdefault(replace(made, date=made.date[: len("2000-01-01")]), []).append(finding.name)
    return "\n".join(
        f"* `{made.command}`, {made.date}, {made.machine}, Python {made.python}: "
        + ("all cells" if len(cells) == 1 else ", ".join(names))
        for made, names in cells.items()
    )


def _title(finding: CellFinding) -> str:
    sessions = "one session" if finding.num_sessions == 1 else f"{finding.num_sessions} sessions at once"
    if finding.num_drafters > 1:
        sessions += f" on {finding.num_drafters} drafters"
    return f"{_models(finding)}, RTT {finding.rtt_ms} ms, {sessions}"


def _models(finding: CellFinding) -> str:
    return f"{finding.draft} draft" + (f" ({finding.standin})" if finding.standin else "")


def _void(finding: CellFinding) -> list[str]:
    if not finding.complaints:
        return []
    shown = "; ".join(finding.complaints[:5])
    return [f"**Void**: {shown}" + ("; …" if len(finding.complaints) > 5 else "")]


def _table(finding: CellFinding) -> str:
    times = ("TPOT ms", "speed to target-only", "TTFT ms", "TTFT to target-only")
    steps = "" if finding.in_steps is None else f" Sliding takes {finding.in_steps} draft steps per token."
    table = markdown_table(
        ("mode", *times, "tokens/s in all", "acceptance", "guesses per token", "rounds"),
        [_row(mode, finding.num_rounds) for mode in finding.modes],
    )
    final = f" {finding.num_final} more of {ADAPTIVE.name} and {finding.best_rival} alone." if finding.num_final else ""
    return f"{table}\n\n{finding.num_rounds} rounds.{final}{steps}"


def _row(mode: ModeFinding, num_rounds: int) -> tuple[str, ...]:
    acceptance = "" if mode.acceptance is None else f"{mode.acceptance:.3f}"
    is_base = mode.mode == TARGET_ONLY.name
    speed, ttft = ("", "") if is_base else (str(mode.speed), str(mode.ttft))
    tpot_ms, ttft_ms, tokens_per_s = f"{mode.tpot_ms:.1f}", f"{mode.ttft_ms:.0f}", f"{mode.tokens_per_s:.1f}"
    guesses = "" if mode.guesses_per_token is None else f"{mode.guesses_per_token:.2f}"
    rounds = str(mode.num_rounds or num_rounds)
    return mode.mode, tpot_ms, speed, ttft_ms, ttft, tokens_per_s, acceptance, guesses, rounds


def _requirements(findings: Sequence[CellFinding]) -> str:
    """The requirements that these cells can check."""
    rows: list[tuple[str, str, Ratio, str]] = []
    for finding in findings:
        if finding.complaints:
            continue
        where = _title(finding)
        for name in (ADAPTIVE.name, SLIDING_FREE.name):
            mode = finding.of(name)
            if mode is not None and (name == ADAPTIVE.name or finding.num_sessions == 1):
                speed, ttft = mode.speed, mode.ttft
                is_sure = speed.value >= NEVER_SLOWER and speed.low >= NEVER_SLOWER_LOW
                is_fast = _is_met(is_sure, speed.high >= NEVER_SLOWER)
                rows.append((f"{name}: never slower than target-only", where, speed, ANSWERS[is_fast]))
                is_prompt = _is_met(ttft.value <= TTFT_LIMIT, ttft.low <= TTFT_LIMIT)
                rows.append((f"{name}: TTFT ≤ {TTFT_LIMIT}×", where, ttft, ANSWERS[is_prompt]))
        if finding.against_rival is not None:
            what = f"{ADAPTIVE.name}: ≥ {TO_RIVAL} of {finding.best_rival}, lower end ≥ {TO_RIVAL_LOW}"
            rival = finding.against_rival
            is_near = rival.value >= TO_RIVAL and rival.low >= TO_RIVAL_LOW
            rows.append((what, where, rival, ANSWERS[_is_met(is_near, rival.high >= TO_RIVAL)]))
        gain = finding.against_best
        if gain is not None and finding.num_sessions == 1 and finding.rtt_ms == 30:
            least, low = (STANDIN_GAIN, STANDIN_LOW) if finding.standin else (SLIDING_GAIN, SLIDING_LOW)
            what = f"sliding against {finding.best_stop_and_wait}: ≥ {least}×"
            rows.append((what, where, gain, ANSWERS[gain.value >= least and gain.low >= low]))
        steps, most = finding.in_steps, MAX_STEPS.get(finding.rtt_ms)
        if steps is not None and most and finding.num_sessions == 1 and finding.draft == "int8" and not finding.standin:
            rows.append((f"sliding: ≤ {most} draft steps per token", where, steps, ANSWERS[steps.value <= most]))
    return markdown_table(("requirement", "cell", "ratio", "met"), rows)


def _is_met(by_ratio: bool, by_interval: bool) -> bool | None:
    """Whether the ratio itself meets a limit; None if only an end of its interval does."""
    return True if by_ratio else None if by_interval else False


def plot_speeds(findings: Sequence[CellFinding], folder: Path) -> list[str]:
    """A plot for each draft and number of sessions with several RTTs; returns the file names."""
    names = []
    for key in sorted({_load(each) for each in findings}):
        mine = sorted((each for each in findings if _load(each) == key), key=lambda each: each.rtt_ms)
        if len(mine) > 1 and all(each.modes for each in mine):
            draft, num_sessions, num_drafters = key
            name, load = f"speed-{draft}-{num_sessions}", f"{num_sessions} at once"
            if num_drafters > 1:
                name, load = f"{name}-on{num_drafters}", f"{load} on {num_drafters} drafters"
            _plot(mine, f"{_models(mine[0])}, {load}", folder / f"{name}.png")
            names.append(f"{name}.png")
    return names


def _load(finding: CellFinding) -> tuple[str, int, int]:
    return finding.draft, finding.num_sessions, finding.num_drafters


def _plot(findings: Sequence[CellFinding], title: str, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for mode in findings[0].modes:
        found = [(each.rtt_ms, here.speed) for each in findings if (here := each.of(mode.mode)) is not None]
        rtts, speeds = [rtt_ms for rtt_ms, _ in found], [speed for _, speed in found]
        is_ours = mode.mode in (SLIDING_FREE.name, ADAPTIVE.name)
        (line,) = axes.plot(
            rtts, [speed.value for speed in speeds], marker="o", label=mode.mode, linewidth=2.5 if is_ours else 1
        )
        if is_ours:
            axes.fill_between(
                rtts, [s.low for s in speeds], [s.high for s in speeds], color=line.get_color(), alpha=0.2
            )
    axes.set_xlabel("RTT between drafter and verifier, ms")
    axes.set_ylabel("speed, target-only = 1")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
