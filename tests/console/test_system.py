"""The page before a whole system of real processes and models. It makes the pictures of the documentation:
`make test-console PICTURES=docs/pictures`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.console import expected
from tests.console.browser import Visit, Visiting
from tests.e2e.processes import Processes, Question, processes

if TYPE_CHECKING:
    from playwright.async_api import Route

pytestmark = pytest.mark.asyncio(loop_scope="session")

PICTURES = os.environ.get("CONSOLE_PICTURES")
PROMPT = "Explain in a few sentences how rain is made."


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    async with processes(default_models, tmp_path_factory.mktemp("console"), ("int8", "int4"), 1) as system:
        yield system


@dataclass
class Answers:
    """What the page got from one address. stays: it gets the last answer again, so that its cells can be compared."""

    told: list[dict[str, Any]] = field(default_factory=list)
    stays: bool = False

    async def __call__(self, route: Route) -> None:
        if not self.stays or not self.told:
            response = await route.fetch()
            self.told.append(await response.json())
        await route.fulfill(json=self.told[-1])


async def get(system: Processes, path: str) -> Any:
    async with system.http.get(f"{system.system.plan.address}/{path}") as response:
        return await response.json()


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
        await page.evaluate("probes.keep('/v1/chat/completions')")
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
        reports = [expected.report(stream) for stream in await page.evaluate("probes.kept()")]
        assert [report["speculation"] for report in reports] == ["adaptive", "off"]
        expected.check(await visit.table("Both answers have the same text"), expected.comparison(*reports))
        await show(visit, "chat", tmp_path)
        await page.click("text=Timeline (adaptive window)")
        await page.wait_for_selector(".timeline .square.accepted")
        told = await visit.text(".timeline")
        assert "Decoding took" in told
        assert "prefill" in told
        await compare_requests(system, visit)
        await visit.check_text()
        await show(visit, "requests", tmp_path)


async def compare_requests(system: Processes, visit: Visit) -> None:
    """The list, and the open timeline of its second row, against the API."""
    listed = (await get(system, "v1/dsd/requests"))["requests"]
    expected.check(await visit.table("Requests, the newest first"), expected.requests(listed))
    told = await get(system, f"v1/dsd/requests/{listed[1]['id']}")
    shown, phases = await visit.phases(), expected.phases(told)
    assert shown.keys() == phases.keys()
    assert all(shown[name].is_about(phases[name]) for name in phases), (shown, phases)
    bars = await visit.page.evaluate("probes.bars()")
    a_ms = bars["decode"] / phases["decode"]
    assert bars == {name: pytest.approx(max(1.0, a_ms * each), abs=0.2) for name, each in phases.items()}
    assert await visit.page.evaluate("probes.squares()") == expected.squares(told)
    sentence = await visit.text(".timeline p:has-text('Decoding took')")
    found = [float(each) for each in re.findall(r"\d+(?:\.\d+)?", sentence)]
    assert found == pytest.approx(expected.decoding(told), abs=0.51), sentence
    assert found[1] == pytest.approx(expected.decoding(told)[1], abs=0.0051), sentence
    expected.check(await visit.table("Verdicts"), expected.verdicts(told))


async def test_every_figure_of_the_fleet_is_what_the_api_tells(system: Processes, visiting: Visiting) -> None:
    """While two drafters are at work."""
    async with visiting(system.system.plan.address) as visit, asyncio.TaskGroup() as tasks:
        looks = Answers()
        await visit.page.route("**/dsd/fleet", looks)
        questions = [Question(PROMPT, max_tokens=128) for _ in system.names("drafter")]
        names = system.names("drafter")
        asked = [tasks.create_task(system.ask(each, drafter=name)) for each, name in zip(questions, names, strict=True)]
        await visit.page.click("nav a[href='#fleet']")
        await asyncio.wait(asked)
        while not all(expected.gain(looks.told, pair) for pair in looks.told[-1]["windows"]):
            await visit.page.wait_for_event("response")
        looks.stays = True
        for _ in range(2):  # the first may have been under way
            await visit.page.wait_for_event("response", lambda response: response.url.endswith("dsd/fleet"))
        fleet = looks.told[-1]
        expected.check(await visit.table("Drafters"), expected.drafters(fleet))
        expected.check(await visit.table("Verifiers"), expected.verifiers(fleet))
        pairs = expected.pairs(looks.told)
        assert len(pairs) >= 2
        expected.check(await visit.table("Pairs and their windows"), pairs)


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
