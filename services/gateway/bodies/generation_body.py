"""Fields that the bodies of all generating endpoints share (docs/api.md, "Requests").

Invariant: a body that passes validation has every value in bounds, and `ignored` names each of its fields that have no
effect.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from services.gateway.bodies.answer_format import ResponseFormat, StructuredOutputs, TextFormat
from services.gateway.bodies.body import MAX_NAME_CHARACTERS, Body, ShortText, blame
from shared.protocol.messages import MAX_BIASES, MAX_WINDOW, Bias, Speculation

MAX_CHOICES = 16  # of one request, over all its prompts
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_IDS = 64
MAX_METADATA = 16  # entries
MAX_TIMEOUT_S = 86400.0


class DsdOptions(Body):
    """The `dsd` object: how to speculate for this request, and what to report (an extension of the OpenAI API)."""

    speculation: Literal["off", "static", "adaptive"] = "adaptive"
    window: int | None = Field(default=None, ge=1, le=MAX_WINDOW)
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    drafter: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,64}$")
    sources: bool = False
    timeout_s: float | None = Field(default=None, gt=0, le=MAX_TIMEOUT_S)

    @model_validator(mode="after")
    def _window_is_for_static(self) -> Self:
        if (self.speculation == "static") != (self.window is not None):
            raise blame("window", 'window is required with speculation "static" and not allowed without it')
        if self.min_confidence is not None and self.window is None:
            raise blame("min_confidence", 'min_confidence is only allowed with speculation "static"')
        if self.speculation == "off" and self.drafter is not None:
            raise blame("drafter", 'drafter is not allowed with speculation "off"')
        return self

    @property
    def as_message(self) -> Speculation | None:
        """The same for the drafter; None: the verifier runs alone."""
        if self.speculation == "off":
            return None
        if self.window is None:
            return Speculation()
        return Speculation("static", self.window, self.min_confidence or 0.0)


def _is_off(value: bool) -> bool:
    if value:
        raise PydanticCustomError("off", "must be false")
    return value


def _is_on(value: bool) -> bool:
    if not value:
        raise PydanticCustomError("on", "must be true")
    return value


def _is_one(value: float) -> float:
    if value != 1:
        raise PydanticCustomError("one", "must be 1")
    return value


Off = Annotated[bool, AfterValidator(_is_off), WithJsonSchema({"const": False, "type": "boolean"})]
On = Annotated[bool, AfterValidator(_is_on), WithJsonSchema({"const": True, "type": "boolean"})]
One = Annotated[float, AfterValidator(_is_one), WithJsonSchema({"const": 1, "type": "number"})]
Empty = Annotated[list[Any], Field(max_length=0)]


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's: usage so far in each chunk
    include_obfuscation: Off | None = None


def _as_metadata(value: Any) -> Any:
    """One error, whatever the number of entries."""
    if value is None:
        return None
    is_text = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    if not is_text or len(value) > MAX_METADATA:
        raise PydanticCustomError("metadata", "must be an object of at most {most} texts", {"most": MAX_METADATA})
    return value


_Texts = Annotated[dict[str, str], Field(max_length=MAX_METADATA)]
Metadata = Annotated[_Texts | None, BeforeValidator(_as_metadata, _Texts | None)]


class Harmless(Body):
    """Options that clients send and that change no answer: accepted, and named in the header X-DSD-Ignored."""

    metadata: Metadata = None
    parallel_tool_calls: bool | None = None  # without tools
    priority: int | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    request_id: ShortText | None = None
    safety_identifier: ShortText | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    user: str | None = None


class Unoffered(Body):
    """Options of OpenAI and vLLM that would change the answer and are not supported. Each accepts only the value that
    has no effect."""

    add_generation_prompt: On | None = None
    allowed_token_ids: None = None
    audio: None = None
    bad_words: Empty | None = None
    cache_salt: None = None
    chat_template: None = None
    continue_final_message: Off | None = None
    documents: Empty | None = None
    early_stopping: Off | None = None
    function_call: Literal["none", "auto"] | None = None
    functions: Empty | None = None
    include_reasoning: On | None = None
    include_stop_str_in_output: Off | None = None
    length_penalty: One | None = None
    mm_processor_kwargs: None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    prediction: None = None
    prompt_logprobs: None = None
    return_token_ids: Off | None = None
    return_tokens_as_token_ids: Off | None = None
    skip_special_tokens: On | None = None
    spaces_between_special_tokens: On | None = None
    store: Off | None = None
    suffix: Literal[""] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None
    truncate_prompt_tokens: None = None
    use_beam_search: Off | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOPS)]
StopId = Annotated[int, Field(ge=0)]
TokenIdText = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
LogitBias = Annotated[float, Field(ge=-100, le=100)]
LogitBiases = Annotated[
    dict[TokenIdText, LogitBias], Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False})
]


def without_limit(value: Any) -> Any:
    """-1 stands for the default."""
    return None if value == -1 and not isinstance(value, bool) else value


Count = Annotated[int, Field(ge=1)]
MaxTokens = Annotated[Count | None, BeforeValidator(without_limit, Literal[-1] | Count | None)]


class GenerationBody(Harmless, Unoffered):
    """Fields of both generating endpoints. None always stands for the default."""

    unoffered: ClassVar[frozenset[str]] = frozenset(Unoffered.model_fields)

    model: str = Field(max_length=MAX_NAME_CHARACTERS)
    max_tokens: MaxTokens = None
    min_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1 << 31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, ge=1e-6, le=10)  # a score must stay finite
    logit_bias: LogitBiases | None = None
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Annotated[StopStrings | None, BeforeValidator(_as_list, StopString | StopStrings | None)] = None
    stop_token_ids: Annotated[list[StopId], Field(max_length=MAX_STOP_IDS)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    dsd: DsdOptions | None = None

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        if self.response_format is not None and self.structured_outputs is not None:
            raise blame("structured_outputs", "response_format and structured_outputs exclude each other")
        if self.asks_for_format and (self.ignore_eos or self.min_tokens):
            name = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise blame(name, f"{name} is not allowed with a format: the answer ends where the format does")
        return self

    @model_validator(mode="after")
    def _streaming_needs_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise blame("stream_options", "stream_options is only allowed when stream is true")
        if self.sources and not self.stream:
            raise blame("dsd.sources", "sources is only allowed when stream is true")
        return self

    @model_validator(mode="after")
    def _best_is_all(self) -> Self:
        if self.best_of not in (None, self.num_choices):
            raise blame("best_of", "best_of must equal n: no choice is discarded")
        return self

    @property
    def asks_for_format(self) -> bool:
        """Whether the answer must have a format."""
        return self.structured_outputs is not None or not isinstance(self.response_format, TextFormat | None)

    @property
    def grammar(self) -> str | None:
        """Of the answer's format; None: any text. Raises BadGrammar."""
        given = self.structured_outputs or self.response_format
        return None if given is None else given.grammar

    @property
    def schema_of_answer(self) -> dict[str, Any] | bool | None:
        """Of an answer in JSON; None: it need not be."""
        given = self.structured_outputs or self.response_format
        return None if given is None else given.schema_of_answer

    @property
    def format_field(self) -> str:
        """Name of the field that asks for a format."""
        return "response_format" if self.structured_outputs is None else "structured_outputs"

    @property
    def prompt_field(self) -> str:
        """Name of the field with the prompts."""
        return "prompt"

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer; None: the default."""
        return self.max_tokens

    @property
    def limit_field(self) -> str:
        return "max_tokens"

    @property
    def num_choices(self) -> int:
        """Choices for each prompt."""
        return self.n or 1

    @property
    def biases(self) -> tuple[Bias, ...]:
        """logit_bias by token id."""
        biases = (Bias(int(text), bias) for text, bias in (self.logit_bias or {}).items())
        return tuple(sorted(biases, key=lambda each: each.token_id))

    @property
    def speculation(self) -> Speculation | None:
        """How to draft; None: the verifier runs alone."""
        return (self.dsd or DsdOptions()).as_message

    @property
    def drafter(self) -> str | None:
        """Name of the only drafter that may draft; None: any."""
        return self.dsd.drafter if self.dsd else None

    @property
    def sources(self) -> bool:
        """Whether the chunks of a stream report the source of their tokens."""
        return self.dsd is not None and self.dsd.sources

    @property
    def timeout_s(self) -> float | None:
        """Seconds from the request to the end of the answer, at most; None: the gateway's own limit."""
        return self.dsd.timeout_s if self.dsd else None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk of a stream has the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def scores_prompt(self) -> bool:
        """Whether the answer has the logprobs of the prompt's tokens."""
        return False

    @property
    def ignored(self) -> list[str]:
        """Names of the given fields that have no effect."""
        return sorted(name for name in Harmless.model_fields if getattr(self, name) is not None)
