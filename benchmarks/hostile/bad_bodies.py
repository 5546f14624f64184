"""Request bodies that are as much work as possible for a gateway: too many values, too many tokens, or nearly so.

Invariant: no body is larger than the gateway's default limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from services.gateway.bodies.chat_body import MAX_MESSAGES, MAX_PARTS
from services.gateway.bodies.generation_body import MAX_CHOICES
from services.gateway.http.json_reader import MAX_CONTAINERS, MAX_ITEMS
from services.gateway.settings import GatewaySettings
from shared.protocol.messages import MAX_BIASES, MAX_TOKENS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MAX_BYTES: int = GatewaySettings.model_fields["max_body_bytes"].default
MODEL = "any"
MESSAGE, PART = '{"role":"user","content":"a"}', '{"type":"text","text":"a"}'
SPECIAL = "<|im_end|>\n<|im_start|>system\n"
MESSAGES, ONE = '"messages":[%s]', f'"messages":[{MESSAGE}]'
TEXT = '"messages":[{"role":"user","content":"%s"}]'  # a message of one text
TOOL = '"tools":[{"type":"function","function":{"name":"f","parameters":{%s}}}]'
PARTS = '"messages":[{"role":"user","content":[%s]}]'


@dataclass(frozen=True, slots=True)
class BadBody:
    """A body, and the endpoint that it is for."""

    name: str
    path: str
    raw: bytes


def bad_bodies() -> Iterator[BadBody]:
    """All of them, kind by kind: together they are large."""
    for fields in (_messages, _values, _texts):
        yield from (BadBody(name, CHAT, _body(field)) for name, field in fields().items())
    yield from (BadBody(name, COMPLETIONS, _body(field)) for name, field in _prompts().items())
    yield BadBody("open lists", CHAT, b"[" * MAX_BYTES)
    yield BadBody("open objects", CHAT, b'{"a":' * (MAX_BYTES // 5))
    yield BadBody("no text", CHAT, b'{"user":"' + b"\xff" * (MAX_BYTES - 9))


def _messages() -> dict[str, str]:
    return {
        "empty objects as messages": _filled(MESSAGES, "{}"),
        "numbers as messages": _filled(MESSAGES, "0"),
        "messages without content": _filled(MESSAGES, '{"role":"user"}'),
        "tiny messages": _filled(MESSAGES, MESSAGE),
        "tiny messages, as many as values are allowed": _filled(MESSAGES, MESSAGE, MAX_CONTAINERS // 3 - 9),
        "as many messages as allowed": _long(MESSAGES, '{"role":"user","content":"%s"}', MAX_MESSAGES),
        "content parts": _filled(PARTS, PART),
        "content parts, as many as values are allowed": MESSAGES % _parts_of_messages(),
        "wrong content parts": _filled(PARTS, '{"type":"text"}'),
    }


def _values() -> dict[str, str]:
    return {
        "unknown keys": ",".join(f'"{n}":0' for n in range(MAX_BYTES // 12)),
        "unknown keys, as many as values are allowed": ",".join(f'"{n}":0' for n in range(MAX_CONTAINERS - 9)),
        "unknown keys of every object": _unknown_keys_everywhere(),
        "one key again and again": _filled("%s", '"n":1'),
        "biases": f'{ONE},"logit_bias":{{{",".join(f"{n}" for n in _keys(MAX_CONTAINERS - 99))}}}',
        "biases, as many as allowed, all wrong": f'{ONE},"logit_bias":{{{",".join(_keys(MAX_BIASES, "x"))}}}',
        "stop strings": ONE + "," + _filled('"stop":[%s]', '"a"'),
        "stop strings, as many as values are allowed": ONE + "," + _filled('"stop":[%s]', '"a"', MAX_ITEMS - 99),
        "stop ids": ONE + "," + _filled('"stop_token_ids":[%s]', "1"),
        "empty lists as tools": ONE + "," + _filled('"tools":[%s]', "[]"),
        "empty lists as tools, as many as values are allowed": ONE
        + ',"tools":['
        + _times("[]", MAX_CONTAINERS - 99)
        + "]",
        "a schema of empty lists": ONE + "," + TOOL % ('"a":[' + _times("[]", MAX_CONTAINERS - 99) + "]"),
        "a schema of empty lists, nested deeply": ONE + "," + TOOL % ('"a":' + "[" * 900 + "]" * 900),
        "a schema of keys": ONE + "," + TOOL % ",".join(f'"k{n}":0' for n in range(MAX_CONTAINERS - 99)),
        "arguments of empty lists": MESSAGES % _called(r"{\"a\":[" + _times("[]", MAX_BYTES // 3 - 99) + "]}"),
        "arguments of calls, each with empty lists": MESSAGES
        % _times(_called(r"{\"a\":[" + _times("[]", MAX_CONTAINERS - 99) + "]}"), 40),
    }


def _called(arguments: str) -> str:
    function = f'{{"name":"f","arguments":"{arguments}"}}'
    return f'{{"role":"assistant","tool_calls":[{{"id":"c","type":"function","function":{function}}}]}}'


def _texts() -> dict[str, str]:
    return {
        "a long user": _whole(ONE + ',"user":"%s"', "a"),
        "a long model": _whole(ONE + ',"model":"%s"', "a"),
        "a long unknown key": _whole('"%s":0', "a"),
        "a long integer": _whole(ONE + ',"seed":%s', "9"),
        "a long fraction": _whole(ONE + ',"seed":0.%s', "9"),
        "one endless word": _whole(TEXT, "a"),
        "words": _whole(TEXT, "The quick brown fox jumps over the lazy dog. "),
        "spaces": _whole(TEXT, " "),
        "line breaks": _whole(TEXT, "\\n"),
        "escaped characters": _whole(TEXT, "\\u00e9"),
        "zero characters": _whole(TEXT, "\\u0000"),
        "characters without tokens": _whole(TEXT, "\ue123"),
        "flags": _whole(TEXT, "🏴"),
        "commas and quotes": _whole(TEXT, ',[{\\"'),
        "one endless word of several letters": _whole(TEXT, "antidisestablishmentarianism"),
        "special tokens": _whole(TEXT, SPECIAL.replace("\n", "\\n")),
        "special tokens, nearly a context": TEXT % (SPECIAL.replace("\n", "\\n") * (MAX_TOKENS // 32)),
        "an open string": '"user":"' + "a" * (MAX_BYTES - 99),
    }


def _prompts() -> dict[str, str]:
    return {
        "token ids": _filled('"prompt":[%s]', "1"),
        "token ids, nearly two contexts": f'"prompt":[{_ids(MAX_TOKENS - 9)},{_ids(MAX_TOKENS - 9)}],"echo":true',
        "empty prompts": _filled('"prompt":[%s]', "[]"),
        "tiny prompts": _filled('"prompt":[%s]', '"a"'),
        "prompts of one id": _filled('"prompt":[%s]', "[1]"),
        "as many prompts as allowed": _long('"prompt":[%s]', '"%s"', MAX_CHOICES),
        "choices of a long prompt": f'"prompt":{_ids(MAX_TOKENS - 99)},"n":{MAX_CHOICES},"echo":true',
    }


def _body(fields: str) -> bytes:
    raw = f'{{"model":"{MODEL}","dsd":{{"speculation":"off"}},{fields}}}'.encode()
    assert len(raw) <= MAX_BYTES
    return raw


def _times(item: str, number: int) -> str:
    return ",".join([item] * number)


def _filled(form: str, item: str, at_most: int = MAX_BYTES) -> str:
    """`form` with as many items as fit into a body."""
    return form % _times(item, min(at_most, (MAX_BYTES - 256) // (len(item) + 1)))


def _whole(form: str, text: str) -> str:
    """`form` with a text as long as fits into a body."""
    return form % (text * ((MAX_BYTES - 256) // len(text.encode())))


def _long(form: str, item: str, number: int) -> str:
    """`form` with this number of items, filled with text."""
    return form % _times(item % ("a" * ((MAX_BYTES - 256) // number - len(item))), number)


def _ids(number: int) -> str:
    return f"[{_times('1', number)}]"


def _keys(number: int, prefix: str = "") -> Iterator[str]:
    return (f'"{prefix}{n}":0' for n in range(number))


def _parts_of_messages() -> str:
    message = f'{{"role":"user","content":[{_times(PART, MAX_PARTS)}]}}'
    return _times(message, MAX_CONTAINERS // (3 * MAX_PARTS + 9))


def _unknown_keys_everywhere() -> str:
    unknown = json.dumps({f"k{n}": 0 for n in range(2 * MAX_BIASES)})
    fields = ("stream_options", "response_format", "metadata", "logit_bias", "surprise")
    return "".join(f'"{field}":{unknown},' for field in fields) + f'"messages":[{unknown}],' + unknown[1:-1]
