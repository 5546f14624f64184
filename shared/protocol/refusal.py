"""Why a service does not take a session, as an exception on its way to a Failure.

Invariant: the wire code, the message and whether to try again are chosen once, where the reason is found.
"""

from __future__ import annotations

from shared.protocol.messages import Failure, FailureCode, Open, Speculate


class Refused(Exception):
    """A request of a peer that can't be served; carries the Failure's fields."""

    def __init__(self, code: FailureCode, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable

    def failure(self, session_id: str, term: int) -> Failure:
        return Failure(session_id, term, self.code, str(self)[:1024], self.retryable)


def check_text(request: Open | Speculate, vocab_size: int, max_context: int) -> int:
    """The length that prompt and answer may reach together; raises Refused where a model can't hold the text."""
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
