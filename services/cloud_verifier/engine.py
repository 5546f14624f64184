"""What the verify loop needs from an engine: contexts that hold KV cache for sessions, and steps over their rows.

An engine computes the target model. It knows nothing of sessions, drafters, NATS or batching; those stand above it and
know nothing of tensors. `torch_engine` is the built-in engine. `__main__.py` chooses the engine, whose `load_engine`
makes one from the settings.

Threads: `open`, `share` and `close` run on the event loop and return at once, `step` in one other thread. They may
overlap; `share` runs only between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from shared.protocol.messages import Sampling, TokenLogprobs
from shared.protocol.sampling import History


class OutOfMemory(Exception):
    """There is room for a context by the engine's count, and yet no memory for it."""


class Context(Protocol):
    """KV cache of one session."""

    @property
    def capacity(self) -> int:
        """Tokens that it has room for."""

    @property
    def num_shared(self) -> int | None:
        """Leading tokens that it takes from another context, so that nobody feeds them; None while another context
        still computes them."""


AnyContext = TypeVar("AnyContext", bound=Context)


@dataclass(frozen=True, slots=True)
class StepRow(Generic[AnyContext]):
    """One context's part of a step.

    token_ids: fed at the positions from `start` on; feeding a position again overwrites it, so a smaller start rolls
    back. The last num_draws of them yield a draw each.
    """

    context: AnyContext
    start: int
    token_ids: Sequence[int]
    num_draws: int
    sampling: Sampling
    history: History | None = None  # before the first draw; None where nothing adjusts the scores
    num_top: int | None = None  # likeliest tokens to give logprobs of; None: no logprobs


@dataclass(frozen=True)
class Drawn:
    """The draws of a row: the token fed at position p yields the draw for position p + 1.

    logprobs: where asked for, of the draws that can be committed, up to the first wrong guess.
    """

    token_ids: list[int]  # [num_draws]
    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step as the cost model sees it."""

    num_sessions: int
    num_tokens: int
    cached_tokens: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves. Sizes are in tokens."""

    fingerprint: str  # names the numerics: engines with one fingerprint give the same text to the bit
    vocab_size: int
    max_context: int  # longest text, prompt and answer, of the model
    kv_tokens: int  # capacity of the KV cache
    largest_context: int  # capacity of one context while no other is open


class Engine(Protocol[AnyContext]):
    """The target model and its KV cache."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def free_kv_tokens(self) -> int:
        """KV cache that no open context has reserved."""

    @property
    def num_shared_tokens(self) -> int:
        """Tokens taken from other contexts instead of being computed, since the start."""

    def open(self, token_ids: Sequence[int], capacity: int, scope: str | None) -> AnyContext | None:
        """Reserves room for `capacity` tokens, or returns None while there is too little.

        token_ids: the text so far, of which all but the newest token may be shared with other contexts of `scope`
        (None: with nobody). Raises OutOfMemory.
        """

    def share(self, context: AnyContext) -> None:
        """Takes over the prefix that `context` waits for, once it is computed: `num_shared` tells."""

    def close(self, context: AnyContext, token_ids: Sequence[int]) -> None:
        """Frees the reservation.

        token_ids: the committed tokens whose keys and values the context holds; later contexts of its scope may share
        them.
        """

    def step(self, rows: Sequence[StepRow[AnyContext]]) -> list[Drawn]:
        """Computes one step over rows of different contexts. Raises any exception where it fails; the same rows may be
        fed again, together or alone."""

    def warm_up(self) -> list[StepTime]:
        """Runs steps of growing size; their times."""

    def probe(self) -> None:
        """Computes a lone token outside every context. Raises any exception where the engine can't compute."""
