"""From the bytes of a request to its validated body, or to an error that names the first wrong field."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from services.gateway.errors import ApiError, bad_request
from services.gateway.http.chat_body import ChatBody
from services.gateway.http.completion_body import CompletionBody
from services.gateway.http.generation_body import GenerationBody

AnyBody: TypeAlias = ChatBody | CompletionBody
Parsed = TypeVar("Parsed", bound=GenerationBody)

MAX_FIELD_CHARACTERS = 200  # of a field's name in an error; the name itself may be as long as the body


def parse(kind: type[Parsed], raw: bytes) -> Parsed:
    """The body in `raw`. Raises ApiError (400) that names the first wrong field."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _explain(kind, error.errors(include_url=False, include_input=False)[0]) from error
    # Pydantic silently takes the last of two equal keys. Numbers need no conversion here.
    json.loads(raw, object_pairs_hook=_check_pairs, parse_int=str, parse_float=str)
    return body


def check_query(names: Iterable[str]) -> None:
    """Raises ApiError (400) for any query parameter: all options belong in the body."""
    for name in names:
        shown = name[:MAX_FIELD_CHARACTERS]
        message = f"Unknown query parameter {shown!r}: options belong in the body"
        raise bad_request(message, shown, "unknown_parameter")


def _check_pairs(pairs: list[tuple[str, Any]]) -> None:
    """Raises ApiError for an object with two equal keys."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            shown = key[:MAX_FIELD_CHARACTERS]
            raise bad_request(f"{shown!r} is given more than once", shown, "repeated_parameter")
        seen.add(key)


def _explain(kind: type[GenerationBody], first: ErrorDetails) -> ApiError:
    """The first error, with the name of its field."""
    param = _field(kind, first)
    name, message = param and repr(param), first["msg"]
    match first["type"]:
        case "json_invalid":
            return bad_request(f"The body is not valid JSON: {first['ctx']['error']}", None, "invalid_json")
        case "model_type" if param is None:
            return bad_request("The body must be a JSON object", None, "invalid_json")
        case _ if param in kind.unoffered:
            return bad_request(f"{name} is not supported with this value", param, "unsupported_parameter")
        case "extra_forbidden":
            return bad_request(f"Unknown option {name}", param, "unknown_parameter")
        case "missing":
            return bad_request(f"{name} is missing", param, "missing_parameter")
    return bad_request(f"{name}: {message}" if name else message, param, "invalid_value")


def _field(kind: type[GenerationBody], first: ErrorDetails) -> str | None:
    """Dotted name of the wrong field; None for the body itself."""
    path = [str(step) for step in first["loc"]]
    if first["type"] == "blame":
        path.append(first["ctx"]["field"])
    if not path:
        return None
    if path[0] in kind.unoffered or path[0] in ("logit_bias", "prompt"):
        path = path[:1]
    return ".".join(path)[:MAX_FIELD_CHARACTERS]
