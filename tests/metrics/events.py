"""A healthy system as series over time, and what happens to it: the event of each alert, and what comes close to one.

Invariant: an event is at minute 0 and stays. A series is a function of the minutes since; None: it does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

CALM_MIN = 20  # before the event
Series: TypeAlias = Callable[[float], float | None]
Changes: TypeAlias = dict[str, Series]  # by the series' name


def at(value: float) -> Series:
    return lambda minute: value


def grows(per_min: float) -> Series:
    return lambda minute: per_min * (minute + CALM_MIN)


def becomes(before: Series, after: Series) -> Series:
    """after: from the event on."""
    return lambda minute: (before if minute < 0 else after)(minute)


def for_a_while(minutes: float, usual: Series, meanwhile: Series) -> Series:
    """meanwhile: from the event on, for so long."""
    return lambda minute: (meanwhile if 0 <= minute < minutes else usual)(minute)


def bends(before_per_min: float, after_per_min: float) -> Series:
    """A counter that grows at another rate from the event on."""
    return lambda minute: before_per_min * (min(minute, 0) + CALM_MIN) + after_per_min * max(minute, 0)


def counts(num: float) -> Series:
    """A counter that rises by so many at the event."""
    return lambda minute: num if minute >= 0 else 0.0


def starts(*minutes: float) -> Series:
    """When a process was started last, in seconds."""
    return lambda minute: max((60 * each for each in minutes if each <= minute), default=-60 * CALM_MIN) + 60 * CALM_MIN


def nowhere(minute: float) -> None:
    """A series that does not exist."""


GATEWAY, VERIFIER = 'instance="gateway-0"', 'instance="verifier-0"'
PEERS = {kind: f'dsd_gateway_peers{{{GATEWAY},service="{kind}"}}' for kind in ("verifier", "drafter", "controller")}
SESSIONS, WAITING = f"dsd_gateway_sessions{{{GATEWAY}}}", f"dsd_gateway_num_requests_waiting{{{GATEWAY}}}"
TTFT, E2E = "dsd_gateway_time_to_first_token_seconds_bucket", "dsd_gateway_e2e_request_latency_seconds_count"
READY, STARTED = f"dsd_ready{{{VERIFIER}}}", f"process_start_time_seconds{{{VERIFIER}}}"
UTILIZATION = f"dsd_verifier_utilization_ratio{{{VERIFIER}}}"
EXPIRED, FAILED_PASSES = (f"dsd_verifier_{what}_total{{{VERIFIER}}}" for what in ("expired_sessions", "failed_passes"))
CONFLICTS = f"dsd_gateway_conflicts_total{{{GATEWAY}}}"
LAG, RECONNECTS = f"dsd_event_loop_lag_seconds{{{VERIFIER}}}", f"dsd_bus_reconnects_total{{{VERIFIER}}}"
PER_MIN = 60.0  # answers


def missing(kind: str) -> str:
    return f'dsd_gateway_missing_peers{{{GATEWAY},service="{kind}",peer="{kind}-1"}}'


def first_tokens(le: str) -> str:
    return f'{TTFT}{{{GATEWAY},le="{le}"}}'


def refused(reason: str) -> str:
    return f'dsd_gateway_admission_rejections_total{{{GATEWAY},reason="{reason}"}}'


def failed(code: str) -> str:
    return f'dsd_gateway_failed_sessions_total{{{GATEWAY},code="{code}"}}'


def guesses(fate: str) -> str:
    return f'dsd_verifier_guesses_total{{{VERIFIER},fate="{fate}"}}'


def dropped(reason: str) -> str:
    return f'dsd_bus_dropped_messages_total{{{VERIFIER},reason="{reason}"}}'


def errors(kind: str) -> str:
    return f'dsd_bus_errors_total{{{VERIFIER},kind="{kind}"}}'


HEALTHY: Changes = {
    SESSIONS: at(7),
    WAITING: at(0),
    **{series: at(2) for series in PEERS.values()},
    f"dsd_verifier_capacity_sessions{{{VERIFIER}}}": at(10),
    UTILIZATION: at(0.9),
    READY: at(1),
    STARTED: at(1000),
    **{refused(reason): at(0) for reason in ("queue_full", "queue_timeout", "requests_per_minute")},
    **{failed(code): at(0) for code in ("internal", "overloaded", "too_long", "bad_request")},
    f"{E2E}{{{GATEWAY}}}": grows(PER_MIN),
    **{first_tokens(le): grows(PER_MIN) for le in ("1.0", "5.0", "10.0", "+Inf")},
    **{series: at(0) for series in (EXPIRED, FAILED_PASSES, CONFLICTS, RECONNECTS)},
    guesses("accepted"): grows(60),
    guesses("late"): grows(20),
    LAG: at(0.01),
    **{dropped(reason): at(0) for reason in ("malformed", "handler failed", "outbound full", "not connected")},
    **{errors(kind): at(0) for kind in ("connection", "permission violation")},
}


@dataclass(frozen=True, slots=True)
class Event:
    """What fires an alert. labels: that name what is concerned."""

    changes: Changes
    labels: dict[str, str] = field(default_factory=dict)


def lost(kind: str) -> Event:
    changes = {PEERS[kind]: becomes(at(2), at(1)), missing(kind): becomes(nowhere, at(1))}
    return Event(changes, {"service": kind, "peer": f"{kind}-1"})


OF_GATEWAY, OF_VERIFIER = {"instance": "gateway-0"}, {"instance": "verifier-0"}
EVENTS: dict[str, Event] = {
    "DsdNoGateway": Event({SESSIONS: becomes(at(3), nowhere)}),
    "DsdNoVerifier": Event({PEERS["verifier"]: becomes(at(2), at(0))}),
    "DsdVerifierLost": lost("verifier"),
    "DsdDrafterLost": lost("drafter"),
    "DsdControllerLost": lost("controller"),
    "DsdCrashLoop": Event({STARTED: starts(-10, -5, 0)}, OF_VERIFIER),
    "DsdNotReady": Event({READY: becomes(at(1), at(0))}, OF_VERIFIER),
    "DsdVerifierSaturated": Event({UTILIZATION: becomes(at(0.9), at(1))}, OF_VERIFIER),
    "DsdFleetSaturated": Event({WAITING: becomes(at(0), at(3))}),
    "DsdQueueFull": Event({refused("queue_full"): counts(1)}, {**OF_GATEWAY, "reason": "queue_full"}),
    "DsdFailedAnswers": Event({failed("internal"): bends(0, 0.1 * PER_MIN)}),
    "DsdLeaseExpired": Event({EXPIRED: counts(1)}, OF_VERIFIER),
    "DsdFailedPasses": Event({FAILED_PASSES: counts(1)}, OF_VERIFIER),
    "DsdVerifiersDiffer": Event({CONFLICTS: counts(1)}, OF_GATEWAY),
    "DsdSlowFirstToken": Event({first_tokens(le): bends(PER_MIN, 0) for le in ("1.0", "5.0")}),
    "DsdGuessesLate": Event({guesses("accepted"): bends(60, 10), guesses("late"): bends(20, 70)}),
    "DsdEventLoopBusy": Event({LAG: becomes(at(0.01), at(0.3))}, OF_VERIFIER),
    "DsdNatsReconnects": Event({RECONNECTS: counts(2)}, OF_VERIFIER),
    "DsdMessagesLost": Event({dropped("malformed"): counts(1)}, {**OF_VERIFIER, "reason": "malformed"}),
    "DsdNatsDenied": Event({errors("permission violation"): counts(1)}, OF_VERIFIER),
}


def came_back(kind: str) -> Changes:
    return {PEERS[kind]: for_a_while(0.75, at(2), at(1)), missing(kind): for_a_while(0.75, nowhere, at(1))}


HARMLESS: dict[str, Changes] = {  # no alert fires
    "nothing happens": {},
    "the gateway is not scraped for half a minute": {SESSIONS: for_a_while(0.5, at(7), nowhere)},
    "the gateway hears no verifier for 45 s": {PEERS["verifier"]: for_a_while(0.75, at(2), at(0))},
    **{f"a {kind} is drained": {PEERS[kind]: becomes(at(2), at(1))} for kind in PEERS},
    **{f"a {kind} is restarted in 45 s": came_back(kind) for kind in PEERS},
    "a lost drafter is replaced by one of another name": {missing("drafter"): becomes(nowhere, at(1))},
    "a verifier is started twice": {STARTED: starts(0, 1)},
    "a verifier is started three times in 20 minutes": {STARTED: starts(0, 10, 20)},
    "a verifier loads its model for 4 minutes": {READY: for_a_while(4, at(1), at(0))},
    "a verifier is full for 3 minutes": {UTILIZATION: for_a_while(3, at(0.8), at(1))},
    "a verifier stays just below full": {UTILIZATION: at(0.95)},
    "requests wait for 3 minutes": {WAITING: for_a_while(3, at(0), at(5))},
    "a key's limit refuses requests": {refused("requests_per_minute"): bends(0, 60)},
    "0.8 % of the answers fail": {failed("internal"): bends(0, 0.008 * PER_MIN)},
    "clients ask for too much": {failed(code): bends(0, 60) for code in ("too_long", "bad_request")},
    "counters begin again at 0": {
        series: becomes(at(5), at(0)) for series in (EXPIRED, FAILED_PASSES, CONFLICTS, RECONNECTS)
    },
    "9 % of the answers begin late": {first_tokens(le): bends(PER_MIN, 0.91 * PER_MIN) for le in ("1.0", "5.0")},
    "first tokens take 4 s": {first_tokens("1.0"): bends(PER_MIN, 0)},
    "40 % of the right guesses are late": {guesses("accepted"): bends(60, 60), guesses("late"): bends(20, 40)},
    "an event loop is busy for a minute": {LAG: for_a_while(1, at(0.01), at(0.3))},
    "NATS is restarted": {
        RECONNECTS: counts(1),
        dropped("not connected"): counts(20),
        errors("connection"): counts(3),
    },
}
