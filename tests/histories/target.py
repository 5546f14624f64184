"""A target model that costs nothing: each token is a hash of the whole text before it.

A wrong, missing or repeated token, and a KV cache that holds another text, are therefore seen at the next token.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

from services.cloud_verifier.engine import Computed, Drawn, EngineInfo, OutOfMemory, StepRow, StepTime
from services.edge_drafter.model import DraftRow
from shared.grammar.grammars import Grammars
from shared.protocol.guesses import common_prefix
from shared.protocol.messages import Open, TokenIds, TokenLogprobs
from tests.histories.violation import Injected, Violation

VOCABULARY = 24  # so few that a wrong guess is sometimes right
STOP = 0
KV_STEP = 16


def follow(code: int, token: int) -> int:
    """The hash of a text, from that of the text without its last token."""
    return zlib.crc32(bytes((token,)), code)


def token_after(code: int, numerics: str = "a") -> int:
    """The draw after a text with this hash: about one in 40 ends the answer. Other numerics now and then differ."""
    if numerics != "a" and zlib.crc32(numerics.encode(), code) % 8 == 0:
        code += 1
    return STOP if code % 40 == 0 else 1 + code % (VOCABULARY - 1)


def logprobs_after(code: int, num_top: int) -> TokenLogprobs:
    """The logprobs of that draw."""
    return TokenLogprobs(-(code % 997) / 100, TokenIds(range(num_top)), [-1.0] * num_top)


class Text:
    """A text of which each token was checked as it came: it must be the target's draw after those before it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self.codes = [0]  # codes[i]: of the first i tokens
        self.num_prompt = len(prompt)
        for token in prompt:
            self._add(token)

    def extend(self, tokens: Sequence[int], *numerics: str) -> None:
        """Takes over further tokens. Raises Violation for one that no target of these numerics draws there."""
        for token in tokens:
            draws = {token_after(self.codes[-1], each) for each in numerics}
            if token not in draws:
                position = len(self.tokens) - self.num_prompt
                raise Violation(f"token {position} of the answer is {token}, the target's is {draws}")
            self._add(token)

    def follow(self, tokens: list[int], num_given: int, *numerics: str) -> None:
        """The same for a text as a whole, which may have changed. The first `num_given` tokens need no check."""
        if tokens[: len(self.tokens)] != self.tokens or len(self.tokens) < num_given:
            length = max(self.num_prompt, common_prefix(self.tokens, tokens))
            del self.tokens[length:], self.codes[length + 1 :]
            for token in tokens[length:num_given]:
                self._add(token)
        if len(tokens) > len(self.tokens):
            self.extend(tokens[len(self.tokens) :], *numerics)

    def _add(self, token: int) -> None:
        self.tokens.append(token)
        self.codes.append(follow(self.codes[-1], token))

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.num_prompt :]


