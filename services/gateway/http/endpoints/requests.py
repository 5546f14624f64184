"""GET /v1/dsd/requests and /v1/dsd/requests/{id}: what became of the last requests of an API key (docs/api.md).

Invariant: a key is told of its own requests alone; what others asked is answered as if it had never been. No answer has
a text or a token.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec.structs import asdict

from services.gateway.admission.api_keys import ApiKey
from services.gateway.errors import ApiError
from services.gateway.fleet.guesses import further
from services.gateway.inspector.journal import Record, StepKind
from services.gateway.inspector.recent import RecentRequests
from services.gateway.session.verdict_stream import TallySum, TokenSource

Outcome = str  # "stop", "length", "cancelled", or the code of a failure


class RequestSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a request that is over. Times are since the request came."""

    id: str
    asked_at: float  # Unix seconds
    speculation: Literal["off", "static", "adaptive"]
    num_prompt_tokens: int
    num_tokens: int
    outcome: Outcome
    verifier: str | None
    drafter: str | None
    num_verdicts: int
    accepted: int
    rejected: int
    late: int
    discarded: int
    looked_up: int
    num_failovers: int
    num_drafter_changes: int
    started_ms: float
    ttft_ms: float | None
    tpot_ms: float | None
    total_ms: float


class RequestList(msgspec.Struct, frozen=True):
    """The answer of GET /v1/dsd/requests, the newest first."""

    requests: list[RequestSummary]


class RequestStep(msgspec.Struct, frozen=True):
    """A message that is no verdict. detail: the code of a failure, else empty."""

    at_ms: float
    kind: StepKind
    instance: str
    term: int
    detail: str


class RequestVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict. Of its num_tokens new tokens num_accepted are guesses, num_looked_up the verifier's own guesses. The
    others have the source `own`. The fates are of the drafter's guesses that it judged. pass_tokens, batch, queue: of
    the pass. held_ms: how long before it its draft came.
    """

    at_ms: float
    term: int
    num_tokens: int
    num_accepted: int
    own: TokenSource
    accepted: int
    rejected: int
    late: int
    discarded: int
    num_looked_up: int
    pass_ms: float
    pass_tokens: int
    batch: int
    queue: float
    held_ms: float | None
    window: int | None


class RequestTimeline(RequestSummary, frozen=True, kw_only=True):
    """The answer of GET /v1/dsd/requests/{id}. num_left_out: messages beyond what is kept."""

    steps: list[RequestStep]
    verdicts: list[RequestVerdict]
    num_left_out: int


def request_list(recent: RecentRequests | None, key: ApiKey) -> RequestList:
    """Raises ApiError (404) where the inspector is off."""
    records = _kept(recent).of(key.cache_scope)
    return RequestList([RequestSummary(**_summary(record)) for record in records])


def request_timeline(recent: RecentRequests | None, key: ApiKey, request_id: str) -> RequestTimeline:
    """Raises ApiError (404) for requests that are not the key's, not over, or no longer kept."""
    record = _kept(recent).find(key.cache_scope, request_id)
    if record is None:
        raise ApiError(404, "No such request: it is not over, not kept any more, or of another API key")
    steps = [RequestStep(each.at_ms, each.kind, each.instance, each.term, each.detail) for each in record.steps]
    return RequestTimeline(
        **_summary(record), steps=steps, verdicts=_verdicts(record), num_left_out=record.num_left_out
    )


def _kept(recent: RecentRequests | None) -> RecentRequests:
    if recent is None:
        raise ApiError(404, "Not offered here: the request inspector is switched off (DSD_INSPECTOR)")
    return recent


def _summary(record: Record) -> dict[str, Any]:
    """The fields of RequestSummary."""
    tally = asdict(record.tally)
    tally["num_verdicts"] = tally.pop("num_passes")
    return tally | {
        "id": record.session_id,
        "asked_at": round(record.asked_at, 3),
        "speculation": record.speculation,
        "num_prompt_tokens": record.num_prompt_tokens,
        "num_tokens": record.num_tokens,
        "outcome": record.outcome,
        "verifier": record.verifier,
        "drafter": record.drafter,
        "num_failovers": record.num_failovers,
        "num_drafter_changes": record.num_drafter_changes,
        "started_ms": round(record.started_ms, 3),
        "ttft_ms": _rounded(record.first_ms),
        "tpot_ms": _rounded(record.tpot_ms),
        "total_ms": round(record.total_ms, 3),
    }


def _verdicts(record: Record) -> list[RequestVerdict]:
    """With the fates that each verdict adds to those of the ones before."""
    verifiers = {step.term: step.instance for step in record.steps if step.kind == "open"}
    tallies, told = TallySum(), []
    for entry in record.verdicts:
        before = tallies.observe(verifiers.get(entry.term, ""), entry.term, entry.tally)
        fates = further(entry.tally, before)
        told.append(
            RequestVerdict(
                at_ms=round(entry.at_ms, 3),
                term=entry.term,
                num_tokens=entry.num_new,
                num_accepted=entry.num_accepted,
                num_looked_up=entry.num_looked_up,
                own=entry.own,
                accepted=fates.accepted,
                rejected=fates.rejected,
                late=fates.late,
                discarded=fates.discarded,
                pass_ms=round(entry.pass_ms, 3),
                pass_tokens=entry.num_pass_tokens,
                batch=entry.batch,
                queue=round(entry.queue, 3),
                held_ms=_rounded(entry.held_ms),
                window=entry.window,
            )
        )
    return told


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
