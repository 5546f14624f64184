"""The engine interface: contexts hold the KV cache of sessions, and a step computes rows of contexts.

An engine computes the target model and draws its tokens. It does not know sessions, drafters, NATS or batching. The
layers above do not know tensors. `torch_engine` is the built-in engine, `vllm_engine` runs vLLM. `loading.py` chooses
the engine: a `load_engine(settings)`.

Threads: `open`, `grow`, `share` and `close` run on the event loop and do not block. `step` runs in one other thread.
They may overlap, except that `grow` and `share` run only between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from shared.grammar.grammars import Grammars
from shared.protocol.messages import Open, TokenLogprobs


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
    start rolls the context back. Each of the last `num_draws` tokens yields a draw; all but the first of these tokens
    are guesses. scored_ids: text behind the fed tokens, from the position `start` + 1 on, whose logprobs are asked for;
    it ends before the first draw.
    """

    context: AnyContext
    start: int
    token_ids: Sequence[int]
    num_draws: int
    scored_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Drawn:
    """The draws of a row. The token fed at position p yields the draw for position p + 1.

    token_ids: up to the first draw that differs from its guess at least; later ones are of no use. logprobs: if
    requested, one per draw up to and including the first that differs from its guess; else empty. forced: the only
    tokens that the request's grammar allows after the first draw that differs from its guess, or the last; none with
    logprobs, which they would lack. scored: logprobs of the row's scored_ids.
    """

    token_ids: list[int]  # [at most num_draws]
    logprobs: list[TokenLogprobs]
    forced: list[int] = field(default_factory=list)
    scored: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step did for a row.

    An engine may skip a prefix that it has cached, and reach the end of the text earlier than asked. Short of KV cache
    it may compute less, or evict the context. Then nothing is drawn, and the loop asks again.
    """

    num_tokens: int  # fed in this step
    length: int  # leading tokens of the text in the KV cache, without guesses
    drawn: Drawn  # empty if the end of the text was not reached


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
    max_guesses: int  # of one row
    scores_text: bool = False  # whether rows may have scored_ids


class Engine(Protocol[AnyContext]):
    """The target model and its KV cache."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def grammars(self) -> Grammars:
        """Compiles the grammars of requests."""

    @property
    def free_kv_tokens(self) -> int:
        """Tokens of KV cache that no open context has reserved."""

    @property
    def num_shared_tokens(self) -> int:
        """Tokens copied from other contexts instead of being computed, since the start."""

    @property
    def num_preemptions(self) -> int:
        """How often a context lost its KV cache to another one, since the start."""

    def open(self, request: Open, token_ids: Sequence[int]) -> AnyContext | None:
        """A context for a session; None if too little KV cache is free. Raises OutOfMemory.

        Its capacity is at least `likely_kv_tokens` of the text. request: prompt, sampling parameters and most tokens.
        token_ids: prompt and committed tokens. All but the last may be shared with other contexts of
        `request.cache_scope` (None: no sharing).
        """

    def grow(self, context: AnyContext, num_tokens: int) -> bool:
        """Gives the context a capacity of `num_tokens` at least, and keeps what it holds.

        False: too little KV cache is free, and nothing changed. Raises OutOfMemory.
        """

    def share(self, context: AnyContext) -> None:
        """Assigns the prefix that `context` waits for if it is computed, and sets `num_shared`."""

    def close(self, context: AnyContext, token_ids: Sequence[int]) -> None:
        """Frees the reservation.

        token_ids: the committed tokens in the KV cache. Later contexts of its scope may share them.
        """

    def step(self, rows: Sequence[StepRow[AnyContext]]) -> list[Computed]:
        """Computes one step over rows of different contexts, at least one token of at least one row.

        May raise any exception. The same rows may then be fed again, together or one by one.
        """

    def warm_up(self) -> list[StepTime]:
        """Runs steps of growing size and returns their times."""

    def probe(self) -> None:
        """Computes one token in a temporary context. Raises any exception if the engine can't compute."""

    def shutdown(self) -> None:
        """Ends the engine's processes, if it has any. Nothing may be called after it."""
