"""dsd doctor where there is not enough to look at: it says so, and why."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from client.doctor.examination import lossless
from client.gateway import connected
from shared.runtime import nats_keys
from tests.client.conftest import Done, OtherServer, address, chunk, dsd
from tests.gateway.admission.test_api_keys import KEYS, entry, write
from tests.gateway.conftest import World, a_world
from tests.gateway.tiny import make_folder

SEED = nats_keys.new_seed()


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[World]:
    file = tmp_path / "keys.toml"
    owned = f'[alice.own_drafters]\nkey-alice = "{nats_keys.public_key(SEED)}"\n'
    write(file, entry("bob", KEYS["bob"]), entry("alice", KEYS["alice"]), owned)
    folder = make_folder(tmp_path / "target")
    async with a_world(folder, api_keys_file=str(file), drafter_nats_url="nats://127.0.0.1:1") as made:
        yield made


async def doctor(url: str, *argv: str, **env: str) -> Done:
    return await dsd("doctor", *argv, url=url, env={"COLUMNS": "300", **env})


def line(done: Done, check: str) -> str:
    """What is said of a check, with its level."""
    (found,) = [each for each in done.out.splitlines() if re.match(rf"\w+ +{check} ", each)]
    return re.sub(" +", " ", found)


@asynccontextmanager
async def answering(status: int, text: str, path: str) -> AsyncIterator[str]:
    """The address of a server without models that gives one answer at a path."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, content_type="text/html")

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    app = web.Application()
    for each, handler in {"/v1/models": models, path: answer}.items():
        app.router.add_get(each, handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_proxy_without_a_gateway_behind_it_is_named(status: int) -> None:
    async with answering(status, "<style>h1 {color: red}</style><h1>Unavailable</h1>", "/v1/models") as url:
        done = await doctor(url)
    assert done.status == 1
    told = f"wrong gateway a proxy answers at {url} with status {status}: no gateway behind it is ready"
    assert line(done, "gateway").startswith(told)


@pytest.mark.parametrize(
    ("status", "todo"), [(404, "update the gateway"), (500, "ask again, or read the gateway's log")]
)
async def test_a_gateway_is_to_be_updated_only_where_it_does_not_know_of_drafters(status: int, todo: str) -> None:
    async with answering(status, "no", "/v1/dsd/drafter") as url:
        done = await doctor(url)
    assert f"(status {status}) -> {todo}" in line(done, "drafter")


async def test_a_draft_that_is_not_looked_at_is_not_passed_over(keyed: World, tmp_path: Path) -> None:
    done = await doctor(address(keyed), "--draft", str(tmp_path), DSD_API_KEY=KEYS["bob"])
    told = f"note vocabulary that of {tmp_path} is not looked at: The API key bob has no drafters"
    assert line(done, "vocabulary").startswith(told)


async def test_a_vocabulary_is_compared_without_the_drafter_s_key(keyed: World, tmp_path: Path) -> None:
    done = await doctor(address(keyed), "--draft", str(tmp_path / "target"), DSD_API_KEY=KEYS["alice"])
    assert line(done, "vocabulary").startswith("ok vocabulary the draft has that of tiny")
    assert "NATS is not looked at" in line(done, "drafter")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    done = await doctor(address(keyed), "--draft", str(tmp_path), DSD_API_KEY=KEYS["alice"])
    assert line(done, "vocabulary").startswith("wrong vocabulary the draft's is")


async def test_what_the_helper_complains_of_is_told(keyed: World) -> None:
    secrets = {"DSD_API_KEY": KEYS["alice"], "DSD_DRAFTER_KEY": SEED}
    done = await doctor(address(keyed), DSD_LOG_LEVEL="loud", **secrets)
    assert re.match(r"wrong NATS it could not be asked: .*DSD_LOG_LEVEL", line(done, "NATS")), done.out
    assert SEED not in done.out


async def test_texts_without_any_drafter_prove_nothing_of_speculation(other: OtherServer) -> None:
    other.events = [chunk("The sea."), "[DONE]"]
    async with connected(other.url) as gateway:
        (finding,) = await lossless(gateway)
    assert (finding.level, finding.check) == ("note", "lossless")
    assert "no drafter took part" in finding.text
