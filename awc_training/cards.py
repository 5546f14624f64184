"""Cards: a JSON file beside each file of weights, with training data, seed, errors and versions."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct, json


class Card(Struct, frozen=True):
    """Origin and quality of a file of weights."""

    source: str
    inputs: tuple[str, ...]
    num_scenarios: int
    num_rows: int
    dataset_sha256: str
    seed: int
    hidden: int
    epochs: int
    num_parameters: int
    mean_error: float  # absolute error of an output, on validation scenarios
    mean_error_of_median: float  # the same for a constant prediction of the median
    versions: dict[str, str]


def write_card(card: Card, path: Path) -> None:
    path.write_bytes(json.format(json.encode(card), indent=2) + b"\n")


def read_card(path: Path) -> Card:
    """Raises OSError for a missing file, ValueError for one that is no card."""
    return json.decode(path.read_bytes(), type=Card)
