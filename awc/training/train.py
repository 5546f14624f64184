"""Trains the paper's network: python -m awc.training train. L1 loss, AdamW, 100 epochs (arXiv 2511.21669).

Invariant: the same dataset and seed give the same weights on the same machine; scenarios that errors are told of were
kept apart from training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from msgspec import Struct, json
from numpy.typing import NDArray
from torch import nn

from awc.features import INPUTS, NUM_INPUTS
from awc.network import NUM_BLOCKS, Network
from awc.training.dataset import Dataset

HIDDEN = 32
EPOCHS = 100
BATCH = 256
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
KEPT_APART = 0.1  # of the scenarios


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
    mean_error: float  # windows, on scenarios kept apart
    mean_error_of_median: float  # of always saying the median label
    versions: dict[str, str]


class Residual(nn.Module):
    """x + W2 silu(W1 x + b1) + b2."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.second(nn.functional.silu(self.first(x)))
        return x + change


class WcDnn(nn.Module):
    """[rows, inputs], normalised, to [rows]."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.entry = nn.Linear(NUM_INPUTS, hidden)
        self.blocks = nn.ModuleList(Residual(hidden) for _ in range(NUM_BLOCKS))
        self.exit = nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.entry(x)
        for block in self.blocks:
            x = block(x)
        predicted: torch.Tensor = self.exit(x).squeeze(-1)
        return predicted


@dataclass(frozen=True, slots=True)
class Split:
    """Rows by number."""

    training: NDArray[np.int64]
    apart: NDArray[np.int64]


def split_of(groups: NDArray[np.int64], seed: int) -> Split:
    """All rows of a scenario are on one side."""
    names = np.unique(groups)
    rng = np.random.default_rng(seed)
    apart = rng.choice(names, max(1, round(KEPT_APART * len(names))), replace=False)
    is_apart = np.isin(groups, apart)
    return Split(np.flatnonzero(~is_apart), np.flatnonzero(is_apart))


def train(dataset: Dataset, seed: int, epochs: int = EPOCHS) -> tuple[Network, Card]:
    """Prints a line for every tenth of the epochs."""
    torch.manual_seed(seed)
    split = split_of(dataset.groups, seed)
    mean = dataset.inputs[split.training].mean(axis=0)
    scale = np.maximum(dataset.inputs[split.training].std(axis=0), 1e-6)
    inputs = torch.tensor((dataset.inputs - mean) / scale, dtype=torch.float32)
    labels = torch.tensor(dataset.labels, dtype=torch.float32)
    model = WcDnn()
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(split.training) // BATCH)
    slowing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(split.training)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            loss = nn.functional.l1_loss(model(inputs[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            slowing.step()
        if (epoch + 1) % max(1, epochs // 10) == 0:
            print(
                f"epoch {epoch + 1} of {epochs}: {_error(model, inputs, labels, split.apart):.3f} windows", flush=True
            )
    median = float(np.median(dataset.labels[split.training]))
    card = Card(
        source="python -m awc.training dataset && python -m awc.training train",
        inputs=INPUTS,
        num_scenarios=len(np.unique(dataset.groups)),
        num_rows=len(dataset.labels),
        dataset_sha256=_digest(dataset),
        seed=seed,
        hidden=HIDDEN,
        epochs=epochs,
        num_parameters=sum(each.numel() for each in model.parameters()),
        mean_error=_error(model, inputs, labels, split.apart),
        mean_error_of_median=float(np.abs(dataset.labels[split.apart] - median).mean()),
        versions={"torch": torch.__version__.partition("+")[0], "numpy": np.__version__},
    )
    return network_of(model, mean, scale), card


def _error(model: WcDnn, inputs: torch.Tensor, labels: torch.Tensor, rows: NDArray[np.int64]) -> float:
    """Mean distance to the label."""
    with torch.no_grad():
        return float((model(inputs[rows]) - labels[rows]).abs().mean())


def _digest(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for array in (dataset.inputs, dataset.labels, dataset.groups):
        digest.update(array.tobytes())
    return digest.hexdigest()


def network_of(model: WcDnn, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> Network:
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in model.state_dict().items()}

    def of_blocks(name: str) -> NDArray[np.float64]:
        return np.stack([weights[f"blocks.{block}.{name}"].T for block in range(NUM_BLOCKS)])

    return Network(
        mean=mean,
        scale=scale,
        w_in=weights["entry.weight"].T,
        b_in=weights["entry.bias"],
        w1=of_blocks("first.weight"),
        b1=of_blocks("first.bias"),
        w2=of_blocks("second.weight"),
        b2=of_blocks("second.bias"),
        w_out=weights["exit.weight"][0],
        b_out=weights["exit.bias"][0],
    )


def write_card(card: Card, path: Path) -> None:
    path.write_bytes(json.format(json.encode(card), indent=2) + b"\n")
