"""A man in the middle of a gateway's HTTP: it tells another time, or changes answers that speculation sped up."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

KEPT = ("Authorization", "Content-Type")


@asynccontextmanager
async def meddling(gateway: str, *, skew_s: float = 0.0, changes_text: bool = False) -> AsyncIterator[str]:
    """Its address."""

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name: request.headers[name] for name in KEPT if name in request.headers}
        async with (
            aiohttp.ClientSession() as http,
            http.request(request.method, gateway + request.path, data=body, headers=headers) as response,
        ):
            answer = await response.read()
        if changes_text and body and json.loads(body)["dsd"]["speculation"] == "adaptive":
            answer = answer.replace(b'"content":"', b'"content":"X', 2)
        date = formatdate(time.time() + skew_s, usegmt=True)
        return web.Response(
            status=response.status, body=answer, headers={"Date": date}, content_type=response.content_type
        )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")
