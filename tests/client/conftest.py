"""`dsd` as a process against a gateway with fake peers, and against servers that are not DSD."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.protocol import subjects
from shared.protocol.messages import WindowDecision
from shared.protocol.subjects import new_instance_id
from tests.gateway.conftest import World, a_world, until
from tests.gateway.tiny import make_folder

ROOT = Path(__file__).parents[2]
DSD = (sys.executable, "-m", "client")
END_S = 30.0


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    status: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    """That of this process without settings of ours, on a terminal of 100 columns."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DSD_") and name != "NO_COLOR"}
    return kept | {"COLUMNS": "100"} | changes


async def start(*argv: str, url: str, env: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    """`dsd` with pipes; DSD_URL is the address."""
    pipe = asyncio.subprocess.PIPE
    variables = environment(DSD_URL=url, **(env or {}))
    return await asyncio.create_subprocess_exec(
        *DSD, *argv, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, stderr=pipe
    )


async def dsd(*argv: str, url: str, stdin: str = "", env: dict[str, str] | None = None) -> Done:
    """`dsd` to its end; bytes that are not UTF-8 go in as surrogates."""
    process = await start(*argv, url=url, env=env)
    try:
        async with asyncio.timeout(END_S):
            out, err = await process.communicate(stdin.encode(errors="surrogateescape"))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


def address(world: World) -> str:
    return str(world.client.make_url("")).rstrip("/")


async def decide(world: World, drafter_id: str, verifier_id: str, window: int) -> None:
    """What a controller would say of a pair."""
    bus, controller_id = world.network.connect(), new_instance_id("controller")
    decision = WindowDecision(drafter_id, verifier_id, window, 2, True, "ladder", 1)
    await bus.publish(subjects.to("drafter", drafter_id, WindowDecision, controller_id), decision)
    await until(lambda: bool(list(world.gateway.sessions.windows)))
    await bus.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(make_folder(tmp_path / "target")) as made:
        yield made


class OtherServer:
    """A server of the OpenAI API that is not DSD: it serves one model and answers chats with scripted events."""

    def __init__(self) -> None:
        self.url = ""
        self.key = ""
        self.events: list[Any] = []  # the events to stream; a str is sent unchanged
        self.refuses_fields: set[str] = set()
        self.fleet_page: str | None = None  # the answer to GET /dsd/fleet
        self.heard: list[dict[str, Any]] = []

    async def models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return self._refuse(401, "Incorrect API key provided", "invalid_api_key")
        return web.json_response({"object": "list", "data": [{"id": "other-model", "object": "model"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.heard.append(body)
        if unknown := self.refuses_fields & set(body):
            return self._refuse(400, f"Unrecognized request argument supplied: {unknown.pop()}", None)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self.events:
            line = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {line}\r\n\r\n".encode())
        return response

    async def fleet(self, request: web.Request) -> web.Response:
        if self.fleet_page is None:
            raise web.HTTPNotFound
        return web.Response(text=self.fleet_page, content_type="text/html")

    def _refuse(self, status: int, message: str, code: str | None) -> web.Response:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        return web.json_response({"error": error}, status=status)


def chunk(text: str = "", **more: Any) -> dict[str, Any]:
    """One event of a chat's stream."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}


def told(*pieces: tuple[str, str], **more: Any) -> dict[str, Any]:
    """One event with text by source."""
    text = "".join(each for each, _ in pieces)
    return chunk(text, dsd={"pieces": [{"text": each, "source": source} for each, source in pieces], **more})


@pytest.fixture
async def other() -> AsyncIterator[OtherServer]:
    async with serving(OtherServer()) as server:
        yield server


@contextlib.asynccontextmanager
async def serving(server: OtherServer) -> AsyncIterator[OtherServer]:
    app = web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/dsd/fleet", server.fleet)
    app.router.add_post("/v1/chat/completions", server.chat)
    async with TestServer(app) as listening:
        server.url = str(listening.make_url("")).rstrip("/")
        yield server
