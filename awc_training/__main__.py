"""python -m awc_training: trains the paper's network and evaluates every policy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from awc.estimators.features import WINDOW_INPUTS
from awc.estimators.network import write_network
from awc.policies import wc_dnn
from awc_training.cards import write_card
from awc_training.cases import run_cases
from awc_training.changes import follow
from awc_training.dataset import NUM_SCENARIOS, make_dataset, read_dataset, write_dataset
from awc_training.development import development
from awc_training.evaluate import frontier_table, requirements, results_of, standings
from awc_training.rivals import TARGET_ONLY, contestants, other_prices, tune, write_tuned
from awc_training.sealed import NUM_SEALED, NotSealed, describe, open_set, openings, sealed_scenarios, seed_of

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

OUT = Path("results/awc")
DOCS = Path("docs/reports/awc")
NUM_DEVELOPMENT = 48
FOLLOWING = (
    "adaptive",
    "static",
    "pipeline",
    "ladder",
    "confidence",
    "closed-form",
    "goodput",
    "nightjar",
    "delay-ucb",
)
Out: TypeAlias = Annotated[Path, typer.Option(help="Folder for results; its runs are reused.")]
Workers: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")]


@app.callback()
def main() -> None:
    """Window control: trains the paper's network, and makes the tables of docs/reports/awc. Every command resumes after
    a stop."""


@app.command()
def dataset(
    out: Out = OUT,
    workers: Workers = None,
    num: Annotated[int, typer.Option(min=10, help="Training scenarios.")] = NUM_SCENARIOS,
) -> None:
    """Runs training scenarios with every window and labels the reports, for wc-dnn."""
    made, path = make_dataset(out / "runs", num, workers), out / "wc-dnn.npz"
    write_dataset(made, path)
    print(f"{len(made.targets)} rows of {num} scenarios: {path}")


@app.command()
def train(out: Out = OUT, seed: int = 1) -> None:
    """Trains wc-dnn on its dataset and writes weights and card into awc/policies."""
    import torch

    from awc_training import train as training

    torch.set_num_threads(1)  # the fastest at this size
    network, card = training.train(read_dataset(out / "wc-dnn.npz"), WINDOW_INPUTS, seed)
    write_network(network, wc_dnn.WEIGHTS)
    write_card(card, wc_dnn.WEIGHTS.with_suffix(".json"))
    print(f"{card.num_parameters} parameters, mean error {card.mean_error:.3f}: {wc_dnn.WEIGHTS}")


@app.command(name="tune")
def tune_rivals(out: Out = OUT, workers: Workers = None) -> None:
    """Chooses the variant of each rival on development scenarios and writes awc_training/tuned.json."""
    found = tune(out / "runs", workers)
    write_tuned(found)
    print(found)


@app.command()
def develop(
    out: Out = OUT,
    workers: Workers = None,
    num: Annotated[int, typer.Option(min=2, help="Development scenarios.")] = NUM_DEVELOPMENT,
) -> None:
    """Compares policies on development scenarios, adaptive at several prices, and shows the frontier of guesses against
    speed. Decides nothing."""
    found = results_of([*contestants(), *other_prices()], development(num), out / "runs", workers)
    alone = next(each for each in found if each.label == TARGET_ONLY)
    lines = ["## The frontier", "", *frontier_table(found, alone), "## Adaptive against each", ""]
    _write("develop", f"{num} development scenarios", [*lines, *standings(found[0], found[1:])])


@app.command()
def cases(out: Out = OUT, workers: Workers = None) -> None:
    """Compares policies in the cases of scenarios/window-control."""
    _write("cases", "The cases of scenarios/window-control", run_cases(out / "runs", workers))


@app.command()
def changes(out: Out = OUT, workers: Workers = None) -> None:
    """Shows how policies follow a change of round trip, load and acceptance."""
    _write("changes", "Under change", follow(FOLLOWING, out / "runs", workers))


@app.command()
def sealed(
    candidate: Annotated[str, typer.Option(help="Name of what is judged, for the record.")],
    out: Out = OUT,
    workers: Workers = None,
) -> None:
    """Opens the sealed set for the current commit, records that, and compares policies on it."""
    try:
        opening = open_set(candidate, num=NUM_SEALED)
    except NotSealed as error:
        raise typer.BadParameter(str(error)) from error
    seed, folder = seed_of(opening.commit), out / "sealed"
    scenarios = list(sealed_scenarios(seed, opening.num_scenarios, folder))
    ours, *others = results_of(contestants(), scenarios, out / "runs", workers, folder)
    title = f"Sealed set of {opening.candidate}, commit {opening.commit}, opened {opening.date}"
    lines = [
        "## What must hold",
        "",
        *requirements(ours, others),
        "## Adaptive against each",
        "",
        *standings(ours, others),
    ]
    _write("sealed", title, [describe(opening, openings()), "", *lines])


def _write(name: str, title: str, lines: Iterable[str]) -> None:
    made = f"Made by `python -m awc_training {name}` ([awc.md](../../awc.md#evaluate-policies)). Times are virtual."
    path = DOCS / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"# {title}", "", made, "", *lines]), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    app()
