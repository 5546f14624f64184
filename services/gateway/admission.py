"""From a checked body to a session's order: lengths, vocabulary, seed, and what the fleet offers right now."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from services.gateway.api import ChatBody, CompletionBody, GenerationBody
from services.gateway.errors import ApiError, bad_request
from services.gateway.generation import Generation
from services.gateway.placement import Placement
from services.gateway.template import TemplateRefused
from services.gateway.tokenizer import TargetTokenizer
from shared.messages import MAX_TOKENS, Sampling, TokenIds
from shared.subjects import new_session_id

SEED_BITS = 53  # of a seed drawn here: every JSON reader keeps such a number exactly


@dataclass(frozen=True, slots=True)
class Admission:
    """What this gateway serves. Every refusal is an ApiError that names the field."""

    model_name: str
    default_max_tokens: int  # 0: up to the context
    tokenizer: TargetTokenizer
    placement: Placement

    def check_model(self, name: str) -> None:
        if name != self.model_name:
            message = f"The model {name!r} is not served here; {self.model_name!r} is"
            raise ApiError(404, message, "model", "model_not_found")

    def encode(self, body: GenerationBody) -> TokenIds:
        """The prompt's tokens. Takes a while for long prompts: to be called in a thread."""
        match body:
            case ChatBody():
                try:
                    return self.tokenizer.encode_chat([turn.message for turn in body.messages])
                except TemplateRefused as error:
                    raise bad_request(f"The chat template refuses: {error}", "messages", "invalid_value") from error
            case CompletionBody(prompt=str(text)):
                return self.tokenizer.encode_text(text)
            case CompletionBody(prompt=list(token_ids)):
                return TokenIds(token_ids)
        raise TypeError(f"{type(body).__name__} carries no prompt")

    def order(self, body: GenerationBody, prompt_ids: TokenIds, now: float) -> Generation:
        """The session to open for this request."""
        field = "messages" if isinstance(body, ChatBody) else "prompt"
        context = self._context(now)
        self._check_prompt(prompt_ids, field, context, now)
        self._check_drafter(body, now)
        return Generation(
            session_id=new_session_id(),
            model=self.model_name,
            prompt_ids=prompt_ids,
            max_tokens=self._max_tokens(body, len(prompt_ids), context),
            sampling=_sampling(body),
            stop_ids=self.tokenizer.stop_ids,
            speculation=body.speculation,
            drafter_name=body.drafter,
        )

    def _context(self, now: float) -> int:
        context = min(MAX_TOKENS, self.placement.fleet.max_context(self.model_name, now))
        if context == 0:
            raise ApiError(503, f"No verifier of {self.model_name!r} is there now", code="no_verifier")
        return context

    def _check_prompt(self, prompt_ids: TokenIds, field: str, context: int, now: float) -> None:
        if not prompt_ids:
            raise bad_request("The prompt has no tokens", field, "invalid_value")
        vocab_size = self.placement.fleet.vocab_size(self.model_name, now)
        wrong = next((token_id for token_id in prompt_ids if not 0 <= token_id < vocab_size), None)
        if wrong is not None:
            message = f"Token id {wrong} is outside the vocabulary of {vocab_size} tokens"
            raise bad_request(message, field, "invalid_value")
        if len(prompt_ids) >= context:
            message = f"The prompt has {len(prompt_ids)} tokens; the context of {context} leaves no room for an answer"
            raise bad_request(message, field, "context_length_exceeded")

    def _max_tokens(self, body: GenerationBody, num_prompt: int, context: int) -> int:
        room = context - num_prompt
        field, wanted = "max_tokens", body.max_tokens
        if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
            field, wanted = "max_completion_tokens", body.max_completion_tokens
        if wanted is None:
            return min(room, self.default_max_tokens or room)
        if wanted > room:
            message = f"{num_prompt} prompt tokens and {field} {wanted} exceed the context of {context} tokens"
            raise bad_request(message, field, "context_length_exceeded")
        return wanted

    def _check_drafter(self, body: GenerationBody, now: float) -> None:
        name = body.drafter
        if name is not None and not self.placement.has_drafter(name, self.model_name, now):
            message = f"No drafter named {name!r} is there for {self.model_name!r}"
            raise bad_request(message, "dsd.drafter", "unknown_drafter")


def _sampling(body: GenerationBody) -> Sampling:
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        seed=secrets.randbits(SEED_BITS) if body.seed is None else body.seed,
    )
