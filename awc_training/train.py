"""Trains the paper's network: python -m awc_training train. L1 loss, AdamW, 100 epochs (arXiv 2511.21669).

Invariant: the same dataset and seed give the same weights on the same machine. Errors are those on validation
scenarios, which training does not see.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from awc.estimators.network import NUM_BLOCKS, PolicyNetwork
from awc_training.cards import Card
from awc_training.dataset import Dataset

HIDDEN = 64
EPOCHS = 100
BATCH = 256
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-2
VALIDATION = 0.1  # share of the scenarios
BEYOND = 0.05  # extension of an input's training range on either side, as a share of it


class Residual(nn.Module):
    """x + W2 silu(W1 x + b1) + b2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.second(nn.functional.silu(self.first(x)))
        return x + change


class TrainedNetwork(nn.Module):
    """Normalised inputs [rows, inputs] to [rows, outputs]."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.entry = nn.Linear(num_inputs, HIDDEN)
        self.blocks = nn.ModuleList(Residual() for _ in range(NUM_BLOCKS))
        self.exit = nn.Linear(HIDDEN, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.entry(x)
        for block in self.blocks:
            x = block(x)
        predicted: torch.Tensor = self.exit(x)
        return predicted


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of rows."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]


def split_of(groups: NDArray[np.int64], seed: int) -> Split:
    """Splits by scenario. `groups`: [rows] index of the scenario."""
    names = np.unique(groups)
    rng = np.random.default_rng(seed)
    validation = rng.choice(names, max(1, round(VALIDATION * len(names))), replace=False)
    is_validation = np.isin(groups, validation)
    return Split(np.flatnonzero(~is_validation), np.flatnonzero(is_validation))


def train(dataset: Dataset, names: tuple[str, ...], seed: int, epochs: int = EPOCHS) -> tuple[PolicyNetwork, Card]:
    """`names`: of the inputs. Prints the error after every tenth of the epochs."""
    torch.manual_seed(seed)
    split = split_of(dataset.groups, seed)
    mean = dataset.inputs[split.training].mean(axis=0)
    scale = np.maximum(dataset.inputs[split.training].std(axis=0), 1e-6)
    inputs = torch.tensor((dataset.inputs - mean) / scale, dtype=torch.float32)
    targets = torch.tensor(dataset.targets, dtype=torch.float32)
    model = TrainedNetwork(len(names), dataset.targets.shape[1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(split.training) // BATCH)
    slowing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(split.training)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            loss = nn.functional.l1_loss(model(inputs[chosen]), targets[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            slowing.step()
        if (epoch + 1) % max(1, epochs // 10) == 0:
            print(f"epoch {epoch + 1} of {epochs}: {_error(model, inputs, targets, split.validation):.4f}", flush=True)
    median = np.median(dataset.targets[split.training], axis=0)
    card = Card(
        source="python -m awc_training dataset && python -m awc_training train",
        inputs=names,
        num_scenarios=len(np.unique(dataset.groups)),
        num_rows=len(dataset.targets),
        dataset_sha256=_digest(dataset),
        seed=seed,
        hidden=HIDDEN,
        epochs=epochs,
        num_parameters=sum(each.numel() for each in model.parameters()),
        mean_error=_error(model, inputs, targets, split.validation),
        mean_error_of_median=float(np.abs(dataset.targets[split.validation] - median).mean()),
        versions={"torch": torch.__version__.partition("+")[0], "numpy": np.__version__},
    )
    low, high = inputs_range(dataset.inputs[split.training])
    return network_of(model, mean, scale, low, high), card


def _error(model: TrainedNetwork, inputs: torch.Tensor, targets: torch.Tensor, rows: NDArray[np.int64]) -> float:
    """Mean absolute error."""
    with torch.no_grad():
        return float((model(inputs[rows]) - targets[rows]).abs().mean())


def _digest(dataset: Dataset) -> str:
    arrays = (dataset.inputs, dataset.targets, dataset.groups)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def inputs_range(inputs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of the inputs that count as seen in training."""
    low, high = inputs.min(axis=0), inputs.max(axis=0)
    return low - BEYOND * (high - low), high + BEYOND * (high - low)


def network_of(
    model: TrainedNetwork,
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> PolicyNetwork:
    weights = {name: tensor.numpy().astype(np.float32) for name, tensor in model.state_dict().items()}

    def of_blocks(name: str) -> NDArray[np.float32]:
        return np.stack([weights[f"blocks.{block}.{name}"].T for block in range(NUM_BLOCKS)])

    return PolicyNetwork(
        mean=mean,
        scale=scale,
        low=low,
        high=high,
        w_in=weights["entry.weight"].T,
        b_in=weights["entry.bias"],
        w1=of_blocks("first.weight"),
        b1=of_blocks("first.bias"),
        w2=of_blocks("second.weight"),
        b2=of_blocks("second.bias"),
        w_out=weights["exit.weight"].T,
        b_out=weights["exit.bias"],
    )
