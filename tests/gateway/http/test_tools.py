"""Tools and reasoning by OpenAI's own client: calls whole and streamed, loops, choices, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from services.gateway.http.routes import IGNORED_HEADER
from shared.protocol.messages import Open
from tests.gateway import fakes
from tests.gateway.conftest import TOKENIZER, World, a_world
from tests.gateway.fakes import MODEL
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat, events
from tests.gateway.http.test_openapi import conform

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]
HI: list[Any] = [{"role": "user", "content": "hi"}]
TWO_CALLS = (
    'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Tromsø"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)
CALLED = [("weather", '{"city": "Tromsø"}'), ("time", "{}")]
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{{ m.reasoning_content }}<|im_end|>{% endfor %}"
    "{% if think %}<think>\n{% endif %}{# </think> tools <tool_call> arguments #}"
)


@pytest.fixture
async def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(fakes, "CONTEXT", 8192)  # the words for tools are long in a tiny vocabulary
    async with a_world(folder) as made:
        await made.verifier()
        await made.drafter()
        made.answer = TWO_CALLS
        yield made


@pytest.fixture
async def client(world: World) -> AsyncIterator[openai.AsyncOpenAI]:
    address = f"http://{world.client.host}:{world.client.port}/v1"
    async with openai.AsyncOpenAI(base_url=address, api_key="any", max_retries=0) as made:
        yield made


async def error_of(world: World, **options: Any) -> tuple[int, str, str]:
    response = await world.client.post(CHAT, json=chat(**options))
    error = (await response.json())["error"]
    return response.status, error["param"], error["code"]


def called(calls: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in calls or ()]


def prompts(world: World) -> list[str]:
    return [TOKENIZER.decode(list(each.prompt_ids)) for each in world.peers[0].of(Open) if isinstance(each, Open)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_loop_of_tools(world: World, client: openai.AsyncOpenAI, stream: bool) -> None:
    messages = list(HI)

    async def turn() -> Any:
        if not stream:
            return (await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)).choices[0]
        async with client.chat.completions.stream(model=MODEL, messages=messages, tools=TOOLS) as events:
            return (await events.get_final_completion()).choices[0]

    choice = await turn()
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    assert called(choice.message.tool_calls) == CALLED
    messages.append(choice.message)
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name}: fine"}
        for call in choice.message.tool_calls
    ]
    world.answer = "It is fine."
    choice = await turn()
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", "It is fine.", None)
    first, second = prompts(world)
    assert '"name": "weather", "description": "Now", "parameters": {"type": "object"' in first
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Tromsø"}}\n</tool_call>' in second
    assert "<tool_response>\nweather: fine\n</tool_response>\n<tool_response>\ntime: fine" in second


async def test_the_deltas_of_a_call_are_openai_s(world: World) -> None:
    chunks = await events(await world.client.post(CHAT, json=chat(tools=TOOLS, stream=True)))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    begins = [call for call in calls if "id" in call]
    assert [list(call) for call in begins] == [["index", "id", "type", "function"]] * 2
    assert [(call["index"], call["type"], call["function"]) for call in begins] == [
        (0, "function", {"name": "weather", "arguments": ""}),
        (1, "function", {"name": "time", "arguments": ""}),
    ]
    others = [call for call in calls if "id" not in call]
    assert all(list(call) == ["index", "function"] and list(call["function"]) == ["arguments"] for call in others)
    assert "".join(call["function"]["arguments"] for call in others if call["index"] == 0) == CALLED[0][1]
    assert len([call for call in others if call["index"] == 0]) > 1, "they come in pieces"
    assert "".join(delta.get("content", "") for delta in deltas) == "I look."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == "tool_calls"


async def test_choices_with_logprobs_usage_and_sources_have_calls_too(world: World) -> None:
    asked = chat(tools=TOOLS, n=2, seed=1, logprobs=True)
    whole = await (await world.client.post(CHAT, json=asked)).json()
    conform(whole, "ChatCompletion")
    for choice in whole["choices"]:
        assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather", "time"]
        written = b"".join(bytes(token["bytes"] or []) for token in choice["logprobs"]["content"])
        assert written.decode() == TWO_CALLS
    options = {"stream": True, "stream_options": {"include_usage": True}, "dsd": {"sources": True}}
    *chunks, usage = await events(await world.client.post(CHAT, json={**asked, **options}))
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert usage["usage"]["completion_tokens"] == sum(len(each["logprobs"]["content"]) for each in whole["choices"])
    for index in range(2):
        mine = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        for chunk in mine:
            conform(chunk, "ChatLastChunk" if chunk["choices"][0]["finish_reason"] else "ChatChunk")
        pieces = [piece["text"] for chunk in mine for piece in chunk.get("dsd", {}).get("pieces", ())]
        assert "".join(pieces) == TWO_CALLS
        scored = [chunk["choices"][0]["logprobs"] for chunk in mine]
        told = [token for logprobs in scored if logprobs for token in logprobs["content"]]
        assert told == whole["choices"][index]["logprobs"]["content"]


async def test_an_answer_that_ends_inside_a_call_says_why(world: World, client: openai.AsyncOpenAI) -> None:
    for options, finish in (({"max_tokens": 60}, "length"), ({"stop": "Trom"}, "tool_calls")):
        answer = await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS, **options)  # type: ignore
        (choice,) = answer.choices
        assert choice.finish_reason == finish
        ((name, arguments),) = called(choice.message.tool_calls)
        assert (name, arguments != CALLED[0][1]) == ("weather", True)
        assert CALLED[0][1].startswith(arguments)


async def test_tool_choice_none_and_calls_one_at_a_time(world: World, client: openai.AsyncOpenAI) -> None:
    none = await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS, tool_choice="none")
    assert (none.choices[0].message.content, none.choices[0].message.tool_calls) == (TWO_CALLS, None)
    assert none.choices[0].finish_reason == "stop"
    assert "weather" not in prompts(world)[0]
    one = await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS, parallel_tool_calls=False)
    assert called(one.choices[0].message.tool_calls) == CALLED[:1]
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    response = await world.client.post(CHAT, json=chat(tools=strict, parallel_tool_calls=True))
    assert response.headers[IGNORED_HEADER] == "tools.strict"


async def test_text_with_markers_is_only_text_without_tools(world: World) -> None:
    whole = await (await world.client.post(CHAT, json=chat())).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": TWO_CALLS, "refusal": None}
    body = {"model": MODEL, "prompt": "hi"}
    assert (await (await world.client.post(COMPLETIONS, json=body)).json())["choices"][0]["text"] == TWO_CALLS


def with_parameters(parameters: Any) -> list[Any]:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": TOOLS, "structured_outputs": {"regex": "a"}}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required", "min_tokens": 3}, "min_tokens"),
        ({"tools": with_parameters({"properties": {"a": {"type": "foo"}}}), "tool_choice": "required"}, "tools"),
        ({"tools": TOOLS[1:], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tools": TOOLS[:1] * 129}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": with_parameters(json.loads('{"a":' * 65 + "1" + "}" * 65))}, "tools.0.function.parameters"),
        ({"tools": with_parameters({str(n): 1 for n in range(1025)})}, "tools.0.function.parameters"),
    ],
)  # fmt: skip
async def test_wrong_tools_are_refused(world: World, options: dict[str, Any], field: str) -> None:
    status, param, _ = await error_of(world, **options)
    assert (status, param) == (400, field)


@pytest.mark.parametrize(("choice", "names"), [("required", ["weather", "time"]), (NAMED, ["weather"])])
@pytest.mark.parametrize("several", [True, False])
async def test_a_call_that_must_be_made_is_a_grammar(
    world: World, choice: Any, names: list[str], several: bool
) -> None:
    verifier = await world.verifier()
    asked = chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=several)
    response = await world.client.post(CHAT, json=asked)
    assert response.status == 200, await response.text()
    (request,) = verifier.of(Open)
    assert request.grammar is not None
    assert [name for name in ("weather", "time") if f'{name}\\"' in request.grammar] == names
    assert ("call)*" in request.grammar) == (several and choice == "required"), "a named function is called once"


@pytest.mark.parametrize(("choice", "rules"), [("auto", ["calls", "answer"]), ("required", ["calls"])])
async def test_beside_tools_a_format_in_json_is_another_way_to_answer(
    world: World, choice: str, rules: list[str]
) -> None:
    verifier = await world.verifier()
    options = {"tools": TOOLS, "tool_choice": choice, "response_format": {"type": "json_object"}}
    response = await world.client.post(CHAT, json=chat(**options))
    assert response.status == 200, await response.text()
    (request,) = verifier.of(Open)
    assert request.grammar is not None
    assert f"start: ({' | '.join(rules)})" in request.grammar.replace("\\n", "\n").splitlines()[0]
    assert ("answer: %json" in request.grammar) == (choice == "auto")


async def test_calls_that_are_json_themselves_exclude_a_format_in_json(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ tools }}{{ messages[0].content }}{# <|python_tag|> #}")
    async with a_world(folder) as world:
        await world.verifier()
        asked = {"tools": TOOLS, "response_format": {"type": "json_object"}}
        assert await error_of(world, **asked) == (400, "tools", "invalid_value")


async def test_tokenize_gives_the_prompt_of_a_chat_with_tools(world: World) -> None:
    verifier = await world.verifier()
    asked = {"messages": HI, "tools": TOOLS}
    told = await (await world.client.post("/tokenize", json=asked)).json()
    assert (await world.client.post(CHAT, json=chat(**asked))).status == 200
    assert told["tokens"] == list(verifier.of(Open)[0].prompt_ids)


@pytest.mark.parametrize("think", [False, True])
async def test_json_of_a_model_that_reasons_comes_behind_its_reasoning(folder: Path, think: bool) -> None:
    (folder / "chat_template.jinja").write_text(THINKING)
    async with a_world(folder) as world:
        verifier = await world.verifier()
        world.answer = ("" if think else "<think>\n") + 'Why?\n</think>\n\n{"a": 1}'
        options = {"chat_template_kwargs": {"think": think}, "response_format": {"type": "json_object"}}
        response = await world.client.post(CHAT, json=chat(**options))
        message = (await response.json())["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ('{"a": 1}', "Why?")
        grammar = verifier.of(Open)[0].grammar
        assert grammar is not None
        assert "thought" in grammar
        world.answer = "yes"
        options |= {"response_format": None, "structured_outputs": {"choice": ["yes"]}}
        message = (await (await world.client.post(CHAT, json=chat(**options))).json())["choices"][0]["message"]
        assert message["content"] == "yes", "other formats leave no room for reasoning"


async def test_tools_are_refused_where_their_format_is_not_known(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ tools }}{{ messages[0].content }}")
    for setting in ("auto", "none"):
        async with a_world(folder, tool_parser=setting) as world:
            await world.verifier()
            assert await error_of(world, tools=TOOLS) == (400, "tools", "unsupported_parameter")
            assert (await world.client.post(CHAT, json=chat(tools=TOOLS, tool_choice="none"))).status == 200


async def test_a_template_gets_the_tools_and_arguments_as_objects(folder: Path) -> None:
    template = "{{ tools[0].function.parameters.required[0] }} {{ messages[1].tool_calls[0].function.arguments.city }} "
    (folder / "chat_template.jinja").write_text(template + "{{ tools[1] | tojson }}{# <tool_call> arguments #}")
    async with a_world(folder) as world:
        await world.verifier()
        function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
        messages = [*HI, {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}]
        response = await world.client.post(CHAT, json=chat(messages=messages, tools=TOOLS))
        assert response.status == 200, await response.text()
        assert prompts(world) == [f"city Oslo {json.dumps(TOOLS[1])}"]


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_told_apart(folder: Path, stream: bool) -> None:
    (folder / "chat_template.jinja").write_text(THINKING)
    async with a_world(folder) as world:
        await world.verifier()
        for think in (False, True):
            world.answer = ("" if think else "<think>\n") + "Why?\n</think>\n\n" + TWO_CALLS
            options = {"chat_template_kwargs": {"think": think}, "tools": TOOLS, "stream": stream}
            response = await world.client.post(CHAT, json=chat(**options))
            if stream:
                deltas = [chunk["choices"][0]["delta"] for chunk in await events(response)]
                message = {
                    name: "".join(delta.get(name, "") for delta in deltas)
                    for name in ("content", "reasoning", "reasoning_content")
                }
                assert sum("id" in call for delta in deltas for call in delta.get("tool_calls", ())) == 2
            else:
                message = (await response.json())["choices"][0]["message"]
                conform(await (await world.client.post(CHAT, json=chat(**options))).json(), "ChatCompletion")
                again = await world.client.post(CHAT, json=chat(messages=[*HI, message]))
                assert again.status == 200, await again.text()
            assert (message["content"], message["reasoning_content"]) == ("I look.", "Why?")
            assert message["reasoning"] == message["reasoning_content"]
