"""How long each call into metrics and into a journal takes, by itself: the median of many short loops.

Invariant: every function that a service calls while it serves has a figure here, or the benchmark fails.
"""

from __future__ import annotations

import random
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import cast

from prometheus_client import CollectorRegistry, Gauge, Histogram

from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.sessions import Occupancy
from services.gateway.fleet.peers import PeerFleet
from services.gateway.inspector.journal import Journal, Record
from services.gateway.inspector.recent import RecentRequests
from services.gateway.metrics import GatewayMetrics, SessionCounts
from services.gateway.session.generation import Generation
from services.gateway.session.placement import Placement
from services.gateway.session.session import Session
from services.gateway.session.timeouts import SessionTiming
from services.gateway.session.verdict_stream import Committed, VerdictStream
from shared.policies.routing import ROUTERS
from shared.protocol.messages import (
    NO_TOKENS,
    Close,
    Echo,
    Load,
    Opened,
    Sampling,
    Speculation,
    Tally,
    TokenIds,
    Verdict,
)
from shared.protocol.subjects import new_instance_id, new_session_id
from shared.runtime.metrics import BusMetrics

LOOPS, CALLS = 501, 200

VERIFIER_ID, SESSION_ID = new_instance_id("verifier"), new_session_id()


def call_us() -> dict[str, float]:
    """Microseconds of a call, by the name of the function."""
    return _metrics_us() | _journal_us()


def _metrics_us() -> dict[str, float]:
    registry = CollectorRegistry()
    verifier, gateway, bus = VerifierMetrics(registry), GatewayMetrics(registry), BusMetrics(registry)
    histogram, gauge, tally = gateway.ttft_seconds, gateway.sessions, Tally(3, 1, 0, 2, 1)
    counts = SessionCounts(64, 128, tally, 0, 0, 0, None)
    load, occupancy = Load(), Occupancy(1, 0, 64.0, 0.1)
    calls: dict[str, Callable[[], object]] = {
        "inc": lambda: bus.published_as(Tally).inc(),
        "labels": lambda: verifier.dropped.labels("wrong verb"),
        "observe": lambda: histogram.observe(0.3),
        "set": lambda: gauge.set(3),
        "time": lambda: _timed(histogram),
        "track_inprogress": lambda: _tracked(gauge),
        "observe_pass": lambda: verifier.observe_pass(31.0, 4, 20, 12),
        "count_guesses": lambda: verifier.count_guesses(tally, tally),
        "observe_load": lambda: verifier.observe_load(load, occupancy),
        "count_session": lambda: gateway.count_session(counts),
        "count_request": lambda: gateway.count_request("key", 192),
        "count_lost": lambda: gateway.count_lost(()),
        "show_missing": lambda: gateway.show_missing(frozenset()),
    }
    return {name: us_of(call) for name, call in calls.items()}


def _journal_us() -> dict[str, float]:
    told, opened = _Told(), Opened(SESSION_ID, 1, 30.0, Load(), "cpu")
    close, recent = Close(SESSION_ID, 1), RecentRequests()
    calls: dict[str, Callable[[], object]] = {
        "on_verdict": told.verdict,
        "on_said": lambda: told.journal.on_said(close, VERIFIER_ID, 1.0),
        "on_heard": lambda: told.journal.on_heard(opened, VERIFIER_ID, 1.0),
        "on_absent": lambda: told.journal.on_absent("verifier", told.session, 1.0),
        "on_gone": lambda: told.journal.on_gone(VERIFIER_ID, told.session, 1.0),
        "closed": told.whole,
        "add": lambda: recent.add("", told.record),
    }
    return {name: us_of(call, told.begin) for name, call in calls.items()}


def us_of(call: Callable[[], object], begin: Callable[[], object] = lambda: None) -> float:
    """begin: is called before each loop."""
    return median(timeit.repeat(call, begin, number=CALLS, repeat=LOOPS)) * 1e6 / CALLS


class _Growing:
    """A stream that has a token more each time it is asked, as a journal finds it at each verdict."""

    def __init__(self) -> None:
        self._num = 0
        self.committed = [Committed(7, "bonus", None)]
        self.finish = None

    @property
    def num_answered(self) -> int:
        self._num += 1
        return self._num


def _session() -> Session:
    router = ROUTERS["jsq"]()
    generation = Generation(SESSION_ID, "m", NO_TOKENS, 128, Sampling(), NO_TOKENS, Speculation())
    placement = Placement(PeerFleet(), router, router, random.Random(1))
    session = Session.started(generation, placement, SessionTiming(), 0.0)
    session.verifier_id, session.stream = VERIFIER_ID, cast(VerdictStream, _Growing())
    return session


@dataclass(slots=True)
class _Told:
    """A journal that is begun again before each loop, since it keeps a bounded number of entries."""

    session: Session = field(default_factory=_session)
    journal: Journal = field(default_factory=lambda: Journal(0.0, 0.0))
    record: Record = field(init=False)
    _verdict: Verdict = field(
        default_factory=lambda: Verdict(
            SESSION_ID, 1, 0, 5, TokenIds([7]), 0, None, Echo(1.0, 2.0), 31.0, 4, 0.1, Tally(3, 1, 0, 2, 1), None, 9
        )
    )

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.journal = Journal(0.0, 0.0)
        self.record = self.whole()

    def verdict(self) -> None:
        self.journal.on_verdict(self._verdict, self.session, 8, 1.0)

    def whole(self) -> Record:
        """Of a session that begins and ends."""
        return Journal(0.0, 0.0).closed(self.session, 1.0, is_whole=True)


def _timed(histogram: Histogram) -> None:
    with histogram.time():
        pass


def _tracked(gauge: Gauge) -> None:
    with gauge.track_inprogress():
        pass
