"""The cases that `make validate` runs live and simulates, the times of their stand-ins, and the limits of errors.

Invariant: models are real or paced if two cores suffice for all drafters and verifiers, else replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from awc.policy import WindowChoice
from benchmarks.harness.scripted_controller import stop_and_wait
from shared.data.profiles import PassTimes, Profile, StepTimes

ModelKind = Literal["real", "paced", "replayed"]

NUM_TOKENS = 48  # of every answer
NUM_PROMPTS = 40  # judged prompts; most cases send a multiple, so that all prompts have the same weight

# Two drafters on one core are as fast as two devices only if each leaves the other time for its steps.
PACED = Profile(
    name="paced-edge",
    origin="made up: slow enough for two drafters on one core",
    drafter=StepTimes(step_ms=30.0, step_ms_per_1000=1.0, fed_ms=3.0),
)
# Between their waits services need a processor, and eleven of them share two cores.
REPLAYED = Profile(
    name="replayed",
    origin="made up: slow enough for eleven services on two cores",
    verifier=PassTimes(base_ms=50.0, session_ms=1.5, token_ms=0.4, cached_ms=2.0),
    drafter=StepTimes(step_ms=40.0, fed_ms=1.0, session_ms=4.0),
)


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """Largest median and largest single error of a figure, relative to the live one."""

    median: float
    worst: float


LIMITS = {
    "tokens_per_s": ErrorLimit(0.05, 0.15),
    "tpot_ms": ErrorLimit(0.05, 0.15),
    "ttft_ms": ErrorLimit(0.10, 0.15),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One fleet under one load: a closed loop of `num_clients`, or an open one at `rate_per_s` (Poisson)."""

    name: str
    models: ModelKind
    drafts: tuple[str, ...]  # one for each drafter; none: target-only
    choice: WindowChoice
    num_verifiers: int = 1
    rtt_ms: int = 0
    num_clients: int = 0
    rate_per_s: float = 0.0
    num_requests: int = NUM_PROMPTS

    def __post_init__(self) -> None:
        if (self.num_clients > 0) == (self.rate_per_s > 0):
            raise ValueError(f"{self.name}: set either num_clients or rate_per_s")
        if self.models == "replayed" and len(set(self.drafts)) != 1:
            raise ValueError(f"{self.name}: all drafts must be the same, since one recording is replayed")

    @property
    def num_at_once(self) -> int:
        """Clients that keep the whole fleet busy."""
        return self.num_clients or max(self.num_verifiers, len(self.drafts))

    @property
    def num_calibrating(self) -> int:
        """Calibration requests before the judged ones, and again after them."""
        return max(self.num_requests // 4, self.num_clients)

    @property
    def fleet(self) -> str:
        """For tables."""
        kinds = [f"{self.drafts.count(draft)} {draft}" for draft in dict.fromkeys(self.drafts)]
        drafters = " and ".join(kinds) or "no drafter"
        return f"{self.models}: {drafters}, {self.num_verifiers} verifier{'s' * (self.num_verifiers > 1)}"

    @property
    def windows(self) -> str:
        """For tables."""
        choice = self.choice
        if not self.drafts:
            return "target-only"
        if choice.chunk == choice.window and not choice.free_run:
            return f"stop-and-wait {choice.window}"
        return f"sliding {choice.window}/{choice.chunk}, {'free run' if choice.free_run else 'no free run'}"

    @property
    def load(self) -> str:
        """For tables."""
        return f"{self.num_clients} clients" if self.num_clients else f"{self.rate_per_s:g} requests/s"


def sliding(window: int, chunk: int = 2, *, free_run: bool = True) -> WindowChoice:
    return WindowChoice(window, chunk, free_run)


INT8, INT4 = "int8", "int4"

CASES = (
    Case("target-only", "real", (), sliding(8), num_clients=4),
    Case("int8-wait4-rtt0", "real", (INT8,), stop_and_wait(4), num_clients=1),
    Case("int8-wait8-rtt30", "real", (INT8,), stop_and_wait(8), rtt_ms=30, num_clients=1),
    Case("int8-slide16-rtt30", "real", (INT8,), sliding(16), rtt_ms=30, num_clients=1),
    Case("int4-wait2-rtt10", "real", (INT4,), stop_and_wait(2), rtt_ms=10, num_clients=1),
    Case("int4-slide8-rtt60", "real", (INT4,), sliding(8, free_run=False), rtt_ms=60, num_clients=1),
    Case("int4-slide4-light", "real", (INT4,), sliding(4, 1), rate_per_s=0.5),
    Case("int8-slide8-full", "real", (INT8,), sliding(8), rtt_ms=10, num_clients=6, num_requests=2 * NUM_PROMPTS),
    Case("2-slide8-rtt20", "paced", (INT8, INT4), sliding(8), rtt_ms=20, num_clients=2),
    Case("2-wait4-rtt50", "paced", (INT8, INT4), stop_and_wait(4), rtt_ms=50, num_clients=2),
    Case("3-wait16-rtt100", "replayed", (INT8,) * 3, stop_and_wait(16), rtt_ms=100, num_clients=3),
    Case("4-wait1-light", "replayed", (INT4,) * 4, stop_and_wait(1), 2, rtt_ms=10, rate_per_s=0.8),
    Case("4-wait4-full", "replayed", (INT8,) * 4, stop_and_wait(4), rtt_ms=100, num_clients=12, num_requests=80),
    Case("8-slide8-full", "replayed", (INT4,) * 8, sliding(8), 2, rtt_ms=30, num_clients=16, num_requests=160),
    Case(
        "8-slide16-rtt60",
        "replayed",
        (INT8,) * 8,
        sliding(16, 4, free_run=False),
        num_verifiers=2,
        rtt_ms=60,
        rate_per_s=1.5,
        num_requests=80,
    ),
)
DISTILLED = "distilled"
DISTILLED_CASES = (  # for those who have run `make draft`
    Case("distilled-slide8-rtt0", "real", (DISTILLED,), sliding(8), num_clients=1),
    Case("distilled-hold8-rtt0", "real", (DISTILLED,), sliding(8, free_run=False), num_clients=1),
    Case("distilled-wait4-rtt0", "real", (DISTILLED,), stop_and_wait(4), num_clients=1),
    Case("distilled-slide16-rtt30", "real", (DISTILLED,), sliding(16), rtt_ms=30, num_clients=1),
    Case("distilled-slide8-full", "real", (DISTILLED,), sliding(8), num_clients=8, num_requests=2 * NUM_PROMPTS),
)
