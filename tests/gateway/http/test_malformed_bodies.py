"""300 random malformed bodies: each gets a 4xx that names the field at fault."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from services.gateway.bodies.chat_body import ChatBody
from services.gateway.bodies.completion_body import CompletionBody
from services.gateway.bodies.responses_body import ResponsesBody
from tests.gateway.conftest import World
from tests.gateway.fakes import CONTEXT, MODEL, VOCABULARY
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat

TEXT, BOOLEAN, NUMBER = st.text(max_size=8), st.booleans(), st.floats(-1e9, 1e9)
LIST, OBJECT = st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
NO_NUMBER = TEXT | BOOLEAN | LIST | OBJECT
NO_TEXT = NUMBER | BOOLEAN | OBJECT
NO_BOOLEAN = TEXT | st.integers(2) | st.floats(2, 9) | LIST | OBJECT
NO_OBJECT = TEXT | NUMBER | BOOLEAN | LIST


def no_number(low: float, high: float) -> SearchStrategy[Any]:
    """Neither a number between the bounds, nor null; often one next to them."""
    outside = st.floats(max_value=low, exclude_max=True, allow_infinity=False)
    outside |= st.floats(min_value=high, exclude_min=True, allow_infinity=False)
    return st.sampled_from([low - 0.5, high + 0.5]) | outside | NO_NUMBER


def no_integer(low: int, high: int) -> SearchStrategy[Any]:
    outside = st.integers(max_value=low - 1) | st.integers(min_value=high + 1)
    fractions = st.floats(low, min(high, 1 << 40)).filter(lambda value: value != int(value))
    return st.sampled_from([low - 1, high + 1]) | outside | fractions | NO_NUMBER


COMMON: dict[str, SearchStrategy[Any]] = {
    "model": NO_TEXT | LIST | st.none() | st.text(min_size=257, max_size=300) | TEXT.map(lambda text: "no " + text),
    "max_tokens": no_integer(1, CONTEXT),
    "min_tokens": no_integer(0, CONTEXT),
    "temperature": no_number(0, 2),
    "top_p": no_number(0, 1),
    "top_k": no_integer(-1, 1 << 31),
    "min_p": no_number(0, 1),
    "presence_penalty": no_number(-2, 2),
    "frequency_penalty": no_number(-2, 2),
    "repetition_penalty": no_number(1e-9, 10),
    "logit_bias": TEXT
    | NUMBER
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(TEXT.filter(lambda text: not text.isdigit()), NUMBER, min_size=1)
    | st.dictionaries(st.integers(VOCABULARY).map(str), st.just(1), min_size=1)
    | st.dictionaries(st.just("5"), no_number(-100, 100), min_size=1),
    "seed": no_integer(-(1 << 63), (1 << 63) - 1),
    "n": no_integer(1, 16),
    "best_of": no_integer(1, 1),
    "stop": NO_TEXT | st.just([""]) | st.lists(NUMBER, min_size=1, max_size=3) | st.just(["x"] * 17),
    "stop_token_ids": TEXT | NUMBER | st.lists(st.integers(max_value=-1) | st.integers(VOCABULARY), min_size=1),
    "ignore_eos": NO_BOOLEAN,
    "stream": NO_BOOLEAN,
    "stream_options": NO_OBJECT | st.just({"include_usage": True}),
    "user": NO_TEXT | LIST,
    "dsd": NO_OBJECT | st.just({"speculation": "static"}) | st.just({"sources": True}),
    "response_format": NO_OBJECT
    | st.sampled_from(
        [
            {},
            {"type": "xml"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {"name": "x"}},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}},
            {"type": "structural_tag", "structures": [], "triggers": ["<"]},
            {"type": "structural_tag", "structures": [{"begin": "a", "schema": {}, "end": ""}], "triggers": ["<"]},
        ]
    ),
    "structured_outputs": NO_OBJECT
    | st.sampled_from(
        [
            {},
            {"json": None},
            {"json": {"type": "foo"}},
            {"regex": "["},
            {"regex": ""},
            {"choice": []},
            {"choice": ["a"], "regex": "a"},
            {"grammar": "nonsense"},
            {"json_object": False},
            {"xml": {}},
        ]
    ),
    "service_tier": NO_TEXT | st.just("gold"),
    "store": NO_BOOLEAN | st.just(True),
    "suffix": NO_TEXT | st.text(min_size=1, max_size=3),
    "metadata": NO_OBJECT | st.just({"a": 1}) | st.just({str(number): "b" for number in range(17)}),
    "prompt_cache_key": NO_TEXT | LIST | st.text(min_size=257, max_size=260),
    "priority": TEXT | BOOLEAN | LIST,
    "prompt_cache_retention": NO_TEXT | st.just("1h"),
    "parallel_tool_calls": NO_BOOLEAN,
    "safety_identifier": NO_TEXT,
    "request_id": NO_TEXT,
    "use_beam_search": NO_BOOLEAN | st.just(True),
    "length_penalty": TEXT | BOOLEAN | LIST | st.just(1.1),
    "bad_words": NO_OBJECT.filter(lambda value: value != []),
    "chat_template": TEXT | NUMBER,
    "skip_special_tokens": NO_BOOLEAN | st.just(False),
    "surprise": st.just(1),
}
RESPONSES = "/v1/responses"
MESSAGE = {"role": "user", "content": "hi"}
OF_CHAT: dict[str, SearchStrategy[Any]] = {
    "messages": NO_OBJECT
    | st.sampled_from([[{**MESSAGE, "role": "tool"}], [{"role": "user"}], [{**MESSAGE, "name": 3}]])
    | NO_TEXT.map(lambda content: [{**MESSAGE, "content": content}]),
    "max_completion_tokens": no_integer(1, CONTEXT),
    "logprobs": NO_BOOLEAN,
    "top_logprobs": no_integer(0, 20) | st.integers(0, 20),  # without logprobs
    "prompt": TEXT,
    "echo": NO_BOOLEAN | st.just(True),
    "reasoning_effort": NO_TEXT | st.just("huge"),
    "chat_template_kwargs": NO_OBJECT | st.just({"messages": []}),
    "tools": NO_OBJECT.filter(lambda value: value != [])
    | st.lists(OBJECT, min_size=1)
    | NO_OBJECT.map(lambda function: [{"type": "function", "function": function}])
    | NO_OBJECT.map(lambda parameters: [{"type": "function", "function": {"name": "f", "parameters": parameters}}]),
    "tool_choice": NO_OBJECT | st.sampled_from(["required", {"type": "function", "function": {"name": "f"}}]),
}
OF_COMPLETIONS: dict[str, SearchStrategy[Any]] = {
    "prompt": NUMBER
    | BOOLEAN
    | OBJECT
    | st.none()
    | st.lists(st.none() | BOOLEAN | OBJECT | st.integers(VOCABULARY), min_size=1)
    | st.just(""),
    "logprobs": no_integer(0, 20).filter(lambda value: value is not False),
    "tools": NO_OBJECT.filter(lambda value: value != []) | st.lists(OBJECT, min_size=1),
    "tool_choice": NO_OBJECT | st.just("required"),
    "top_logprobs": st.integers(0, 5),
    "echo": NO_BOOLEAN,
    "messages": st.just([MESSAGE]),
}
OF_RESPONSES: dict[str, SearchStrategy[Any]] = {
    "input": NUMBER
    | BOOLEAN
    | OBJECT
    | LIST
    | st.none()
    | st.sampled_from([[{"role": "user"}], [{**MESSAGE, "role": "tool"}], [{"type": "item_reference", "id": "a"}]])
    | NO_TEXT.map(lambda content: [{**MESSAGE, "content": content}]),
    "instructions": NO_TEXT | LIST,
    "max_output_tokens": no_integer(1, CONTEXT),
    "max_tool_calls": st.integers(max_value=0) | NO_NUMBER,
    "text": NO_OBJECT
    | st.sampled_from(
        [{"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "schema": {"type": "foo"}}]
    ).map(lambda form: {"format": form})
    | st.just({"verbosity": "high"}),
    "reasoning": NO_OBJECT | st.sampled_from([{"effort": "huge"}, {"summary": 3}]),
    "include": NO_OBJECT.filter(lambda value: value != []) | st.just(["file_search_call.results"]),
    "chat_template_kwargs": OF_CHAT["chat_template_kwargs"],
    "tools": NO_OBJECT.filter(lambda value: value != [])
    | st.lists(OBJECT, min_size=1)
    | st.just([{"type": "web_search"}])
    | NO_OBJECT.map(lambda parameters: [{"type": "function", "name": "f", "parameters": parameters}]),
    "tool_choice": NO_OBJECT | st.sampled_from(["required", {"type": "function", "name": "f"}]),
    "previous_response_id": TEXT,
    "background": NO_BOOLEAN | st.just(True),
    "truncation": NO_TEXT | st.just("auto"),
    "messages": st.just([MESSAGE]),
}
VALID = {CHAT: chat(), COMPLETIONS: {"model": MODEL, "prompt": "hi"}, RESPONSES: {"model": MODEL, "input": "hi"}}
TABLES = {CHAT: OF_CHAT, COMPLETIONS: OF_COMPLETIONS, RESPONSES: OF_RESPONSES}


@st.composite
def malformed(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    """An endpoint, the field at fault, and the body: the field's value is wrong, or a required one is missing."""
    path = draw(st.sampled_from([CHAT, COMPLETIONS, RESPONSES]))
    wrong = COMMON | TABLES[path]
    body = dict(VALID[path])
    if draw(st.integers(0, 19)) == 0:
        field = draw(st.sampled_from(sorted(body)))
        del body[field]
        return path, field, body
    field = draw(st.sampled_from(sorted(wrong)))
    return path, field, body | {field: draw(wrong[field])}


async def test_300_malformed_bodies_are_refused_by_the_field_at_fault(world: World) -> None:
    await world.verifier()
    loop = asyncio.get_running_loop()
    refused: list[str] = []

    async def ask(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        response = await world.client.post(path, json=body)
        return response.status, await response.json()

    @settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(malformed())
    def examine(example: tuple[str, str, dict[str, Any]]) -> None:
        path, field, body = example
        status, reply = asyncio.run_coroutine_threadsafe(ask(path, body), loop).result(30)
        assert 400 <= status < 500, (body, reply)
        error = reply["error"]
        assert (field, True) == ((error["param"] or "").partition(".")[0], field in error["message"]), (body, error)
        refused.append(field)

    await asyncio.to_thread(examine)
    assert len(refused) >= 300
    assert len(set(refused)) > 30


def test_every_field_of_the_bodies_has_malformed_values_or_is_neutral_only() -> None:
    for kind, table in zip((ChatBody, CompletionBody, ResponsesBody), TABLES.values(), strict=True):
        assert set(kind.model_fields) - kind.unoffered <= set(COMMON | table)
