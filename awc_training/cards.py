"""Cards of weights: what they were trained on, and how well they do, beside them in a file of their own."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct, json


class Card(Struct, frozen=True):
    """What the weights are, beside them."""

    source: str
    inputs: tuple[str, ...]
    num_scenarios: int
    num_rows: int
    dataset_sha256: str
    seed: int
    hidden: int
    epochs: int
    num_parameters: int
    mean_error: float  # of an output, on scenarios kept apart
    mean_error_of_median: float  # of always saying the median
    versions: dict[str, str]


def write_card(card: Card, path: Path) -> None:
    path.write_bytes(json.format(json.encode(card), indent=2) + b"\n")


def read_card(path: Path) -> Card:
    """Raises OSError where there is none, ValueError for another file."""
    return json.decode(path.read_bytes(), type=Card)
