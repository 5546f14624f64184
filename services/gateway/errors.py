"""Errors of requests in OpenAI's shape, and the mapping from failure codes to HTTP statuses."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from shared.protocol.messages import FailureCode

RETRY_AFTER_S = 1
STATUS_OF_FAILURE: dict[FailureCode, int] = {
    "unknown_session": 503,
    "closed": 503,
    "overloaded": 503,
    "draining": 503,
    "too_long": 400,
    "bad_request": 400,
    "internal": 500,
}


class SessionFailed(Exception):
    """A session can't continue."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(eq=False, slots=True)  # not frozen: context managers set the traceback of exceptions
class ApiError(Exception):
    """An answer with an HTTP error status. param: the wrong field."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int = RETRY_AFTER_S

    def __str__(self) -> str:
        return self.message

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(ErrorReply(ErrorDetail(self.message, self.kind, self.param, self.code)))

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(self.retry_after_s)} if self.status in (429, 503) else {}


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(msgspec.Struct):
    """The body of every error."""

    error: ErrorDetail


def answer_to(error: ApiError | SessionFailed) -> ApiError:
    """The error to answer with, also where a session can't continue."""
    if isinstance(error, ApiError):
        return error
    return ApiError(STATUS_OF_FAILURE[error.code], str(error), code=error.code)


def bad_request(message: str, param: str | None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)
