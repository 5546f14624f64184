"""Training: the network learns its rows, and numpy computes what torch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from awc.estimators.network import read_network, write_network
from awc_training.dataset import Dataset
from awc_training.train import TrainedNetwork, network_of, split_of, train
from tests.awc import networks

NAMES = ("a", "b", "c", "d", "e")
NUM_INPUTS = len(NAMES)


def made_up(num_groups: int = 40, rows: int = 12, seed: int = 0) -> Dataset:
    """The best window grows with the third input."""
    rng = np.random.default_rng(seed)
    inputs = rng.uniform(0, 1, (num_groups * rows, NUM_INPUTS))
    groups = np.repeat(np.arange(num_groups), rows)
    inputs[:, 2] = np.repeat(rng.uniform(0, 5, num_groups), rows)
    return Dataset(inputs, np.column_stack([2 + 2 * inputs[:, 2], inputs[:, 0]]), groups)


def test_numpy_computes_what_torch_computes() -> None:
    torch.manual_seed(5)
    model = TrainedNetwork(NUM_INPUTS, 3)
    mean, scale = np.linspace(-1, 1, NUM_INPUTS), np.linspace(0.5, 2, NUM_INPUTS)
    inputs = np.random.default_rng(0).normal(size=(64, NUM_INPUTS))
    with torch.no_grad():
        wanted = model(torch.tensor((inputs - mean) / scale, dtype=torch.float32)).numpy()
    assert np.allclose(network_of(model, mean, scale, mean, scale).predict(inputs), wanted, atol=1e-5)


def test_training_learns_what_the_rows_show_and_says_how_far_off_it_is() -> None:
    network, card = train(made_up(), NAMES, seed=1, epochs=40)
    assert card.mean_error < 0.3 * card.mean_error_of_median
    far = np.full((1, NUM_INPUTS), 0.5)
    far[0, 2] = 4.5
    assert network.predict(far)[0, 0] == pytest.approx(11, abs=1)


def test_the_same_seed_trains_the_same_weights() -> None:
    first, second = (train(made_up(), NAMES, seed=3, epochs=3)[0] for _ in range(2))
    assert np.array_equal(first.w_in, second.w_in)


def test_rows_of_a_scenario_are_never_on_both_sides() -> None:
    groups = np.repeat(np.arange(30), 12)
    split = split_of(groups, seed=2)
    assert not set(groups[split.training]) & set(groups[split.validation])
    assert len(split.training) + len(split.validation) == len(groups)


def test_weights_come_back_from_their_file(tmp_path: Path) -> None:
    network, _ = train(made_up(), NAMES, seed=1, epochs=1)
    write_network(network, tmp_path / "w.npz")
    assert np.array_equal(read_network(tmp_path / "w.npz").w1, network.w1)


def test_a_file_with_other_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match="should hold"):
        read_network(tmp_path / "w.npz")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_file_that_was_cut_short_holds_no_network(tmp_path: Path, share: float) -> None:
    path = tmp_path / "w.npz"
    write_network(networks.saying(np.zeros(3), 5), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"w\.npz"):
        read_network(path)
