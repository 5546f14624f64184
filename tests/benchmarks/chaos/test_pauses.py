"""Pauses and moves of a chaos run are judged as its report says."""

from __future__ import annotations

from benchmarks.chaos.faults import KINDS
from benchmarks.chaos.pauses import ALLOWED_S, Pause, by_cause, by_move, longest_gap_s, pauses
from benchmarks.chaos.records import Attempt, Fault, Move, RequestRecord


def record(*arrivals_s: list[float], moves: list[Move] | None = None) -> RequestRecord:
    attempt = Attempt("gateway-0", 10.0, 20.0, "ok", ["one two"], ["stop"], 5, 9, list(arrivals_s), moves)
    return RequestRecord(7, 0, 1, True, [attempt])


def test_a_pause_is_longer_than_the_longest_time_between_pieces_without_faults() -> None:
    calm = record([1, 1.5], [2, 2.1])
    assert longest_gap_s([calm.answer]) == 0.5
    assert pauses([record([11.0, 11.4, 12.0], [13.0])], usual_s=0.5) == [Pause("gateway-0", 11.4, 12.0)]


def test_a_pause_is_put_down_to_the_fault_that_allows_most_and_is_too_long_above_all_of_them() -> None:
    drafter, verifier = Fault("kill-drafter", "drafter-0", 1.0, 3.0), Fault("kill-verifier", "verifier-0", 2.0, None)
    short, long = Pause("gateway-0", 2.5, 4.0), Pause("gateway-0", 2.5, 5.3)
    both = Pause("gateway-0", 2.5, 5.1)
    figures, complaints = by_cause([drafter, verifier], [short, both, long], [], usual_s=0.5)
    assert {each.kind: each.num_pauses for each in figures} == {"kill-drafter": 0, "kill-verifier": 3}
    assert [each.num_too_long for each in figures] == [0, 1], "2 and 0.2 s, and 0.5 s of the load"
    assert len(complaints) == 1
    assert {each.longest_alone_s for each in figures} == {0.0}


def test_time_in_which_moved_sessions_are_computed_again_counts_once_and_for_nobody_outside_it() -> None:
    drafter = Fault("kill-drafter", "drafter-0", 1.0, 9.0)
    moved = [Move("gateway-1", 1.0, 2.0, 4.0), Move("gateway-0", 1.0, 2.5, 3.5), Move("gateway-0", 7.0, 7.5, 9.0)]
    in_time, longer, outside = (Pause("gateway-0", *span) for span in ((3.0, 4.6), (3.0, 4.9), (5.0, 6.0)))
    too_long = by_cause([drafter], [in_time, longer, outside], moved, usual_s=0.5)[1]
    assert [each.partition(" at ")[2] for each in too_long] == ["3.0 s, 1.70 s allowed", "5.0 s, 0.70 s allowed"]


def test_a_move_is_late_if_opened_comes_later_than_its_faults_allow_whatever_its_prefill_takes() -> None:
    killed = Fault("kill-verifier", "verifier-0", 2.0, 30.0)
    in_time, late = Move("gateway-0", 2.0, 4.4, 20.0), Move("gateway-0", 2.0, 4.6, 5.0)
    figures, complaints = by_move([record(moves=[in_time, late]), record(moves=None)], [killed], usual_s=0.5)
    assert (figures.num_moves, figures.num_late, figures.num_untold) == (2, 1, 1)
    assert (round(figures.longest_opening_s, 3), figures.longest_prefill_s) == (2.6, 15.6)
    assert complaints == ["a session was opened elsewhere after 2.60 s at 2.0 s, 2.50 s allowed"]
    nats = Fault("kill-nats", "nats-0", 3.0, 3.5)
    assert by_move([record(moves=[late])], [killed, nats], usual_s=0.5)[1] == []
    assert len(by_move([record(moves=[in_time])], [], usual_s=0.5)[1]) == 1, "no fault, no excuse"


def test_a_pause_without_a_fault_and_a_fault_of_another_gateway() -> None:
    hung = Fault("hang-gateway", "gateway-1", 1.0, 4.0)
    figures, complaints = by_cause([hung], [Pause("gateway-0", 1.5, 3.5)], [], usual_s=0.5)
    assert {each.kind: (each.num_pauses, each.longest_alone_s) for each in figures} == {
        "hang-gateway": (0, 0.0),
        "none": (1, 2.0),
    }
    assert complaints == []


def test_every_limit_is_of_a_kind_of_fault() -> None:
    assert set(ALLOWED_S) < set(KINDS)
