"""From the bytes of a request to its validated body, or to an error that names the first wrong field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from services.gateway.bodies.answer_format import (
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedSchema,
    StructuredOutputs,
    Tag,
    TagFormat,
    TextFormat,
)
from services.gateway.bodies.body import Body
from services.gateway.bodies.chat_body import (
    ChatBody,
    FunctionCall,
    FunctionTool,
    MessageBody,
    NamedFunction,
    NamedTool,
    TextPart,
    Tool,
    ToolCall,
)
from services.gateway.bodies.completion_body import CompletionBody
from services.gateway.bodies.generation_body import DsdOptions, StreamOptions
from services.gateway.bodies.response_items import (
    ITEMS,
    InputCallOutput,
    InputMessage,
    InputReasoning,
    InputText,
    ReasoningPart,
)
from services.gateway.bodies.responses_body import (
    FlatChoice,
    FlatSchemaFormat,
    FlatTool,
    ReasoningOptions,
    ResponsesBody,
    ResponseStreamOptions,
    TextOptions,
)
from services.gateway.bodies.token_bodies import TokenizeBody
from services.gateway.errors import ApiError, bad_request
from services.gateway.http.json_reader import MAX_SHOWN, read_json

AnyBody: TypeAlias = ChatBody | CompletionBody
Kind: TypeAlias = type[BaseModel] | Mapping[str, type[BaseModel]]  # one model, or one for each `type` of an object
Parsed = TypeVar("Parsed", bound=Body)

_FORMATS: dict[str, type[BaseModel]] = {
    "text": TextFormat,
    "json_object": JsonObjectFormat,
    "json_schema": JsonSchemaFormat,
    "structural_tag": TagFormat,
}
_SHARED: dict[str, Kind] = {
    "stream_options": StreamOptions,
    "dsd": DsdOptions,
    "response_format": _FORMATS,
    "structured_outputs": StructuredOutputs,
}
NESTED: dict[type[BaseModel], dict[str, Kind]] = {  # models in models, by the names of their fields
    ChatBody: {"messages": MessageBody, "tools": Tool, "tool_choice": NamedTool, **_SHARED},
    CompletionBody: _SHARED,
    MessageBody: {"content": TextPart, "tool_calls": ToolCall},
    ToolCall: {"function": FunctionCall},
    Tool: {"function": FunctionTool},
    NamedTool: {"function": NamedFunction},
    JsonSchemaFormat: {"json_schema": NamedSchema},
    TagFormat: {"structures": Tag},
    StructuredOutputs: {"structural_tag": TagFormat},
    TokenizeBody: {"messages": MessageBody, "tools": Tool},
    TextOptions: {"format": _FORMATS | {"json_schema": FlatSchemaFormat}},
    ResponsesBody: {
        "input": ITEMS,
        "tools": FlatTool,
        "tool_choice": FlatChoice,
        "text": TextOptions,
        "reasoning": ReasoningOptions,
        "stream_options": ResponseStreamOptions,
        "dsd": DsdOptions,
    },
    InputMessage: {"content": InputText},
    InputCallOutput: {"output": InputText},
    InputReasoning: {"content": ReasoningPart},
}


def parse(kind: type[Parsed], raw: bytes, unknown: list[str] | None = None) -> Parsed:
    """The body in `raw`. Raises ApiError (400) that names the first wrong field.

    unknown: takes the names of unknown fields, which are left out; None refuses them.
    """
    content = read_json(raw)
    if not isinstance(content, dict):
        raise bad_request("The body must be a JSON object", None, "invalid_json")
    if unknown is not None:
        _remove_unknown(content, kind, "", unknown)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _explain(kind, error.errors(include_url=False, include_input=False)[0]) from error


def _remove_unknown(value: Any, kind: Kind, place: str, removed: list[str]) -> None:
    """Removes the keys of an object, or of those in a list, that a model does not have, and of the models in it."""
    if isinstance(value, list):
        for number, each in enumerate(value):
            if isinstance(each, dict):
                _remove_unknown(each, kind, f"{place}{number}.", removed)
    elif isinstance(value, dict) and (model := _model_of(value, kind)):
        known = {field.alias or name for name, field in model.model_fields.items()}
        for name in [name for name in value if name not in known]:
            del value[name]
            removed.append(f"{place}{name}")
        for name, inner in NESTED.get(model, {}).items():
            _remove_unknown(value.get(name), inner, f"{place}{name}.", removed)


def _model_of(value: dict[str, Any], kind: Kind) -> type[BaseModel] | None:
    """The model of an object; None: it has none."""
    return kind if isinstance(kind, type) else kind.get(str(value.get("type", "message")))


def check_query(names: Iterable[str]) -> None:
    """Raises ApiError (400) for any query parameter: all options belong in the body."""
    for name in names:
        shown = name[:MAX_SHOWN]
        message = f"Unknown query parameter {shown!r}: options belong in the body"
        raise bad_request(message, shown, "unknown_parameter")


def _explain(kind: type[Body], first: ErrorDetails) -> ApiError:
    """The first error, with the name of its field."""
    param = _field(kind, first)
    name, message = param and repr(param), first["msg"]
    match first["type"]:
        case _ if param in kind.unoffered:
            return bad_request(f"{name} is not supported with this value", param, "unsupported_parameter")
        case "extra_forbidden":
            return bad_request(f"Unknown option {name}", param, "unknown_parameter")
        case "missing":
            return bad_request(f"{name} is missing", param, "missing_parameter")
        case "model_type":
            message = "must be an object"
        case "union_tag_not_found":
            message = "must be an object with a type"
        case "union_tag_invalid":
            message = f"type {first['ctx']['tag'][:MAX_SHOWN]!r} is none of {first['ctx']['expected_tags']}"
    return bad_request(f"{name}: {message}" if name else message, param, "invalid_value")


def _field(kind: type[Body], first: ErrorDetails) -> str | None:
    """Dotted name of the wrong field; None for the body itself."""
    path = [str(step) for step in first["loc"]]
    if first["type"] == "blame":
        path.append(first["ctx"]["field"])
    if not path:
        return None
    if path[0] in kind.unoffered or path[0] in ("logit_bias", "prompt"):
        path = path[:1]
    elif path[0] == "response_format":
        del path[1:2]  # pydantic's name of the kind
    elif path[0] == "chat_template_kwargs":
        path = path[:2]
    elif path[0] == "input" or path[:2] == ["text", "format"]:
        del path[2:3]
    return ".".join(path)[:MAX_SHOWN]
