"""Waits in a chaos run: reported under load, limited with one fault at a time."""

from __future__ import annotations

import pytest

from benchmarks.chaos.faults import KINDS
from benchmarks.chaos.pauses import ALLOWED_S, NO_FAULT, by_cause, by_move, by_single, longest_gap_s
from benchmarks.chaos.records import Attempt, CauseFigures, Fault, Move, RequestRecord, SingleFigures

USUAL_GAP_S, USUAL_TTFT_S = 0.5, 1.0


def record(*arrivals_s: list[float], moves: list[Move] | None = None, sent_s: float = 10.0) -> RequestRecord:
    attempt = Attempt("gateway-0", sent_s, 20.0, "ok", ["one two"], ["stop"], 5, 9, list(arrivals_s), moves)
    return RequestRecord(7, 0, 1, True, [attempt])


def single(faults: list[Fault], *records: RequestRecord) -> tuple[dict[str, SingleFigures], list[str]]:
    figures, complaints = by_single(faults, records, USUAL_GAP_S, USUAL_TTFT_S)
    return {each.kind: each for each in figures}, complaints


def test_the_longest_gap_is_between_two_pieces_of_one_choice() -> None:
    assert longest_gap_s([record([1, 1.5], [2, 2.1]).answer]) == 0.5


def test_under_load_a_pause_counts_for_each_fault_that_overlaps_it_and_for_none_of_another_gateway() -> None:
    faults = [Fault("kill-drafter", "drafter-0", 11.0, 13.0), Fault("kill-verifier", "verifier-0", 12.0, None)]
    hung = Fault("hang-gateway", "gateway-1", 11.0, 14.0)
    records = [record([11.0, 11.4, 12.5, 13.75]), record([10.0, 10.6])]
    assert by_cause([*faults, hung], records, USUAL_GAP_S) == [
        CauseFigures("hang-gateway", 1, 0, 0.0),
        CauseFigures("kill-drafter", 1, 2, 1.25),
        CauseFigures("kill-verifier", 1, 2, 1.25),
        CauseFigures(NO_FAULT, 0, 1, pytest.approx(0.6)),
    ]


def test_under_load_moves_are_counted_and_answers_whose_gateway_could_not_be_asked() -> None:
    moved = [Move("gateway-0", 2.0, 4.5, 20.0), Move("gateway-0", 2.0, 3.0, 5.0)]
    figures = by_move([record(moves=moved), record(moves=None)])
    assert (figures.num_moves, figures.num_unknown) == (2, 1)
    assert (figures.longest_opening_s, figures.longest_prefill_s) == (2.5, 15.5)


@pytest.mark.parametrize(("kind", "allowed_s"), [("kill-verifier", 2.0), ("kill-drafter", 0.2), ("partition", 0.2)])
def test_a_wait_may_last_as_the_fault_allows_beyond_the_usual(kind: str, allowed_s: float) -> None:
    fault = Fault(kind, "", 11.0, 30.0)
    at_limit, beyond = (record([10.9, 10.9 + USUAL_GAP_S + allowed_s + more]) for more in (-0.01, 0.02))
    figures, complaints = single([fault], at_limit, beyond)
    assert figures[kind].num_too_long == len(complaints) == 1
    assert figures[kind].longest_s == pytest.approx(USUAL_GAP_S + allowed_s + 0.02)
    assert figures[kind].allowed_s == allowed_s


def test_long_after_its_beginning_a_fault_allows_no_more_than_any_other() -> None:
    killed = Fault("kill-verifier", "verifier-0", 11.0, 40.0)
    assert len(single([killed], record([13.1, 14.5], sent_s=12.5))[1]) == 1


def test_without_a_fault_too_a_wait_is_too_long() -> None:
    figures, complaints = single([], record([11.0, 11.8]))
    assert complaints == [
        "none: a wait of 0.80 s at 11.0 s in an answer of gateway-0, 0.70 s allowed",
    ]
    assert figures[NO_FAULT].num_faults == 0


def test_the_wait_for_the_first_piece_is_judged_by_the_usual_one() -> None:
    killed = Fault("kill-verifier", "verifier-0", 10.5, 40.0)
    in_time, late = record([12.9]), record([13.1])
    assert len(single([killed], in_time)[1]) == 0
    assert len(single([killed], late)[1]) == 1


def test_the_prefill_behind_a_move_does_not_count_and_counts_once_for_choices_that_move_together() -> None:
    killed = Fault("kill-verifier", "verifier-0", 11.0, 40.0)
    moved = [Move("gateway-0", 11.0, 12.0, 14.0), Move("gateway-0", 11.0, 12.5, 14.5)]
    figures, complaints = single([killed], record([11.0, 15.9], moves=moved))
    assert complaints == []
    assert figures["kill-verifier"].longest_s == pytest.approx(4.9 - 2.5)
    assert (figures["kill-verifier"].num_moves, figures["kill-verifier"].longest_opening_s) == (2, 1.5)
    assert len(single([killed], record([11.0, 16.1], moves=moved))[1]) == 1


def test_a_fault_of_another_gateway_excuses_nothing() -> None:
    hung = Fault("hang-gateway", "gateway-1", 11.0, 14.0)
    figures, complaints = single([hung], record([11.0, 13.5]))
    assert (figures["hang-gateway"].longest_s, figures[NO_FAULT].num_too_long, len(complaints)) == (0.0, 1, 1)


@pytest.mark.parametrize(("kind", "allowed_s"), [("kill-drafter", 0.5), ("term-controller", 0.5), ("clock", 0.2)])
def test_a_process_that_starts_again_may_slow_the_others_down(kind: str, allowed_s: float) -> None:
    fault = Fault(kind, "drafter-0", 10.9, 40.0)
    for begin, allowed in ((11.0, 0.2), (11.2, allowed_s)):
        usual = begin + 0.5 + allowed
        assert single([fault], record([begin, usual - 0.01]))[1] == []
        assert len(single([fault], record([begin, usual + 0.01]))[1]) == 1


def test_a_first_piece_may_come_later_while_a_process_starts_again() -> None:
    fault = Fault("kill-drafter", "drafter-0", 9.9, 40.0)
    in_time = 10.0 + USUAL_TTFT_S + 0.5
    assert single([fault], record([in_time - 0.01]))[1] == []
    assert len(single([fault], record([in_time + 0.01]))[1]) == 1
    assert len(single([Fault("clock", "drafter-0", 9.9, 40.0)], record([in_time - 0.01]))[1]) == 1


def test_every_limit_is_of_a_kind_of_fault() -> None:
    assert set(ALLOWED_S) < set(KINDS)
