"""The evaluation as tables and pictures: python -m awc_training report, into docs/reports/awc.

Invariant: every figure comes from evaluate's files and the cards of the weights; nothing is computed anew here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from awc_training.cards import Card
from awc_training.changes import SEEDS, Followed
from awc_training.crowds import Crowded
from awc_training.evaluate import Evaluation
from awc_training.judged import BASE, LEAST_GAIN, NEARLY, by_class, judged
from awc_training.paper import FACTORS, PaperCell

OURS = {"stop-and-wait": "wc-dnn", "sliding": "adaptive"}  # what each transport is judged for


class Found(Struct, frozen=True):
    """All that `evaluate` shows."""

    evaluation: Evaluation
    followed: list[Followed]
    crowded: list[Crowded]
    paper: list[PaperCell]


def write_report(path: Path, found: Found, cards: dict[str, Card]) -> None:
    """A Markdown file."""
    parts = [
        _held_out(found.evaluation),
        _classes(found.evaluation),
        _changes(found.followed),
        _crowds(found.crowded),
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
    yield f"*worst* have the static window of {BASE} as 1; *gain* is the share of the oracle's gain over it where that"
    yield f"is above {LEAST_GAIN - 1:.0%}; *below* counts scenarios more than {1 - NEARLY:.0%} below it; *median* and"
    yield "*decile* have the best static window of each scenario as 1."
    yield ""
    for transport, scores in evaluation.transports.items():
        yield f"## {transport}"
        yield ""
        yield from _table(
            ("policy", "tuned to", "mean", "gain", "worst", "below", "median", "decile"),
            [
                (
                    each.name,
                    scores.tuned.get(each.name, ""),
                    f"{each.mean:.3f}",
                    f"{each.share:.0%}",
                    f"{each.worst:.3f}",
                    str(each.num_below),
                    f"{each.oracle_median:.3f}",
                    f"{each.oracle_decile:.3f}",
                )
                for each in judged(scores)
            ],
        )


def _classes(evaluation: Evaluation) -> Iterator[str]:
    for transport, name in OURS.items():
        if name not in evaluation.transports[transport].policies:
            continue
        yield f"## {name} against each rival, by classes of scenarios"
        yield ""
        yield f"Mean ratio of the scores of {name} and of the rival, {transport}."
        yield ""
        table = by_class(evaluation, transport, name)
        rivals = list(next(iter(table.values())))
        rows = [(rival, *(f"{found[rival]:.3f}" for found in table.values())) for rival in rivals]
        yield from _table(("rival", *table), rows)


def _changes(followed: Sequence[Followed]) -> Iterator[str]:
    yield "## Under change"
    yield ""
    yield f"With {len(SEEDS)} seeds. *Settled*: seconds until nine in ten pairs stay near their last window, median and"
    yield "longest. The rest are means: *changes* of a pair's window a minute, and those of all pairs *once settled*."
    yield ""
    yield from _table(
        ("scenario", "policy", "settled", "longest", "changes", "once settled", "score to oracle"),
        [
            (
                each.scenario,
                each.policy,
                f"{each.settled_s:.1f}",
                f"{each.longest_s:.1f}",
                f"{each.changes_per_min:.1f}",
                f"{each.changes_settled:.1f}",
                f"{each.against_oracle:.3f}",
            )
            for each in followed
        ],
    )


def _crowds(crowded: Sequence[Crowded]) -> Iterator[str]:
    yield "## Crowded verifiers"
    yield ""
    yield "Half of the drafters are right nine times in ten, half of them every other time. *Jain*: index of fairness"
    yield "of their tokens per second; *slowest*: of them, to the mean of target-only."
    yield ""
    yield from _table(
        ("verifier, drafters", "way", "tokens/s", "TPOT, ms", "Jain", "slowest"),
        [
            (
                each.scenario,
                each.way,
                f"{each.tokens_per_s:.0f}",
                f"{each.tpot_ms:.1f}",
                f"{each.jain:.3f}",
                f"{each.slowest:.3f}",
            )
            for each in crowded
        ],
    )


def _paper(cells: Sequence[PaperCell]) -> Iterator[str]:
    yield "## The paper's twelve cells"
    yield ""
    yield "Tokens per second, mean TPOT in ms, mean TTFT in ms. *Ratios*: ours to the paper's controller. *Capacity*:"
    yield "with how many times the clients and drafters ours still has the TPOT that the paper's controller has in the"
    yield f"cell (tried: {FACTORS[-1]:g} to {FACTORS[0]:g}). The paper reports of its own controller, against static 4:"
    yield "up to 9.7 % more throughput, a TPOT 6 to 10.7 % lower, a TTFT 0.5 to 4.1 % lower."
    yield ""
    ways = list(cells[0].ways)
    rows = []
    for cell in cells:
        told = [f"{way.tokens_per_s:.0f}, {way.tpot_ms:.1f}, {way.ttft_ms:.0f}" for way in cell.ways.values()]
        ours, theirs = cell.ways["adaptive"], cell.ways["wc-dnn"]
        ratios = (
            ours.tokens_per_s / theirs.tokens_per_s,
            ours.tpot_ms / theirs.tpot_ms,
            ours.ttft_ms / theirs.ttft_ms,
        )
        rows.append((cell.name, *told, ", ".join(f"{ratio:.3f}" for ratio in ratios), f"{cell.capacity:g}"))
    yield from _table(("cell", *ways, "ratios", "capacity"), rows)


def _cards(cards: dict[str, Card]) -> Iterator[str]:
    yield "## Weights"
    yield ""
    yield from _table(
        ("network", "parameters", "scenarios", "rows", "error", "error of the median", "seed"),
        [
            (
                name,
                str(card.num_parameters),
                str(card.num_scenarios),
                str(card.num_rows),
                f"{card.mean_error:.3f}",
                f"{card.mean_error_of_median:.3f}",
                str(card.seed),
            )
            for name, card in cards.items()
        ],
    )


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{' --- |' * len(names)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""
