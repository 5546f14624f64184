"""What a verify pass costs: milliseconds against tokens fed, one line for each verifier, fitted to what reports bring.

A report carries moving averages of both numbers over the same passes with the same weights, so where single passes lie
on a line the averages lie on it too. The fit is weighted least squares in which older samples fade.

Invariant: `base_ms` and `per_token_ms` are never negative, whatever was reported; the table of verifiers is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol.messages import MAX_TOKENS

LONGEST_MS = 60_000.0  # what takes longer, or feeds more than MAX_TOKENS, is no pass
FLAT_TOKENS = 128.0  # a priori a pass costs as much beside its tokens as this many of them
PRIOR_WEIGHT = 16.0  # of that prior, in samples times the square of their distance from the mean, in tokens


@dataclass(slots=True)
class PassCost:
    """One verifier's line. `keep` is what is left of a sample's weight after the next one."""

    keep: float
    weight: float = 0.0
    mean_tokens: float = 0.0
    mean_ms: float = 0.0
    squares: float = 0.0  # of the distances of tokens from their mean
    products: float = 0.0  # of the distances of tokens and of milliseconds from their means

    def observe(self, num_tokens: float, elapsed_ms: float) -> None:
        """Learns from one sample; one that can't come from a pass is left out."""
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
        """Of one more token; 0 before the first sample."""
        if not self.weight:
            return 0.0
        prior = self.mean_ms / (self.mean_tokens + FLAT_TOKENS)
        slope = (self.products + PRIOR_WEIGHT * prior) / (self.squares + PRIOR_WEIGHT)
        return min(max(slope, 0.0), self.mean_ms / self.mean_tokens)

    @property
    def base_ms(self) -> float:
        """Of a pass without its tokens; 0 before the first sample."""
        return max(self.mean_ms - self.per_token_ms * self.mean_tokens, 0.0)


class PassCosts:
    """One line for each verifier, for its pairs to share: of the `limit` that were asked for last. A sample's weight
    halves in `half_life` samples."""

    def __init__(self, half_life: float = 200.0, limit: int = 1024) -> None:
        if not half_life > 0 or limit < 1:
            raise ValueError(f"a half-life of {half_life} samples must be above 0, and a limit of {limit} at least 1")
        self._keep = 0.5 ** (1 / half_life)
        self._limit = limit
        self._costs: dict[str, PassCost] = {}  # the one asked for last is last

    def __len__(self) -> int:
        return len(self._costs)

    def of(self, verifier_id: str) -> PassCost:
        """The line of a verifier; a pair asks for it once, and keeps it."""
        found = self._costs.pop(verifier_id, None) or PassCost(self._keep)
        self._costs[verifier_id] = found
        if len(self._costs) > self._limit:
            del self._costs[next(iter(self._costs))]
        return found
