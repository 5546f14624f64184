"""Pauses: drafting that gains nothing stops for a while and resumes where it helps."""

from __future__ import annotations

import pytest
from msgspec.structs import replace as changed

from awc.policies.adaptive import AdaptivePolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from awc.registry import POLICIES
from awc.wrappers.pausing import PATIENCE, PAUSED, PauseSettings, PausingPair, PausingPolicy
from shared.protocol.messages import PairReport
from tests.awc.reports import SEEN

SETTINGS = PauseSettings(first=6, longest=24, compared=3)
SKIPPED = SETTINGS.settling + SETTINGS.compared  # reports of a whole trial, and of a probe

GOOD = changed(SEEN, matched=18, mismatched=2, draft_ms=6.0, pass_ms=40.0, rtt_ms=10.0, tpot_ms=15.0)
WRONG = changed(GOOD, matched=2, mismatched=18, rtt_ms=100.0, draft_ms=10.0, tpot_ms=35.0)  # a good draft would gain
OUTPACED = changed(GOOD, draft_ms=50.0, tpot_ms=35.0)
GAINS_LITTLE = {"matched": 11, "mismatched": 9, "rtt_ms": 60.0, "draft_ms": 10.0}
DOUBTFUL = changed(GOOD, tpot_ms=39.0, shares_machine=True, **GAINS_LITTLE)
NOTHING = {"window": 0, "matched": 0, "mismatched": 0, "drafted": 0}


class Recorder:
    """A control that counts what it sees."""

    def __init__(self) -> None:
        self.num_seen = 0
        self.choice = DEFAULT_CHOICE

    def decide(self, seen: PairReport) -> WindowChoice:
        self.num_seen += 1
        return self.choice


def a_pair(settings: PauseSettings = SETTINGS) -> PausingPair:
    return PausingPair(Recorder(), PausingPolicy(AdaptivePolicy(DEFAULT_CHOICE), settings))


def followed(pair: PausingPair, drafting: PairReport, num: int, paused_ms: float = 39.0) -> list[bool]:
    """Whether the pair is paused after each of `num` reports. `paused_ms`: TPOT in a pause."""
    found = [False]
    for number in range(num):
        seen = changed(drafting, tpot_ms=paused_ms, **NOTHING) if found[-1] else drafting
        found.append(pair.decide(changed(seen, tpot_ms=seen.tpot_ms + 1e-6 * (number % 2))) == PAUSED)
    return found[1:]


def lengths(paused: list[bool]) -> list[int]:
    """Of the pauses that have ended, in reports."""
    found, num = [], 0
    for each in paused:
        if each:
            num += 1
        elif num:
            found.append(num)
            num = 0
    return found


def test_a_pair_that_gains_never_pauses() -> None:
    assert not any(followed(a_pair(), GOOD, 300))


def test_a_pair_whose_guesses_are_wrong_pauses_and_each_further_pause_is_twice_as_long() -> None:
    assert lengths(followed(a_pair(), WRONG, 300))[:4] == [6, 12, 24, 24]


def test_after_a_pause_the_pair_drafts_long_enough_to_measure_its_acceptance() -> None:
    paused = followed(a_pair(), WRONG, 60)
    begin = paused.index(True) + 6
    assert paused[begin : begin + SKIPPED] == [False] * SKIPPED


def test_a_pair_whose_guesses_became_right_drafts_on_after_its_pause() -> None:
    pair = a_pair()
    assert any(followed(pair, WRONG, 60))
    assert not any(followed(pair, GOOD, 200)[SETTINGS.longest + 1 :])


RIGHT = {"matched": 14, "mismatched": 6}
ALONE = changed(GOOD, batch=1.0, pass_tokens=1.0, draft_ms=10.0, pass_ms=50.0, tpot_ms=30.0, **RIGHT)
CROWDED = changed(
    GOOD, num_sessions=16, batch=16.0, pass_tokens=16.0, draft_ms=62.0, pass_ms=80.0, tpot_ms=80.0, **RIGHT
)
CROWDED_TOO = changed(CROWDED, draft_ms=50.0, shares_machine=True)


@pytest.mark.parametrize("crowded", [CROWDED, CROWDED_TOO], ids=["own machine", "shared machine"])
def test_a_pause_ends_early_when_the_load_that_it_was_decided_under_has_gone(crowded: PairReport) -> None:
    pair, alone = a_pair(PauseSettings(first=500, longest=640)), changed(ALONE, shares_machine=crowded.shares_machine)
    assert followed(pair, crowded, 100, paused_ms=80.0)[-1]
    paused = [pair.decide(changed(alone, **NOTHING)) == PAUSED for _ in range(PATIENCE)]
    assert paused == [True] * (PATIENCE - 1) + [False]
    assert not any(followed(pair, alone, 100))


