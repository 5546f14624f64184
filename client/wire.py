"""What goes to a gateway and comes back, typed: the part of docs/api.md that the client uses.

Invariant: what the client does not know of an answer it leaves alone, so that it also talks to later gateways and to
other servers of the OpenAI API: those send neither a `dsd` object nor fates.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

NULL = msgspec.Raw(b"null")

Role = Literal["system", "user", "assistant"]


def is_utf8(text: str) -> bool:
    """Whether a text can be sent; other bytes stand as surrogates in what Python reads from terminals and arguments."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- requests --------------------------------------------------------------------------------------------------------


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Role
    content: str


class Speculation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The `dsd` object of a request."""

    speculation: str | None = None
    window: int | None = None
    drafter: str | None = None
    fates: bool = False


class Options(msgspec.Struct, frozen=True):
    """How to answer; what is None is left to the server."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    speculation: Speculation = Speculation()


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: list[Message]
    stream: bool
    stream_options: StreamOptions
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    dsd: Speculation | UnsetType = UNSET  # other servers may refuse it, so it is sent only where it says something

    @classmethod
    def streamed(cls, model: str, messages: list[Message], options: Options) -> ChatRequest:
        """Asks for a stream that ends with its usage."""
        return cls(
            model,
            messages,
            True,
            StreamOptions(include_usage=True),
            options.max_tokens,
            options.temperature,
            options.top_p,
            options.seed,
            UNSET if options.speculation == Speculation() else options.speculation,
        )


# --- answers ---------------------------------------------------------------------------------------------------------


class Piece(msgspec.Struct, frozen=True):
    """A piece of an answer's text; `fate` is what became of its token (docs/glossary.md), if the server tells."""

    text: str
    fate: str | None = None


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    delta: Delta = Delta()
    finish_reason: str | None = None


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class Report(msgspec.Struct, frozen=True):
    """What speculation did for an answer."""

    seed: int
    speculation: str
    window: int | None
    drafter: str | None
    verifier: str | None
    num_verdicts: int
    accepted: int
    rejected: int
    late: int
    discarded: int
    tokens_per_verdict: float
    ttft_ms: float | None
    tpot_ms: float | None

    @property
    def acceptance(self) -> float | None:
        """The share of judged guesses that were right; None where nobody guessed."""
        judged = self.accepted + self.late + self.rejected
        return (self.accepted + self.late) / judged if judged else None


class Fates(msgspec.Struct, frozen=True):
    """The `dsd` object of a chunk with text."""

    pieces: list[Piece] = []
    window: int | None = None


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    param: str | None = None
    code: str | int | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


class Chunk(msgspec.Struct, frozen=True):
    """One event of a stream. `usage` and `dsd` are read where they are needed, and passed on as they came."""

    choices: list[Choice] = []
    usage: msgspec.Raw = NULL
    dsd: msgspec.Raw = NULL
    error: ErrorDetail | None = None


class Model(msgspec.Struct, frozen=True):
    id: str
    max_model_len: int | None = None


class Models(msgspec.Struct, frozen=True):
    data: list[Model]


# --- the fleet -------------------------------------------------------------------------------------------------------


class GatewayStatus(msgspec.Struct, frozen=True):
    name: str
    model: str
    num_sessions: int
    max_sessions: int
    num_waiting: int


class PeerStatus(msgspec.Struct, frozen=True):
    """A verifier, drafter or controller."""

    name: str
    instance_id: str
    models: list[str]
    fingerprint: str
    max_context: int
    num_sessions: int
    max_sessions: int
    queue_tokens: int
    batch: int
    free_kv_tokens: int
    kv_tokens: int
    step_ms: float
    prefill_ms: float
    draining: bool
    heartbeat_age_ms: float


class PairWindow(msgspec.Struct, frozen=True):
    drafter_id: str
    verifier_id: str
    window: int
    chunk: int
    policy: str


class Fleet(msgspec.Struct, frozen=True):
    """The answer of GET /dsd/fleet."""

    gateway: GatewayStatus
    verifiers: list[PeerStatus]
    drafters: list[PeerStatus]
    controllers: list[PeerStatus]
    windows: list[PairWindow]
