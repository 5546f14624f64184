"""Every message that crosses the bus, and its strict codec.

Invariant: `decode(encode(message)) == message`, and `decode` either returns a well-formed, bounded message or raises
`MalformedMessage`; no other exception leaves it, whatever the bytes.

Wire: one MessagePack array per message, `[tag, field, ...]`; token ids travel as one byte string of little-endian u32.
Times are milliseconds, positions are absolute (the prompt's first token is position 0).
"""

from __future__ import annotations

import sys
from array import array
from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgpack
from msgspec import Meta, Struct, ValidationError, convert
from msgspec.structs import astuple

MAX_MESSAGE_BYTES = 1 << 20  # one decoded message; the bus splits what is larger than a part (shared/bus/parts.py)
MAX_TOKENS = 1 << 17  # the longest prompt plus answer that any message may carry
MAX_WINDOW = 64  # unverified tokens a drafter may have, and ids one Draft may carry
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024

if array("I").itemsize != 4 or sys.byteorder != "little":  # pragma: no cover
    raise ImportError("the wire format needs a little-endian machine with 32-bit unsigned ints")


class MalformedMessage(ValueError):
    """The bytes are not a message of this protocol: wrong type, unknown tag, out of bounds, or no MessagePack."""


class TokenIds(tuple[int, ...]):
    """Token ids in order; on the wire 4 bytes each."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        picked = super().__getitem__(key)
        return TokenIds(picked) if isinstance(key, slice) else picked


NO_TOKENS = TokenIds()

SessionId: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
InstanceId: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}\.[0-9a-f]{12}\Z")]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 48)]
Position: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Millis: TypeAlias = Annotated[float, Meta(ge=0, le=1e15)]
Mean: TypeAlias = Annotated[float, Meta(ge=0, le=1e15)]
Window: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_WINDOW)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
Finish: TypeAlias = Literal["stop", "length"]
Service: TypeAlias = Literal["gateway", "drafter", "verifier", "controller"]
FailureCode: TypeAlias = Literal[
    "unknown_session", "closed", "overloaded", "too_long", "draining", "bad_request", "internal"
]


class Wire(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all structs on the wire."""


class Bias(Wire, frozen=True):
    """What is added to one token's logit."""

    token_id: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
    bias: Annotated[float, Meta(ge=-100, le=100)]


class Sampling(Wire, frozen=True):
    """How a token is drawn (docs/sampling.md). temperature 0 is greedy; top_k 0, top_p 1, min_p 0, penalties of 0, a
    repetition_penalty of 1 and no biases are off."""

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] = 0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    logit_bias: Annotated[tuple[Bias, ...], Meta(max_length=MAX_BIASES)] = ()


class Speculation(Wire, frozen=True):
    """How far a drafter may run ahead for one request: by the controller's decisions, or a fixed window that ends early
    behind a guess whose confidence is under min_confidence (0: never)."""

    mode: Literal["adaptive", "static"] = "adaptive"
    window: Window = 0
    min_confidence: Share = 0.0


class Load(Wire, frozen=True):
    """What a service is busy with. Verifiers fill all of it, drafters all but the KV figures, gateways num_sessions."""

    num_sessions: Count = 0
    max_sessions: Count = 0
    queue_tokens: Count = 0  # tokens waiting to be computed
    token_budget: Count = 0  # most tokens one pass may compute
    batch: Count = 0  # sessions in the last pass or step
    free_kv_tokens: Count = 0
    kv_tokens: Count = 0
    step_ms: Millis = 0.0  # one verify pass, or one draft step
    prefill_ms: Millis = 0.0  # per prompt token
    rtt_ms: Millis = 0.0  # a drafter's to its verifiers, mean; 0 before the first is measured


class Tally(Wire, frozen=True):
    """Fates of the guesses that reached a verifier, counted since the session was opened there."""

    accepted: Count = 0
    rejected: Count = 0  # first mismatches
    late: Count = 0  # equal, but the target had drawn the token by itself
    discarded: Count = 0  # behind a mismatch, a finish or a rewind
    num_passes: Count = 0  # passes that fixed at least one token


class Echo(Wire, frozen=True):
    """The newest Draft's send time and how long the verifier held it: rtt = now - sent_ms - hold_ms."""

    sent_ms: Millis
    hold_ms: Millis


