"""A fake gateway; the prompt selects the kind of answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

REPORT = {
    "seed": 1,
    "speculation": "adaptive",
    "window": 8,
    "drafter": "d",
    "verifier": "v",
    "num_verdicts": 3,
    "accepted": 4,
    "rejected": 2,
    "late": 1,
    "discarded": 5,
    "tokens_per_verdict": 2.0,
    "ttft_ms": 1.0,
    "tpot_ms": 1.0,
}


class FakeGateway:
    """Prompt "refuse": status 429; "break": half an answer; any other: an answer of three tokens."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.together: asyncio.Barrier | None = None  # requests wait here for each other

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.together is not None:
            await self.together.wait()
        prompt = body["messages"][-1]["content"]
        if prompt == "refuse":
            return web.json_response({"error": {"message": "too many"}}, status=429)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in ("one", " two", " three"):
            await self._say(response, {"choices": [{"delta": {"content": word}}]})
            if prompt == "break":
                return response
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        await self._say(response, {"choices": [{"delta": {}, "finish_reason": "stop"}], "dsd": REPORT})
        await self._say(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _say(self, response: web.StreamResponse, chunk: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())


@asynccontextmanager
async def serving() -> AsyncIterator[FakeGateway]:
    gateway, app = FakeGateway(), web.Application()
    app.router.add_get("/v1/models", gateway.models)
    app.router.add_post("/v1/chat/completions", gateway.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        gateway.url = f"http://{host}:{port}"
        yield gateway
    finally:
        await runner.cleanup()
