"""Models that the built-in engine refuses or has not: each serves, and gives one text with guesses and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.protocol.messages import Sampling
from tests.vllm import tiny
from tests.vllm.conftest import loaded
from tests.vllm.driver import Driver, answer_of, opening

NUM_TOKENS = 80  # beyond the sliding window

pytestmark = pytest.mark.timeout(600)


def check(folder: Path, dtype: str, flags: str = "") -> None:
    """Serves four sessions greedily and sampled, with guesses and without."""
    random = np.random.default_rng(3)
    with loaded(folder, dtype=dtype, vllm_args=f"{tiny.FLAGS} {flags}") as engine:
        driver = Driver(engine)
        requests = [
            opening(number, random.integers(3, tiny.VOCABULARY, 40 + number).tolist(), NUM_TOKENS, sampling=sampling)
            for number, sampling in enumerate((Sampling(), Sampling(), Sampling(0.8, seed=1), Sampling(1.0, seed=2)))
        ]
        alone = driver.answers(*requests)
        assert all(len(answer) == NUM_TOKENS for answer in alone)
        slots = [driver.opens(request) for request in requests]
        num_passes = driver.finish(*slots, right=alone)
        assert [answer_of(slot) for slot in slots] == alone
        assert num_passes < NUM_TOKENS / 2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_family_that_the_built_in_engine_refuses_is_served(family: str, tmp_path: Path) -> None:
    check(tiny.save(tiny.FAMILIES[family](), tmp_path), "float32")


def test_a_model_of_quantised_weights_is_served(tmp_path: Path) -> None:
    """int8 weights and activations in the format of compressed-tensors."""
    check(tiny.save_int8(tmp_path), "bfloat16")
