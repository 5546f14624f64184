"""A schedule: all that is decided before a history in virtual time begins, as data made from one number.

Invariant: the same schedule gives the same history. Parts of it may be left out (shrink.py): what is left is one.
Times are milliseconds from the start of the history.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import Speculation
from tests.histories.target import VOCABULARY

FaultKind = Literal[
    "loss",  # a share of the messages is lost
    "duplication",  # a share arrives twice
    "overtaking",  # a share is held for up to `ms`, and later ones overtake it
    "delay",  # each takes `ms` longer
    "partition",  # all are lost, and nobody notices
    "outage",  # the link to the bus breaks: what is sent meanwhile arrives in the end, what is received is lost
    "kill",  # the process dies, and a new one starts in the end; its absence is noticed after `ms`
    "pause",  # the process stands still, and everything that came meanwhile happens at once in the end
    "drain",  # as after SIGTERM; a new process starts when it has ended
    "steer",  # a drafter gets another window
    "errors",  # a share of the rows or draft steps raises an error
]
LINK_FAULTS = ("loss", "duplication", "overtaking", "delay", "partition", "outage")
HARMLESS = ("duplication", "steer")  # faults that keep nobody from being heard
WITH_DRAFTERS = ("speculate", "draft")  # verbs that pass no message between a gateway and a verifier
VERBS = ("open", "opened", "speculate", "draft", "verdict", "poll", "close", "heartbeat", "failure")
START_MS, CALM_MS = 150.0, 6000.0  # requests and faults come between the two; every fault is over then

CHOICES = (
    DEFAULT_CHOICE,
    WindowChoice(4, 1, True),
    WindowChoice(16, 4, True),
    WindowChoice(0, 1, True),
    WindowChoice(6, 3, True, 0.5),
    WindowChoice(4, 4, False),
    WindowChoice(8, 2, False),
    WindowChoice(6, 6, False, 0.7),
)


@dataclass(frozen=True, slots=True)
class Gateway:
    name: str
    distance_ms: float  # to the bus


@dataclass(frozen=True, slots=True)
class Verifier:
    name: str
    distance_ms: float
    pass_ms: float
    kv_tokens: int
    max_sessions: int
    prefill_chunk: int
    fingerprint: str
    evicted: float  # share of rows whose KV cache the engine takes away, or that it computes in part


@dataclass(frozen=True, slots=True)
class Drafter:
    name: str
    distance_ms: float
    step_ms: float
    accuracy: float  # share of its guesses that are right
    max_sessions: int
    max_context: int
    choice: WindowChoice
    lies: bool


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that a client of a gateway asks for."""

    gateway: str
    at_ms: float
    prompt: tuple[int, ...]
    max_tokens: int
    speculation: Speculation | None
    num_top: int | None
    scope: str | None
    read_ms: float  # from the last token until the client has read the answer
    stays_ms: float  # then the client leaves


@dataclass(frozen=True, slots=True)
class Fault:
    """name: of the process concerned; empty: all. verb: of the messages concerned; empty: all."""

    kind: FaultKind
    at_ms: float
    for_ms: float
    name: str
    share: float = 1.0
    verb: str = ""
    ms: float = 0.0
    choice: WindowChoice = DEFAULT_CHOICE

    @property
    def until_ms(self) -> float:
        return self.at_ms + self.for_ms

    @property
    def disconnects(self) -> bool:
        """Whether gateways and verifiers may not hear each other during it, or one of them ends or fails."""
        if self.kind in HARMLESS or (self.kind in ("delay", "overtaking") and not self.ms):
            return False
        return self.share > 0 and self.verb not in WITH_DRAFTERS


