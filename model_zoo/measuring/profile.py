"""Times a target's passes and a draft's steps on this machine, and fits the cost model to them.

Invariant: the timed code is that of the services. Each kind of pass or step is timed several times in random order, so
that a busy moment of the machine affects no single kind. The errors of the fit are reported.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from services.cloud_verifier.torch_engine.model import Row, TargetModel
from services.edge_drafter.model import DraftModel, DraftRow
from shared.data.profiles import PassTimes, StepTimes
from shared.policies.batching import LEAST_MS, pass_features
from shared.protocol.messages import Sampling

Kind = TypeVar("Kind")

SESSIONS = (1, 2, 4, 8)
TOKENS = (1, 2, 3, 5, 9, 17, 33, 64)  # of each session
CONTEXTS = (64, 256, 768)  # tokens in each session's cache
FED = (1, 2, 4, 8, 16, 32, 64)
MOST_TOKENS = 256  # of a pass
MOST_DRAWS = 17
TIMES = 5  # of each kind
TOKEN_FEATURES = slice(2, 6)  # of `pass_features`: tokens, and those above each hinge
REFITS = 4  # until errors are relative to the fitted times


@dataclass(frozen=True, slots=True)
class PassPoint:
    """A kind of verify pass, and its median time."""

    num_sessions: int
    num_tokens: int
    num_cached: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class StepPoint:
    """A kind of draft step, and its median time. Context and fed tokens are sums over its sessions."""

    context: int
    num_fed: int
    elapsed_ms: float
    num_sessions: int = 1


@dataclass(frozen=True, slots=True)
class RelativeError:
    """Errors of the fitted times, as shares of the measured ones."""

    median: float
    worst: float

    def __str__(self) -> str:
        return f"{self.median:.1%} in the median, {self.worst:.1%} at worst"


def time_passes(model: TargetModel, seed: int = 1) -> list[PassPoint]:
    """Times passes of each kind within the model's context."""
    kinds = [
        (num, tokens, context)
        for num in SESSIONS
        for tokens in TOKENS
        for context in CONTEXTS
        if num * tokens <= MOST_TOKENS and context + tokens <= model.max_context
    ]
    rng = random.Random(seed)
    caches = {context: _target_caches(model, context, rng) for context in sorted({kind[2] for kind in kinds})}
    found: dict[tuple[int, int, int], list[float]] = {kind: [] for kind in kinds}
    for num, tokens, context in _in_random_order(kinds, rng):
        draws = tokens if tokens <= MOST_DRAWS else 1  # longer ones are chunks of prompts
        rows = [
            Row(cache, context, [rng.randrange(model.vocab_size) for _ in range(tokens)], draws, Sampling())
            for cache in caches[context][:num]
        ]
        found[num, tokens, context].append(_elapsed_ms(partial(model.step, rows)))
    return [PassPoint(n, n * t, n * c, median(times[1:])) for (n, t, c), times in found.items()]


def time_steps(model: DraftModel, seed: int = 1) -> list[StepPoint]:
    """Times steps of each kind within the model's context."""
    most = max(num for num in SESSIONS if num <= model.max_rows)
    shapes = [(1, fed) for fed in FED] + [(num, 1) for num in SESSIONS if 1 < num <= most]
    kinds = [(num, fed, context) for context in CONTEXTS for num, fed in shapes if context + fed <= model.max_context]
    rng = random.Random(seed)
    caches = {context: _draft_caches(model, context, most, rng) for context in sorted({kind[2] for kind in kinds})}
    found: dict[tuple[int, int, int], list[float]] = {kind: [] for kind in kinds}
    for num, fed, context in _in_random_order(kinds, rng):
        rows = [
            DraftRow(cache, context, [rng.randrange(model.vocab_size) for _ in range(fed)])
            for cache in caches[context][:num]
        ]
        found[num, fed, context].append(_elapsed_ms(partial(model.step, rows)))
    return [StepPoint(n * c, n * fed, median(times[1:]), n) for (n, fed, c), times in found.items()]


def _target_caches(model: TargetModel, context: int, rng: random.Random) -> list[Any]:
    """One cache for each session, which holds `context` tokens."""
    caches = [model.new_cache(context + max(TOKENS)) for _ in range(max(SESSIONS))]
    for cache in caches:
        model.step([Row(cache, 0, [rng.randrange(model.vocab_size) for _ in range(context)], 0, Sampling())])
    return caches


def _draft_caches(model: DraftModel, context: int, num: int, rng: random.Random) -> list[Any]:
    caches = [model.new_cache(context + max(FED)) for _ in range(num)]
    for cache in caches:
        for start in range(0, context, max(FED)):
            model.feed(cache, [rng.randrange(model.vocab_size) for _ in range(min(max(FED), context - start))], start)
    return caches


def fit_passes(points: Sequence[PassPoint]) -> tuple[PassTimes, RelativeError]:
    """Least squares of the errors relative to the fitted times, with times of at least 0, also of one more token: it
    may take less in a larger pass, as on vLLM, or more.

    Relative to the measured times, slow outliers would count too little.
    """
    features = np.array([pass_features(p.num_sessions, p.num_tokens, p.num_cached) for p in points])
    features[:, TOKEN_FEATURES][:, :-1] -= features[:, TOKEN_FEATURES][:, 1:]  # the tokens between two hinges
    weights, error = _fit(features, np.array([p.elapsed_ms for p in points]))
    base, session, *slopes, cached = weights
    num_seen = int(features[:, TOKEN_FEATURES].any(axis=0).sum())
    slopes[num_seen:] = slopes[num_seen - 1 : num_seen] * (len(slopes) - num_seen)  # as below the last hinge reached
    above = [round(after - before, 6) for before, after in pairwise(slopes)]
    return PassTimes(
        base_ms=base, session_ms=session, token_ms=slopes[0], above_ms=(above[0], above[1], above[2]), cached_ms=cached
    ), error


def fit_steps(points: Sequence[StepPoint]) -> tuple[StepTimes, RelativeError]:
    """As `fit_passes`. Without a point of several sessions `session_ms` is None."""
    features = np.array([[1, p.context / 1000, p.num_fed - p.num_sessions, p.num_sessions - 1] for p in points])
    num = 4 if features[:, 3].any() else 3
    weights, error = _fit(features[:, :num], np.array([p.elapsed_ms for p in points]))
    return step_times_of(weights), error


def step_times_of(weights: Sequence[float]) -> StepTimes:
    """From the weights of a fit, the last of them only if a step takes several sessions."""
    step, per_1000, fed, *session = weights
    return StepTimes(step_ms=step, step_ms_per_1000=per_1000, fed_ms=fed, session_ms=session[0] if session else None)


def peak_mib() -> float:
    """The peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1 << 20)


def _fit(features: NDArray[np.float64], times: NDArray[np.float64]) -> tuple[list[float], RelativeError]:
    fitted = times
    for _ in range(REFITS):
        weights = nnls(features / fitted[:, None], times / fitted)[0]
        fitted = np.maximum(features @ weights, LEAST_MS)
    errors = np.abs(features @ weights / times - 1)
    return [round(float(weight), 6) for weight in weights], RelativeError(float(np.median(errors)), float(errors.max()))


def _in_random_order(kinds: Sequence[Kind], rng: random.Random) -> Iterator[Kind]:
    """Each kind once for warm-up, then each TIMES times in random order."""
    yield from kinds
    again = [kind for kind in kinds for _ in range(TIMES)]
    rng.shuffle(again)
    yield from again


def _elapsed_ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3
