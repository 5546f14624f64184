"""The cost line of each verifier: pass time = base_ms + per_token_ms * fed tokens, fitted online to reports.

A report carries moving averages of both quantities over the same passes with the same weights, so the averages lie on
the line that the passes lie on. The fit is weighted least squares with fading samples. It has fewer features than
shared/policies/batching.py, whose inputs reports do not carry.

Invariant: `base_ms` and `per_token_ms` are never negative, whatever was reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from shared.protocol.messages import MAX_TOKENS

KEEP = 0.5 ** (1 / 200)  # weight left of a sample after the next one: half after 200 samples
LONGEST_MS = 60_000.0  # longer samples, and those above MAX_TOKENS, are ignored
FLAT_TOKENS = 128.0  # prior: base_ms = FLAT_TOKENS * per_token_ms
PRIOR_WEIGHT = 16.0  # of the prior's slope, in samples * (distance from the mean, tokens)^2
MAX_VERIFIERS = 1024

Value = TypeVar("Value")


@dataclass(slots=True)
class VerifierCostLine:
    """The cost line of one verifier. `keep`: weight left of a sample after the next one."""

    keep: float = KEEP
    weight: float = 0.0  # of all samples
    mean_tokens: float = 0.0
    mean_ms: float = 0.0
    squares: float = 0.0  # sum of weight * (tokens - mean)^2
    products: float = 0.0  # sum of weight * (tokens - mean) * (ms - mean)

    def observe(self, num_tokens: float, elapsed_ms: float) -> None:
        """Adds one sample; ignores one that no pass can produce."""
        if not (1 <= num_tokens <= MAX_TOKENS and 0 < elapsed_ms <= LONGEST_MS):
            return
        self.weight = self.keep * self.weight + 1
        distance = num_tokens - self.mean_tokens
        self.mean_tokens += distance / self.weight
        self.mean_ms += (elapsed_ms - self.mean_ms) / self.weight
        self.squares = self.keep * self.squares + distance * (num_tokens - self.mean_tokens)
        self.products = self.keep * self.products + distance * (elapsed_ms - self.mean_ms)

    @property
    def is_known(self) -> bool:
        return self.weight > 0

    @property
    def per_token_ms(self) -> float:
        """Slope; 0 before the first sample."""
        if not self.weight:
            return 0.0
        prior = self.mean_ms / (self.mean_tokens + FLAT_TOKENS)
        slope = (self.products + PRIOR_WEIGHT * prior) / (self.squares + PRIOR_WEIGHT)
        return min(max(slope, 0.0), self.mean_ms / self.mean_tokens)

    @property
    def base_ms(self) -> float:
        """Intercept; 0 before the first sample."""
        return max(self.mean_ms - self.per_token_ms * self.mean_tokens, 0.0)


class PerVerifier(Generic[Value]):
    """One value for each verifier, shared by its pairs: at most MAX_VERIFIERS, the least recently requested goes
    first."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}  # most recently requested last

    def of(self, verifier_id: str, make: Callable[[], Value]) -> Value:
        """The verifier's value, made when missing. A pair requests it once and keeps it."""
        found = self._values.pop(verifier_id, None)
        if found is None:
            found = make()
        self._values[verifier_id] = found
        if len(self._values) > MAX_VERIFIERS:
            del self._values[next(iter(self._values))]
        return found
