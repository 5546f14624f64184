"""Histories can fail: each break of the code is found."""

from __future__ import annotations

import pytest

from tests.histories.breaks import BREAKS, Break
from tests.histories.history import play
from tests.histories.schedule import make

MOST = 1000  # schedules


@pytest.mark.long
@pytest.mark.parametrize("broken", BREAKS, ids=str)
def test_a_break_of_the_code_is_found(broken: Break) -> None:
    with broken.made():
        assert any(play(make(seed)).violation for seed in range(MOST))
