"""The page before a whole system of real processes and models. It makes the pictures of the documentation:
`make test-console PICTURES=docs/pictures`."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.console.conftest import Visit, Visiting
from tests.e2e.processes import Processes, processes

pytestmark = pytest.mark.asyncio(loop_scope="session")

PICTURES = os.environ.get("CONSOLE_PICTURES")
PROMPT = "Explain in a few sentences how rain is made."


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    async with processes(default_models, tmp_path_factory.mktemp("console"), ("int8", "int4"), 1) as system:
        yield system


async def show(visit: Visit, name: str, tmp_path: Path) -> None:
    """Takes a picture: for the documentation if that is asked for."""
    folder = Path(PICTURES) if PICTURES else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    height = await visit.page.evaluate("document.documentElement.scrollHeight")
    await visit.page.set_viewport_size({"width": 1100, "height": height})
    path = folder / f"console-{name}.png"
    await visit.page.screenshot(path=path, animations="disabled", caret="hide")
    assert path.stat().st_size > 10_000


async def test_an_answer_is_compared_with_the_target_alone_and_its_timeline_shown(
    system: Processes, visiting: Visiting, tmp_path: Path
) -> None:
    async with visiting(system.system.plan.address, color_scheme="light") as visit:
        page = visit.page
        await page.click("#options summary")
        await page.fill("#max-tokens", "96")
        await page.wait_for_selector("#drafter option[value=drafter-0]", state="attached")
        await page.select_option("#drafter", "drafter-0")
        await page.click("#options summary")
        await visit.ask(PROMPT)
        text = await visit.text(".turn .text")
        assert len(text.split()) > 20
        assert await page.locator(".turn .token.accepted").count() > 10
        await page.click("text=Ask again with speculation off")
        await page.wait_for_selector(".comparison caption:has-text('Both answers have the same text')")
        texts = await page.locator(".turn .text").all_inner_texts()
        assert texts == [text, text]
        assert await page.locator(".answer:nth-child(2) .token:not(.target)").count() == 0
        gain = await page.locator(".comparison tr:has-text('TPOT') td").last.inner_text()
        assert gain.startswith("×"), gain
        await show(visit, "chat", tmp_path)
        await page.click("text=Timeline (adaptive window)")
        await page.wait_for_selector(".timeline .square.accepted")
        told = await visit.text(".timeline")
        assert "Decoding took" in told
        assert "prefill" in told
        await visit.check_text()
        await show(visit, "requests", tmp_path)


async def test_the_fleet_is_shown_live_and_tells_when_a_drafter_goes_and_comes_back(
    system: Processes, visiting: Visiting, tmp_path: Path
) -> None:
    async with visiting(system.system.plan.address, color_scheme="light") as visit:
        page = visit.page
        await page.click("#options summary")
        for name in system.names("drafter"):  # windows are decided for both
            await page.wait_for_selector(f"#drafter option[value={name}]", state="attached")
            await page.select_option("#drafter", name)
            await visit.ask(PROMPT)
        await page.click("nav a[href='#fleet']")
        await page.wait_for_selector("#picture .drafter:nth-of-type(2)")
        await page.wait_for_selector("#picture .link")
        rows = await page.locator("#fleet-tables tbody tr").all_inner_texts()
        assert {row.split("\t")[0] for row in rows} >= {*system.names("drafter"), "verifier-0", "controller"}
        await visit.check_text()
        await show(visit, "fleet", tmp_path)

        num_starts = system.child("drafter-1").num_starts
        system.signal("drafter-1", signal.SIGKILL)
        await page.wait_for_selector("#picture .drafter.gone:has-text('drafter-1')")
        await page.wait_for_selector("#news:has-text('drafter-1 has gone')", state="attached")
        await page.wait_for_selector("#fleet-summary:has-text('1 drafter')")
        await system.restarted("drafter-1", num_starts)
        await page.wait_for_selector("#fleet-summary:has-text('2 drafters')")
        await page.wait_for_selector("#news:has-text('drafter-1 has joined')", state="attached")
