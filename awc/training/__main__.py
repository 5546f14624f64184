"""python -m awc.training: makes the dataset, trains the paper's network, and judges every policy, from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from awc.network import write_network
from awc.training.dataset import NUM_SCENARIOS, make_dataset, read_dataset, write_dataset
from awc.training.evaluate import NUM_HELD_OUT, evaluate, write_evaluation
from awc.wc_dnn import WEIGHTS

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

OUT = Path("results/awc")
Out: TypeAlias = Annotated[Path, typer.Option(help="Folder for results; runs that it holds are kept.")]
Workers: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")]


@app.callback()
def main() -> None:
    """Adaptive window control: from nothing to trained weights and the tables of docs/awc.md."""


@app.command()
def dataset(
    out: Out = OUT,
    workers: Workers = None,
    num: Annotated[int, typer.Option(min=10, help="Training scenarios.")] = NUM_SCENARIOS,
) -> None:
    """Runs training scenarios under every window, and labels what a controller sees. Goes on where it was stopped."""
    made = make_dataset(out / "runs", num, workers)
    write_dataset(made, out / "dataset.npz")
    print(f"{len(made.labels)} rows of {num} scenarios: {out / 'dataset.npz'}")


@app.command()
def train(out: Out = OUT, seed: int = 1) -> None:
    """Trains the paper's network on the dataset, and writes its weights and their card into awc/."""
    from awc.training import train as training  # loads torch

    network, card = training.train(read_dataset(out / "dataset.npz"), seed)
    write_network(network, WEIGHTS)
    training.write_card(card, WEIGHTS.with_suffix(".json"))
    print(f"{card.num_parameters} parameters, off by {card.mean_error:.2f} windows: {WEIGHTS}")


@app.command(name="evaluate")
def evaluate_all(
    out: Out = OUT,
    workers: Workers = None,
    num: Annotated[int, typer.Option(min=1, help="Held-out scenarios.")] = NUM_HELD_OUT,
) -> None:
    """Runs every policy on scenarios that training never saw. Goes on where it was stopped."""
    write_evaluation(evaluate(out / "runs", num=num, workers=workers), out / "evaluation.json")


if __name__ == "__main__":
    app()
