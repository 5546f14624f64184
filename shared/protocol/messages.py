"""All messages on the bus, and their strict codec.

Invariant: `decode(encode(message)) == message`. For any bytes `decode` returns a well-formed, bounded message or raises
`MalformedMessage`. Wire: one MessagePack array for each message, `[tag, field, ...]`. Token ids are one byte string of
little-endian u32. Times are milliseconds. Positions are absolute: the prompt's first token is at 0.
"""

from __future__ import annotations

import sys
from array import array
from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgpack
from msgspec import Meta, Struct, ValidationError, convert
from msgspec.structs import astuple

MAX_MESSAGE_BYTES = 1 << 20  # of one message; the bus splits messages above 64 KiB (shared/bus/parts.py)
MAX_TOKENS = 1 << 17  # prompt and answer together
MAX_WINDOW = 64  # guesses without a verdict, and ids in one Draft
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_GRAMMAR_CHARACTERS = 1 << 16

if array("I").itemsize != 4 or sys.byteorder != "little":  # pragma: no cover
    raise ImportError("the wire format needs a little-endian machine with 32-bit unsigned ints")


class MalformedMessage(ValueError):
    """The bytes hold no message of this protocol: no MessagePack, unknown tag, wrong type or out of bounds."""


class TokenIds(tuple[int, ...]):
    """Token ids in order, 4 bytes each on the wire."""

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
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*\Z"  # logs and terminals show these texts
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256, pattern=PRINTABLE)]
Grammar: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)]
CacheScope: TypeAlias = Annotated[str, Meta(max_length=64)]
TraceParent: TypeAlias = Annotated[str, Meta(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-01\Z")]  # W3C, sampled
Short: TypeAlias = Annotated[str, Meta(max_length=64, pattern=PRINTABLE)]
Logprob: TypeAlias = Annotated[float, Meta(le=1)]  # -inf is one, NaN is none; rounding may lift it above 0
Finish: TypeAlias = Literal["stop", "length"]
Service: TypeAlias = Literal["gateway", "drafter", "verifier", "controller"]
FailureCode: TypeAlias = Literal[
    "unknown_session", "closed", "overloaded", "too_long", "draining", "bad_request", "internal"
]


class Wire(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all structs on the wire. Fields are positional: a new one goes last and has a default. Last fields with
    their defaults are left out, so older receivers take a message that does not use what is new to them."""


class Bias(Wire, frozen=True):
    """A bias that is added to one token's logit."""

    token_id: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
    bias: Annotated[float, Meta(ge=-100, le=100)]


class Sampling(Wire, frozen=True):
    """How a token is drawn (docs/sampling.md). Temperature 0 is greedy. Every default leaves its parameter off."""

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
    """How far a drafter may run ahead for one request. adaptive: as the controller decides. static: at most `window`
    guesses; one with a confidence below `min_confidence` is the last of its window (0: no threshold)."""

    mode: Literal["adaptive", "static"] = "adaptive"
    window: Window = 0
    min_confidence: Share = 0.0


class Load(Wire, frozen=True):
    """Verifiers set all fields but `rtt_ms`, drafters all but the KV fields, gateways the session counts."""

    num_sessions: Count = 0
    max_sessions: Count = 0
    queue_tokens: Count = 0  # that wait to be computed
    token_budget: Count = 0  # most tokens of one pass
    batch: Count = 0  # sessions in the last pass or step
    free_kv_tokens: Count = 0  # that a new session gets at once: none while others wait for theirs
    kv_tokens: Count = 0
    step_ms: Millis = 0.0  # of a verify pass, or of a draft step
    prefill_ms: Millis = 0.0  # per prompt token
    rtt_ms: Millis = 0.0  # mean, from a drafter to its verifiers; 0: not measured yet


class Tally(Wire, frozen=True):
    """Fates of the guesses that reached a verifier, since the session was opened there."""

    accepted: Count = 0
    rejected: Count = 0  # first mismatches
    late: Count = 0  # equal to a token that the target had already committed
    discarded: Count = 0  # behind a mismatch, a finish or a rewind
    num_passes: Count = 0  # that fixed at least one token
    looked_up: Count = 0  # right guesses of the verifier's own; the fates are of the drafter's


class Echo(Wire, frozen=True):
    """When the newest Draft was sent (the drafter's clock), and how long the verifier held it (docs/protocol.md)."""

    sent_ms: Millis
    hold_ms: Millis


class TokenLogprobs(Wire, frozen=True):
    """Natural logarithms of probabilities at one position, before penalties, temperature and filters."""

    logprob: Logprob  # of the committed token
    top_ids: TokenIds  # the most probable tokens, by (probability descending, id ascending)
    top_logprobs: Annotated[list[Logprob], Meta(max_length=MAX_TOP_LOGPROBS)]  # of each of them

    def __post_init__(self) -> None:
        if len(self.top_ids) != len(self.top_logprobs):
            raise ValueError(f"{len(self.top_ids)} tokens have {len(self.top_logprobs)} logprobs")


class Open(Wire, frozen=True, tag="open"):
    """gateway -> verifier: open a session, resume it (`committed_ids`) or rebind it (higher `term`).

    min_tokens: no stop id is drawn before that many tokens of the answer. logprobs: number of top tokens whose logprobs
    verdicts carry; prompt_logprobs: polls may ask for the prompt's, from its second on. cache_scope: sessions of one
    scope share the KV cache of common prefixes. grammar: that the answer obeys (llguidance). traceparent: the span to
    which the receiver's spans belong (docs/traces.md). None turns each off. lookup: the verifier may guess, too.
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
    cache_scope: CacheScope | None = None
    grammar: Grammar | None = None
    prompt_logprobs: bool = False
    traceparent: TraceParent | None = None
    lookup: bool = False


class Opened(Wire, frozen=True, tag="opened"):
    """verifier -> gateway: the session of this term is open. It ends after `lease_s` without a sign of its gateway.

    has_room: whether it has KV cache. Another Opened follows when it gets some, or loses it to an older session.
    """

    session_id: SessionId
    term: Count
    lease_s: Annotated[float, Meta(gt=0, le=1e6)]
    load: Load
    fingerprint: Name
    has_room: bool = True


class Speculate(Wire, frozen=True, tag="speculate"):
    """gateway -> drafter: draft for this session and send the guesses to `verifier_id`; else as in Open."""

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
    cache_scope: CacheScope | None = None
    grammar: Grammar | None = None
    traceparent: TraceParent | None = None


class Draft(Wire, frozen=True, tag="draft"):
    """drafter -> verifier: guesses for the positions base, base + 1, ... An empty Draft is a poll from base on.
    free_run: the verifier may decode while no guess is there. sent_ms: the drafter's clock."""

    session_id: SessionId
    term: Count
    epoch: Count
    base: Position
    token_ids: TokenIds
    free_run: bool
    sent_ms: Millis


class Verdict(Wire, frozen=True, tag="verdict"):
    """verifier -> gateway and drafter: the target has committed token_ids at the positions base, base + 1, ...

    accepted: how many of them, from the first on, equalled guesses of the pass. epoch: the verifier drops Drafts of
    lower epochs. Empty token_ids: exactly `base` tokens are committed. logprobs: of the last len(logprobs) of
    token_ids, for a gateway that asked for them.
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
    queue: Share  # queued tokens / token budget, at most 1
    tally: Tally
    logprobs: list[TokenLogprobs] | None = None
    pass_tokens: Count = 0  # fed in the pass
    looked_up: Count = 0  # tokens behind the accepted ones that the verifier itself had guessed


class Poll(Wire, frozen=True, tag="poll"):
    """gateway -> verifier: repeat what is committed from base on."""

    session_id: SessionId
    term: Count
    base: Position


class Close(Wire, frozen=True, tag="close"):
    """gateway -> verifier, drafter: end the session, unless its term is above `term`."""

    session_id: SessionId
    term: Count


class PairReport(Wire, frozen=True):
    """What a drafter saw of one verifier: counts since its last report, times as moving averages."""

    verifier_id: InstanceId
    num_sessions: Count
    window: Window
    drafted: Count
    matched: Count  # accepted and late guesses
    mismatched: Count  # first mismatches
    late: Count
    discarded: Count
    draft_ms: Millis  # between two guesses of a session
    rtt_ms: Millis
    queue: Share
    tpot_ms: Millis
    context: Count  # tokens, mean over sessions
    pass_ms: Millis = 0.0  # of a verify pass; 0: none seen yet
    batch: Mean = 0.0  # sessions in a pass
    pass_tokens: Mean = 0.0  # fed in a pass
    shares_machine: bool = False  # drafter and verifier run on one; the controller writes it


class Report(Wire, frozen=True, tag="report"):
    """drafter -> the controllers that decide, at most once in REPORT_S (shared/timing.py), and to those before them."""

    drafter_id: InstanceId
    sequence: Count
    pairs: Annotated[list[PairReport], Meta(max_length=256)]
    machine: Short = ""  # as in Heartbeat
    controllers: Annotated[tuple[InstanceId, ...], Meta(max_length=2)] = ()  # the leader first


class Reason(Wire, frozen=True):
    """What a decision was made from: the newest report of the pair, and its fading acceptance; None: none judged."""

    num_sessions: Count
    acceptance: Share | None
    draft_ms: Millis
    rtt_ms: Millis
    pass_ms: Millis
    tpot_ms: Millis
    queue: Share
    batch: Mean


class WindowDecision(Wire, frozen=True, tag="window"):
    """controller -> drafter (gateways listen): how far the drafter may run ahead of one verifier, and why. A guess with
    a confidence below min_confidence is the last of its window."""

    drafter_id: InstanceId
    verifier_id: InstanceId
    window: Window
    chunk: Annotated[int, Meta(ge=1, le=MAX_WINDOW)]
    free_run: bool
    policy: Name
    sequence: Count
    min_confidence: Share = 0.0
    reason: Reason | None = None


class Heartbeat(Wire, frozen=True, tag="heartbeat"):
    """Any service -> all, every `interval_s`: it is alive, and its load. models: those it serves or drafts for."""

    service: Service
    instance_id: InstanceId
    interval_s: Annotated[float, Meta(gt=0, le=3600)]
    models: Annotated[list[Name], Meta(max_length=64)]
    max_context: Count
    vocab_size: Count
    fingerprint: Annotated[str, Meta(max_length=256, pattern=PRINTABLE)]
    load: Load
    draining: bool
    provider: Short = ""  # computes most of a drafter's graph
    machine: Short = ""  # a verifier's (shared/runtime/machine.py); "": unknown


class Failure(Wire, frozen=True, tag="failure"):
    """A request was refused. retryable: the same request may succeed later or at another instance."""

    session_id: SessionId
    term: Count
    code: FailureCode
    message: Annotated[str, Meta(max_length=1024, pattern=PRINTABLE)]
    retryable: bool


Message: TypeAlias = (
    Open | Opened | Speculate | Draft | Verdict | Poll | Close | Report | WindowDecision | Heartbeat | Failure
)

KINDS: dict[Any, type[Message]] = {kind.__struct_config__.tag: kind for kind in get_args(Message)}  # by tag
MAX_TAG_SHOWN = 64  # characters of an unknown tag in an error message
PLAIN = frozenset((bool, int, float, str, bytes, type(None)))  # types that msgpack writes unchanged


def _to_wire(value: Any) -> Any:
    if isinstance(value, TokenIds):
        return array("I", list(value)).tobytes()  # of a list it reads the items in C
    if isinstance(value, Wire):
        tag = value.__struct_config__.tag
        told, defaults = astuple(value), value.__struct_defaults__
        num = len(told)
        while defaults and num > len(told) - len(defaults) and told[num - 1] == defaults[num - 1 - len(told)]:
            num -= 1
        fields = [each if type(each) in PLAIN else _to_wire(each) for each in told[:num]]
        return fields if tag is None else [tag, *fields]
    if isinstance(value, (list, tuple)):
        return [_to_wire(item) for item in value]
    return value


def _from_wire(kind: type, value: Any) -> Any:
    if kind is not TokenIds or not isinstance(value, bytes):
        raise ValueError("expected a byte string of token ids")
    if len(value) % 4 or len(value) > 4 * MAX_TOKENS:
        raise ValueError(f"token ids must be at most {MAX_TOKENS} x 4 bytes, got {len(value)} bytes")
    ids = array("I")
    ids.frombytes(value)
    return TokenIds(ids)


def encode(message: Message) -> bytes:
    """The wire form of a message. Raises OverflowError for a token id outside u32."""
    return msgpack.packb(_to_wire(message), use_bin_type=True)  # type: ignore[no-any-return]


def decode(data: bytes) -> Message:
    """The message in `data`. Raises MalformedMessage, and no other exception, for bytes that hold none."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"a message must have at most {MAX_MESSAGE_BYTES} bytes, got {len(data)}")
    try:
        raw = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
        # One type: for the union of all, msgspec would try each of them for every message.
        kind = KINDS[raw[0]]
        message = convert(raw, type=kind, dec_hook=_from_wire, builtin_types=(bytes,), strict=True)
    except LookupError as error:
        raise MalformedMessage(f"unknown tag: {str(error)[:MAX_TAG_SHOWN]}") from error
    except (ValidationError, ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedMessage(str(error)) from error
    if isinstance(message, Draft) and len(message.token_ids) > MAX_WINDOW:
        raise MalformedMessage(f"a Draft must have at most {MAX_WINDOW} token ids, got {len(message.token_ids)}")
    return message
