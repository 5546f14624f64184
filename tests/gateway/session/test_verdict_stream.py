"""Merging verdicts: whatever the network does to them, the answer is a prefix of the target's own, whole in the end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from services.gateway.session.timeouts import PollTiming
from services.gateway.session.verdict_stream import ConflictingVerdict, TallySum, VerdictStream
from shared.protocol.kept_logprobs import MAX_TOLD_WITH_LOGPROBS
from shared.protocol.messages import MAX_WINDOW, Finish, Tally, TokenIds, TokenLogprobs, Verdict

SESSION = "0" * 32
PROMPT = 5
TIMING = PollTiming()


def verdict(
    base: int, ids: list[int], *, term: int = 1, finish: Finish | None = None, tally: Tally | None = None
) -> Verdict:
    return Verdict(SESSION, term, 0, base, TokenIds(ids), 0, finish, None, 0.0, 1, 0.0, tally or Tally())


def stream(max_tokens: int = 100, wants_logprobs: bool = False) -> VerdictStream:
    new = VerdictStream(PROMPT, max_tokens, TIMING, wants_logprobs)
    new.begin_term(1, 0.0)
    return new


def merged(ours: VerdictStream, told: Verdict, now: float) -> list[int]:
    """The tokens that a verdict added."""
    return [each.token_id for each in ours.merge(told, now)]


def logprobs_of(ids: list[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(-float(token_id), TokenIds(), []) for token_id in ids]


@given(
    st.integers(0, 10_000), st.integers(1, 40), st.floats(0, 0.6), st.floats(0, 0.5), st.floats(0, 0.5), st.booleans()
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_the_answer_is_whole_whatever_is_lost_repeated_or_overtaken(
    seed: int, num_tokens: int, loss: float, duplication: float, reordering: float, wants_logprobs: bool
) -> None:
    """A verifier answers Polls; the network loses, repeats and reorders; a term may be left and taken up elsewhere."""
    rng = random.Random(seed)
    truth = [rng.randrange(1000) for _ in range(num_tokens)]
    ours, now, fixed, term, under_way = stream(num_tokens, wants_logprobs), 0.0, 0, 1, []

    def tell(base: int, of_term: int) -> None:
        ids = truth[base - PROMPT : fixed]
        told = verdict(base, ids, term=of_term, finish="length" if fixed == num_tokens else None)
        if wants_logprobs:
            told = structs.replace(told, logprobs=logprobs_of(ids))
        copies = 0 if rng.random() < loss else 2 if rng.random() < duplication else 1
        under_way.extend([told] * copies)

    for _ in range(4000):
        now += rng.random() * 0.2
        if fixed < num_tokens and rng.random() < 0.7:
            base = PROMPT + fixed
            fixed = min(num_tokens, fixed + rng.randrange(1, 4))
            tell(base, term)
        if rng.random() < 0.02:
            term += 1
            fixed = len(ours.tokens)  # the next verifier has what the gateway has, while old verdicts are under way
            ours.begin_term(term, now)
        if ours.due is not None and now >= ours.due:
            if ours.is_lost(now):
                ours.begin_term(term, now)
            elif (asked := ours.on_timer(now)) is not None:
                tell(asked, term)
        if reordering and rng.random() < reordering:
            rng.shuffle(under_way)
        while under_way and rng.random() < 0.8:
            before = list(ours.tokens)
            new = merged(ours, under_way.pop(0), now)
            assert ours.tokens == [*before, *new]
            assert ours.tokens == truth[: len(ours.tokens)]
        if ours.finish:
            break
    assert ours.tokens == truth
    assert [each.logprobs for each in ours.committed] == (logprobs_of(truth) if wants_logprobs else [None] * num_tokens)
    assert ours.finish == "length"
    assert ours.due is None


def test_overlap_is_merged_and_only_the_new_tokens_are_told() -> None:
    ours = stream()
    assert merged(ours, verdict(5, [1, 2, 3]), 0.1) == [1, 2, 3]
    assert merged(ours, verdict(6, [2, 3, 4]), 0.2) == [4]
    assert merged(ours, verdict(5, [1, 2]), 0.3) == []
    assert ours.tokens == [1, 2, 3, 4]


def test_a_token_tells_whether_it_was_an_accepted_guess_or_the_targets_own() -> None:
    ours = stream()
    told = [
        structs.replace(verdict(5, [1, 2, 3]), accepted=2),
        structs.replace(verdict(8, [4, 5], tally=Tally(rejected=1)), accepted=1),
        verdict(10, [6], tally=Tally(rejected=2)),
        verdict(11, [7], tally=Tally(rejected=2)),
    ]
    sources = [each.source for one in told for each in ours.merge(one, 0.1)]
    assert sources == ["accepted", "accepted", "bonus", "accepted", "recovered", "recovered", "target"]


def test_right_guesses_of_the_verifiers_own_have_a_source_of_their_own_behind_the_accepted_ones() -> None:
    ours = stream()
    told = [
        structs.replace(verdict(5, [1, 2, 3, 4]), accepted=1, looked_up=2),
        structs.replace(verdict(9, [5, 6]), looked_up=1),
        structs.replace(verdict(10, [6, 7, 8]), looked_up=2),  # overlaps
    ]
    sources = [each.source for one in told for each in ours.merge(one, 0.1)]
    assert sources == ["accepted", "lookup", "lookup", "bonus", "lookup", "bonus", "lookup", "bonus"]


def test_logprobs_stay_with_their_tokens_when_verdicts_overlap() -> None:
    ours = stream(wants_logprobs=True)
    of = [TokenLogprobs(-float(i), TokenIds(), []) for i in range(4)]
    ours.merge(structs.replace(verdict(5, [1, 2]), logprobs=of[:2]), 0.1)
    ours.merge(structs.replace(verdict(6, [2, 3, 4]), logprobs=of[1:]), 0.2)
    assert [(each.token_id, each.logprobs) for each in ours.committed] == list(zip([1, 2, 3, 4], of, strict=True))


def test_a_verifier_that_resumed_tells_logprobs_only_of_what_it_drew_itself() -> None:
    ours = stream(wants_logprobs=True)
    of = [TokenLogprobs(-float(i), TokenIds(), []) for i in range(3)]
    ours.merge(structs.replace(verdict(5, [1, 2]), logprobs=of[:2]), 0.1)
    ours.merge(structs.replace(verdict(5, [1, 2, 3]), logprobs=of[2:]), 0.2)
    assert [each.logprobs for each in ours.committed] == of


def test_tokens_without_the_logprobs_asked_for_are_not_taken() -> None:
    ours = stream(wants_logprobs=True)
    with pytest.raises(ConflictingVerdict, match="no logprobs"):
        ours.merge(structs.replace(verdict(5, [1, 2]), logprobs=[TokenLogprobs(0.0, TokenIds(), [])]), 0.1)
    assert ours.tokens == []


def test_a_verdict_of_another_term_changes_nothing() -> None:
    ours = stream()
    assert merged(ours, verdict(5, [9], term=0), 0.1) == []
    assert merged(ours, verdict(5, [9], term=2), 0.1) == []
    assert ours.tokens == []


def test_nothing_follows_the_finish() -> None:
    ours = stream()
    ours.merge(verdict(5, [1, 2], finish="stop"), 0.1)
    assert merged(ours, verdict(7, [3]), 0.2) == []
    assert (ours.finish, ours.tokens) == ("stop", [1, 2])


@pytest.mark.parametrize(
    "wrong",
    [
        verdict(5, [1, 7]),  # another token at a known position
        verdict(4, [0, 1, 2]),  # inside the prompt
        verdict(7, list(range(99))),  # beyond max_tokens
        verdict(5, [1], finish="stop"),  # ended where more is fixed
    ],
)
def test_a_contradiction_is_told_and_keeps_what_was_sent(wrong: Verdict) -> None:
    ours = stream()
    ours.merge(verdict(5, [1, 2]), 0.1)
    with pytest.raises(ConflictingVerdict):
        ours.merge(wrong, 0.2)
    assert (ours.tokens, ours.finish) == ([1, 2], None)


def test_a_gap_is_polled_at_once_and_once_only() -> None:
    ours = stream()
    ours.merge(verdict(5, [1]), 1.0)
    ours.merge(verdict(8, [4]), 1.1)
    assert ours.due == 1.1
    assert ours.on_timer(1.1) == 6
    ours.merge(verdict(9, [5]), 1.2)  # the answer is still under way
    assert ours.on_timer(1.2) is None
    assert merged(ours, verdict(6, [2, 3, 4, 5]), 1.3) == [2, 3, 4, 5]
    assert ours.due is not None
    assert ours.due > 1.3


def test_a_gap_is_no_contradiction_where_logprobs_are_asked_for() -> None:
    ours = stream(wants_logprobs=True)
    ours.merge(structs.replace(verdict(5, [1]), logprobs=logprobs_of([1])), 1.0)
    assert merged(ours, structs.replace(verdict(8, [4]), logprobs=logprobs_of([4])), 1.1) == []
    assert ours.on_timer(1.1) == 6
    whole = structs.replace(verdict(6, [2, 3, 4]), logprobs=logprobs_of([2, 3, 4]))
    assert merged(ours, whole, 1.2) == [2, 3, 4]


def test_an_old_duplicate_does_not_hide_a_gap() -> None:
    ours = stream()
    ours.merge(verdict(5, [1, 2]), 1.0)
    ours.merge(verdict(9, [5]), 1.1)
    ours.merge(verdict(5, [1]), 1.2)
    assert ours.on_timer(1.2) == 7


def test_silence_is_polled_after_a_few_usual_gaps() -> None:
    ours = stream()
    for number in range(20):
        ours.merge(verdict(5 + number, [number]), 0.3 * number)
    assert ours.silence_s == pytest.approx(TIMING.num_gaps * 0.3)
    assert ours.on_timer(0.3 * 19 + ours.silence_s - 0.01) is None
    assert ours.on_timer(0.3 * 19 + ours.silence_s + 0.01) == 25


def test_an_empty_answer_means_alive_and_unanswered_polls_mean_lost() -> None:
    ours, now = stream(), 0.0
    for _ in range(10):
        now += TIMING.max_silence_s
        assert ours.on_timer(now) == 5
        ours.merge(verdict(5, []), now)
    assert not ours.is_lost(now)
    for _ in range(TIMING.max_polls):
        now += TIMING.max_silence_s
        assert ours.on_timer(now) == 5
    assert not ours.is_lost(now)
    now += TIMING.max_silence_s
    assert ours.is_lost(now)
    assert ours.on_timer(now) is None


def test_a_taken_up_session_is_polled_at_once() -> None:
    ours = stream()
    ours.merge(verdict(5, [1]), 1.0)
    ours.begin_term(2, 2.0, incomplete=True)
    assert ours.on_timer(2.0) == 6
    ours.merge(verdict(6, [], term=2), 2.1)
    assert ours.on_timer(2.1) is None


def test_tallies_are_summed_over_verifiers_and_not_over_verdicts() -> None:
    total = TallySum()
    total.observe("a", 1, Tally(3, 1, 0, 2, 4))
    total.observe("a", 1, Tally(5, 1, 0, 2, 6))
    total.observe("a", 1, Tally(4, 1, 0, 2, 5))  # overtaken
    total.observe("b", 2, Tally(1, 0, 1, 0, 2))
    assert total.total == Tally(6, 1, 1, 2, 8)
    total.observe("a", 3, Tally(6, 1, 0, 2, 7))  # rebound: went on counting
    assert total.total == Tally(7, 1, 1, 2, 9)
    total.observe("a", 4, Tally(1, 0, 0, 0, 1))  # lost the session and opened it anew
    assert total.total == Tally(8, 1, 1, 2, 10)


def test_a_tally_counts_beyond_the_one_that_it_replaces() -> None:
    """What it returns and the tally differ by the guesses that nobody has counted yet."""
    total = TallySum()
    assert total.observe("a", 1, Tally(3, 1, 0, 2, 4)) == Tally()
    assert total.observe("a", 1, Tally(5, 1, 0, 2, 6)) == Tally(3, 1, 0, 2, 4)
    overtaken, anew = Tally(4, 1, 0, 2, 5), Tally(1, 0, 0, 0, 1)
    assert total.observe("a", 1, overtaken) == overtaken
    assert total.observe("b", 2, anew) == Tally()
    assert total.observe("a", 3, anew) == Tally(), "it lost the session and opened it anew"


def scoring(prompt: tuple[int, ...] = (5, 6, 7, 8, 9)) -> VerdictStream:
    new = VerdictStream(len(prompt), 100, TIMING, True, TokenIds(prompt[1:]))
    new.begin_term(1, 0.0)
    return new


def scored(base: int, ids: list[int], finish: Finish | None = None) -> Verdict:
    return structs.replace(verdict(base, ids, finish=finish), logprobs=logprobs_of(ids))


def test_a_scored_prompt_is_polled_for_from_its_second_token_on() -> None:
    ours = scoring()
    assert merged(ours, scored(5, [1, 2]), 1.0) == []
    assert ours.on_timer(1.0) == 1, "a gap"
    assert merged(ours, scored(1, [6, 7]), 1.1) == [6, 7]
    assert (ours.num_answered, ours.answer_ids, ours.length) == (0, (), 3)
    assert merged(ours, scored(3, [8, 9, 1, 2], "length"), 1.2) == [8, 9, 1, 2]
    assert (ours.num_answered, ours.answer_ids, ours.finish) == (2, (1, 2), "length")


@pytest.mark.parametrize(("base", "ids"), [(1, [6, 8]), (4, [8]), (0, [5]), (3, [8, 9, *range(101)])])
def test_another_prompt_contradicts(base: int, ids: list[int]) -> None:
    ours = scoring()
    merged(ours, scored(1, [6]), 1.0)
    with pytest.raises(ConflictingVerdict):
        ours.merge(scored(base, ids), 2.0)


def test_a_verdict_as_long_as_logprobs_allow_is_polled_on_at_once() -> None:
    ours = stream(2000, wants_logprobs=True)
    merged(ours, scored(PROMPT, [1] * MAX_TOLD_WITH_LOGPROBS), 1.0)
    assert ours.on_timer(1.0) == PROMPT + MAX_TOLD_WITH_LOGPROBS
    merged(ours, scored(PROMPT + MAX_TOLD_WITH_LOGPROBS, []), 1.1)
    assert ours.on_timer(1.1) is None


def test_passes_are_counted_by_the_guesses_they_accepted() -> None:
    ours = stream()
    for base, ids, accepted, rejected in ((5, [1], 0, 0), (6, [1, 1], 1, 0), (8, [1] * 3, 2, 1), (11, [1], 0, 2)):
        ours.merge(structs.replace(verdict(base, ids, tally=Tally(rejected=rejected)), accepted=accepted), 1.0)
    ours.merge(structs.replace(verdict(6, [1, 1]), accepted=1), 2.0)  # it came twice
    ours.merge(verdict(12, [1, 1], tally=Tally(accepted=9, rejected=2)), 3.0)  # told by a Poll
    assert ours.histogram == [1, 1, 1]


def test_a_lie_about_accepted_guesses_costs_no_memory() -> None:
    ours = stream()
    ours.merge(structs.replace(verdict(5, [1] * 80), accepted=1 << 48), 1.0)
    assert len(ours.histogram) == MAX_WINDOW + 1
