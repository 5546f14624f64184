"""The compiled default policy decides what the policy's own objects decide."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from awc.policies.adaptive import AdaptivePolicy
from awc.policies.ladder import LadderPolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from awc.wrappers.pausing import PAUSED, PauseSettings, PausingPolicy
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import scenario_of
from dsd_sim.steering.records import SEEN
from dsd_sim.steering.steering import FIRST_ROWS, CompiledSteering
from shared.protocol.messages import PairReport

NUM_DEVICES, NUM_NODES = 5, 2
SOON = PauseSettings(first=6, longest=24, compared=3)  # much happens in few reports


@dataclass
class Regime:
    """How a pair fares for some reports."""

    num_sessions: int
    right: float
    draft_ms: float
    rtt_ms: float
    pass_ms: float
    paused_ms: float  # TPOT while it does not draft
    drafting_ms: float


def drawn(random_: random.Random) -> Regime:
    pass_ms = random_.choice([20.0, 40.0, 60.0])
    return Regime(
        random_.choice([1, 1, 4]),
        random_.choice([0.0, 0.3, 0.6, 0.9, 1.0]),
        pass_ms * random_.choice([0.1, 0.4, 0.8, 1.3]),
        random_.choice([0.0, 30.0, 250.0]),
        pass_ms,
        pass_ms * random_.uniform(0.7, 1.3),
        pass_ms * random_.uniform(0.7, 1.3),
    )


def report(random_: random.Random, regime: Regime, node: int, window: int, shares_machine: bool) -> PairReport:
    judged = random_.randrange(8) if window else 0
    matched = sum(random_.random() < regime.right for _ in range(judged))
    tpot_ms = (regime.drafting_ms if window else regime.paused_ms) * random_.choice([0.0, 0.9, 1.0, 1.0, 1.1])
    return PairReport(
        verifier_id=f"v.{node:012d}",
        num_sessions=random_.choice([0, *[regime.num_sessions] * 3]),
        window=window,
        drafted=judged,
        matched=matched,
        mismatched=judged - matched,
        late=0,
        discarded=0,
        draft_ms=regime.draft_ms,
        rtt_ms=regime.rtt_ms,
        queue=0.1,
        tpot_ms=tpot_ms,
        context=100,
        pass_ms=regime.pass_ms * random_.uniform(0.9, 1.1),
        batch=random_.uniform(0.0, 4.0),
        pass_tokens=random_.uniform(1.0, 12.0),
        shares_machine=shares_machine,
    )


def records(reports: list[PairReport]) -> np.ndarray:
    found = np.zeros(len(reports), SEEN)
    for name in SEEN.names or ():
        found[name] = [getattr(each, name) for each in reports]
    return found


@pytest.mark.parametrize("shares_machine", [True, False])
@pytest.mark.parametrize("pauses", [SOON, PauseSettings()], ids=["short pauses", "the pauses of the controller"])
@pytest.mark.parametrize("start", [DEFAULT_CHOICE, WindowChoice(3, 3, free_run=False), PAUSED], ids=str)
def test_it_decides_what_the_policy_decides(start: WindowChoice, pauses: PauseSettings, shares_machine: bool) -> None:
    def policy() -> PausingPolicy:
        return PausingPolicy(AdaptivePolicy(start), pauses)

    random_, expected_of = random.Random(str((start, pauses, shares_machine))), policy()
    compiled = CompiledSteering.of(policy(), NUM_DEVICES, NUM_NODES)
    assert compiled is not None
    every = [(device, node) for device in range(NUM_DEVICES) for node in range(NUM_NODES)]
    controls = {pair: expected_of.for_pair() for pair in every}
    regimes = {pair: drawn(random_) for pair in every}
    told: dict[tuple[int, int], WindowChoice] = {}
    num_changes, num_early, trials = 0, 0, {"begun": 0, "failed": 0, "undecided": 0, "became pauses": 0}
    for number in range(2500):
        for pair in every:
            if random_.random() < 0.01:
                regimes[pair] = drawn(random_)
        chosen = random_.sample(every, random_.randrange(1, len(every) + 1))
        is_new = np.array([random_.random() < 0.001 for _ in chosen])
        for pair, begins in zip(chosen, is_new, strict=True):
            if begins:
                controls[pair] = expected_of.for_pair()
        reports = [
            report(random_, regimes[pair], pair[1], told[pair].window if pair in told else 0, shares_machine)
            for pair in chosen
        ]
        devices, nodes = (np.array(column) for column in zip(*chosen, strict=True))
        on_trial = {pair for pair in chosen if controls[pair]._trial is not None}
        on_pause = {pair for pair in chosen if controls[pair]._is_paused} - on_trial
        for at, choice in compiled.decide(devices, nodes, is_new, records(reports)):
            told[chosen[at]] = choice
            num_changes += 1
        expected = expected_of.decide_all([controls[pair] for pair in chosen], reports)
        assert [told[pair] for pair in chosen] == expected, f"report {number}"
        for pair in chosen:
            num_early += pair in on_pause and not controls[pair]._is_paused and controls[pair]._left > 0
            is_tried, was_tried = controls[pair]._trial is not None, pair in on_trial
            trials["begun"] += is_tried and not was_tried
            has_resumed = was_tried and not is_tried and not controls[pair]._is_paused
            trials["failed"] += has_resumed and controls[pair]._left > 0
            trials["undecided"] += has_resumed and controls[pair]._left == 0
            trials["became pauses"] += was_tried and not is_tried and controls[pair]._is_paused
    assert num_changes > 100
    assert num_early > 0 or pauses is SOON, "no pause ended early"
    assert min(trials.values()) > 0 if shares_machine else sum(trials.values()) == 0, trials


def test_only_the_default_policy_is_compiled() -> None:
    for policy in (LadderPolicy(DEFAULT_CHOICE), PausingPolicy(LadderPolicy(DEFAULT_CHOICE))):
        assert CompiledSteering.of(policy, 1, 1) is None


def test_a_choice_is_told_once_until_it_changes() -> None:
    compiled = CompiledSteering.of(PausingPolicy(AdaptivePolicy(DEFAULT_CHOICE)), 1, 1)
    assert compiled is not None
    here, old = np.array([0]), np.array([False])
    seen = records([report(random.Random(1), Regime(1, 0.9, 10.0, 30.0, 40.0, 40.0, 20.0), 0, 8, False)])
    seen["num_sessions"], seen["tpot_ms"] = 1, 20.0
    assert len(compiled.decide(here, here, old, seen)) == 1
    assert compiled.decide(here, here, old, seen) == []
    assert len(compiled.decide(here, here, ~old, seen)) == 1, "a new pair"
    compiled.restart()
    assert len(compiled.decide(here, here, old, seen)) == 1, "a new controller"


def test_more_pairs_than_there_were_rows_for_at_first_do_not_change_the_first_ones() -> None:
    num, policy = 3 * FIRST_ROWS, PausingPolicy(AdaptivePolicy(DEFAULT_CHOICE), SOON)
    compiled, random_ = CompiledSteering.of(policy, num, num), random.Random(1)
    assert compiled is not None
    alone, regime = policy.for_pair(), Regime(1, 0.4, 10.0, 30.0, 40.0, 36.0, 40.0)
    window, seen_windows = DEFAULT_CHOICE.window, set()
    for number in range(200):
        seen = report(random_, regime, 0, window, shares_machine=True)
        some = num // 4 if number < 50 else num  # each with a verifier of its own
        pairs = np.arange(some)
        found = dict(compiled.decide(pairs, pairs, np.zeros(some, np.bool_), records([seen] * some)))
        window = found[0].window if 0 in found else window
        assert window == alone.decide(seen).window, f"report {number}"
        assert len(found) in (0, num // 4, num - num // 4, num)
        seen_windows.add((number >= 50, window))
    assert len(seen_windows) > 3


def test_a_whole_simulation_with_failures_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {
        "name": "compiled",
        "workload": {
            "kind": "poisson",
            "num_requests": 300,
            "rate_per_s": 4.0,
            "lengths": {"prompt": 40, "answer": 120, "max_tokens": 120},
        },
        "edge": [
            {
                "count": 4,
                "times": {"step_ms": 9.0},
                "link": {"rtt_ms": 40, "jitter_ms": 20},
                "guesses": {"kind": "independent", "rate": 0.7},
            }
        ],
        "cloud": [{"count": 2, "times": {"base_ms": 25.0, "session_ms": 2.0, "token_ms": 0.8}}],
        "policies": {"windows": "adaptive"},
        "failure": [
            {"part": "controller", "at_s": 12.0, "for_s": 50.0},
            {"part": "drafters", "at_s": 8.0, "for_s": 6.0, "share": 0.5},
        ],
    }
    outcomes = []
    for is_compiled in (True, False):
        if not is_compiled:
            monkeypatch.setattr(CompiledSteering, "of", lambda *_: None)
        fleet = make_fleet(scenario_of(content, Path("test.toml")), Path())
        fleet.run()
        outcomes.append(fleet.world)
    compiled, interpreted = outcomes
    assert (compiled.requests["done_ms"] == interpreted.requests["done_ms"]).all()
    assert len(np.unique(compiled.requests["drafted"])) > 50
