"""Bodies of the OpenAI API, checked strictly (docs/api.md): a field that is not honoured is refused by its name.

Invariant: `parse` returns a body whose every value is in bounds, or raises ApiError naming the first field at fault.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from services.gateway.errors import ApiError, bad_request
from services.gateway.template import ChatMessage
from shared.messages import MAX_WINDOW, Speculation

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256

# Options of the OpenAI API that are not offered, and the values that mean the same as leaving them out.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "parallel_tool_calls": (None, True, False),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "top_logprobs": (None,),
}


class Body(BaseModel):
    """Strict: no unknown field, no conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DsdOptions(Body):
    """How to speculate for this request (an extension of the OpenAI API)."""

    speculation: Literal["off", "static", "adaptive"] = "adaptive"
    window: int | None = Field(default=None, ge=1, le=MAX_WINDOW)
    drafter: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,64}$")

    @model_validator(mode="after")
    def _window_is_for_static(self) -> DsdOptions:
        if (self.speculation == "static") != (self.window is not None):
            raise PydanticCustomError("window", 'window is needed with speculation "static", and only there')
        if self.speculation == "off" and self.drafter is not None:
            raise PydanticCustomError("drafter", 'drafter can\'t be named with speculation "off"')
        return self

    @property
    def order(self) -> Speculation | None:
        """None: no drafter."""
        if self.speculation == "off":
            return None
        return Speculation("static", self.window) if self.window is not None else Speculation()


class StreamOptions(Body):
    include_usage: bool = False


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    return value


class TextPart(Body):
    type: Literal["text"]
    text: str


class MessageBody(Body):
    """One turn; text parts are joined by line breaks."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_as_parts), Field(min_length=1)]

    @property
    def message(self) -> ChatMessage:
        return ChatMessage(self.role, "\n".join(part.text for part in self.content))


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOPS)]


class GenerationBody(Body):
    """What both endpoints take."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1 << 31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[StopStrings | None, BeforeValidator(_as_list)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    dsd: DsdOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        """Leaves out unoffered options whose value changes nothing; any other value of theirs is refused."""
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if not _is_neutral(name, value)}

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options is only allowed when stream is true")
        return self

    @property
    def speculation(self) -> Speculation | None:
        """None: no drafter."""
        return (self.dsd or DsdOptions()).order

    @property
    def drafter(self) -> str | None:
        """Name of the only drafter to use, if one is wanted."""
        return self.dsd.drafter if self.dsd else None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(GenerationBody):
    """POST /v1/chat/completions"""

    messages: list[MessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> ChatBody:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise PydanticCustomError("max_tokens", "max_tokens and max_completion_tokens exclude each other")
        return self


def _as_prompt(value: Any) -> Any:
    """The only prompt: a string, token ids, or a list of one of them."""
    if isinstance(value, list) and value and isinstance(value[0], (str, list)):
        if len(value) > 1:
            raise PydanticCustomError("prompt", "must be one prompt, not a list of several")
        value = value[0]
    if isinstance(value, list):
        if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in value):
            raise PydanticCustomError("prompt", "must be a string or a list of token ids")
    elif not isinstance(value, str):
        raise PydanticCustomError("prompt", "must be a string or a list of token ids")
    if not value:
        raise PydanticCustomError("prompt", "must not be empty")
    return value


class CompletionBody(GenerationBody):
    """POST /v1/completions"""

    prompt: Annotated[str | list[int], BeforeValidator(_as_prompt)]


_OF_A_WHOLE_BODY = ("window", "drafter", "stream_options", "max_tokens")  # custom errors, named by the field they blame

Parsed = TypeVar("Parsed", bound=GenerationBody)


def parse(kind: type[Parsed], raw: bytes) -> Parsed:
    """The body in `raw`; raises ApiError."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _explain(error) from error


def _is_neutral(name: str, value: Any) -> bool:
    neutral = NEUTRAL.get(name, ())
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


def _explain(error: ValidationError) -> ApiError:
    """The first thing wrong, by the name of its field."""
    first = error.errors(include_url=False)[0]
    kind, message = first["type"], first["msg"]
    path = [str(step) for step in first["loc"] if step not in ("str", "list[int]")]
    if kind in _OF_A_WHOLE_BODY:
        path.append(kind)
    param = ".".join(path) or None
    match kind:
        case "json_invalid":
            return bad_request(f"The body is no JSON: {first['ctx']['error']}", None, "invalid_json")
        case "model_type" if not path:
            return bad_request("The body must be a JSON object", None, "invalid_json")
        case "extra_forbidden" if param in NEUTRAL:
            return bad_request(f"{param!r} is not supported with this value", param, "unsupported_parameter")
        case "extra_forbidden":
            return bad_request(f"{param!r} is no option here", param, "unknown_parameter")
        case "missing":
            return bad_request(f"{param!r} is missing", param, "missing_parameter")
    return bad_request(f"{param!r}: {message}" if param else message, param, "invalid_value")
