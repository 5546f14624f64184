"""The confidence policy: where its threshold settles, what moves it, what does not."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awc.policies.confidence import MAX_THRESHOLD, STEPS, ConfidencePair, ConfidencePolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import PairReport

VERIFIER_ID = "cloud.0123456789ab"
WINDOW = DEFAULT_CHOICE.window


def report(matched: int = 0, mismatched: int = 0, discarded: int = 0) -> PairReport:
    return PairReport(
        verifier_id=VERIFIER_ID,
        num_sessions=1,
        window=WINDOW,
        drafted=matched + mismatched + discarded,
        matched=matched,
        mismatched=mismatched,
        late=0,
        discarded=discarded,
        draft_ms=10.0,
        rtt_ms=20.0,
        queue=0.5,
        tpot_ms=30.0,
        context=100,
    )


class Draft:
    """A draft that says how sure it is: a guess of confidence c is right with probability c ** `vanity`."""

    def __init__(self, seed: int, vanity: float = 1.0, least: float = 0.0) -> None:
        self.vanity = vanity
        self.least = least  # no guess is less sure
        self.random = random.Random(seed)

    def window(self, choice: WindowChoice) -> PairReport:
        """What becomes of one window of guesses that are all verified together."""
        matched = mismatched = discarded = 0
        for _ in range(choice.window):
            confidence = self.random.uniform(self.least, 1.0)
            if mismatched:
                discarded += 1
            elif self.random.random() < confidence**self.vanity:
                matched += 1
            else:
                mismatched += 1
            if confidence < choice.min_confidence:
                break
        return report(matched, mismatched, discarded)


def settle(pair: ConfidencePair, draft: Draft, windows: int = 3000) -> tuple[float, float]:
    """The mean threshold and the share of discarded guesses over the second half of so many windows."""
    choice = pair.decide(report())
    thresholds, drafted, discarded = [], 0, 0
    for number in range(windows):
        seen = draft.window(choice)
        choice = pair.decide(seen)
        if number >= windows // 2:
            thresholds.append(choice.min_confidence)
            drafted, discarded = drafted + seen.drafted, discarded + seen.discarded
    return sum(thresholds) / len(thresholds), discarded / drafted


@pytest.mark.parametrize("wanted", [0.1, 0.2, 0.35])
@pytest.mark.parametrize("start", [0.0, 0.9])
def test_the_threshold_settles_where_the_wanted_share_is_discarded(wanted: float, start: float) -> None:
    policy = ConfidencePolicy(replace(DEFAULT_CHOICE, min_confidence=start), discarded_share=wanted)
    threshold, share = settle(policy.for_pair(), Draft(seed=1))
    assert share == pytest.approx(wanted, abs=0.03)
    assert 0 < threshold < MAX_THRESHOLD


def test_a_draft_that_thinks_too_well_of_itself_gets_a_higher_threshold() -> None:
    policy = ConfidencePolicy(DEFAULT_CHOICE)
    honest, vain = settle(policy.for_pair(), Draft(seed=2)), settle(policy.for_pair(), Draft(seed=2, vanity=2.0))
    assert vain[0] > honest[0] + 0.05
    assert vain[1] == pytest.approx(honest[1], abs=0.05)


def test_a_draft_that_is_nearly_always_right_is_never_stopped() -> None:
    threshold, share = settle(ConfidencePolicy(DEFAULT_CHOICE).for_pair(), Draft(seed=3, least=0.98))
    assert threshold == 0.0
    assert share < 0.2


def test_a_draft_whose_every_window_is_wrong_gets_the_highest_threshold_and_no_higher() -> None:
    pair = ConfidencePolicy(DEFAULT_CHOICE).for_pair()
    thresholds = [pair.decide(report(mismatched=8, discarded=56)).min_confidence for _ in range(100)]
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] == MAX_THRESHOLD


def test_a_draft_that_gets_better_is_trusted_again_at_once_and_not_after_as_long_as_it_was_bad() -> None:
    pair = ConfidencePolicy(DEFAULT_CHOICE).for_pair()
    for _ in range(1000):
        pair.decide(report(mismatched=8, discarded=56))
    thresholds = [pair.decide(report(matched=64)).min_confidence for _ in range(20)]
    assert thresholds[1] < MAX_THRESHOLD
    assert thresholds[-1] == 0.0


def test_wrong_guesses_alone_do_not_raise_the_threshold_since_it_can_not_spare_them() -> None:
    pair = ConfidencePolicy(DEFAULT_CHOICE).for_pair()
    assert {pair.decide(report(mismatched=64)) for _ in range(100)} == {DEFAULT_CHOICE}


def test_few_guesses_are_gathered_over_reports_before_they_count_as_a_sample() -> None:
    pair = ConfidencePolicy(DEFAULT_CHOICE, sample_guesses=64, gain=1.0).for_pair()
    thresholds = [pair.decide(report(mismatched=1, discarded=7)).min_confidence for _ in range(8)]
    assert thresholds == [0.0] * 7 + [0.7]  # 7 / 8 - 0.2, in steps of 1 / 20


def test_a_report_with_huge_counts_weighs_no_more_than_any_other_sample() -> None:
    pair = ConfidencePolicy(DEFAULT_CHOICE).for_pair()
    assert pair.decide(report(discarded=1 << 48)).min_confidence == 0.2
    assert [pair.decide(report(matched=64)).min_confidence for _ in range(4)][-1] == 0.0


@pytest.mark.parametrize(("start", "first"), [(0.0, 0.0), (0.33, 0.35), (0.5, 0.5), (1.0, MAX_THRESHOLD)])
def test_it_starts_at_the_threshold_it_is_given_and_keeps_the_rest(start: float, first: float) -> None:
    given_choice = WindowChoice(window=6, chunk=3, free_run=False, min_confidence=start)
    choice = ConfidencePolicy(given_choice).for_pair().decide(report())
    assert choice == replace(given_choice, min_confidence=first)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"discarded_share": 1.0}, "share"),
        ({"discarded_share": -0.1}, "share"),
        ({"discarded_share": float("nan")}, "share"),
        ({"sample_guesses": 0}, "sample"),
        ({"gain": 0.0}, "gain"),
        ({"gain": 1.1}, "gain"),
    ],
)
def test_a_policy_that_can_not_work_is_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ConfidencePolicy(DEFAULT_CHOICE, **wrong)


count = st.one_of(st.integers(0, 40), st.integers(0, 1 << 48))


@given(st.lists(st.tuples(count, count, count), max_size=60), st.floats(0, 1))
def test_whatever_is_reported_the_threshold_is_a_step_in_bounds_and_follows_from_the_reports(
    counts: list[tuple[int, int, int]], start: float
) -> None:
    policy = ConfidencePolicy(replace(DEFAULT_CHOICE, min_confidence=start))
    pair, again = policy.for_pair(), policy.for_pair()
    for seen in counts:
        choice = pair.decide(report(*seen))
        assert choice == again.decide(report(*seen))
        assert 0 <= choice.min_confidence <= MAX_THRESHOLD
        assert choice.min_confidence in {step / STEPS for step in range(STEPS + 1)}
