"""What one session is asked to generate, and the messages that ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol.messages import Open, Sampling, Speculate, Speculation, TokenIds


@dataclass(frozen=True, slots=True)
class Generation:
    """One session's order. speculation None: the verifier runs alone, no drafter is asked."""

    session_id: str
    model: str
    prompt_ids: TokenIds
    max_tokens: int
    sampling: Sampling
    stop_ids: TokenIds
    speculation: Speculation | None
    drafter_name: str | None = None  # only instances of this name may draft
    min_tokens: int = 0
    num_top: int | None = None  # likeliest tokens whose logprobs are wanted; None: no logprobs
    cache_scope: str | None = None  # whose KV cache of a common prefix may be used

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may take together."""
        return len(self.prompt_ids) + self.max_tokens

    def open(self, term: int, drafter_id: str | None, committed_ids: TokenIds) -> Open:
        """To a verifier: begin, resume or rebind."""
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
        )

    def speculate(self, term: int, verifier_id: str, committed_ids: TokenIds) -> Speculate:
        """To a drafter: guess for this session. Raises ValueError where speculation is off."""
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
        )
