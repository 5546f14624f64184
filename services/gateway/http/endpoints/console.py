"""GET /console: the page for people, and the files that it loads (docs/console.md).

Invariant: only files of the console's own folder are served, as they are. They hold nothing about the system, so they
need no API key. The browser may load, run and send nothing but from and to this gateway.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from aiohttp import web

FOLDER = Path(__file__).parents[2] / "console"
PAGE, SETTINGS = "index.html", "settings.json"
FILES = (
    "answer.js",
    "app.js",
    "chat.js",
    "dom.js",
    "fleet.js",
    "gateway.js",
    "icon.svg",
    "picture.js",
    "requests.js",
    "style.css",
    "timeline.js",
)
CONSOLE_PATHS = frozenset({"/console", "/console/", *(f"/console/{name}" for name in (*FILES, SETTINGS))})
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class ConsoleSettings(msgspec.Struct, frozen=True):
    """What the page must know before it asks for anything."""

    needs_key: bool
    has_inspector: bool


class ConsolePage:
    """The page and its files, read once."""

    def __init__(self, needs_key: bool, has_inspector: bool) -> None:
        self._files = {name: (FOLDER / name).read_bytes() for name in (PAGE, *FILES)}
        self._files[SETTINGS] = msgspec.json.encode(ConsoleSettings(needs_key, has_inspector))

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/console", self._page)
        app.router.add_get("/console/", self._moved)
        app.router.add_get("/console/{file}", self._file)

    async def _page(self, request: web.Request) -> web.Response:
        return self._response(PAGE)

    async def _moved(self, request: web.Request) -> web.Response:
        return web.Response(status=308, headers={**HEADERS, "Location": "../console"})

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        if name not in self._files or name == PAGE:
            raise web.HTTPNotFound
        return self._response(name)

    def _response(self, name: str) -> web.Response:
        kind = TYPES.get(Path(name).suffix, "application/json")
        return web.Response(body=self._files[name], content_type=kind, charset="utf-8", headers=HEADERS)
