"""Texts and failed requests of a chaos run are judged as its report says."""

from __future__ import annotations

import pytest

from benchmarks.chaos.judging import compare, difference, failures
from benchmarks.chaos.records import Attempt, Fault, RequestRecord

EXPECTED = {
    0: Attempt("gateway-0", 0.0, 4.0, "ok", ["one two", "three"], ["stop", "length"], 5, 9, [[1, 1.5], [2, 2.1]])
}


def record(*attempts: Attempt, question: int = 0) -> RequestRecord:
    return RequestRecord(7, question, 2, True, list(attempts))


def attempt(texts: list[str], status: str = "ok", gateway: str = "gateway-0", num_tokens: int = 5) -> Attempt:
    return Attempt(gateway, 10.0, 20.0, status, texts, ["stop", "length"], num_tokens, 9)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ("a text of words", ""),
        ("a text of", "lost"),
        ("a of words", "lost"),
        ("a text of of words", "doubled"),
        ("a text of wordswords", "doubled"),
        ("a text of other words", "wrong"),
        ("a text of swords", "wrong"),
        ("another one", "wrong"),
    ],
)
def test_a_text_is_equal_or_wrong_or_has_lost_or_doubled_tokens(got: str, expected: str) -> None:
    assert difference("a text of words", got) == expected


def test_an_answer_with_the_undisturbed_texts_is_no_difference() -> None:
    figures, found = compare([record(attempt(["one two", "three"]))], EXPECTED)
    assert (figures.num_requests, figures.num_choices, figures.num_tokens) == (1, 2, 5)
    assert found == []


def test_what_a_broken_answer_had_told_must_be_a_beginning_of_the_text() -> None:
    whole = attempt(["one two", "three"])
    beginning, other = attempt(["one", ""], "broken off"), attempt(["one", "thrice"], "broken off")
    assert compare([record(beginning, whole)], EXPECTED)[1] == []
    figures, found = compare([record(other, whole)], EXPECTED)
    assert (figures.wrong, len(found)) == (1, 1)


def test_equal_texts_of_another_number_of_tokens_are_wrong() -> None:
    figures, found = compare([record(attempt(["one two", "three"], num_tokens=6))], EXPECTED)
    assert (figures.wrong, len(found)) == (1, 1)


def test_only_the_requests_of_a_killed_gateway_may_break_off() -> None:
    broken, answer = attempt(["one", ""], "broken off"), attempt(["one two", "three"], gateway="gateway-1")
    killed = Fault("kill-gateway", "gateway-0", 15.0, 18.0)
    just_now = Fault("kill-gateway", "gateway-0", 9.9, 18.0)
    for fault in (killed, just_now):
        assert failures([record(broken, answer)], [fault]) == ({"its gateway was killed": 1}, {}, [])
    for other in (
        Fault("kill-gateway", "gateway-1", 15.0, 18.0),
        Fault("kill-gateway", "gateway-0", 9.0, 18.0),
        Fault("term-gateway", "gateway-0", 15.0, 18.0),
    ):
        failed, _, unexcused = failures([record(broken, answer)], [other])
        assert (failed, len(unexcused)) == ({"broken off": 1}, 1)


@pytest.mark.parametrize("status", ["503 draining", "connection refused"])
def test_a_gateway_may_refuse_while_a_fault_of_its_own_lasts_if_the_other_one_answers(status: str) -> None:
    refused, answer = attempt([], status), attempt(["one two", "three"], gateway="gateway-1")
    ended = Fault("term-gateway", "gateway-0", 9.0, 11.0)
    assert failures([record(refused, answer)], [ended]) == ({}, {status: 1}, [])
    for other in (
        Fault("term-gateway", "gateway-1", 9.0, 11.0),
        Fault("term-gateway", "gateway-0", 8.0, 9.0),
        Fault("kill-verifier", "verifier-0", 9.0, 11.0),
    ):
        _, retried, unexcused = failures([record(refused, answer)], [other])
        assert (retried, unexcused) == (
            {status: 1},
            [f"request 7 at gateway-0, 10.0 s: refused without a cause, {status}"],
        )
    assert len(failures([record(refused)], [ended])[2]) == 1, "it has no answer"
