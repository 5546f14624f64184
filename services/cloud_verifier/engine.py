"""The engine interface: contexts hold the KV cache of sessions, and a step computes rows of contexts.

An engine computes the target model. It does not know sessions, drafters, NATS or batching. The layers above do not
know tensors. `torch_engine` is the built-in engine. `__main__.py` chooses the engine: a `load_engine(settings)`.

Threads: `open`, `share` and `close` run on the event loop and do not block. `step` runs in one other thread. They may
overlap, except that `share` runs only between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from shared.protocol.messages import Sampling, TokenLogprobs
from shared.protocol.sampling import History


class OutOfMemory(Exception):
    """Allocation of a KV cache failed although the engine had enough unreserved tokens."""


class Context(Protocol):
    """The KV cache of one session."""

    @property
    def capacity(self) -> int:
        """Reserved tokens."""

    @property
    def num_shared(self) -> int | None:
        """Leading tokens that are copied from another context and not fed; None while that context computes them."""


AnyContext = TypeVar("AnyContext", bound=Context)


@dataclass(frozen=True, slots=True)
class StepRow(Generic[AnyContext]):
    """One context's row of a step.

    The step feeds `token_ids` at the positions from `start` on. Feeding a position again overwrites it, so a smaller
    start rolls the context back. Each of the last `num_draws` tokens yields a draw.
    """

    context: AnyContext
    start: int
    token_ids: Sequence[int]
    num_draws: int
    sampling: Sampling
    history: History | None = None  # text before the first draw; None: logits are not adjusted
    num_top: int | None = None  # most likely tokens to return logprobs for; None: no logprobs


@dataclass(frozen=True)
class Drawn:
    """The draws of a row. The token fed at position p yields the draw for position p + 1.

    logprobs: if requested, one per draw up to and including the first that differs from its guess; else empty.
    """

    token_ids: list[int]  # [num_draws]
    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class StepTime:
    """Size and duration of a step, input of the cost model."""

    num_sessions: int
    num_tokens: int
    cached_tokens: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Properties of an engine. Sizes are in tokens."""

    fingerprint: str  # identifies the numerics: on CPUs, equal fingerprints give bit-identical text
    vocab_size: int
    max_context: int  # of the model: prompt and answer
    kv_tokens: int  # capacity of the KV cache
    largest_context: int  # capacity of one context while no other is open


class Engine(Protocol[AnyContext]):
    """The target model and its KV cache."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def free_kv_tokens(self) -> int:
        """Tokens of KV cache that no open context has reserved."""

    @property
    def num_shared_tokens(self) -> int:
        """Tokens copied from other contexts instead of being computed, since the start."""

    def open(self, token_ids: Sequence[int], capacity: int, scope: str | None) -> AnyContext | None:
        """Reserves `capacity` tokens; None if too few are free. Raises OutOfMemory.

        token_ids: the text so far. All but its last token may be shared with other contexts of `scope` (None: no
        sharing).
        """

    def share(self, context: AnyContext) -> None:
        """Assigns the prefix that `context` waits for if it is computed, and sets `num_shared`."""

    def close(self, context: AnyContext, token_ids: Sequence[int]) -> None:
        """Frees the reservation.

        token_ids: the committed tokens in the KV cache. Later contexts of its scope may share them.
        """

    def step(self, rows: Sequence[StepRow[AnyContext]]) -> list[Drawn]:
        """Computes one step over rows of different contexts.

        May raise any exception. The same rows may then be fed again, together or one by one.
        """

    def warm_up(self) -> list[StepTime]:
        """Runs steps of growing size and returns their times."""

    def probe(self) -> None:
        """Computes one token in a temporary context. Raises any exception if the engine can't compute."""