class TokenLogprobs(Wire, frozen=True):
    """ln of a token's probability under the model's own logits, before penalties, temperature and filters, and of the
    likeliest tokens: by (probability descending, id ascending)."""

    logprob: float
    top_ids: TokenIds
    top_logprobs: Annotated[list[float], Meta(max_length=MAX_TOP_LOGPROBS)]


class Open(Wire, frozen=True, tag="open"):
    """gateway -> verifier: open, resume (committed_ids) or rebind (higher term) a session.

    No stop id is drawn before `min_tokens` tokens. logprobs: how many of the likeliest tokens verdicts tell of; None:
    no logprobs. Sessions of one cache_scope may use each other's KV cache of a common prefix; None: no sharing.
    """

    session_id: SessionId
    term: Count
    drafter_id: InstanceId | None
    prompt_ids: TokenIds
    committed_ids: TokenIds
    sampling: Sampling
    stop_ids: TokenIds
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    free_run: bool = True
    min_tokens: Position = 0
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    cache_scope: Annotated[str, Meta(max_length=64)] | None = None


class Opened(Wire, frozen=True, tag="opened"):
    """verifier -> gateway: the session of this term is accepted; it lives `lease_s` without a sign of its gateway."""

    session_id: SessionId
    term: Count
    lease_s: Annotated[float, Meta(gt=0, le=1e6)]
    load: Load
    fingerprint: Name


class Speculate(Wire, frozen=True, tag="speculate"):
    """gateway -> drafter: guess for this session and send the guesses to this verifier."""

    session_id: SessionId
    term: Count
    verifier_id: InstanceId
    prompt_ids: TokenIds
    committed_ids: TokenIds
    sampling: Sampling
    stop_ids: TokenIds
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    speculation: Speculation
    min_tokens: Position = 0


class Draft(Wire, frozen=True, tag="draft"):
    """drafter -> verifier: guesses for the positions base, base + 1, ...; empty: a poll from base on."""

    session_id: SessionId
    term: Count
    epoch: Count
    base: Position
    token_ids: TokenIds
    free_run: bool
    sent_ms: Millis


class Verdict(Wire, frozen=True, tag="verdict"):
    """verifier -> gateway and drafter: the target has fixed token_ids for the positions base, base + 1, ...

    The first `accepted` of them equalled guesses that a pass had verified. `epoch` is the lowest epoch the verifier
    still listens to. Empty token_ids at base L: exactly L tokens are fixed. logprobs, to a gateway that asked for them:
    those of the last len(logprobs) of token_ids.
    """

    session_id: SessionId
    term: Count
    epoch: Count
    base: Position
    token_ids: TokenIds
    accepted: Count
    finish: Finish | None
    echo: Echo | None
    compute_ms: Millis
    batch: Count
    queue: Share  # queued tokens / token budget, clipped
    tally: Tally
    logprobs: list[TokenLogprobs] | None = None
    pass_tokens: Count = 0  # that the pass behind it was fed


class Poll(Wire, frozen=True, tag="poll"):
    """gateway -> verifier: tell me again what is fixed from base on."""

    session_id: SessionId
    term: Count
    base: Position


class Close(Wire, frozen=True, tag="close"):
    """gateway -> verifier, drafter: the session is over (terms above `term` excepted)."""

    session_id: SessionId
    term: Count


class PairReport(Wire, frozen=True):
    """What a drafter saw of one verifier since its last report; times are moving averages."""

    verifier_id: InstanceId
    num_sessions: Count
    window: Window
    drafted: Count
    matched: Count  # guesses equal to the target's token, in time or not
    mismatched: Count  # first mismatches
    late: Count
    discarded: Count
    draft_ms: Millis
    rtt_ms: Millis
    queue: Share
    tpot_ms: Millis
    context: Count  # tokens, mean over sessions
    pass_ms: Millis = 0.0  # a verify pass of the verifier; 0 before the first
    batch: Mean = 0.0  # sessions in it
    pass_tokens: Mean = 0.0  # fed to it