@dataclass(frozen=True, slots=True)
class Schedule:
    """spared: numbers of messages that no fault of a link touches, counted over those that one would touch."""

    seed: int
    gateways: tuple[Gateway, ...]
    verifiers: tuple[Verifier, ...]
    drafters: tuple[Drafter, ...]
    requests: tuple[Request, ...]
    faults: tuple[Fault, ...]
    lease_s: float
    session_timeout_s: float
    jitter_ms: float
    is_encoded: bool  # messages are encoded and decoded
    learns_cost: bool  # verifiers fit the cost of their passes
    spared: frozenset[int] = frozenset()

    def trouble_until(self, name: str, now_ms: float) -> float:
        """When the last fault ends that has begun by now and may disconnect this gateway or verifier."""
        concerned = [fault for fault in self.faults if fault.name in ("", name) and fault.disconnects]
        return max((fault.until_ms for fault in concerned if fault.at_ms <= now_ms), default=0.0)

    @property
    def longest_stall_ms(self) -> float:
        """The longest time between two tokens of an answer: without limit unless honest drafters alone fail."""
        drafters = {drafter.name for drafter in self.drafters}
        choices = [each.choice for each in (*self.drafters, *self.faults)]
        if (
            any(fault.name not in drafters for fault in self.faults)
            or any(drafter.lies for drafter in self.drafters)
            or not all(choice.free_run for choice in choices)
            or any(verifier.evicted or verifier.kv_tokens < PLENTY for verifier in self.verifiers)
        ):
            return math.inf
        trip_ms = max(each.distance_ms for each in (*self.gateways, *self.verifiers)) * 2 + self.jitter_ms
        return STALL_MS + 6 * trip_ms + 8 * (1.2 * max(each.pass_ms for each in self.verifiers) + 4)


STALL_MS = 200.0  # that a drafter may cost a session which runs free
PLENTY = 4096  # tokens of KV cache, more than any schedule needs


def make(seed: int) -> Schedule:
    """The schedule of a seed."""
    return Maker(seed).make()


