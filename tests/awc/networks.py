"""Networks made up for tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from awc.estimators.network import NUM_BLOCKS, PolicyNetwork


def saying(outputs: NDArray[np.float64], num_inputs: int, hidden: int = 4, high: float = 1e3) -> PolicyNetwork:
    """A network that predicts the same whatever it sees, and knows inputs up to `high`."""
    square = (NUM_BLOCKS, hidden, hidden)
    return PolicyNetwork(
        mean=np.zeros(num_inputs),
        scale=np.ones(num_inputs),
        low=np.full(num_inputs, -1e3),
        high=np.full(num_inputs, high),
        w_in=np.zeros((num_inputs, hidden)),
        b_in=np.zeros(hidden),
        w1=np.zeros(square),
        b1=np.zeros((NUM_BLOCKS, hidden)),
        w2=np.zeros(square),
        b2=np.zeros((NUM_BLOCKS, hidden)),
        w_out=np.zeros((hidden, len(outputs))),
        b_out=np.asarray(outputs, np.float64),
    )


def random_network(seed: int, num_inputs: int, outputs: NDArray[np.float64], hidden: int = 8) -> PolicyNetwork:
    """A network with weights drawn at random, and `outputs` added to what it says."""
    rng = np.random.default_rng(seed)
    square = (NUM_BLOCKS, hidden, hidden)
    return PolicyNetwork(
        mean=rng.normal(size=num_inputs),
        scale=rng.uniform(0.5, 2, num_inputs),
        low=np.full(num_inputs, -1e3),
        high=np.full(num_inputs, 1e3),
        w_in=rng.normal(size=(num_inputs, hidden)),
        b_in=rng.normal(size=hidden),
        w1=rng.normal(size=square) / 4,
        b1=rng.normal(size=(NUM_BLOCKS, hidden)),
        w2=rng.normal(size=square) / 4,
        b2=rng.normal(size=(NUM_BLOCKS, hidden)),
        w_out=rng.normal(size=(hidden, len(outputs))),
        b_out=np.asarray(outputs, np.float64),
    )
