"""python -m awc_training: makes datasets, trains both networks and evaluates every policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from msgspec import json

from awc.estimators.features import CHOICE_INPUTS, WINDOW_INPUTS
from awc.estimators.network import write_network
from awc.policies import adaptive, wc_dnn
from awc_training.cards import read_card, write_card
from awc_training.changes import follow
from awc_training.dataset import NUM_SCENARIOS, make_datasets, read_dataset, write_dataset
from awc_training.evaluate import NUM_HELD_OUT, evaluate
from awc_training.paper import paper_cells
from awc_training.report import EvaluationResults, write_report
from awc_training.shared_verifiers import serve_shared_verifiers

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

OUT = Path("results/awc")
DOCS = Path("docs/reports/awc")
FOLLOWING = ("ladder", "closed-form", "goodput", "nightjar", "adaptive")
NETWORKS = {"wc-dnn": (WINDOW_INPUTS, wc_dnn.WEIGHTS), "adaptive": (CHOICE_INPUTS, adaptive.WEIGHTS)}
Out: TypeAlias = Annotated[Path, typer.Option(help="Folder for results; its runs are reused.")]
Workers: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")]


@app.callback()
def main() -> None:
    """Adaptive window control: trains the networks and makes the tables of docs/reports/awc."""


@app.command()
def dataset(
    out: Out = OUT,
    workers: Workers = None,
    num: Annotated[int, typer.Option(min=10, help="Training scenarios.")] = NUM_SCENARIOS,
) -> None:
    """Runs training scenarios with every window and labels the reports. Resumes after a stop."""
    for name, made in zip(NETWORKS, make_datasets(out / "runs", num, workers), strict=True):
        path = out / f"{name}.npz"
        write_dataset(made, path)
        print(f"{len(made.targets)} rows of {num} scenarios: {path}")


@app.command()
def train(out: Out = OUT, seed: int = 1) -> None:
    """Trains both networks on their datasets and writes weights and cards into awc/policies."""
    import torch

    from awc_training import train as training

    torch.set_num_threads(1)  # the fastest at this size
    for name, (names, weights) in NETWORKS.items():
        network, card = training.train(read_dataset(out / f"{name}.npz"), names, seed)
        write_network(network, weights)
        write_card(card, weights.with_suffix(".json"))
        print(f"{name}: {card.num_parameters} parameters, mean error {card.mean_error:.3f}: {weights}")


@app.command(name="evaluate")
def evaluate_all(
    out: Out = OUT,
    workers: Workers = None,
    num: Annotated[int, typer.Option(min=1, help="Held-out scenarios.")] = NUM_HELD_OUT,
) -> None:
    """Tunes rivals on training scenarios and runs every policy on held-out ones. Resumes after a stop."""
    runs = out / "runs"
    found = EvaluationResults(
        evaluation=evaluate(runs, num=num, workers=workers),
        followed=follow(FOLLOWING, runs, workers),
        shared_verifiers=serve_shared_verifiers(),
        paper=paper_cells(runs, workers),
    )
    (out / "found.json").write_bytes(json.format(json.encode(found), indent=1) + b"\n")


@app.command()
def report(out: Out = OUT) -> None:
    """Writes the results of `evaluate` into docs/reports/awc."""
    found = json.decode((out / "found.json").read_bytes(), type=EvaluationResults)
    cards = {name: read_card(weights.with_suffix(".json")) for name, (_, weights) in NETWORKS.items()}
    write_report(DOCS / "report.md", found, cards)
    print(f"written: {DOCS / 'report.md'}")


if __name__ == "__main__":
    app()