class HashedText:
    """A KV cache: the text that it holds, and the hash of each of its beginnings."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.text: list[int] = []
        self.codes = [0]

    def feed(self, start: int, token_ids: Sequence[int]) -> None:
        if start > len(self.text) or start + len(token_ids) > self.capacity:
            raise Violation(f"{len(token_ids)} tokens at {start} into {len(self.text)} of {self.capacity}")
        self.cut(start)
        for token in token_ids:
            self.text.append(token)
            self.codes.append(follow(self.codes[-1], token))

    def cut(self, length: int) -> None:
        del self.text[length:], self.codes[length + 1 :]

    @property
    def length(self) -> int:
        return len(self.text)


@dataclass(eq=False)
class Context(HashedText):
    """The KV cache of one session at a verifier."""

    def __init__(self, request: Open, capacity: int, token_ids: Sequence[int]) -> None:
        super().__init__(capacity)
        self.scope = request.cache_scope
        self.num_top = request.logprobs
        self.num_shared: int | None = 0
        self.opened_with = list(token_ids)  # an engine may know them, and be fed others never
        self.is_doubtful = False  # the last step that it was in failed


@dataclass
class HashEngine:
    """An `Engine` over HashedTexts. Short of KV cache it refuses, evicts, and computes in part."""

    info: EngineInfo
    rng: random.Random
    evicted: float
    errors: float = 0.0  # share of steps that fail
    grammars: Grammars = field(default_factory=Grammars)  # no request has one
    num_shared_tokens: int = 0
    num_preemptions: int = 0
    contexts: set[Context] = field(default_factory=set)
    refused_ids: set[str] = field(default_factory=set)  # sessions for which `open` raised an error
    _ended: list[tuple[str, list[int]]] = field(default_factory=list)  # scope and text of closed contexts

    @property
    def free_kv_tokens(self) -> int:
        return self.info.kv_tokens - sum(context.capacity for context in self.contexts)

    def open(self, request: Open, token_ids: Sequence[int]) -> Context | None:
        capacity = self.reserved(len(request.prompt_ids) + request.max_tokens)
        if capacity > self.free_kv_tokens:
            return None
        if self.rng.random() < self.errors / 4:
            self.refused_ids.add(request.session_id)
            raise OutOfMemory if self.rng.random() < 0.5 else Injected
        context = Context(request, capacity, token_ids)
        self.contexts.add(context)
        self._share(context, token_ids)
        return context

    @staticmethod
    def reserved(num_tokens: int) -> int:
        return -(-num_tokens // KV_STEP) * KV_STEP

    def _share(self, context: Context, token_ids: Sequence[int]) -> None:
        if context.scope is None:
            return
        texts = [text for scope, text in self._ended if scope == context.scope]
        best = max((common_prefix(text, token_ids[:-1]) for text in texts), default=0)
        context.feed(0, token_ids[:best])
        context.num_shared = best
        self.num_shared_tokens += best
        if self.rng.random() < 0.5:
            context.num_shared = None  # until `share`

    def share(self, context: Context) -> None:
        context.num_shared = len(context.text)

    def close(self, context: Context, token_ids: Sequence[int]) -> None:
        if context not in self.contexts:
            raise Violation("a context is closed twice")
        if context.text[: len(token_ids)] != list(token_ids):
            raise Violation("a KV cache holds another text than its session says")
        self.contexts.remove(context)
        if context.scope is not None:
            self._ended = [*self._ended[-3:], (context.scope, list(token_ids))]

    def step(self, rows: Sequence[StepRow[Context]]) -> list[Computed]:
        if self.rng.random() < self.errors:
            for row in rows:
                if row.context.is_doubtful:  # it failed by itself now: nothing of it is good any more
                    row.context.cut(0)
                row.context.is_doubtful = True
            raise Injected
        return [self._compute(row) for row in rows]

    def _compute(self, row: StepRow[Context]) -> Computed:
        context, ids, num_draws = row.context, row.token_ids, row.num_draws
        context.is_doubtful = False
        known = context.opened_with[row.start : row.start + len(ids)]
        if list(ids[: len(known)]) != known:
            raise Violation("a context is fed another text than it was opened with")
        if self.rng.random() < self.evicted:
            return self._fall_short(row)
        context.feed(row.start, ids)
        if not num_draws:
            return Computed(len(ids), len(context.text), Drawn([], []))
        codes = context.codes[-num_draws:]
        draws = [token_after(code, self.info.fingerprint) for code in codes]
        num = 1 + common_prefix(draws, ids[len(ids) - num_draws + 1 :])  # up to the first that differs from its guess
        logprobs = [] if context.num_top is None else [logprobs_after(code, context.num_top) for code in codes[:num]]
        return Computed(len(ids), len(context.text) - num_draws + 1, Drawn(draws, logprobs))

    def _fall_short(self, row: StepRow[Context]) -> Computed:
        """Computes a part of the text, or loses the KV cache of a part."""
        num_text = len(row.token_ids) - max(0, row.num_draws - 1)
        if num_text > 1 and self.rng.random() < 0.5:
            part = row.token_ids[: self.rng.randrange(1, num_text)]
            row.context.feed(row.start, part)
            return Computed(len(part), len(row.context.text), Drawn([], []))
        self.num_preemptions += 1
        row.context.cut(self.rng.randint(0, row.start))
        return Computed(0, len(row.context.text), Drawn([], []))

    def warm_up(self) -> list[StepTime]:
        return []

    def probe(self) -> None:
        """It always computes again."""

    def shutdown(self) -> None:
        """It has no processes."""


@dataclass
class HashDraft:
    """A draft model that guesses the target's token, as often as `accuracy` says."""

    name: str
    max_context: int
    accuracy: float
    rng: random.Random
    vocab_size: int = VOCABULARY
    max_rows: int = 3  # of a step
    num_nodes: ClassVar[dict[str, int]] = {}
    kv_bytes: int = 0
    errors: float = 0.0  # share of rows that fail

    def new_cache(self, capacity: int) -> HashedText:
        return HashedText(capacity)

    def num_caches(self, num_used: int, length: int) -> int:
        return num_used + self.rng.randint(0, 3)

    def at_start(self, row: DraftRow) -> HashedText:
        """The cache of a row when its step begins: with what it takes over from another one."""
        cache = cast(HashedText, row.cache)
        if row.prefix is not None:
            source = cast(HashedText, row.prefix.cache)
            cache.cut(row.prefix.start)
            cache.feed(row.prefix.start, source.text[row.prefix.start : row.prefix.length])
            if row.prefix.is_moved:
                source.cut(0)
        return cache

    def guess_after(self, row: DraftRow) -> int:
        """Feeds the tokens of a row; the guess after them."""
        if self.rng.random() < self.errors:
            raise Injected
        cache = cast(HashedText, row.cache)
        cache.feed(row.start, row.token_ids)
        is_right = self.rng.random() < self.accuracy
        return token_after(cache.codes[-1]) if is_right else self.rng.randrange(VOCABULARY)
