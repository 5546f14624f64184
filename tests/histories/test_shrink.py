"""Of a history that breaks a rule is left what breaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.histories.breaks import Break, M, V
from tests.histories.history import play
from tests.histories.schedule import Schedule, make
from tests.histories.shrink import shrink, smaller_ones, spare

pytestmark = pytest.mark.timeout(120)

MOST = 300  # schedules
MANY = 10_000  # messages, more than any fault touches
TOO_MANY_TOKENS = Break(V, "end_pass", "draws[: matched + 1]", "draws[: matched + 2]")
# Found where a verdict is lost.
NO_GAP = Break(M, "merge", "if verdict.base > self.length:", "if verdict.base > self.length + 1:")


def first_broken() -> Schedule:
    return next(schedule for schedule in map(make, range(MOST)) if play(schedule).violation)


def test_a_shrunk_schedule_breaks_a_rule_and_nothing_can_be_left_out_of_it() -> None:
    with TOO_MANY_TOKENS.made():
        broken = first_broken()
        small = shrink(broken)
        assert play(small).violation
        assert not any(play(each).violation for each in smaller_ones(small))
    assert play(small).violation == "", "it is the break that it needs"
    assert (len(small.requests), len(small.verifiers), small.faults) == (1, 1, ())
    assert small.seed == broken.seed


def test_of_the_faults_stay_those_that_the_violation_needs() -> None:
    with NO_GAP.made():
        small = shrink(first_broken())
        assert play(small).violation
        assert len(small.faults) == 1
        assert not play(replace(small, faults=())).violation


def test_faults_touch_no_message_that_the_violation_does_not_need() -> None:
    with NO_GAP.made():
        broken = first_broken()
        small = spare(broken)
        assert play(small).violation
        assert len(small.spared) > play(broken).num_hits / 2
        assert not play(replace(small, spared=frozenset(range(1, MANY)))).violation