def test_a_pause_goes_on_while_little_has_changed() -> None:
    pair = a_pair(PauseSettings(first=500, longest=640))
    assert followed(pair, CROWDED, 100, paused_ms=80.0)[-1]
    better = changed(CROWDED, draft_ms=50.0, **NOTHING)
    assert all(pair.decide(better) == PAUSED for _ in range(80))
    assert all(pair.decide(seen) == PAUSED for seen in [better, changed(ALONE, **NOTHING)] * 7), "one says little"


def test_a_pause_soon_after_one_that_ended_early_has_its_full_length() -> None:
    """The drafter is idle whenever the pair pauses, as where all its pairs pause together."""
    pair, paused = a_pair(PauseSettings(first=30, longest=60)), [False]
    for _ in range(300):
        seen = changed(CROWDED, draft_ms=15.0, **NOTHING) if paused[-1] else CROWDED
        paused.append(pair.decide(changed(seen, tpot_ms=seen.tpot_ms + 1e-6 * len(paused))) == PAUSED)
    assert lengths(paused) == [PATIENCE, 60] * 3


def test_a_short_window_is_no_reason_to_end_a_pause() -> None:
    """Its gain is compared with that of the longest window at the pause's beginning, not with its own."""
    pair = a_pair(PauseSettings(first=100, longest=100))
    pair.active.choice = WindowChoice(4, 2, free_run=True)  # type: ignore[attr-defined]
    far = changed(GOOD, matched=16, mismatched=4, rtt_ms=120.0, draft_ms=4.0)
    assert lengths(followed(pair, far, 300))[0] == 100


def test_an_outpaced_pair_pauses_until_its_drafter_is_fast_enough() -> None:
    pair = a_pair()
    assert all(followed(pair, OUTPACED, 500)[PATIENCE - 1 :])
    assert pair.decide(changed(GOOD, **NOTHING)) != PAUSED


def test_one_report_without_a_gain_is_no_reason_to_pause() -> None:
    pair = a_pair()
    assert not any(
        pair.decide(changed(seen, tpot_ms=15.0 + n)) == PAUSED for n, seen in enumerate([GOOD, OUTPACED] * 9)
    )


def test_where_drafting_gains_little_on_a_shared_machine_a_trial_decides_that_it_is_too_slow() -> None:
    paused = followed(a_pair(), DOUBTFUL, 80, paused_ms=36.0)
    assert paused.index(True) == SETTINGS.before_trial - 1
    assert lengths(paused)[0] == SKIPPED + SETTINGS.first


def test_a_pair_with_machines_of_its_own_is_not_tried() -> None:
    assert not any(followed(a_pair(), changed(DOUBTFUL, shares_machine=False), 300, paused_ms=10.0))


def test_after_a_pause_that_a_trial_began_a_few_reports_are_enough_for_the_next_trial() -> None:
    paused = followed(a_pair(), DOUBTFUL, 80, paused_ms=36.0)
    begin = paused.index(True) + lengths(paused)[0]
    assert paused[begin : begin + SKIPPED].count(True) <= 1
    assert all(paused[begin + SKIPPED : begin + SKIPPED + SETTINGS.first])


def test_a_trial_that_makes_tokens_slower_ends_and_the_next_comes_later() -> None:
    paused = followed(a_pair(), DOUBTFUL, 150, paused_ms=45.0)
    assert lengths(paused)[:2] == [SKIPPED] * 2
    starts = [i for i, (last, each) in enumerate(zip([False, *paused], paused, strict=False)) if each and not last]
    assert starts[2] - starts[1] > starts[1] - starts[0]


def test_a_few_slow_reports_do_not_end_a_trial() -> None:
    pair = a_pair(PauseSettings(first=6, longest=24, compared=8))
    while pair.decide(changed(DOUBTFUL, tpot_ms=39.0 + pair.active.num_seen % 2)) != PAUSED:  # type: ignore[attr-defined]
        pass
    prompts_are_computed = [90.0] * 6  # the first 3 are skipped
    for tpot_ms in [*prompts_are_computed, *[25.0] * 5]:
        assert pair.decide(changed(DOUBTFUL, tpot_ms=tpot_ms, **NOTHING)) == PAUSED
    assert pair.decide(changed(DOUBTFUL, tpot_ms=39.0, **NOTHING)) == PAUSED, "the trial became a pause"


def on_trial(sessions: int, tpot_ms: float) -> PausingPair:
    """A pair whose trial begins after drafting with so many sessions at this TPOT."""
    pair = a_pair()
    drafting = changed(DOUBTFUL, num_sessions=sessions, batch=4.0, pass_tokens=8.0, tpot_ms=tpot_ms)
    for number in range(100):
        if pair.decide(changed(drafting, tpot_ms=tpot_ms + 1e-6 * (number % 2))) == PAUSED:
            return pair
    raise AssertionError("no trial began")


def after(pair: PausingPair, num: int, **seen: float) -> bool:
    """Whether the pair is paused after so many reports of a pause."""
    report = changed(DOUBTFUL, **NOTHING | {"batch": 4.0, "pass_tokens": 8.0} | seen)
    return [pair.decide(report) == PAUSED for _ in range(num)][-1]


