"""What `make validate` runs for real and simulates: its cases, the times of stand-ins, and which errors are allowed.

Invariant: models are real where each drafter and verifier has a core, or a share of one that is enough for its pace;
where there are more than that, they are replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from awc.policy import WindowChoice
from shared.data.profiles import PassTimes, Profile, StepTimes

Models = Literal["real", "paced", "replayed"]

NUM_TOKENS = 48  # of every answer
NUM_PROMPTS = 40  # that are judged: requests are a multiple of it where they can be, so that each counts alike

# Two drafters on one core are as quick as two devices only where each leaves the other time for its steps.
PACED = Profile(
    name="paced-edge",
    origin="made up: slow enough for two drafters on one core",
    drafter=StepTimes(step_ms=30.0, step_ms_per_1000=1.0, fed_ms=3.0),
)
# Services need a processor between their waits, and this many of them share two cores.
REPLAYED = Profile(
    name="replayed",
    origin="made up: slow enough for eleven services on two cores",
    verifier=PassTimes(base_ms=50.0, session_ms=1.5, token_ms=0.4, cached_ms=2.0),
    drafter=StepTimes(step_ms=40.0, fed_ms=1.0),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """Of the errors of a figure over all cases, relative to the live one."""

    median: float
    worst: float


LIMITS = {
    "tokens_per_s": Limit(0.05, 0.15),
    "tpot_ms": Limit(0.05, 0.15),
    "ttft_ms": Limit(0.10, 0.15),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One fleet under one load. Requests come from clients that ask all the time, or else `rate_per_s` (Poisson)."""

    name: str
    models: Models
    drafts: tuple[str, ...]  # of each drafter; none: target-only
    choice: WindowChoice
    num_verifiers: int = 1
    rtt_ms: int = 0
    num_clients: int = 0
    rate_per_s: float = 0.0
    num_requests: int = NUM_PROMPTS

    def __post_init__(self) -> None:
        if (self.num_clients > 0) == (self.rate_per_s > 0):
            raise ValueError(f"{self.name}: either clients or a rate must be given")
        if self.models == "replayed" and len(set(self.drafts)) != 1:
            raise ValueError(f"{self.name}: one recording is replayed, so drafters must be alike")

    @property
    def num_at_once(self) -> int:
        """Clients that keep all of the fleet at work, where nothing else is to be measured."""
        return self.num_clients or max(self.num_verifiers, len(self.drafts))

    @property
    def num_calibrating(self) -> int:
        """Requests that are measured before those that are judged, and as many behind them."""
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


def stop_and_wait(window: int) -> WindowChoice:
    """The paper's scheme: a whole window, then wait for its verdict."""
    return WindowChoice(window, window, free_run=False)


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