class Maker:
    """Draws the parts of one schedule."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.only_drafters_fail = self.rng.random() < 0.15
        self.links_flap = not self.only_drafters_fail and self.rng.random() < 0.2
        self.is_crowded = not self.only_drafters_fail and self.rng.random() < 0.3

    def make(self) -> Schedule:
        rng, pick = self.rng, self.rng.choice
        gateways = tuple(Gateway(f"g{i}", pick((0.1, 1.0, 10.0))) for i in range(rng.randint(1, 2)))
        fingerprints = pick((("a", "a", "a"), ("a", "b", "a"), ("a", "b", "c")))
        verifiers = tuple(self.verifier(f"v{i}", fingerprints[i]) for i in range(rng.randint(2, 3)))
        drafters = tuple(self.drafter(f"d{i}") for i in range(rng.randint(2, 3)))
        num_requests = rng.randint(3, 6) if self.is_crowded else rng.randint(1, 4)
        requests = tuple(self.request(gateways) for _ in range(num_requests))
        schedule = Schedule(
            self.seed,
            gateways,
            verifiers,
            drafters,
            tuple(sorted(requests, key=lambda request: request.at_ms)),
            (),
            lease_s=pick((2.0, 3.0, 5.0)),
            session_timeout_s=pick((10.0, 15.0, 30.0, 30.0)),  # longer than two lost verifiers take
            jitter_ms=pick((0.0, 0.5, 5.0)),
            is_encoded=rng.random() < 0.05,
            learns_cost=rng.random() < 0.1,
        )
        return replace(schedule, faults=self.faults(schedule))

    def verifier(self, name: str, fingerprint: str) -> Verifier:
        pick = self.rng.choice
        is_small = self.is_crowded and self.rng.random() < 0.7
        return Verifier(
            name,
            distance_ms=pick((0.2, 2.0)),
            # with 500 ms an answer may take longer than the session's timeout
            pass_ms=pick((60.0, 120.0) if self.links_flap else (5.0, 20.0, 50.0, 120.0, 500.0)),
            kv_tokens=pick((64, 96, 128)) if is_small else PLENTY,
            max_sessions=pick((1, 1, 2, 8)) if is_small else 16,
            prefill_chunk=pick((4, 16)),
            fingerprint=fingerprint,
            evicted=0.0 if self.only_drafters_fail else pick((0.0, 0.0, 0.0, 0.05)),
        )

    def drafter(self, name: str) -> Drafter:
        pick = self.rng.choice
        return Drafter(
            name,
            distance_ms=pick((0.5, 5.0, 40.0)),
            step_ms=pick((2.0, 5.0, 20.0)),
            accuracy=pick((0.0, 0.6, 0.9, 1.0)),
            max_sessions=pick((1, 8, 8)),
            max_context=pick((20, 200, 200, 200)),
            choice=self.choice(),
            lies=not self.only_drafters_fail and self.rng.random() < 0.15,
        )

    def choice(self) -> WindowChoice:
        return self.rng.choice(CHOICES[:5] if self.only_drafters_fail else CHOICES)

    def request(self, gateways: tuple[Gateway, ...]) -> Request:
        rng, pick = self.rng, self.rng.choice
        num_shared = pick((0, 3, 6))
        prompt = [1] * num_shared + [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 14))]
        speculation = pick((None, *[Speculation()] * 6, Speculation("static", 4), Speculation("static", 12, 0.5)))
        return Request(
            pick(gateways).name,
            at_ms=START_MS + rng.random() * pick((50.0, 600.0)),
            prompt=tuple(prompt),
            max_tokens=rng.randint(1, 8) if rng.random() < 0.2 and not self.links_flap else rng.randint(8, 40),
            speculation=speculation,
            num_top=pick((None, None, None, 0, 2)),
            scope=pick((None, "s")),
            read_ms=pick((0.0, 0.0, 300.0)),
            stays_ms=rng.random() * 600 if rng.random() < 0.12 else math.inf,
        )

    # --- faults ----------------------------------------------------------------------------------------------------

    def faults(self, schedule: Schedule) -> tuple[Fault, ...]:
        drafters = [each.name for each in schedule.drafters]
        if self.only_drafters_fail:
            names, kinds = (
                drafters,
                ("kill", "kill", "pause", "partition", "outage", "loss", "steer", "drain", "errors"),
            )
        else:
            names = ["", *(each.name for each in schedule.gateways), *drafters]
            names += 2 * [each.name for each in schedule.verifiers]
            kinds = ("loss", "duplication", "overtaking", "delay", "partition", "outage", "errors")
            kinds += ("kill", "kill", "pause", "pause", "drain", "steer")
        num = self.rng.choice((0, 2, 3, 4, 5, 6, 8))
        faults = [self.fault(kinds, names) for _ in range(num)]
        if self.links_flap:
            faults += self.flaps(schedule)
        return tuple(sorted(faults, key=lambda fault: fault.at_ms))

    def flaps(self, schedule: Schedule) -> list[Fault]:
        """Links of verifiers that break one after the other, so that sessions go to and fro."""
        at_ms, faults = START_MS + self.rng.random() * 300, []
        kind: FaultKind = self.rng.choice(("outage", "partition"))
        for number in range(self.rng.randint(3, 6)):
            for_ms = self.rng.choice((700.0, 900.0, 1200.0)) * (2 if kind == "partition" else 1)
            faults.append(Fault(kind, at_ms, min(for_ms, CALM_MS - at_ms), schedule.verifiers[number % 2].name))
            at_ms = min(at_ms + for_ms, CALM_MS - 100)
        if self.rng.random() < 0.5:
            first_ms = faults[0].at_ms
            faults.append(Fault("overtaking", first_ms, at_ms - first_ms, "", verb="close", ms=1000.0))
        return faults

    def fault(self, kinds: tuple[str, ...], names: list[str]) -> Fault:
        rng, pick = self.rng, self.rng.choice
        kind = pick(kinds)
        name = pick(names)
        if kind not in LINK_FAULTS:
            name = pick([each for each in names if each])
            if kind == "errors":
                name = pick([each for each in names if each and each[0] in "vd"])
            elif kind == "steer":
                name = pick([each for each in names if each and each[0] == "d"])
        at_ms = START_MS - 50 + rng.random() * pick((300.0, 900.0))
        for_ms = pick((50.0, 400.0, 1500.0, 4000.0))
        return Fault(
            kind,  # type: ignore[arg-type]
            at_ms,
            min(for_ms, CALM_MS - at_ms),
            name,
            share=pick((0.05, 0.3, 1.0)),
            verb=pick(VERBS) if kind in ("loss", "delay", "overtaking") and rng.random() < 0.5 else "",
            ms=pick((0.0, 30.0, 400.0, 2500.0)),
            choice=self.choice() if kind == "steer" else DEFAULT_CHOICE,
        )
