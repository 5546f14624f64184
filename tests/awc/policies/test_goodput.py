"""The cost of a pass that is fitted online, and the window that promises the most goodput."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from awc.estimators.pass_cost import PassCost, PassCosts
from awc.policies.goodput import GoodputPair, GoodputPolicy, goodputs
from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport

VERIFIER_ID = "cloud.0123456789ab"
STOP_AND_WAIT = WindowChoice(4, 4, free_run=False)
WINDOWS = range(MAX_WINDOW + 1)


@dataclass
class World:
    """One pair in stop-and-wait with independent guesses: every round is drawn, and reported four times a second.

    The batch wavers by a fifth and the time of a pass by a twentieth, either way.
    """

    acceptance: float = 0.8
    rtt_ms: float = 20.0
    base_ms: float = 30.0
    per_token_ms: float = 0.0
    draft_ms: float = 5.0
    sessions: int = 8
    context: int = 0
    verifier_id: str = VERIFIER_ID
    gap_ms: float = 0.0  # moving averages, as a drafter keeps them
    gap_tokens: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def round_ms(self, window: int) -> float:
        passing = self.base_ms + self.per_token_ms * self.sessions * (window + 1)
        return passing + (self.rtt_ms + self.draft_ms * window if window else 0.0)

    def speed(self, window: int) -> float:
        """The truth: tokens per millisecond of one session."""
        return sum(self.acceptance**i for i in range(window + 1)) / self.round_ms(window)

    def best(self, windows: range | tuple[int, ...] = WINDOWS) -> float:
        return max(map(self.speed, windows))

    def report(self, window: int) -> PairReport:
        matched = mismatched = 0
        num_rounds = max(1, round(self.sessions * 250 / self.round_ms(window)))
        for _ in range(num_rounds):
            right = 0
            while right < window and self.chance.random() < self.acceptance:
                right += 1
            matched, mismatched = matched + right, mismatched + (right < window)
            newest = 0.2 if self.gap_tokens else 1.0
            self.gap_ms += newest * (self.round_ms(window) - self.gap_ms)
            self.gap_tokens += newest * (right + 1 - self.gap_tokens)
        batch = max(1.0, self.sessions * self.chance.uniform(0.8, 1.2))
        tokens = batch * (window + 1)
        return PairReport(
            verifier_id=self.verifier_id,
            num_sessions=self.sessions,
            window=window,
            drafted=num_rounds * window,
            matched=matched,
            mismatched=mismatched,
            late=0,
            discarded=num_rounds * window - matched - mismatched,
            draft_ms=self.draft_ms,
            rtt_ms=self.rtt_ms,
            queue=0.1,
            tpot_ms=self.gap_ms / self.gap_tokens,
            context=self.context,
            pass_ms=(self.base_ms + self.per_token_ms * tokens) * self.chance.uniform(0.95, 1.05),
            batch=batch,
            pass_tokens=tokens,
        )


count = st.one_of(st.integers(0, 40), st.integers(0, 1 << 48))
number = st.one_of(st.just(0.0), st.floats(0, 100), st.floats(0, 1e15), st.just(1e15))
ANY_REPORT = st.builds(
    PairReport,
    verifier_id=st.sampled_from([VERIFIER_ID, "other.0123456789ab"]),
    num_sessions=count,
    window=st.integers(0, MAX_WINDOW),
    drafted=count,
    matched=count,
    mismatched=count,
    late=count,
    discarded=count,
    draft_ms=number,
    rtt_ms=number,
    queue=st.floats(0, 1),
    tpot_ms=number,
    context=count,
    pass_ms=number,
    batch=number,
    pass_tokens=number,
)


def run(pair: GoodputPair, world: World, num_reports: int, window: int) -> list[int]:
    """The windows chosen, each in force for the next report."""
    windows = []
    for _ in range(num_reports):
        window = pair.decide(world.report(window)).window
        windows.append(window)
    return windows


# --- the cost of a pass -----------------------------------------------------------------------------------------------


def fitted(samples: list[tuple[float, float]]) -> PassCost:
    cost = PassCost(keep=0.99)
    for num_tokens, elapsed_ms in samples:
        cost.observe(num_tokens, elapsed_ms)
    return cost


def test_the_fit_finds_the_line_behind_noisy_samples() -> None:
    chance = random.Random(2)
    tokens = [chance.uniform(8, 64) for _ in range(300)]
    cost = fitted([(n, (20 + 0.5 * n) * chance.uniform(0.95, 1.05)) for n in tokens])
    assert cost.per_token_ms == pytest.approx(0.5, rel=0.1)
    assert cost.base_ms == pytest.approx(20, rel=0.1)


def test_the_fit_is_that_of_weighted_least_squares_when_samples_are_many() -> None:
    chance = random.Random(3)
    samples = [(chance.uniform(1, 500), chance.uniform(10, 90)) for _ in range(200)]
    tokens, times = np.array(samples).T
    weights = 0.99 ** np.arange(len(samples))[::-1]
    slope, base = np.polyfit(tokens, times + 0.2 * tokens, 1, w=np.sqrt(weights))
    cost = fitted([(n, ms + 0.2 * n) for n, ms in samples])
    assert (cost.per_token_ms, cost.base_ms) == (pytest.approx(slope, rel=1e-3), pytest.approx(base, rel=1e-3))


def test_after_one_sample_the_line_goes_through_it_and_rises_gently() -> None:
    cost = fitted([(8.0, 40.0)])
    assert cost.base_ms + 8 * cost.per_token_ms == pytest.approx(40)
    assert 0.1 < cost.per_token_ms < 1


def test_before_the_first_sample_nothing_is_known() -> None:
    cost = PassCost(keep=0.99)
    assert (cost.is_known, cost.base_ms, cost.per_token_ms) == (False, 0.0, 0.0)


def test_the_line_follows_a_verifier_that_gets_slower() -> None:
    sizes = [8.0, 16.0, 32.0] * 200
    cost = fitted([(n, 20 + 0.1 * n) for n in sizes] + [(n, 30 + n) for n in sizes])
    assert (cost.base_ms, cost.per_token_ms) == (pytest.approx(30, abs=0.5), pytest.approx(1, abs=0.02))


@pytest.mark.parametrize("times", [(90.0, 10.0), (1.0, 500.0)])
def test_neither_part_of_the_line_is_ever_negative(times: tuple[float, float]) -> None:
    cost = fitted([(10.0, times[0]), (100.0, times[1])] * 50)
    assert cost.base_ms >= 0
    assert cost.per_token_ms >= 0


@pytest.mark.parametrize("sample", [(0.0, 40.0), (8.0, 0.0), (1e15, 40.0), (8.0, 1e15)])
def test_what_can_not_be_a_pass_is_not_learnt_from(sample: tuple[float, float]) -> None:
    usual = [(8.0, 40.0), (16.0, 44.0)] * 10
    assert fitted([*usual, sample]) == fitted(usual)


def test_the_table_of_verifiers_forgets_the_one_not_asked_for_for_longest() -> None:
    costs = PassCosts(limit=2)
    first, second = costs.of("a"), costs.of("b")
    assert costs.of("a") is first
    costs.of("c")
    assert len(costs) == 2
    assert costs.of("a") is first
    assert costs.of("b") is not second


def test_the_pairs_of_one_verifier_share_its_line() -> None:
    policy = GoodputPolicy(STOP_AND_WAIT)
    ones, other = [policy.for_pair() for _ in range(2)], policy.for_pair()
    for pair in ones:
        pair.decide(World().report(4))
    other.decide(World(verifier_id="cloud.00000000000b").report(4))
    assert len(policy.costs) == 2
    assert policy.costs.of(World().verifier_id).weight > 1


@pytest.mark.parametrize("wrong", [{"half_life": 0.0}, {"half_life": float("nan")}, {"limit": 0}])
def test_a_table_that_can_not_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PassCosts(**wrong)


# --- the window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acceptance", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("rtt_ms", [0.0, 30.0, 150.0])
@pytest.mark.parametrize("sessions", [1, 16, 64])
def test_the_window_chosen_is_nearly_as_good_as_the_best(acceptance: float, rtt_ms: float, sessions: int) -> None:
    world = World(acceptance, rtt_ms, per_token_ms=0.3, sessions=sessions)
    windows = run(GoodputPolicy(STOP_AND_WAIT, hope=0.0).for_pair(), world, 300, window=4)
    speeds = [world.speed(window) for window in windows[100:]]
    assert sum(speeds) / len(speeds) >= 0.95 * world.best()


def test_goodput_counts_the_whole_batch_with_the_same_window() -> None:
    """Expected by hand: batch * (1 + a + a^2) tokens over trip, two draft steps and a pass of batch * 3 tokens."""
    cost = fitted([(n, 10 + 0.5 * n) for n in (4.0, 40.0)] * 200)
    seen = World(rtt_ms=20.0, draft_ms=5.0, sessions=8).report(2)
    promised = goodputs(0.5, seen, cost)
    tokens = seen.batch * 3
    assert promised[2] == pytest.approx(seen.batch * 1.75 / (20 + 2 * 5 + 10 + 0.5 * tokens), rel=1e-3)
    assert promised[0] == pytest.approx(seen.batch / (10 + 0.5 * seen.batch), rel=1e-3)
    assert len(promised) == MAX_WINDOW + 1


def test_a_fuller_batch_gets_a_shorter_window_and_an_emptier_one_a_longer_again() -> None:
    pair, world = GoodputPolicy(STOP_AND_WAIT).for_pair(), World(0.9, rtt_ms=10.0, per_token_ms=0.5, sessions=2)
    alone = run(pair, world, 200, window=4)[-1]
    world.sessions = 64
    crowded = run(pair, world, 400, window=alone)[-1]
    world.sessions = 2
    again = run(pair, world, 400, window=crowded)[-1]
    assert crowded < alone / 2
    assert again > alone / 2


def test_a_draft_that_gets_worse_is_noticed_however_long_it_was_good() -> None:
    pair, world = GoodputPolicy(STOP_AND_WAIT).for_pair(), World(0.95, rtt_ms=0.0)
    window = run(pair, world, 1000, window=4)[-1]
    world.acceptance = 0.4
    late = run(pair, world, 40, window)[20:]
    assert sum(map(world.speed, late)) / len(late) >= 0.9 * world.best() > 1.3 * world.speed(window)


def test_pairs_of_one_verifier_share_what_its_passes_cost() -> None:
    policy, world = GoodputPolicy(STOP_AND_WAIT), World(0.9, rtt_ms=0.0, per_token_ms=2.0)
    run(policy.for_pair(), world, 300, window=4)
    seen = world.report(4)
    informed, alone = policy.for_pair().decide(seen), GoodputPolicy(STOP_AND_WAIT).for_pair().decide(seen)
    assert informed.window < alone.window


def test_without_a_judged_guess_or_a_pass_the_start_holds() -> None:
    pair = GoodputPolicy(DEFAULT_CHOICE).for_pair()
    silent, idle = World(base_ms=0.0), World()
    assert pair.decide(silent.report(8)) == DEFAULT_CHOICE
    assert GoodputPolicy(DEFAULT_CHOICE).for_pair().decide(idle.report(0)) == DEFAULT_CHOICE


def test_the_scheme_of_the_start_stays() -> None:
    for start in (STOP_AND_WAIT, DEFAULT_CHOICE):
        pair, world = GoodputPolicy(start).for_pair(), World(0.95)
        for _ in range(50):
            choice = pair.decide(world.report(start.window))
        assert choice == start.with_window(choice.window)
        assert choice.window != start.window


def test_a_gain_below_the_margin_changes_nothing() -> None:
    world = World(0.8, rtt_ms=20.0, sessions=1)
    near = max(window for window in WINDOWS if world.speed(window) > 0.95 * world.best())
    seen = replace(world.report(near), matched=800, mismatched=200, pass_ms=30.0)
    for margin, stays in ((0.1, True), (0.0, False)):
        pair = GoodputPolicy(STOP_AND_WAIT.with_window(near), margin=margin).for_pair()
        assert ({pair.decide(seen).window for _ in range(50)} == {near}) == stays


def test_drafting_is_tried_again_after_a_while_at_window_0_and_kept_when_the_draft_got_better() -> None:
    pair, world = GoodputPolicy(STOP_AND_WAIT).for_pair(), World(0.1, rtt_ms=60.0)
    windows = run(pair, world, 400, window=4)
    assert windows.count(0) > 300
    assert set(windows[-200:]) != {0}
    world.acceptance = 0.95
    assert world.best() > 1.5 * world.speed(0)
    assert min(run(pair, world, 400, windows[-1])[-100:]) > 0


@pytest.mark.parametrize("wrong", [{"half_life": 0.0}, {"margin": -0.1}, {"hope": -1.0}, {"margin": float("nan")}])
def test_settings_that_can_not_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GoodputPolicy(STOP_AND_WAIT, **wrong)


@given(st.lists(ANY_REPORT, max_size=40))
def test_whatever_is_reported_the_choice_is_a_window_of_the_start_and_follows_from_the_reports(
    reports: list[PairReport],
) -> None:
    pair, again = GoodputPolicy(STOP_AND_WAIT).for_pair(), GoodputPolicy(STOP_AND_WAIT).for_pair()
    for seen in reports:
        choice = pair.decide(seen)
        assert choice == again.decide(seen)
        assert choice == STOP_AND_WAIT.with_window(choice.window)
