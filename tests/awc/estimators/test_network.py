"""The network of the learned policies: what is computed is what its layers say, one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from awc.estimators.network import NUM_BLOCKS, PolicyNetwork
from tests.awc.networks import random_network

NUM_INPUTS, NUM_OUTPUTS = 5, 3


def layer_by_layer(network: PolicyNetwork, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    x = (inputs - network.mean) / network.scale @ network.w_in + network.b_in
    for block in range(NUM_BLOCKS):
        inner = x @ network.w1[block] + network.b1[block]
        x = x + inner / (1 + np.exp(-inner)) @ network.w2[block] + network.b2[block]
    return np.asarray(x @ network.w_out + network.b_out)


@pytest.mark.parametrize("parts", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_prediction_is_that_of_the_layers(seed: int, parts: int) -> None:
    network = random_network(seed, NUM_INPUTS, np.arange(NUM_OUTPUTS), hidden=64)
    num_pairs = parts * network.rows + parts % 2  # none; more than one product takes; as many as two take
    inputs = np.random.default_rng(seed + 100).normal(0, 3, (num_pairs, NUM_INPUTS))
    found = network.predict(inputs)
    assert found.shape == (num_pairs, NUM_OUTPUTS)
    assert np.allclose(found, layer_by_layer(network, inputs), rtol=1e-4, atol=1e-4)


def test_inputs_far_beyond_training_are_predicted_without_overflow() -> None:
    network = random_network(1, NUM_INPUTS, np.zeros(NUM_OUTPUTS))
    far = np.array([[1e6] * NUM_INPUTS, [-1e6] * NUM_INPUTS])
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(network.predict(far)).all()


def test_a_network_whose_products_overflow_is_refused() -> None:
    network = random_network(1, NUM_INPUTS, np.zeros(NUM_OUTPUTS))
    with pytest.raises(ValueError, match="finite"):
        replace(network, w_in=network.w_in + 1e30, w_out=network.w_out + 1e30)


def test_a_network_with_an_input_without_a_scale_is_refused() -> None:
    network = random_network(1, NUM_INPUTS, np.zeros(NUM_OUTPUTS))
    with pytest.raises(ValueError, match="finite"):
        replace(network, scale=np.array([1.0, 0.0, *[1.0] * (NUM_INPUTS - 2)]))
