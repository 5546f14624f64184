"""From a validated body to the generations of its choices: tokens, lengths, seeds, checks against the fleet."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import msgspec

from services.gateway.admission.api_keys import ApiKey
from services.gateway.bodies.chat_body import ChatBody
from services.gateway.bodies.completion_body import CompletionBody
from services.gateway.bodies.generation_body import MAX_CHOICES
from services.gateway.errors import ApiError, bad_request
from services.gateway.fleet.names import is_listed
from services.gateway.formats.prompting import described
from services.gateway.formats.registry import AnswerFormats
from services.gateway.http.parsing import AnyBody
from services.gateway.session.generation import Generation
from services.gateway.session.placement import Placement
from services.gateway.text.chat_template import Conversation, TemplateRefused
from services.gateway.text.encoding import PromptTooLong
from services.gateway.text.output_text import AnswerText
from services.gateway.text.tokenizer import TargetTokenizer
from shared.grammar.grammars import BadGrammar, Grammars
from shared.protocol.messages import MAX_TOKENS, NO_TOKENS, Sampling, TokenIds
from shared.protocol.subjects import new_session_id

MAX_SEED = (1 << 53) - 1  # of those drawn here: every JSON reader keeps such a number exactly
MAX_REASON_CHARACTERS = 1000  # of a chat template's own message


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One prompt in tokens. echo: its text, where the answer begins with it. grammar: that the answer obeys."""

    token_ids: TokenIds
    echo: str | None = None
    grammar: str | None = None


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """One choice of a request: its prompt, and what to generate for it."""

    prompt: EncodedPrompt
    generation: Generation


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """Turns bodies into choice requests for the served model. Every refusal is an ApiError that names the field."""

    model_name: str
    default_max_tokens: int  # 0: up to the context
    tokenizer: TargetTokenizer
    grammars: Grammars
    placement: Placement
    formats: AnswerFormats

    def check_model(self, name: str) -> None:
        """Raises ApiError (404) for any model but the served one."""
        if name != self.model_name:
            message = f"Unknown model {name!r}: this gateway serves {self.model_name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def encode(self, body: AnyBody) -> list[EncodedPrompt]:
        """The prompts in tokens, and a grammar that compiles. Slow for long prompts: call it in a thread."""
        if isinstance(body, ChatBody):
            self._check_tools(body)
        with explained(body.prompt_field):
            if isinstance(body, CompletionBody):
                grammar = self._grammar(body)
                return [self._encode_prompt(prompt, body, grammar) for prompt in body.prompt]
            token_ids = self.tokenizer.encode_chat(self.known(body.conversation))
        return [EncodedPrompt(token_ids, grammar=self._grammar(body, token_ids))]

    def ignored(self, body: AnyBody) -> list[str]:
        """Names of the fields of a body that have no effect here."""
        unused = self.tokenizer.unused(self.known(body.conversation)) if isinstance(body, ChatBody) else ()
        return [*body.ignored, *unused]

    def reader(self, body: AnyBody, generation: Generation, num_echoed: int) -> AnswerText:
        """A reader for the tokens of one choice. num_echoed: characters of an echoed prompt."""
        if not isinstance(body, ChatBody) or (body.asks_for_format and not self._has_parts(body)):
            return self.tokenizer.answer(generation, body.stop or (), num_echoed=num_echoed)
        end = self.tokenizer.end_of(generation.prompt_ids) if self.formats.reasoning else ""
        parser, markers = self.formats.parser(body.tool_use, end), self.formats.markers(body.tool_use)
        return self.tokenizer.answer(generation, body.stop or (), parser, markers)

    def choice_requests(
        self, body: AnyBody, prompts: list[EncodedPrompt], key: ApiKey, now: float
    ) -> list[ChoiceRequest]:
        """The choices of a request by their index, n for each prompt. The i-th choice of a prompt has seed + i. A
        missing seed is drawn, and choice i of the request has it + i. `now`: in seconds of the fleet's clock."""
        fleet = self.placement.fleet
        context = min(MAX_TOKENS, fleet.max_context(self.model_name, now))
        if context == 0:
            raise ApiError(503, f"No verifier serves {self.model_name!r} now", code="no_verifier")
        vocab_size = fleet.vocab_size(self.model_name, now)
        self._check_drafter(body, key, now)
        _check_ids([bias.token_id for bias in body.biases], vocab_size, "logit_bias")
        _check_ids(body.stop_token_ids or (), vocab_size, "stop_token_ids")
        sampling, field, requests = _sampling(body), body.prompt_field, []
        for number, prompt in enumerate(prompts):
            _check_prompt(prompt.token_ids, field, context, vocab_size)
            first = self._generation(body, prompt, sampling, context, key)
            begin = number * body.num_choices if body.seed is None else 0
            requests += [ChoiceRequest(prompt, _numbered(first, begin + i)) for i in range(body.num_choices)]
        return requests

    def _grammar(self, body: AnyBody, prompt_ids: TokenIds = NO_TOKENS) -> str | None:
        """What the answer obeys: the format that is asked for, or the form of a call."""
        field = body.format_field
        try:
            grammar = body.grammar
            if isinstance(body, ChatBody) and body.asks_for_format and self._has_parts(body):
                field = "tools" if body.may_call else field
                answer = None if body.must_call else body.schema_of_answer
                if body.may_call and answer is not None and not self.formats.tells_calls_from_json:
                    raise BadGrammar("the calls of this model are JSON themselves: no format in JSON may stand beside")
                markers = self.tokenizer.special_ids(self.formats.markers(body.tool_use))
                end = self.tokenizer.end_of(prompt_ids)
                grammar = self.formats.grammar(body.may_call, answer, body.may_repeat_calls, markers, end)
            if grammar is not None:
                self.grammars.start(grammar)
        except BadGrammar as error:
            raise bad_request(f"{field}: {error}", field, "invalid_value") from error
        return grammar

    def _has_parts(self, body: ChatBody) -> bool:
        """Whether an answer with a format may have calls or reasoning beside it."""
        return bool(body.may_call) or (body.schema_of_answer is not None and self.formats.reasoning is not None)

    def _check_tools(self, body: ChatBody) -> None:
        if body.tool_use and self.formats.tools is None:
            message = "'tools' is not supported: how this model calls tools is not known (DSD_TOOL_PARSER)"
            raise bad_request(message, "tools", "unsupported_parameter")

    def known(self, conversation: Conversation) -> Conversation:
        """As the chat template can take it."""
        has_unknown = conversation.tools or (conversation.has_calls and not self.tokenizer.mentions("tool_calls"))
        return described(conversation) if has_unknown and self.formats.describes_tools else conversation

    def _encode_prompt(self, prompt: str | list[int], body: CompletionBody, grammar: str | None) -> EncodedPrompt:
        if isinstance(prompt, str):
            return EncodedPrompt(self.tokenizer.encode_text(prompt), prompt if body.echo else None, grammar)
        if not body.echo:
            return EncodedPrompt(TokenIds(prompt), grammar=grammar)
        known_ids = [token_id for token_id in prompt if token_id < 1 << 32]  # `choice_requests` refuses other ids
        return EncodedPrompt(TokenIds(prompt), self.tokenizer.decode(known_ids), grammar)

    def _generation(
        self, body: AnyBody, prompt: EncodedPrompt, sampling: Sampling, context: int, key: ApiKey
    ) -> Generation:
        prompt_ids = prompt.token_ids
        max_tokens = self._max_tokens(body, len(prompt_ids), context)
        min_tokens = body.min_tokens or 0
        if min_tokens > max_tokens:
            message = f"min_tokens must be at most {max_tokens}, the longest possible answer, got {min_tokens}"
            raise bad_request(message, "min_tokens", "invalid_value")
        own_stops = () if body.ignore_eos else self.tokenizer.stop_ids
        stop_ids = TokenIds(dict.fromkeys((*own_stops, *(body.stop_token_ids or ()))))
        biased_ids = (bias.token_id for bias in body.biases)
        return Generation(
            session_id=new_session_id(),
            model=self.model_name,
            prompt_ids=prompt_ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop_ids=stop_ids,
            speculation=body.speculation,
            drafter_name=body.drafter,
            min_tokens=min_tokens,
            num_top=body.num_top,
            cache_scope=key.cache_scope,
            vocab_size=1 + max(chain(prompt_ids, stop_ids, biased_ids)),
            drafters=key.drafters,
            own_drafters=tuple(key.own_drafters),
            grammar=prompt.grammar,
            scores_prompt=body.scores_prompt,
        )

    def _max_tokens(self, body: AnyBody, num_prompt: int, context: int) -> int:
        room = context - num_prompt
        field, wanted = body.limit_field, body.limit
        if wanted is None:
            return min(room, self.default_max_tokens or room)
        if wanted > room:
            message = f"{num_prompt} prompt tokens and {field} {wanted} exceed the context of {context} tokens"
            raise bad_request(message, field, "context_length_exceeded")
        return max(1, wanted)  # of 0 tokens, one is drawn and not shown

    def _check_drafter(self, body: AnyBody, key: ApiKey, now: float) -> None:
        name = body.drafter
        if name is not None and name not in key.own_drafters and not is_listed(name, key.drafters):
            raise bad_request(f"The API key allows no drafter named {name!r}", "dsd.drafter", "unknown_drafter")
        if name is not None and not self.placement.fleet.serves("drafter", name, self.model_name, now):
            message = f"No live drafter named {name!r} serves {self.model_name!r}"
            raise bad_request(message, "dsd.drafter", "unknown_drafter")


