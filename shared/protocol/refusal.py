"""Why a service refuses a session: an exception that becomes a Failure.

Invariant: code, message and retryability are chosen once, where the reason is found.
"""

from __future__ import annotations

from shared.protocol.messages import Failure, FailureCode, Open, Speculate


class Refused(Exception):
    """A peer's request is refused; carries the fields of the Failure."""

    def __init__(self, code: FailureCode, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable

    def failure(self, session_id: str, term: int) -> Failure:
        return Failure(session_id, term, self.code, str(self)[:1024], self.retryable)


def check_text(request: Open | Speculate, vocab_size: int, max_context: int) -> int:
    """The most tokens of prompt and answer together. Raises Refused for a text that the model can't compute."""
    if not request.prompt_ids:
        raise Refused("bad_request", "the prompt is empty", retryable=False)
    biased_ids = [each.token_id for each in request.sampling.logit_bias]
    banned_ids = request.stop_ids if request.min_tokens else ()
    highest = max(*request.prompt_ids, *request.committed_ids, *biased_ids, *banned_ids, 0)
    if highest >= vocab_size:
        raise Refused("bad_request", f"token id {highest} is outside the vocabulary of {vocab_size}", retryable=False)
    if request.min_tokens > request.max_tokens:
        message = f"min_tokens {request.min_tokens} exceeds max_tokens {request.max_tokens}"
        raise Refused("bad_request", message, retryable=False)
    length = len(request.prompt_ids) + request.max_tokens
    if length > max_context:
        message = f"prompt and answer of {length} tokens exceed the context of {max_context}"
        raise Refused("too_long", message, retryable=False)
    return length
