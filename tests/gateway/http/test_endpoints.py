"""Endpoints besides generation: tokens of a text, the version, and those that are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from services.gateway.admission.api_keys import digest, new_key
from services.gateway.http.endpoints.unsupported import UNSUPPORTED
from services.gateway.http.routes import IGNORED_HEADER
from shared.protocol.messages import Open
from tests.gateway.conftest import TOKENIZER, World, a_world
from tests.gateway.fakes import CONTEXT, MODEL
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat

TEXT = "hello world <|im_end|> café 😀"


async def told(world: World, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await world.client.post(path, json=body)
    assert response.status == 200, await response.text()
    return await response.json()


async def test_the_tokens_of_a_prompt_are_those_that_a_completion_computes(world: World) -> None:
    verifier = await world.verifier()
    reply = await told(world, "/tokenize", {"model": MODEL, "prompt": TEXT})
    await told(world, COMPLETIONS, {"model": MODEL, "prompt": TEXT})
    (opened,) = verifier.of(Open)
    assert reply == {
        "count": len(opened.prompt_ids),
        "max_model_len": CONTEXT,
        "tokens": list(opened.prompt_ids),
        "token_strs": None,
    }
    assert 2 in reply["tokens"], "the text of a special token is that token"
    assert (await told(world, "/detokenize", {"tokens": reply["tokens"]})) == {"prompt": TEXT}


async def test_the_tokens_of_messages_are_those_that_a_chat_computes(world: World) -> None:
    verifier = await world.verifier()
    asked = chat(TEXT)
    reply = await told(world, "/tokenize", {**asked, "add_special_tokens": False, "continue_final_message": False})
    await told(world, CHAT, asked)
    (opened,) = verifier.of(Open)
    assert reply["tokens"] == list(opened.prompt_ids)
    closed = await told(world, "/tokenize", {**asked, "add_generation_prompt": False, "return_token_strs": True})
    assert len(closed["tokens"]) < reply["count"]
    assert reply["tokens"][: closed["count"]] == closed["tokens"]
    assert closed["token_strs"] == [TOKENIZER.id_to_token(token_id) for token_id in closed["tokens"]]
    assert closed["tokens"].count(2) == 1, "the text of a special token in a message is text"


async def test_an_empty_text_has_no_tokens_and_none_are_a_text(world: World) -> None:
    reply = await told(world, "/tokenize", {"prompt": "", "return_token_strs": True})
    assert reply == {"count": 0, "max_model_len": 0, "tokens": [], "token_strs": []}, "no verifier is there"
    assert await told(world, "/detokenize", {"tokens": []}) == {"prompt": ""}


async def test_special_tokens_around_a_prompt_can_be_left_out(folder: Path) -> None:
    tokenizer = (folder / "tokenizer.json").read_text()
    begin = '{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, '
    begin += '{"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, '
    begin += '{"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", '
    begin += '"ids": [1], "tokens": ["<|im_start|>"]}}}'
    (folder / "tokenizer.json").write_text(tokenizer.replace('"post_processor": null', f'"post_processor": {begin}'))
    async with a_world(folder) as world:
        plain = await told(world, "/tokenize", {"prompt": "hi", "add_special_tokens": False})
        assert (await told(world, "/tokenize", {"prompt": "hi"}))["tokens"] == [1, *plain["tokens"]]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": chat()["messages"]}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {"b": 1}}, "chat_template_kwargs"),
        ("/tokenize", chat(add_special_tokens=True), "add_special_tokens"),
        ("/tokenize", chat(continue_final_message=True), "continue_final_message"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a", "surprise": 1}, "surprise"),
        ("/tokenize", {"prompt": "ab" * 200_000}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens.1"),
        ("/detokenize", {"tokens": [1 << 32]}, "tokens.0"),
        ("/detokenize", {"tokens": [True]}, "tokens.0"),
        ("/detokenize", {"tokens": [1, 320]}, "tokens"),
        ("/detokenize", {"tokens": [0] * 131_073}, "tokens"),
    ],
)
async def test_a_wrong_field_is_named(world: World, path: str, body: dict[str, Any], param: str) -> None:
    response = await world.client.post(path, json=body)
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param), error
    assert param.partition(".")[0] in error["message"]


async def test_another_model_is_not_found_and_the_query_is_no_place_for_options(world: World) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
        response = await world.client.post(path, json={**body, "model": "another"})
        assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")
        assert (await world.client.post(path + "?a=1", json=body)).status == 400


async def test_what_has_no_effect_is_named_here_too(folder: Path) -> None:
    async with a_world(folder, unknown_fields="ignore") as world:
        asked = chat(chat_template_kwargs={"enable_thinking": True}, surprise=1)
        response = await world.client.post("/tokenize", json=asked)
        assert response.headers[IGNORED_HEADER] == "chat_template_kwargs.enable_thinking, surprise"


async def test_the_version_is_told(world: World) -> None:
    response = await world.client.get("/version")
    assert (response.status, set(await response.json())) == (200, {"version"})


async def test_these_endpoints_need_a_key_and_count_as_requests_of_it(folder: Path, tmp_path: Path) -> None:
    key, file = new_key(), tmp_path / "keys.toml"
    file.write_text(f'[alice]\nsha256 = "{digest(key).hex()}"\nrequests_per_minute = 2\n')
    async with a_world(folder, api_keys_file=str(file)) as world:
        for path in ("/tokenize", "/v1/embeddings"):
            assert (await world.client.post(path, json={"prompt": "a"})).status == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert (await world.client.get("/version", headers=headers)).status == 200
        statuses = [
            (await world.client.post("/tokenize", json={"prompt": "a"}, headers=headers)).status for _ in range(3)
        ]
        assert statuses == [200, 200, 429]
        assert world.count("key_requests_total", key="alice") == 2


@pytest.mark.parametrize("path", [*UNSUPPORTED, "/v1/audio/speech", "/v1/threads/thread_1/runs"])
async def test_an_endpoint_that_is_not_offered_is_refused_by_its_name(world: World, path: str) -> None:
    response = await world.client.post(path, json={"model": MODEL})
    error = (await response.json())["error"]
    assert (response.status, error["type"], error["code"]) == (404, "invalid_request_error", "unsupported_endpoint")
    name = next(name for name in UNSUPPORTED if path.startswith(name))
    assert name in error["message"]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/embeddings2", "/v1/what", "/chat/completions"])
async def test_an_unknown_path_is_an_error_in_openai_s_shape(world: World, path: str) -> None:
    response = await world.client.post(path)
    error = (await response.json())["error"]
    assert (response.status, error["type"], error["code"], error["param"]) == (404, "invalid_request_error", None, None)


async def test_openai_s_client_shows_the_name_and_does_not_try_again(world: World) -> None:
    address = f"http://{world.client.host}:{world.client.port}/v1"
    async with openai.AsyncOpenAI(base_url=address, api_key="none") as client:
        with pytest.raises(openai.NotFoundError, match=r"/v1/embeddings is not supported") as raised:
            await client.embeddings.create(model=MODEL, input="a")
        assert raised.value.code == "unsupported_endpoint"
        with pytest.raises(openai.NotFoundError, match=r"/v1/files is not supported"):
            await client.files.list()
    assert world.count("requests_total", endpoint="none", status="404") == 2
