"""Bodies as large as they may be: refused or taken with bounded work, by a message that names the limit."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.hostile.bad_bodies import CHAT, MAX_BYTES, bad_bodies
from services.gateway.bodies.chat_body import MAX_MESSAGES, MAX_PARTS, ChatBody
from services.gateway.bodies.completion_body import CompletionBody
from services.gateway.bodies.generation_body import GenerationBody
from services.gateway.errors import ApiError
from services.gateway.http import json_reader
from services.gateway.http.json_reader import MAX_CONTAINERS, MAX_ITEMS, MAX_KEYS, read_json
from services.gateway.http.parsing import parse
from shared.protocol.messages import MAX_BIASES, MAX_TOKENS
from tests.gateway.fakes import MODEL
from tests.gateway.http.test_http import chat

MAX_CPU_S = 5.0  # with the memory being traced; a hundred times what most need
MAX_MEMORY = 16 * MAX_BYTES
MESSAGE = {"role": "user", "content": "a"}
UNKNOWN = {f"k{n}": 0 for n in range(2 * MAX_KEYS)}


def outcome(kind: type[GenerationBody], raw: bytes) -> ApiError | None:
    """The error with which a body is refused, if it is."""
    try:
        parse(kind, raw)
    except ApiError as error:
        return error
    return None


def test_no_body_takes_much_time_or_memory() -> None:
    num_bodies = 0
    for body in bad_bodies():
        kind: type[GenerationBody] = ChatBody if body.path == CHAT else CompletionBody
        tracemalloc.start()
        began_s = time.thread_time()
        error = outcome(kind, body.raw)
        took_s, (_, peak) = time.thread_time() - began_s, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (took_s < MAX_CPU_S, peak < MAX_MEMORY) == (True, True), (body.name, took_s, peak)
        assert error is None or (error.status, len(error.message) < 1000) == (400, True), body.name
        num_bodies += 1
    assert num_bodies > 40


@pytest.mark.parametrize(
    "messages", [[{}] * 100, [0] * 100, [MESSAGE, *[{"role": "user", "content": [{"type": "text"}] * 100}] * 100]]
)
def test_of_many_wrong_messages_the_first_is_told_and_no_other_is_looked_at(messages: list[Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        ChatBody.model_validate(chat(messages=messages))
    assert raised.value.error_count() <= 2  # of one message


def refusal(kind: type[GenerationBody], body: Any) -> ApiError:
    error = outcome(kind, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert error is not None
    return error


@pytest.mark.parametrize(
    ("body", "param", "limit"),
    [
        (chat(messages=[MESSAGE] * (MAX_MESSAGES + 1)), "messages", MAX_MESSAGES),
        (
            chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * (MAX_PARTS + 1)}]),
            "messages.0.content",
            MAX_PARTS,
        ),
        (chat(logit_bias={str(n): 1 for n in range(3 * MAX_BIASES)}), "logit_bias", MAX_BIASES),
        (chat(stop=["a"] * 1000), "stop", 16),
        (chat(stop_token_ids=[1] * 1000), "stop_token_ids", 64),
        (chat(user=["a"] * (MAX_ITEMS + 1)), None, MAX_ITEMS),
        (chat(user=[{}] * MAX_CONTAINERS), None, MAX_CONTAINERS),
        (chat(**{f"k{n}": 0 for n in range(MAX_CONTAINERS)}), None, MAX_CONTAINERS),
    ],
)
def test_too_many_of_something_is_refused_by_its_field_and_limit(body: Any, param: str | None, limit: int) -> None:
    error = refusal(ChatBody, body)
    assert (error.status, error.param, error.code) == (400, param, "invalid_value"), error
    assert str(limit) in error.message


def test_too_many_token_ids_of_a_prompt_are_refused_by_its_field_and_limit() -> None:
    for prompt in ([1] * (MAX_TOKENS + 1), [[1], [1] * (MAX_TOKENS + 1)]):
        error = refusal(CompletionBody, {"model": MODEL, "prompt": prompt})
        assert error.param == "prompt"
        assert f"at most {MAX_TOKENS} token ids" in error.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat(**UNKNOWN), "k0"),
        (chat(dsd=UNKNOWN), "dsd.k0"),
        (chat(stream=True, stream_options=UNKNOWN), "stream_options.k0"),
        (chat(metadata=UNKNOWN), "metadata"),
        (chat(messages=[MESSAGE, {**MESSAGE, **UNKNOWN}]), "messages.1.k0"),
    ],
)
def test_an_object_with_more_keys_than_any_may_have_is_refused_by_the_first_wrong_one(body: Any, param: str) -> None:
    assert refusal(ChatBody, body).param == param


def test_a_key_repeated_behind_many_others_is_still_found() -> None:
    pairs = ",".join(f'"k{n}":0' for n in [*range(2 * MAX_KEYS), 2 * MAX_KEYS - 1])
    error = refusal(ChatBody, f"{{{pairs}}}".encode())
    assert (error.param, error.code) == (f"k{2 * MAX_KEYS - 1}", "repeated_parameter")


def test_everything_up_to_the_limits_is_taken() -> None:
    parts = [{"type": "text", "text": "[{,:" * 99}]
    body = parse(ChatBody, json.dumps(chat(messages=[{"role": "user", "content": parts}] * MAX_MESSAGES)).encode())
    assert len(body.messages) == MAX_MESSAGES
    ids = parse(CompletionBody, json.dumps({"model": MODEL, "prompt": [[1] * (MAX_TOKENS - 9)] * 2}).encode())
    assert [len(prompt) for prompt in ids.prompt] == [MAX_TOKENS - 9] * 2


@pytest.mark.parametrize(
    "raw",
    [
        b'{"seed": NaN}',
        b'{"seed": -Infinity}',
        b'{"\\ud800": 1}',
        b'{"a": 1} x',
        b'{"user": "\x01"}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"a": ' * 5000,
        '{"model": "tiny"}'.encode("utf-16"),
        "\ufeff{}".encode(),
    ],
)
def test_what_is_no_json_is_refused_as_such(raw: bytes) -> None:
    error = refusal(ChatBody, raw)
    assert (error.code, error.param) == ("invalid_json", None), error
    error.body.decode()


def test_half_a_surrogate_pair_is_no_text_wherever_it_stands() -> None:
    for message in ('"\\ud800"', '[{"type": "text", "text": "a\\uDC00"}]', '[{"\\ud800": 1, "\\ud800": 2}]'):
        raw = f'{{"model": "tiny", "messages": [{{"role": "user", "content": {message}}}]}}'.encode()
        error = refusal(ChatBody, raw)
        assert (error.code, bool(error.body)) == ("repeated_parameter" if "2" in message else "invalid_json", True)
    whole = chat("\U0001f600 \\ud800")  # a whole pair, and a backslash
    assert parse(ChatBody, json.dumps(whole).encode()).conversation.messages[0].content == "\U0001f600 \\ud800"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('"\\,:[]{}aé\n')),
    lambda each: st.lists(each) | st.dictionaries(st.text(st.sampled_from('"\\,:[{a'), max_size=4), each),
)


def counted(value: Any) -> tuple[int, int]:
    """List items and keys, and keys, lists and objects. An empty list or object counts as an item."""
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [counted(each) for each in (value.values() if isinstance(value, dict) else value)]
    num_keys = len(value) if isinstance(value, dict) else 0
    return max(1, len(value)) + sum(each[0] for each in inner), 1 + num_keys + sum(each[1] for each in inner)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(JSON, st.integers(1, 9), st.booleans())
def test_values_are_counted_without_what_is_in_strings(value: Any, piece_bytes: int, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    num_items, num_containers = counted(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_reader, "PIECE_BYTES", piece_bytes)
        for more_items, more_containers, is_taken in ((0, 0, True), (-1, 0, False), (0, -1, False)):
            patch.setattr(json_reader, "MAX_ITEMS", num_items + more_items)
            patch.setattr(json_reader, "MAX_CONTAINERS", num_containers + more_containers)
            if is_taken:
                assert read_json(raw) == value
                continue
            with pytest.raises(ApiError, match="too many values"):
                read_json(raw)
