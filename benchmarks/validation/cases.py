"""The systems that the validation runs, the loads that calibrate each, the cases that are predicted, and their limits.

Invariant: no case has a load and windows of the calibration. Cases that decide and cases of development have other
arrivals and, where the models are real, other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from awc.policy import WindowChoice
from benchmarks.harness.cell_plan import NEAR
from benchmarks.harness.link import LinkConditions
from benchmarks.harness.scripted_controller import stop_and_wait
from services.local.engine import EngineName
from services.local.pair import DISTILLED
from shared.data.profiles import PassTimes, Profile, StepTimes
from shared.protocol.messages import MAX_WINDOW

INT8, INT4 = "int8", "int4"
ADAPTIVE = "adaptive"  # the controller decides

# Between their waits services need a processor, and eleven of them share two cores.
REPLAYED_TIMES = Profile(
    name="replayed",
    origin="made up: slow enough for eleven services on two cores",
    verifier=PassTimes(base_ms=50.0, session_ms=1.5, token_ms=0.4, cached_ms=2.0),
    drafter=StepTimes(step_ms=40.0, fed_ms=1.0, session_ms=4.0),
)


@dataclass(frozen=True, slots=True)
class ValidationSystem:
    """One fleet. Its real models have a core for the verifier and a core for the drafters, which take turns."""

    name: str
    engine: EngineName
    drafts: tuple[str, ...]  # one for each drafter
    num_verifiers: int = 1
    is_replayed: bool = False


TORCH = ValidationSystem("torch", EngineName.TORCH, (INT8, DISTILLED))
VLLM = ValidationSystem("vllm", EngineName.VLLM, (INT8, DISTILLED))
REPLAYED = ValidationSystem("replayed", EngineName.TORCH, (INT4,) * 8, num_verifiers=2, is_replayed=True)
SYSTEMS = {system.name: system for system in (TORCH, VLLM, REPLAYED)}


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """Requests of a closed loop of `num_clients`, or of an open one at `rate_per_s` (Poisson)."""

    num_requests: int
    num_clients: int = 0
    rate_per_s: float = 0.0
    lengths: tuple[int, ...] = (64,)  # tokens of the answers, in turn
    num_joined: int = 1  # prompts of the set that a request joins to one; in a case that is simulated, 1

    def __post_init__(self) -> None:
        if (self.num_clients > 0) == (self.rate_per_s > 0):
            raise ValueError("a load has either num_clients or rate_per_s")

    def __str__(self) -> str:
        clients = f"{self.num_clients} client{'s' * (self.num_clients > 1)}"
        answers = " and ".join(map(str, dict.fromkeys(self.lengths)))
        behind = f" behind {self.num_joined} prompts" if self.num_joined > 1 else ""
        return f"{clients if self.num_clients else f'{self.rate_per_s:g} requests/s'}, {answers} tokens{behind}"


@dataclass(frozen=True, slots=True)
class Outage:
    """The link carries nothing for a while, `num` times: less than three heartbeats, or a gateway gives drafters up."""

    at_s: float  # after the first request
    for_s: float
    num: int
    every_s: float

    @property
    def starts_s(self) -> list[float]:
        return [self.at_s + number * self.every_s for number in range(self.num)]


@dataclass(frozen=True, slots=True)
class Case:
    """A load on a system. draft: of the drafters that may draft; None: target-only."""

    name: str
    system: str
    load: RequestLoad
    draft: str | None = None
    control: WindowChoice | str = ADAPTIVE  # a choice, or the name of a policy
    link: LinkConditions = NEAR
    outage: Outage | None = None

    @property
    def windows(self) -> str:
        """For tables."""
        choice = self.control
        if self.draft is None:
            return "target-only"
        if isinstance(choice, str):
            return choice
        if choice.chunk == choice.window and not choice.free_run:
            return f"stop-and-wait {choice.window}"
        return f"sliding {choice.window}/{choice.chunk}{'' if choice.free_run else ', no free run'}"

    @property
    def network(self) -> str:
        """For tables."""
        link = self.link
        parts = [f"RTT {2 * link.delay_ms:g} ms"]
        parts += [f"jitter {link.jitter_ms:g} ms"] if link.jitter_ms else []
        parts += [f"{link.stall_rate:.0%} stalls of {link.stall_ms:g} ms"] if link.stall_rate else []
        parts += [f"down {self.outage.num} times for {self.outage.for_s:g} s"] if self.outage else []
        return ", ".join(parts)


def sliding(window: int, chunk: int = 2, *, free_run: bool = True) -> WindowChoice:
    return WindowChoice(window, chunk, free_run)


def rtt(rtt_ms: float, jitter_ms: float = 0.0, stall_rate: float = 0.0) -> LinkConditions:
    return LinkConditions(rtt_ms / 2, jitter_ms, stall_rate=stall_rate)


# --- calibration ------------------------------------------------------------------------------------------------------

UNLIMITED = sliding(MAX_WINDOW)  # no drafter waits for a verdict


def calibration_of(system: ValidationSystem) -> list[Case]:
    """Passes and steps of all shapes, alone and beside each other, with nothing added to the link."""

    def load(load: RequestLoad, draft: str | None = None, choice: WindowChoice | None = None) -> Case:
        return Case("calibration", system.name, load, draft, choice or sliding(8))

    if system.is_replayed:
        return [
            load(RequestLoad(4, 1)),
            load(RequestLoad(4, 1), INT4),
            load(RequestLoad(16, 16)),
            load(RequestLoad(16, 8), INT4, UNLIMITED),
            load(RequestLoad(16, 8), INT4, stop_and_wait(4)),
            load(RequestLoad(16, 16), INT4),
        ]
    drafting = []
    for draft in dict.fromkeys(system.drafts):
        drafting += [load(RequestLoad(3, 1), draft, choice) for choice in (UNLIMITED, sliding(8))]
        drafting += [load(RequestLoad(3, 1), draft, stop_and_wait(window)) for window in (4, 16)]
        drafting += [load(each, draft) for each in TOGETHER]
        drafting += [load(each, draft, sliding(16)) for each in (LONG, DEEP)]
    return spread([load(each) for each in (ALONE, TOGETHER[0], ALONE, TOGETHER[1], LONG, ALONE, DEEP)], drafting)


def spread(few: Sequence[Case], many: Sequence[Case]) -> list[Case]:
    """All in order, the few evenly among the many: what the machine does meanwhile affects both alike."""
    placed = [((number + 0.5) / len(part), each) for part in (few, many) for number, each in enumerate(part)]
    return [each for _, each in sorted(placed, key=lambda pair: pair[0])]


ALONE, TOGETHER = RequestLoad(4, 1), (RequestLoad(8, 4), RequestLoad(16, 8))
LONG = RequestLoad(1, 1, lengths=(256,))
DEEP = RequestLoad(1, 1, num_joined=40)  # a context of about 600 tokens

# --- cases ------------------------------------------------------------------------------------------------------------

# What the cores do to each other changes within minutes, so each case is spread over the whole time.
ROUNDS = 5
ONE, SIX, EIGHT, SIXTEEN = RequestLoad(8, 1), RequestLoad(12, 6), RequestLoad(16, 8), RequestLoad(32, 16)  # of a round
ANSWERS_OF_500 = RequestLoad(1, 1, lengths=(500,))
MIXED = RequestLoad(6, rate_per_s=0.6, lengths=(16, 16, 160))

CASES = (
    Case("torch-1-int8-slide16-rtt30", "torch", ONE, INT8, sliding(16), rtt(30)),
    Case("torch-1-int8-wait8-rtt60", "torch", ONE, INT8, stop_and_wait(8), rtt(60)),
    Case("torch-1-int8-adaptive-rtt80-jitter", "torch", ONE, INT8, ADAPTIVE, rtt(80, 20)),
    Case("torch-1-int8-slide16-stalls", "torch", ONE, INT8, sliding(16), rtt(20, 10, 0.05)),
    Case("torch-1-int8-slide8-outages", "torch", ONE, INT8, sliding(8), rtt(20), Outage(2, 2, num=1, every_s=5)),
    Case("torch-1-distilled-slide8-rtt10", "torch", ONE, DISTILLED, sliding(8), rtt(10)),
    Case("torch-1-distilled-adaptive", "torch", ONE, DISTILLED),
    Case("torch-6-int8-slide4-rtt20", "torch", SIX, INT8, sliding(4), rtt(20)),
    Case("torch-6-distilled-adaptive-rtt40", "torch", SIX, DISTILLED, ADAPTIVE, rtt(40)),
    Case("torch-500-int8-slide16-rtt30", "torch", ANSWERS_OF_500, INT8, sliding(16), rtt(30)),
    Case("torch-mixed-int8-slide8-rtt30", "torch", MIXED, INT8, sliding(8), rtt(30)),
    Case("vllm-1-int8-slide16-rtt30", "vllm", ONE, INT8, sliding(16), rtt(30)),
    Case("vllm-1-int8-wait4-rtt10", "vllm", ONE, INT8, stop_and_wait(4), rtt(10)),
    Case("vllm-1-distilled-adaptive-rtt50-jitter", "vllm", ONE, DISTILLED, ADAPTIVE, rtt(50, 20)),
    Case("vllm-1-distilled-adaptive", "vllm", ONE, DISTILLED),
    Case("vllm-8-int8-slide4-rtt10", "vllm", EIGHT, INT8, sliding(4), rtt(10)),
    Case("vllm-8-distilled-adaptive", "vllm", EIGHT, DISTILLED),
    Case("vllm-8-distilled-adaptive-rtt20", "vllm", EIGHT, DISTILLED, ADAPTIVE, rtt(20)),
    Case("fleet-16-adaptive-rtt40-jitter", "replayed", SIXTEEN, INT4, ADAPTIVE, rtt(40, 20)),
    Case("fleet-16-wait4-stalls", "replayed", SIXTEEN, INT4, stop_and_wait(4), rtt(60, 10, 0.02)),
)
DEVELOPMENT = (  # to develop the simulator with
    Case("dev-torch-1-int8-slide8-rtt50", "torch", RequestLoad(4, 1), INT8, sliding(8), rtt(50, 10)),
    Case("dev-torch-1-distilled-wait2", "torch", RequestLoad(4, 1), DISTILLED, stop_and_wait(2)),
    Case("dev-torch-4-int8-adaptive", "torch", RequestLoad(8, 4), INT8, ADAPTIVE, rtt(10)),
    Case("dev-vllm-4-int8-slide16-rtt20", "vllm", RequestLoad(8, 4), INT8, sliding(16), rtt(20)),
    Case("dev-vllm-1-distilled-slide8", "vllm", RequestLoad(4, 1), DISTILLED, sliding(8)),
    Case("dev-fleet-8-slide8-rtt20", "replayed", RequestLoad(16, 8), INT4, sliding(8), rtt(20)),
)


def target_only_beside(case: Case) -> Case:
    """What is asked without drafts before a round of the case and after it, to have its speed-up: a part of its
    requests, as many for each client and of each length."""
    load = case.load
    unit = math.lcm(load.num_clients or 1, len(load.lengths))
    num_requests = max(1, load.num_requests // 4 // unit) * unit
    return replace(case, load=replace(load, num_requests=num_requests), draft=None, control=ADAPTIVE, outage=None)


# --- limits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """Largest median, single and mean signed error of a figure, relative to the live one; None: no limit."""

    median: float
    worst: float | None = None
    bias: float | None = None


LIMITS = {
    "tpot_ms": ErrorLimit(0.05, worst=0.12),
    "tokens_per_s": ErrorLimit(0.05, worst=0.12),
    "ttft_ms": ErrorLimit(0.10),
    "speed_up": ErrorLimit(0.05, bias=0.03),
}
