"""What one session generates, and the messages that request it from peers."""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.fleet.names import is_listed
from shared.policies.kv_cache import likely_kv_tokens
from shared.protocol.messages import NO_TOKENS, Open, Sampling, Speculate, Speculation, TokenIds


@dataclass(frozen=True, slots=True)
class Generation:
    """Parameters of one session. speculation None: the verifier runs alone."""

    session_id: str
    model: str
    prompt_ids: TokenIds
    max_tokens: int
    sampling: Sampling
    stop_ids: TokenIds
    speculation: Speculation | None
    drafter_name: str | None = None  # only instances of this name may draft; None: any
    min_tokens: int = 0
    num_top: int | None = None  # likeliest tokens to report at each position; None: no logprobs
    cache_scope: str | None = None  # sessions of one scope share the KV cache of a common prefix; None: no sharing
    vocab_size: int = 0  # the verifier must know all token ids below
    grammar: str | None = None  # that the answer obeys
    drafters: tuple[str, ...] | None = None  # names, or prefixes that end in "*", that may draft; None: all shared ones
    own_drafters: tuple[str, ...] = ()  # names of those of the API key
    scores_prompt: bool = False  # whether the prompt's tokens have logprobs, too
    traceparent: str | None = None  # of the session's span; None: the request is not traced

    @property
    def drafter_lists(self) -> list[tuple[str, ...] | None]:
        """Lists of names (fleet/names.py) of drafters that may see the prompt: of the key's own, then of the others."""
        lists = [self.own_drafters, self.drafters]
        if self.drafter_name is not None:
            lists = [(self.drafter_name,)] if any(is_listed(self.drafter_name, names) for names in lists) else []
        return [names for names in lists if names != ()]

    @property
    def scored_ids(self) -> TokenIds:
        """The prompt's tokens that have logprobs: nothing comes before the first."""
        return TokenIds(self.prompt_ids[1:]) if self.scores_prompt else NO_TOKENS

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return len(self.prompt_ids) + self.max_tokens

    def kv_tokens(self, num_committed: int) -> int:
        """KV cache that a verifier reserves for the session with so many tokens of the answer."""
        return likely_kv_tokens(len(self.prompt_ids) + num_committed, self.max_tokens - num_committed)

    def open(self, term: int, drafter_id: str | None, committed_ids: TokenIds) -> Open:
        """Asks a verifier to begin, resume or rebind the session. drafter_id None: it runs alone."""
        return Open(
            session_id=self.session_id,
            term=term,
            drafter_id=drafter_id,
            prompt_ids=self.prompt_ids,
            committed_ids=committed_ids,
            sampling=self.sampling,
            stop_ids=self.stop_ids,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            logprobs=self.num_top,
            cache_scope=self.cache_scope,
            grammar=self.grammar,
            prompt_logprobs=self.scores_prompt,
            traceparent=self.traceparent,
            lookup=self.speculation is not None,
        )

    def speculate(self, term: int, verifier_id: str, committed_ids: TokenIds) -> Speculate:
        """Asks a drafter to guess for the session. Raises ValueError where speculation is off."""
        if self.speculation is None:
            raise ValueError("speculation is off for this session")
        return Speculate(
            session_id=self.session_id,
            term=term,
            verifier_id=verifier_id,
            prompt_ids=self.prompt_ids,
            committed_ids=committed_ids,
            sampling=self.sampling,
            stop_ids=self.stop_ids,
            max_tokens=self.max_tokens,
            speculation=self.speculation,
            min_tokens=self.min_tokens,
            cache_scope=self.cache_scope,
            grammar=self.grammar,
            traceparent=self.traceparent,
        )