def test_a_trial_does_not_take_few_sessions_for_a_gain() -> None:
    pair = on_trial(sessions=8, tpot_ms=60.0)
    assert after(pair, 2 * SETTINGS.compared, num_sessions=2, tpot_ms=30.0), "nothing to compare with yet"
    assert not after(pair, SETTINGS.compared, num_sessions=8, tpot_ms=66.0), "a tenth slower"


def test_a_trial_does_not_take_prompts_for_a_loss() -> None:
    pair = on_trial(sessions=8, tpot_ms=60.0)
    assert after(pair, SKIPPED, num_sessions=8, tpot_ms=300.0, pass_tokens=250.0), "prompts fill the passes"
    assert after(pair, SETTINGS.compared + SETTINGS.first - 1, num_sessions=8, tpot_ms=55.0), "the trial became a pause"


def test_a_trial_that_finds_nothing_to_compare_ends_after_a_whole_pause() -> None:
    whole = SKIPPED + SETTINGS.first
    pair = on_trial(sessions=8, tpot_ms=60.0)
    assert after(pair, whole - 1, num_sessions=2, tpot_ms=30.0)
    assert not after(pair, 1, num_sessions=2, tpot_ms=30.0)
    drafting = changed(DOUBTFUL, num_sessions=8, batch=4.0, pass_tokens=8.0)
    reports = [changed(drafting, tpot_ms=60.0 + number) for number in range(SETTINGS.after_failed - 2)]
    assert PAUSED not in map(pair.decide, reports), "the next trial is not sooner than after a failed one"


def test_no_trial_begins_in_a_situation_that_is_new() -> None:
    pair = a_pair()
    choices = [pair.decide(changed(DOUBTFUL, num_sessions=1 + number, tpot_ms=39.0 + number)) for number in range(60)]
    assert PAUSED not in choices


def test_a_trial_is_not_needed_where_drafting_gains_more_than_a_shared_machine_may_cost() -> None:
    assert not any(followed(a_pair(), changed(GOOD, tpot_ms=39.0, shares_machine=True), 300, paused_ms=10.0))


def test_reports_before_the_pause_reached_the_drafter_are_not_compared() -> None:
    pair = a_pair()
    while pair.decide(changed(DOUBTFUL, tpot_ms=39.0 + pair.active.num_seen % 2)) != PAUSED:  # type: ignore[attr-defined]
        pass
    late = changed(DOUBTFUL, tpot_ms=90.0)  # its window is still above 0
    assert all(pair.decide(late) == PAUSED for _ in range(SETTINGS.first))


def test_a_control_may_choose_window_0_by_itself_and_come_back() -> None:
    class Idle(Recorder):
        def decide(self, seen: PairReport) -> WindowChoice:
            super().decide(seen)
            return PAUSED if self.num_seen < 100 else DEFAULT_CHOICE

    pair = PausingPair(Idle(), PausingPolicy(AdaptivePolicy(DEFAULT_CHOICE), SETTINGS))
    choices = [pair.decide(GOOD) for _ in range(100)]
    assert [choice.window for choice in choices] == [0] * 99 + [DEFAULT_CHOICE.window]


def test_the_wrapped_control_sees_no_report_of_a_pause() -> None:
    pair = a_pair()
    paused = followed(pair, OUTPACED, 100)
    assert pair.active.num_seen == paused.index(True) + 1  # type: ignore[attr-defined]


def test_reports_without_sessions_end_no_pause() -> None:
    pair = a_pair()
    followed(pair, OUTPACED, 10)
    assert all(pair.decide(changed(GOOD, num_sessions=0)) == PAUSED for _ in range(100))


def test_pairs_decided_together_pause_as_each_would_alone() -> None:
    policy = PausingPolicy(AdaptivePolicy(DEFAULT_CHOICE), SETTINGS)
    together, alone = ([policy.for_pair() for _ in range(3)] for _ in range(2))
    for number in range(60):
        reports = [GOOD, WRONG, [GOOD, OUTPACED][number // 20 % 2]]
        expected = [pair.decide(seen) for pair, seen in zip(alone, reports, strict=True)]
        assert policy.decide_all(together, reports) == expected
    assert policy.decide_all([], []) == []


@pytest.mark.parametrize("name", ["ladder", "confidence", "delay-ucb", "adaptive"])
def test_policies_that_do_not_stop_by_themselves_pause(name: str) -> None:
    pair = POLICIES[name](DEFAULT_CHOICE).for_pair()
    assert any(pair.decide(changed(OUTPACED, tpot_ms=35.0 + n)) == PAUSED for n in range(9))


@pytest.mark.parametrize(
    ("given", "named"),
    [({"first": 0}, "first"), ({"longest": 3}, "longest"), ({"compared": 0}, "compared"), ({"margin": -1.0}, "margin")],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PauseSettings(**given)  # type: ignore[arg-type]