class Report(Wire, frozen=True, tag="report"):
    """drafter -> controllers, at most every 250 ms."""

    drafter_id: InstanceId
    sequence: Count
    pairs: Annotated[list[PairReport], Meta(max_length=256)]


class Reason(Wire, frozen=True):
    """What a decision was made from: figures of the newest report of its pair, and the acceptance of all guesses judged
    so far, older ones fading; None before the first."""

    num_sessions: Count
    acceptance: Share | None
    draft_ms: Millis
    rtt_ms: Millis
    pass_ms: Millis
    tpot_ms: Millis
    queue: Share
    batch: Mean


class WindowDecision(Wire, frozen=True, tag="window"):
    """controller -> drafter (gateways listen): how far the drafter may run ahead towards one verifier, and why.

    A window ends early behind a guess whose confidence is under min_confidence.
    """

    drafter_id: InstanceId
    verifier_id: InstanceId
    window: Window
    chunk: Annotated[int, Meta(ge=1, le=MAX_WINDOW)]
    free_run: bool
    policy: Name
    sequence: Count
    min_confidence: Share = 0.0
    reason: Reason | None = None  # None: the controller tells none


class Heartbeat(Wire, frozen=True, tag="heartbeat"):
    """Any service -> everybody, every `interval_s`: alive, and how busy. models: what it serves or drafts for."""

    service: Service
    instance_id: InstanceId
    interval_s: Annotated[float, Meta(gt=0, le=3600)]
    models: Annotated[list[Name], Meta(max_length=64)]
    max_context: Count
    vocab_size: Count
    fingerprint: str
    load: Load
    draining: bool


class Failure(Wire, frozen=True, tag="failure"):
    """An answer that says no. retryable: the same request may succeed later or elsewhere."""

    session_id: SessionId
    term: Count
    code: FailureCode
    message: Annotated[str, Meta(max_length=1024)]
    retryable: bool


Message: TypeAlias = (
    Open | Opened | Speculate | Draft | Verdict | Poll | Close | Report | WindowDecision | Heartbeat | Failure
)


KINDS: dict[Any, type[Message]] = {kind.__struct_config__.tag: kind for kind in get_args(Message)}  # by their tags
MAX_TAG_SHOWN = 64  # characters of a strange tag
PLAIN = frozenset((bool, int, float, str, bytes, type(None)))  # types that go on the wire as they are


def _to_wire(value: Any) -> Any:
    if isinstance(value, TokenIds):
        return array("I", value).tobytes()
    if isinstance(value, Wire):
        tag = value.__struct_config__.tag
        fields = [each if type(each) in PLAIN else _to_wire(each) for each in astuple(value)]
        return fields if tag is None else [tag, *fields]
    if isinstance(value, (list, tuple)):
        return [_to_wire(item) for item in value]
    return value


def _from_wire(kind: type, value: Any) -> Any:
    if kind is not TokenIds or not isinstance(value, bytes):
        raise ValueError("expected a byte string of token ids")
    if len(value) % 4 or len(value) > 4 * MAX_TOKENS:
        raise ValueError(f"{len(value)} bytes are no list of at most {MAX_TOKENS} token ids")
    ids = array("I")
    ids.frombytes(value)
    return TokenIds(ids)


def encode(message: Message) -> bytes:
    """The wire form of a message; raises OverflowError for a token id outside u32."""
    return msgpack.packb(_to_wire(message), use_bin_type=True)  # type: ignore[no-any-return]


def decode(data: bytes) -> Message:
    """The message in `data`; raises MalformedMessage and nothing else."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"{len(data)} bytes are more than {MAX_MESSAGE_BYTES}")
    try:
        raw = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
        # Of one type: with the union of all msgspec would look at each of them for every message.
        kind = KINDS[raw[0]]
        message = convert(raw, type=kind, dec_hook=_from_wire, builtin_types=(bytes,), strict=True)
    except LookupError as error:
        raise MalformedMessage(f"its tag is none that there is: {str(error)[:MAX_TAG_SHOWN]}") from error
    except (ValidationError, ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedMessage(str(error)) from error
    if isinstance(message, Draft) and len(message.token_ids) > MAX_WINDOW:
        raise MalformedMessage(f"a Draft of {len(message.token_ids)} ids; at most {MAX_WINDOW} are allowed")
    return message
