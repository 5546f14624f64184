"""Profiles: the times of a target's verify passes and of a draft's steps on given hardware, for DSD-Sim and stand-ins.

Invariant: times are finite and not negative, also that of one more token. A profile is a JSON file for one device and
one model, or for one pair of each; `origin` says where its times come from.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Annotated, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.policies import batching, stepping

LEAST_STEP = 1e-5  # of times in files, which are rounded
MAX_EXTRAS = 16  # sizes of passes that may have an extra time
PROFILE_NAME = r"[a-z0-9.-]{1,40}"  # a regular expression

Millis: TypeAlias = Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False)]
Signed: TypeAlias = Annotated[float, Field(ge=-60_000, le=60_000, allow_inf_nan=False)]
Slowdown: TypeAlias = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]


class Times(BaseModel):
    """Base: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PassTimes(Times):
    """Times of a verify pass: the weights of `shared.policies.batching.pass_ms`."""

    base_ms: Millis
    session_ms: Millis = 0.0
    token_ms: Millis = 0.0
    above_ms: tuple[Signed, Signed, Signed] = (0.0, 0.0, 0.0)  # further time of each token above 8, 32 and 128
    cached_ms: Millis = 0.0  # of each thousand cached tokens read
    extra_ms: tuple[Signed, ...] = Field(  # of a pass of 1, 2, … tokens: what the sum misses
        (), max_length=MAX_EXTRAS, exclude_if=lambda extra_ms: not extra_ms
    )

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if any(token_ms < -LEAST_STEP for token_ms in accumulate((self.token_ms, *self.above_ms))):
            raise ValueError("token_ms and above_ms must add up to 0 or more at each number of tokens")
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order of `pass_ms`."""
        return (self.base_ms, self.session_ms, self.token_ms, *self.above_ms, self.cached_ms)

    def pass_ms(self, num_sessions: int, num_tokens: int, num_cached: int) -> float:
        extra_ms = self.extra_ms[num_tokens - 1] if num_tokens <= len(self.extra_ms) else 0.0
        return float(batching.pass_ms(self.weights, num_sessions, num_tokens, num_cached)) + extra_ms

    def next_token_ms(self, num_tokens: float) -> float:
        """Of one more token in a pass that feeds `num_tokens`."""
        hinges = zip(self.above_ms, batching.HINGES, strict=True)
        return self.token_ms + sum(ms for ms, hinge in hinges if num_tokens > hinge)


class StepTimes(Times):
    """Times of a draft step, over its sessions:

    step_ms + step_ms_per_1000 x context / 1000 + fed_ms x (fed tokens - sessions) + session_ms x (sessions - 1).
    """

    step_ms: Millis
    step_ms_per_1000: Millis = 0.0
    fed_ms: Millis = 0.0
    session_ms: Millis | None = None  # None: a step takes one session

    def feed_ms(self, num_tokens: int, context: int = 0, num_sessions: int = 1) -> float:
        further_ms = self.fed_ms * (num_tokens - num_sessions) + (self.session_ms or 0.0) * (num_sessions - 1)
        return self.step_ms + self.step_ms_per_1000 * context / 1000 + further_ms

    @property
    def max_rows(self) -> int:
        """Most sessions in a step."""
        return 1 if self.session_ms is None else stepping.MAX_ROWS

    def guess_ms(self, num_sessions: int, context: int) -> float:
        """Between two guesses of a session while so many draft, each with so much context."""
        further_ms = (self.session_ms or 0.0) + self.step_ms_per_1000 * context / 1000
        return stepping.guess_ms(num_sessions, self.max_rows, self.feed_ms(1, context), further_ms)


class MachineTimes(Times):
    """What the services take beside their models, and how models on one machine slow each other down."""

    request_ms: Millis = 0.0  # of a gateway, for a request up to its Open and for its first token
    message_ms: Millis = 0.0  # of a message between drafter and verifier, beyond the link
    pass_gap_ms: Millis = 0.0  # from the end of a pass to the start of the next, while sessions wait
    session_gap_ms: Millis = 0.0  # added to it for each session of the pass
    step_gap_ms: Millis = 0.0  # from the end of a draft step to the start of the next
    pass_slowdown: Slowdown = 1.0  # factor of the base time of a pass while a draft step runs
    step_slowdown: Slowdown = 1.0  # factor of a draft step while a pass runs


class Profile(Times):
    """The times of one verifier, one drafter or both. `name` is shown beside every figure."""

    name: Annotated[str, Field(pattern=f"^{PROFILE_NAME}$")]
    origin: str
    verifier: PassTimes | None = None
    drafter: StepTimes | None = None
    machine: MachineTimes | None = None  # of the pair

    @property
    def pass_times(self) -> PassTimes:
        """Raises ValueError if the profile has none."""
        if self.verifier is None:
            raise ValueError(f"profile {self.name} has no times of a verifier")
        return self.verifier

    @property
    def step_times(self) -> StepTimes:
        """Raises ValueError if the profile has none."""
        if self.drafter is None:
            raise ValueError(f"profile {self.name} has no times of a drafter")
        return self.drafter

    @property
    def machine_times(self) -> MachineTimes:
        """Raises ValueError if the profile has none."""
        if self.machine is None:
            raise ValueError(f"profile {self.name} has no times of a machine")
        return self.machine


def read_profile(path: Path) -> Profile:
    """Raises ValueError for a malformed profile, OSError for a file that can't be read."""
    try:
        return Profile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is no profile: {place or 'file'}: {first['msg']}") from error
