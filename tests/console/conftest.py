"""The console in Debian's Chromium, headless, driven by Playwright. `make test-console` runs these tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium with a fresh profile."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium") if not os.environ.get("CI") else pytest.fail("no chromium")
    playwright = pytest.importorskip("playwright.async_api", reason="no playwright: pip install '.[dev]'")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def visiting(browser: Browser) -> Visiting:
    """Opens the console of a gateway in a profile of its own; checks at the end what it did."""

    @asynccontextmanager
    async def visiting(
        gateway: str, *, view: str = "", may_be_refused: bool = False, **options: Any
    ) -> AsyncIterator[Visit]:
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

    return visiting
