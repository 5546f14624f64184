"""The evaluation as tables in docs/reports/awc: python -m awc_training report.

Invariant: every figure comes from the results of `evaluate` and the cards of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from awc_training.cards import Card
from awc_training.changes import SEEDS, ChangeResult
from awc_training.evaluate import Evaluation
from awc_training.paper import FACTORS, PaperCell
from awc_training.shared_verifiers import SharedVerifierResult
from awc_training.summaries import BASE, LEAST_GAIN, NEARLY, by_class, summaries

OURS = {"stop-and-wait": "wc-dnn", "sliding": "adaptive"}  # the policy that each transport is tabulated for


class EvaluationResults(Struct, frozen=True):
    """All results of `evaluate`."""

    evaluation: Evaluation
    followed: list[ChangeResult]
    shared_verifiers: list[SharedVerifierResult]
    paper: list[PaperCell]


def write_report(path: Path, found: EvaluationResults, cards: dict[str, Card]) -> None:
    """A Markdown file."""
    parts = [
        _held_out(found.evaluation),
        _classes(found.evaluation),
        _changes(found.followed),
        _shared_verifiers(found.shared_verifiers),
        _paper(found.paper),
        _cards(cards),
    ]
    made = (
        "Made by `python -m awc_training report` ([awc.md](../../awc.md)). Times are virtual, the same on any machine."
    )
    lines = ["# What the window policies are worth", "", made, "", *(line for part in parts for line in part)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def _held_out(evaluation: Evaluation) -> Iterator[str]:
    yield f"{evaluation.num_scenarios} held-out scenarios. Score: soft goodput ([awc.md](../../awc.md)). *Mean* and"
    yield f"*worst*: score / score of static {BASE}. *Gain*: share of the oracle's gain over static {BASE} where that"
    yield f"is above {LEAST_GAIN - 1:.0%}. *Below*: scenarios more than {1 - NEARLY:.0%} below static {BASE}. *Median*"
    yield "and *decile*: score / score of the best static window of each scenario."
    yield ""
    for transport, scores in evaluation.transports.items():
        yield f"## {transport}"
        yield ""
        yield from _table(
            "policy | tuned to | mean | gain | worst | below | median | decile",
            (
                f"{each.name} | {scores.tuned.get(each.name, '')} | {each.mean:.3f} | {each.share:.0%} | "
                f"{each.worst:.3f} | {each.num_below} | {each.oracle_median:.3f} | {each.oracle_decile:.3f}"
                for each in summaries(scores)
            ),
        )


def _classes(evaluation: Evaluation) -> Iterator[str]:
    for transport, name in OURS.items():
        if name not in evaluation.transports[transport].policies:
            continue
        yield f"## {name} against each rival, by class of scenarios"
        yield ""
        yield f"Mean of score of {name} / score of the rival, {transport}."
        yield ""
        table = by_class(evaluation, transport, name)
        rivals = next(iter(table.values()))
        rows = ((rival, *(f"{found[rival]:.3f}" for found in table.values())) for rival in rivals)
        yield from _table(" | ".join(("rival", *table)), map(" | ".join, rows))


def _changes(followed: Sequence[ChangeResult]) -> Iterator[str]:
    yield "## Under change"
    yield ""
    yield f"{len(SEEDS)} seeds. *Settled*, *longest*: median and maximum of the seconds until nine in ten pairs stay"
    yield "near their last window. Means: *changes* of a pair's window a minute, changes of all pairs *once settled*,"
    yield "*score to oracle*."
    yield ""
    yield from _table(
        "scenario | policy | settled | longest | changes | once settled | score to oracle",
        (
            f"{each.scenario} | {each.policy} | {each.settled_s:.1f} | {each.longest_s:.1f} | "
            f"{each.changes_per_min:.1f} | {each.changes_settled:.1f} | {each.against_oracle:.3f}"
            for each in followed
        ),
    )


def _shared_verifiers(found: Sequence[SharedVerifierResult]) -> Iterator[str]:
    yield "## Shared verifiers"
    yield ""
    yield "Half of the drafters have an acceptance of 0.9, half of 0.5. *Jain*: fairness index of their tokens per"
    yield "second; *slowest*: tokens per second of the slowest drafter / mean of target-only."
    yield ""
    yield from _table(
        "verifier, drafters | way | tokens/s | TPOT, ms | Jain | slowest",
        (
            f"{each.scenario} | {each.way} | {each.tokens_per_s:.0f} | {each.tpot_ms:.1f} | {each.jain:.3f} | "
            f"{each.slowest:.3f}"
            for each in found
        ),
    )


def _paper(cells: Sequence[PaperCell]) -> Iterator[str]:
    yield "## The paper's twelve cells"
    yield ""
    yield "Tokens per second, mean TPOT in ms, mean TTFT in ms. *Ratios*: ours / the paper's controller. *Capacity*:"
    yield "the largest factor of clients and drafters at which our TPOT is at most that of the paper's controller in"
    yield f"the cell (tried: {FACTORS[-1]:g} to {FACTORS[0]:g}). The paper reports for its controller, against static"
    yield "4: throughput up to 9.7 % higher, TPOT 6 to 10.7 % lower, TTFT 0.5 to 4.1 % lower."
    yield ""
    rows = []
    for cell in cells:
        figures = [f"{way.tokens_per_s:.0f}, {way.tpot_ms:.1f}, {way.ttft_ms:.0f}" for way in cell.ways.values()]
        ours, theirs = cell.ways["adaptive"], cell.ways["wc-dnn"]
        ratios = (getattr(ours, name) / getattr(theirs, name) for name in ("tokens_per_s", "tpot_ms", "ttft_ms"))
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        rows.append(" | ".join((cell.name, *figures, shown, f"{cell.capacity:g}")))
    yield from _table(" | ".join(("cell", *cells[0].ways, "ratios", "capacity")), rows)


def _cards(cards: dict[str, Card]) -> Iterator[str]:
    yield "## Weights"
    yield ""
    yield from _table(
        "network | parameters | scenarios | rows | error | error of the median | seed",
        (
            f"{name} | {card.num_parameters} | {card.num_scenarios} | {card.num_rows} | {card.mean_error:.3f} | "
            f"{card.mean_error_of_median:.3f} | {card.seed}"
            for name, card in cards.items()
        ),
    )


def _table(heading: str, rows: Iterable[str]) -> Iterator[str]:
    """Cells are separated by " | "."""
    yield f"| {heading} |"
    yield f"|{' --- |' * len(heading.split(' | '))}"
    yield from (f"| {row} |" for row in rows)
    yield ""
