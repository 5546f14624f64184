"""Answers in OpenAI's shapes: whole, and as the events of a stream.

Every whole answer, and the last chunk of every choice, has a `dsd` object that reports on speculation (docs/api.md).
"""

from __future__ import annotations

from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from services.gateway.session.verdict_stream import TokenSource
from shared.protocol.messages import Finish

FinishReason: TypeAlias = Finish | Literal["tool_calls"]

DONE = b"data: [DONE]\n\n"


class TokenDetails(msgspec.Struct, frozen=True):
    """Fates of guesses in OpenAI's terms; discarded ones are not among them, since no target has judged them.
    reasoning_tokens: up to the end of the reasoning, or to the end of the verify pass with it."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of all choices; each prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokenDetails


class DsdReport(msgspec.Struct, frozen=True):
    """What speculation did for one choice, or for several together. Counts are sums over all verifiers that served
    it."""

    seed: int
    speculation: Literal["off", "static", "adaptive"]
    window: int | None
    drafter: str | None
    verifier: str | None
    num_verdicts: int
    accepted: int
    rejected: int
    late: int
    discarded: int
    looked_up: int
    accepted_per_position: list[int]
    tokens_per_verdict: float
    ttft_ms: float | None
    tpot_ms: float | None
    choices: list[DsdReport] | UnsetType = UNSET


class SpeculativeDecodingMetrics(msgspec.Struct, frozen=True):
    """Acceptance under vLLM's names. acceptance_histogram: verify passes by the number of guesses they accepted."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int


class RequestMetrics(msgspec.Struct, frozen=True):
    """Figures of one choice under vLLM's names; null where there is nothing to measure."""

    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    queue_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float | None
    speculative_decoding: SpeculativeDecodingMetrics | None


class TokenPiece(msgspec.Struct, frozen=True):
    """Text of one token, or a part of it, and what the token came from."""

    text: str
    source: TokenSource


class DsdPieces(msgspec.Struct, frozen=True):
    """A chunk's text by source: the pieces joined are the text. window: of the pair now; None: no decision yet."""

    pieces: list[TokenPiece]
    window: int | None


class LikelyToken(msgspec.Struct, frozen=True):
    """One of the likeliest tokens at a position. bytes: null for a special token."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(LikelyToken, frozen=True):
    """One token of the answer, with the likeliest ones at its position."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatToken]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Lists with one entry per token. Offsets count characters of the choice's text. A prompt's first token has no
    logprobs."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class FunctionReply(msgspec.Struct, frozen=True):
    """arguments: JSON as the model wrote it."""

    name: str
    arguments: str


class ToolCallReply(msgspec.Struct, frozen=True):
    id: str
    function: FunctionReply
    type: Literal["function"] = "function"


class FunctionDelta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The beginning of a call, with its id and name, or the next text of its arguments."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """reasoning: vLLM's newer name of reasoning_content."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatMessageReply(msgspec.Struct, frozen=True):
    """content: null where there are only calls."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessageReply
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class CompletionChunkChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


ChoiceT = TypeVar("ChoiceT")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that an answer and all its chunks begin with."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk", "text_completion"]
    created: int
    model: str
    system_fingerprint: str


class Whole(Head, Generic[ChoiceT], frozen=True, kw_only=True):
    """An answer in one piece, its choices by their index. metrics: of the only choice."""

    choices: list[ChoiceT]
    usage: Usage
    dsd: DsdReport
    metrics: RequestMetrics | None


class Chunk(Head, Generic[ChoiceT], frozen=True, kw_only=True):
    """The next text of one choice. usage: so far, or null where it comes at the end of the stream, else absent."""

    choices: list[ChoiceT]
    usage: Usage | UnsetType | None = UNSET
    dsd: DsdPieces | UnsetType = UNSET


class LastChunk(Head, Generic[ChoiceT], frozen=True, kw_only=True):
    """The end of one choice, without text."""

    choices: list[ChoiceT]
    usage: Usage | UnsetType | None = UNSET
    dsd: DsdReport


class UsageChunk(Head, frozen=True, kw_only=True):
    """The end of a stream with usage; it belongs to no choice. metrics: of the only choice."""

    usage: Usage
    choices: list[None] = []
    metrics: RequestMetrics | UnsetType = UNSET


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """root: where vLLM names the files of the model; here its name."""

    id: str
    created: int
    max_model_len: int
    root: str
    object: Literal["model"] = "model"
    owned_by: str = "dsd"


class ModelList(msgspec.Struct, frozen=True):
    data: list[Model]
    object: Literal["list"] = "list"


class Version(msgspec.Struct, frozen=True):
    version: str
