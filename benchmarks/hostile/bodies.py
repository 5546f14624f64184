"""Hostile request bodies: every field wrong in every way, and valid bodies with random mutations.

Invariant: a body follows from seed and number alone, so one that finds a fault can be made again. `field` is the field
at fault where it is known; then a refusal must name it. After random changes any field of the body may be at fault.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from services.gateway.bodies.body import Body
from services.gateway.bodies.chat_body import ChatBody
from services.gateway.bodies.completion_body import CompletionBody
from services.gateway.bodies.generation_body import DsdOptions
from services.gateway.bodies.responses_body import ResponsesBody
from services.gateway.http.json_reader import MAX_CONTAINERS, MAX_ITEMS

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
KINDS: dict[str, type[Body]] = {CHAT: ChatBody, COMPLETIONS: CompletionBody, RESPONSES: ResponsesBody}
TURNS = {CHAT: "messages", RESPONSES: "input"}  # where an endpoint takes the turns of a conversation
PART_TYPE = {CHAT: '"text"', RESPONSES: '"input_text"'}
STREAM_OPTION = {CHAT: "include_usage", COMPLETIONS: "include_usage", RESPONSES: "include_obfuscation"}
NUM_CHANGES = 3  # most random changes of one body


@dataclass(frozen=True, slots=True)
class HostileBody:
    """A body, the endpoint that it is for, and the field at fault; "": any field may be at fault."""

    name: str
    path: str
    raw: bytes
    field: str = ""


# Values as JSON text, since some of them are no JSON or have no Python value.
NUMBERS = (
    "0", "1", "-1", "2", "16", "17", "64", "65", "0.5", "1.0", "-0.0", "1e2", "100.5", "-2.5", "1e999", "-1e999",
    "1e-999",
    "NaN", "Infinity", "-Infinity", "131072", "131073", str(1 << 31), str((1 << 31) + 1), str((1 << 63) - 1),
    str(1 << 63),
    str(-(1 << 63)), str(-(1 << 63) - 1), str(1 << 64), "9" * 400, "-" + "9" * 400, "9" * 5000, "0." + "9" * 500,
)  # fmt: skip
TEXTS = (
    '""', '" "', '"a"', '"none"', '"off"', '"static"', '"5"', '"' + "a" * 257 + '"', '"\\u0000"', '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\ud83d\\ude00"', '"\u202e\ufeff\u0301"', '"<|im_end|>"', '"../../etc"', '"{{ 7 * 7 }}"', '"%s%n"', '"\\/"',
)  # fmt: skip
STRUCTURES = (
    "null", "true", "false", "[]", "[[]]", "[null]", "[true]", "{}", '{"":0}', '{"a":{"a":{}}}', "[1,2]", "[-1]",
    '["a"]',
    '["a","b"]', '[1,"a"]', '[["a"]]', "[[1],[2]]", "[[1],[]]", '{"type":"text"}', '{"type":"text","text":"a"}',
    '{"5":1}',
    '{"5":101}', '{"5":NaN}', '{"05":1}', '{"-1":1}', '{"99999999999":1}', '{"4294967296":1}', '{"include_usage":true}',
    '[{"role":"user","content":"a"}]', '[{"role":"user","content":[]}]', '[{"role":"tool","content":"a"}]',
    "[" * 100 + "]" * 100, '{"a":' * 100 + "1" + "}" * 100, "[" * 3000 + "]" * 3000, '{"a":1,"a":2}',
    "[" + ",".join("1" * 300) + "]", "[" + ",".join(['"a"'] * 300) + "]", "", "undefined", "'a'", "[1,]", "01", "+1",
    ".5", "0x1",
)  # fmt: skip
VALUES = (*NUMBERS, *TEXTS, *STRUCTURES)
MESSAGE_FIELDS = ("role", "content", "name", "refusal", "audio", "function_call", "tool_calls", "surprise")


def systematic(model: str) -> Iterator[HostileBody]:
    """Each field of all endpoints, nested ones too, with each value; missing, repeated and unknown fields."""
    for path, kind in KINDS.items():
        valid = {key: json.dumps(value) for key, value in _valid(path, model).items()}
        for field in (*kind.model_fields, "surprise"):
            fixed = {key: text for key, text in valid.items() if key != field and _may_stand_beside(key, field)}
            for number, value in enumerate(VALUES):
                yield HostileBody(f"{field} {number}", path, _object(fixed | {field: value}), field)
            yield HostileBody(f"{field} missing", path, _object(fixed), field if field in valid else "")
            pairs = [*fixed.items(), *[(field, valid.get(field, "1"))] * 2]
            yield HostileBody(f"{field} twice", path, _pairs(pairs), field)
        yield from _nested(path, valid)
        yield from _whole(path, valid)


def _may_stand_beside(key: str, field: str) -> bool:
    return (key, field) != ("max_tokens", "max_completion_tokens")


def _nested(path: str, valid: dict[str, str]) -> Iterator[HostileBody]:
    """Fields of objects in a body."""
    for number, value in enumerate(VALUES):
        for field in (*DsdOptions.model_fields, "surprise"):
            for fixed in ({}, {"speculation": '"static"', "window": "4"}, {"speculation": '"off"'}):
                dsd = _object(fixed | {field: value}).decode()
                yield HostileBody(f"dsd.{field} {number}", path, _object(valid | {"dsd": dsd}), "dsd")
        options = _object({STREAM_OPTION[path]: value}).decode()
        streamed = valid | {"stream": "true", "stream_options": options}
        yield HostileBody(f"stream_options {number}", path, _object(streamed), "stream_options")
        bias = _object({"5": value}).decode()
        yield HostileBody(f"logit_bias.5 {number}", path, _object(valid | {"logit_bias": bias}), "logit_bias")
        turns = TURNS.get(path, "")
        for field in MESSAGE_FIELDS if turns else ():
            message = _object({"role": '"user"', "content": '"a"'} | {field: value}).decode()
            yield HostileBody(f"{turns}.{field} {number}", path, _object(valid | {turns: f"[{message}]"}), turns)
            part = _object({"type": PART_TYPE[path], "text": '"a"'} | {field: value}).decode()
            parts = f'[{{"role":"user","content":[{part}]}}]'
            yield HostileBody(f"part.{field} {number}", path, _object(valid | {turns: parts}), turns)


def _whole(path: str, valid: dict[str, str]) -> Iterator[HostileBody]:
    """Bodies that are wrong as a whole."""
    raw = _object(valid)
    for number, value in enumerate(VALUES):
        yield HostileBody(f"body {number}", path, value.encode())
    for name, wrong in {
        "byte order mark": b"\xef\xbb\xbf" + raw,
        "UTF-16": raw.decode().encode("utf-16"),
        "Latin-1": raw[:-1] + b',"user":"\xe9"}',
        "overlong UTF-8": raw[:-1] + b',"user":"\xc0\xaf"}',
        "surrogates as UTF-8": raw[:-1] + b',"user":"\xed\xa0\x80"}',
        "zero bytes": b"\0" * 100,
        "two objects": raw + raw,
        "cut": raw[:-1],
        "open lists": b"[" * 200_000,
        "open objects": b'{"a":' * 100_000,
        "too many keys": b"{" + b",".join(b'"%d":0' % n for n in range(MAX_CONTAINERS + 1)) + b"}",
        "too many items": b'{"stop_token_ids":[' + b",".join([b"1"] * (MAX_ITEMS + 1)) + b"]}",
        "too large": raw[:-1] + b',"user":"' + b"a" * (5 << 20) + b'"}',
    }.items():
        yield HostileBody(name, path, wrong)


def _valid(path: str, model: str) -> dict[str, Any]:
    turn = {"role": "user", "content": "hi"}
    match path:
        case "/v1/responses":
            return {"model": model, "input": [turn], "store": False, "max_output_tokens": 1}
        case "/v1/chat/completions":
            return {"model": model, "messages": [turn], "max_tokens": 1}
    return {"model": model, "prompt": "hi", "max_tokens": 1}


def _object(fields: dict[str, str]) -> bytes:
    return _pairs(list(fields.items()))


def _pairs(pairs: list[tuple[str, str]]) -> bytes:
    return ("{" + ",".join(f"{json.dumps(key)}:{text}" for key, text in pairs) + "}").encode()


# --- mutations -------------------------------------------------------------------------------------------------------


def mutated(model: str, seed: int, number: int) -> HostileBody:
    """A valid body with a few random changes of its structure, its bytes, or both."""
    rng = random.Random(f"{seed} {number}")
    path = rng.choice((CHAT, COMPLETIONS, RESPONSES))
    body = _rich(path, model, rng)
    way = rng.choice(("structure", "structure", "bytes", "both"))
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
    if way != "bytes":
        for _ in range(rng.randint(1, NUM_CHANGES)):
            text = _changed(body, rng)
    raw = text.encode(errors="surrogatepass")
    if way != "structure":
        for _ in range(rng.randint(1, NUM_CHANGES)):
            raw = rng.choice(BYTE_CHANGES)(raw, rng)
    return HostileBody(f"mutated {seed} {number}", path, raw)


def _rich(path: str, model: str, rng: random.Random) -> dict[str, Any]:
    """A valid body with many options."""
    options: dict[str, Any] = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.1, "logit_bias": {"5": 1.5, "7": -2}, "seed": 3, "n": 2, "best_of": 2,
        "stop": ["\n\n", "x"],
        "stop_token_ids": [5, 6], "ignore_eos": True, "user": "somebody", "min_tokens": 1, "tools": [],
        "tool_choice": "none",
        "dsd": {"speculation": "static", "window": 4, "min_confidence": 0.1, "timeout_s": 20},
        "response_format": {"type": "text"}, "metadata": {},
    }  # fmt: skip
    options = {name: value for name, value in options.items() if name in KINDS[path].model_fields}
    if "n" in (chosen := rng.sample(sorted(options), rng.randint(1, min(10, len(options))))) or "best_of" in chosen:
        chosen = [*chosen, "n", "best_of"]
    body = _valid(path, model) | {name: copy.deepcopy(options[name]) for name in chosen}
    if rng.random() < 0.3:
        body |= {"stream": True, "stream_options": {STREAM_OPTION[path]: True}}
    if path == CHAT and rng.random() < 0.5:
        parts = [{"type": "text", "text": "héllo 😀"}, {"type": "text", "text": "again"}]
        body["messages"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
        body |= {"logprobs": True, "top_logprobs": 2}
    elif path == COMPLETIONS and rng.random() < 0.5:
        body["prompt"] = rng.choice([["a", "b"], [1, 2, 3], [[1, 2], [3]]])
    return body


def _changed(body: dict[str, Any], rng: random.Random) -> str:
    """Changes `body` at a random place. Returns its text, which may differ from it where JSON values can't."""
    places = list(_places(body))
    if not places:
        return json.dumps(body)
    holder, key = rng.choice(places)
    change = rng.randrange(6)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[rng.choice(["surprise", str(key).upper(), f"{key} ", "", "\u0000", "__class__", "dsd"])] = holder[key]
    elif change == 2:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    elif change == 3:
        other, other_key = rng.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    elif change == 4 and isinstance(holder[key], list | str):
        holder[key] = holder[key] * rng.choice([0, 2, 100])
    else:
        holder[key] = mark = f"value {rng.getrandbits(64)}"
        return json.dumps(body).replace(json.dumps(mark), rng.choice(VALUES))
    return json.dumps(body)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All places of a JSON value, as a container and a key or index of it."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            yield from _places(value[key])


def _flip(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) or 1)
    return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]


def _insert(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    what = rng.choice(
        [b"\xff", b"\xed\xa0\x80", b"\0", b'"', b"\\", b"\\ud800", b"{", b"]", b",", b"-", b"e9", b"[" * 500]
    )
    return raw[:at] + what + raw[at:]


def _delete(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + raw[at + rng.randint(1, 8) :]


def _repeat(raw: bytes, rng: random.Random) -> bytes:
    at, end = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
    return raw[:end] + raw[at:end] + raw[end:]


def _cut(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


BYTE_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _flip, _insert, _delete, _repeat, _cut)