@contextmanager
def explained(field: str) -> Iterator[None]:
    """Turns what encoding may raise into errors of this field."""
    try:
        yield
    except PromptTooLong as error:
        raise bad_request(str(error), field, "context_length_exceeded") from error
    except TemplateRefused as error:
        message = f"The chat template rejects the messages: {str(error)[:MAX_REASON_CHARACTERS]}"
        raise bad_request(message, field, "invalid_value") from error


def _check_prompt(prompt_ids: TokenIds, field: str, context: int, vocab_size: int) -> None:
    if not prompt_ids:
        raise bad_request("The prompt is empty: it has no tokens", field, "invalid_value")
    if len(prompt_ids) >= context:
        message = f"The prompt has {len(prompt_ids)} tokens; the context of {context} leaves no room for an answer"
        raise bad_request(message, field, "context_length_exceeded")
    _check_ids(prompt_ids, vocab_size, field)


def _check_ids(token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """Runs on the event loop, so it looks at long prompts in C."""
    for wrong in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= wrong < vocab_size:
            message = f"{field}: token id {wrong} is outside the vocabulary of {vocab_size} tokens"
            raise bad_request(message, field, "invalid_value")


def _numbered(first: Generation, number: int) -> Generation:
    """The generation of choice `number`: that of a single request with seed + number, wrapped to 64 bits."""
    if number == 0:
        return first
    seed = (first.sampling.seed + number + (1 << 63)) % (1 << 64) - (1 << 63)
    sampling = msgspec.structs.replace(first.sampling, seed=seed)
    return replace(first, session_id=new_session_id(), sampling=sampling)


def _sampling(body: AnyBody) -> Sampling:
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        seed=secrets.randbelow(MAX_SEED - MAX_CHOICES) if body.seed is None else body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=body.biases,
    )
