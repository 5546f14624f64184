"""The console in Debian's Chromium, headless, driven by Playwright: a visit, and what its page shows in its own cells.

Invariant: a figure is read where a person reads it. Nothing here asks the gateway.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Browser, ConsoleMessage, Page, Request

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
WAIT_MS = 60_000  # the machine may be busy
PROBES = Path(__file__).parent / "probes.js"
REFUSED = "Failed to load resource: the server responded with a status of"
Row: TypeAlias = dict[str, str]  # of a table: texts by the name of their column
_FIGURE = re.compile(r"(?:× )?(-?[\d,]+)(\.\d+)?(?: (ms|s|%))?(?: ago)?")
_UNITS = {"ms": 1.0, "s": 1000.0, "%": 0.01, None: 1.0}


@dataclass(frozen=True, slots=True)
class Figure:
    """A number as a cell shows it, in milliseconds if it is a time. half_step: half of its last place."""

    value: float
    half_step: float

    def is_about(self, value: float) -> bool:
        """Whether this is the rounded value."""
        return abs(self.value - value) <= 1.001 * self.half_step


def figure(text: str) -> Figure | None:
    """The number of a cell; None for the dash of a cell that has none."""
    if text == "–":
        return None
    found = _FIGURE.fullmatch(text)
    assert found is not None, f"{text!r} is no figure"
    whole, places, unit = found.groups()
    scale = _UNITS[unit]
    return Figure(float(whole.replace(",", "") + (places or "")) * scale, scale * 0.5 * 10 ** (1 - len(places or ".")))


@dataclass
class Visit:
    """A page of the console, and what it did."""

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    may_be_refused: bool = False  # whether answers with an error status are part of the test

    def hear(self, message: ConsoleMessage) -> None:
        is_refusal = self.may_be_refused and message.text.startswith(REFUSED)
        if message.type in ("error", "warning") and not is_refusal:
            self.problems.append(message.text)

    def see(self, request: Request) -> None:
        self.requests.append(request.url)

    async def ask(self, prompt: str) -> None:
        """Sends a question and waits for the end of its answer."""
        await self.page.fill("#prompt", prompt)
        await self.page.press("#prompt", "Enter")
        await self.idle()

    async def idle(self) -> None:
        await self.page.wait_for_selector("#stop:disabled")

    async def text(self, selector: str) -> str:
        """The text of the last such element."""
        return await self.page.locator(selector).last.inner_text()

    async def table(self, caption: str) -> list[Row]:
        """The rows of a table, also of one that is folded. `link`: where its row leads."""
        rows: list[Row] = await self.page.evaluate("(caption) => probes.table(caption)", caption)
        return rows

    async def table_again(self, caption: str, renew: str = "") -> list[Row]:
        """Its rows once the page has written them again. renew: the button for that, where it does not do so itself."""
        await self.page.evaluate("(caption) => probes.empty(caption)", caption)
        if renew:
            await self.page.click(renew)
        await self.page.wait_for_function("(caption) => probes.table(caption).length", arg=caption)
        return await self.table(caption)

    async def phases(self) -> dict[str, Figure]:
        """The parts of a request's time in its timeline."""
        told = [text.split(" (")[0].split(": ") for text in await self.page.evaluate("probes.phases()")]
        return {name: found for name, text in told if (found := figure(text)) is not None}

    async def open(self, view: str, shown: str) -> None:
        """Goes to `#view`, and returns when it shows this selector."""
        await self.page.evaluate("(view) => (location.hash = view)", view)
        await self.page.wait_for_selector(shown)

    async def check_text(self) -> None:
        """All text can be read, and all controls have names."""
        found = await self.page.evaluate("probes.contrast()")
        assert [each for each in found if each[1] < 4.5] == []
        assert await self.page.evaluate("probes.unnamed()") == []

    def check(self) -> None:
        """Nothing went wrong, and nothing went anywhere but to the gateway."""
        assert self.problems == []
        assert {urlsplit(url)[:2] for url in self.requests} == {urlsplit(self.url)[:2]}


Visiting: TypeAlias = Callable[..., AbstractAsyncContextManager[Visit]]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A fresh profile. Skips the test where there is no browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.async_api", reason="no playwright: pip install '.[dev]'")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--no-sandbox"])
        yield browser
        await browser.close()


@asynccontextmanager
async def visit_of(
    browser: Browser, gateway: str, *, view: str = "", may_be_refused: bool = False, **options: Any
) -> AsyncIterator[Visit]:
    """Opens the console of a gateway in a profile of its own; checks at the end what it did."""
    context = await browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
    context.set_default_timeout(WAIT_MS)
    await context.add_init_script(path=PROBES)
    visit = Visit(await context.new_page(), f"{gateway}/console{view}", may_be_refused=may_be_refused)
    visit.page.on("console", visit.hear)
    visit.page.on("pageerror", lambda error: visit.problems.append(str(error)))
    context.on("request", visit.see)
    try:
        await visit.page.goto(visit.url)
        await visit.page.wait_for_selector("nav a[aria-current]")
        yield visit
        visit.check()
    finally:
        await context.close()
