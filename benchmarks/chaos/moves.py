"""When the sessions of a request moved to another verifier, from what the gateway's inspector tells of them. Pure.

Invariant: a move begins with the last message of the verifier that is left and ends with Opened of the next one, so it
is never shorter here than it was. A session that leaves a verifier where it waits for KV cache moves for want of room,
which is no move here; a wait at the next one is part of the move.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.chaos.records import Move

OPENED, WAITING = "opened", "waiting"
TAKEN = (OPENED, WAITING)
SAME_S = 0.003  # the choices of a request note its time one after the other
ENDED = ("failure", "absent", "gone")  # of a verifier: its session is lost, even if the same one takes it again


def ids_of_request(summaries: Sequence[Mapping[str, Any]], session_id: str) -> list[str]:
    """The sessions of all choices of a request. summaries: of GET /v1/dsd/requests; session_id: of one choice."""
    asked_at = next((each["asked_at"] for each in summaries if each["id"] == session_id), None)
    return [each["id"] for each in summaries if asked_at is not None and abs(each["asked_at"] - asked_at) < SAME_S]


def moves(timeline: Mapping[str, Any], gateway: str, sent_s: float) -> Iterator[Move]:
    """timeline: of GET /v1/dsd/requests/{id}. sent_s: when the request was sent, in seconds of the run."""
    steps, verdicts = timeline["steps"], timeline["verdicts"]
    verifiers = {step["term"]: step["instance"] for step in steps if step["kind"] == "open"}
    takings = [step for step in steps if step["kind"] in TAKEN and verifiers.get(step["term"]) == step["instance"]]
    for before, after in itertools.pairwise(takings):
        same = before["instance"] == after["instance"]
        if after["term"] == before["term"] or before["kind"] == WAITING:
            continue
        if same and not _is_lost(steps, before["instance"], before["at_ms"], after["at_ms"]):
            continue  # another drafter
        earlier = [
            each["at_ms"] for each in verdicts if each["term"] < after["term"] and each["at_ms"] < after["at_ms"]
        ]
        opened = [step["at_ms"] for step in takings if step["kind"] == OPENED and step["at_ms"] >= after["at_ms"]]
        opened_ms = min(opened, default=timeline["total_ms"])
        first = [each["at_ms"] for each in verdicts if each["at_ms"] >= opened_ms and each["num_tokens"]]
        ended_ms = min([*first, *(at_ms for at_ms in opened if at_ms > opened_ms)], default=timeline["total_ms"])
        begun_ms = max([before["at_ms"], *earlier])
        yield Move(gateway, *(sent_s + each / 1e3 for each in (begun_ms, opened_ms, ended_ms)))


def _is_lost(steps: Sequence[Mapping[str, Any]], verifier: str, begin_ms: float, end_ms: float) -> bool:
    ends = (step for step in steps if step["kind"] in ENDED and step["instance"] == verifier)
    return any(begin_ms <= step["at_ms"] <= end_ms for step in ends)
