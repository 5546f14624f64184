"""Requests and answers of a gateway as types: the part of docs/api.md that the client uses.

Types have the names of the gateway's /openapi.json where that names the same object.

Invariant: unknown fields of an answer are ignored, so that the client also works with later gateways and with other
servers of the OpenAI API, which send neither a `dsd` object nor sources.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

NULL = msgspec.Raw(b"null")

Role = Literal["system", "user", "assistant"]


def is_utf8(text: str) -> bool:
    """Whether a text can be sent. Python reads invalid bytes from terminals and arguments as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- requests --------------------------------------------------------------------------------------------------------


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Role
    content: str


class DsdOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """The `dsd` object of a request."""

    speculation: str | None = None
    window: int | None = None
    drafter: str | None = None
    sources: bool = False


class AnswerOptions(msgspec.Struct, frozen=True):
    """How to answer; None: the server's default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    speculation: DsdOptions = DsdOptions()


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: list[ChatMessage]
    stream: bool
    stream_options: StreamOptions
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    dsd: DsdOptions | UnsetType = UNSET  # sent only if it is not empty: other servers may refuse it

    @classmethod
    def streamed(cls, model: str, messages: list[ChatMessage], options: AnswerOptions) -> ChatRequest:
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
            UNSET if options.speculation == DsdOptions() else options.speculation,
        )


# --- answers ---------------------------------------------------------------------------------------------------------


class TokenPiece(msgspec.Struct, frozen=True):
    """Text of one token of an answer, or a part of it. source: what the token came from; None: not reported."""

    text: str
    source: str | None = None


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    delta: Delta = Delta()
    finish_reason: str | None = None


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class DsdReport(msgspec.Struct, frozen=True):
    """The `dsd` object at the end of an answer: what speculation did for it."""

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
    looked_up: int = 0

    @property
    def acceptance(self) -> float | None:
        """(accepted + late) / (accepted + late + rejected); None without any such guess."""
        judged = self.accepted + self.late + self.rejected
        return (self.accepted + self.late) / judged if judged else None


class DsdPieces(msgspec.Struct, frozen=True):
    """The `dsd` object of a chunk with text."""

    pieces: list[TokenPiece] = []
    window: int | None = None


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    param: str | None = None
    code: str | int | None = None


class ErrorReply(msgspec.Struct, frozen=True):
    error: ErrorDetail


class Chunk(msgspec.Struct, frozen=True):
    """One event of a stream. `usage` and `dsd` stay raw, so that they can be printed unchanged."""

    choices: list[ChunkChoice] = []
    usage: msgspec.Raw = NULL
    dsd: msgspec.Raw = NULL
    error: ErrorDetail | None = None


class Model(msgspec.Struct, frozen=True):
    id: str
    max_model_len: int | None = None


class ModelList(msgspec.Struct, frozen=True):
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


class DrafterStatus(PeerStatus, frozen=True):
    """A drafter. provider: computes most of its draft. The others: of its guesses in the gateway's sessions lately."""

    provider: str = ""
    rtt_ms: float = 0.0
    guesses_per_s: float = 0.0
    acceptance: float | None = None
    in_time: float | None = None


class PairWindow(msgspec.Struct, frozen=True):
    drafter_id: str
    verifier_id: str
    window: int
    chunk: int
    policy: str


class FleetStatus(msgspec.Struct, frozen=True):
    """The answer of GET /dsd/fleet."""

    gateway: GatewayStatus
    verifiers: list[PeerStatus]
    drafters: list[DrafterStatus]
    controllers: list[PeerStatus]
    windows: list[PairWindow]


class DrafterJoin(msgspec.Struct, frozen=True):
    """What a drafter of the API key must know to join. own_drafters None: no keys are needed."""

    model: str
    vocabulary: str
    nats_url: str
    nats_ca: str
    own_drafters: dict[str, str] | None
    draft_url: str
