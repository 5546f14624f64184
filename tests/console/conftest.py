"""One browser for all tests of the console. `make test-console` runs them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.console.browser import CHROMIUM, Visiting, chromium, visit_of

if TYPE_CHECKING:
    from playwright.async_api import Browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium with a fresh profile."""
    if CHROMIUM is None and os.environ.get("CI"):
        pytest.fail("no chromium")
    async with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def visiting(browser: Browser) -> Visiting:
    """Opens the console of a gateway in a profile of its own; checks at the end what it did."""
    return partial(visit_of, browser)
