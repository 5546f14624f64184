"""The page with a real gateway and scripted peers: chat, stop, errors, keys, policy, keyboard, colours."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shared.protocol.messages import Reason, WindowDecision
from tests.console.browser import Visit, Visiting
from tests.gateway.admission.test_api_keys import KEYS, entry, write
from tests.gateway.conftest import World, a_world
from tests.gateway.fakes import FakeDrafter, FakeVerifier
from tests.gateway.http.test_http import CHAT, chat
from tests.gateway.tiny import make_folder

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script> & more"


def address(world: World) -> str:
    return str(world.client.make_url("")).rstrip("/")


@pytest_asyncio.fixture(loop_scope="session")
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(make_folder(tmp_path / "target"), session_timeout_s=1.0) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def keyed(tmp_path: Path) -> AsyncIterator[World]:
    file = tmp_path / "keys.toml"
    write(file, *(entry(name, key) for name, key in KEYS.items()))
    async with a_world(make_folder(tmp_path / "target"), api_keys_file=str(file)) as made:
        await made.verifier()
        yield made


async def begins(visit: Visit) -> None:
    """Returns once a token of the last answer is shown."""
    await visit.page.wait_for_selector(".turn:last-child .token")


async def test_an_answer_is_shown_by_source_and_as_text_whatever_it_says(world: World, visiting: Visiting) -> None:
    world.answer = MARKUP
    await world.verifier()
    await world.drafter()
    async with visiting(address(world)) as visit:
        await visit.ask(f"say {MARKUP}")
        assert await visit.text(".turn .text") == MARKUP
        assert MARKUP in await visit.text(".prompt")
        sources = await visit.page.eval_on_selector_all(
            ".turn .token", "all => all.map((each) => each.className.split(' ')[1])"
        )
        assert {"accepted"} < set(sources) <= {"accepted", "bonus", "target"}
        assert "acceptance 100 %" in await visit.text("#news")
        for figure in ("tokens per second", "TTFT", "TPOT", "acceptance", "window", "tokens per verdict"):
            assert figure in await visit.text(".comparison")


async def test_an_answer_can_be_stopped_and_the_chat_goes_on(world: World, visiting: Visiting) -> None:
    world.answer = "hello world " * 400
    await world.verifier(pass_s=0.02)
    async with visiting(address(world)) as visit:
        for stop in (lambda: visit.page.click("#stop"), lambda: visit.page.keyboard.press("Escape")):
            await visit.page.fill("#prompt", "go on")
            await visit.page.press("#prompt", "Enter")
            await begins(visit)
            await stop()
            await visit.idle()
            assert "stopped after" in await visit.text(".turn .live")
            assert await visit.text(".turn .text")
            await world.no_session_is_left()
        world.answer = "the end"
        await visit.ask("and now?")
        assert await visit.text(".turn .text") == "the end"
        await visit.page.click("#requests-link")
        await visit.page.wait_for_selector("#request-list tbody tr:nth-child(3)")
        assert (await visit.text("#request-list")).count("cancelled") == 2


async def test_errors_are_told_where_the_answer_would_be(world: World, visiting: Visiting) -> None:
    async with visiting(address(world), may_be_refused=True) as visit:
        await visit.ask("is anybody there?")
        assert "No verifier serves" in await visit.text(".turn .error")
        assert "failed" in await visit.text("#news")
        world.answer = "hello world " * 400
        verifier = await world.verifier(pass_s=0.02)
        await visit.page.fill("#prompt", "and now?")
        await visit.page.press("#prompt", "Enter")
        await begins(visit)
        await verifier.kill()
        await visit.idle()
        assert "no verifier" in await visit.text(".turn .error")
        assert "hello" in await visit.text(".turn .text"), "what came stays"


async def test_a_gateway_that_is_gone_is_told_too(visiting: Visiting, tmp_path: Path) -> None:
    async with a_world(make_folder(tmp_path / "target")) as world:
        await world.verifier()
        async with visiting(address(world)) as visit:
            await visit.page.context.set_offline(True)
            await visit.ask("hello?")
            assert await visit.text(".turn .error") == "The gateway can't be reached"
            visit.problems.clear()  # Chromium tells of the connection itself


async def test_a_stream_that_ends_without_a_report_is_an_answer_all_the_same(world: World, visiting: Visiting) -> None:
    """A proxy may drop what it does not know."""
    await world.verifier()
    async with visiting(address(world)) as visit:
        event = {
            "id": "chatcmpl-1",
            "choices": [],
            "dsd": {"pieces": [{"text": "hi", "source": "target"}], "window": 0},
        }
        body = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n"
        await visit.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
        await visit.ask("hello")
        await visit.page.wait_for_selector("#news:text-is('The answer is complete')", state="attached")
        assert await visit.text(".turn .text") == "hi"
        await visit.page.unroute("**/v1/chat/completions")
        await visit.ask("and now?")
        assert await visit.page.locator(".comparison").count() == 1, "of the second answer"


async def test_what_is_said_of_the_list_of_requests_holds_until_the_next_look(world: World, visiting: Visiting) -> None:
    await world.verifier()
    async with visiting(address(world), view="#requests", may_be_refused=True) as visit:
        page, said = visit.page, "#requests-said"
        await page.wait_for_selector(f"{said}:has-text('No request is over yet.')")
        async with world.client.post(CHAT, json=chat()) as response:
            assert response.status == 200
        await page.click("#refresh")
        await page.wait_for_selector("#request-list tbody tr")
        await page.wait_for_selector(f"{said}:empty", state="attached")
        await page.click("#request-list a")
        await page.wait_for_selector(".timeline svg")
        await page.route("**/v1/dsd/requests", lambda route: route.fulfill(status=503))
        await page.click("#refresh")
        await page.wait_for_selector(f"{said}.error:has-text('Status 503')")
        assert await page.is_visible(".timeline svg"), "what was open stays"
        await page.unroute("**/v1/dsd/requests")
        await page.click("#refresh")
        await page.wait_for_selector(f"{said}:empty", state="attached")
        await visit.open("requests/0123", f"{said}.error:has-text('No such request')")
        await page.click("#refresh")
        await page.wait_for_selector(f"{said}:empty", state="attached")


async def test_a_gain_is_the_mean_of_what_decisions_tell(world: World, visiting: Visiting) -> None:
    verifier, drafter = await world.verifier(), await world.drafter()

    async def shows(gain: str) -> None:
        cell = "#fleet-tables tr:has-text('adaptive') td"
        await visit.page.wait_for_selector(f"{cell}:has-text('{gain}')")
        (pair,) = await visit.table("Pairs and their windows")
        assert pair["gain (1 min)"] == gain

    decide(world, drafter, verifier, 8, pass_ms=40.0, tpot_ms=20.0)
    async with visiting(address(world), view="#fleet") as visit:
        await shows("× 2.00")
        decide(world, drafter, verifier, 8, pass_ms=40.0, tpot_ms=10.0)
        await shows("× 3.00")
        decide(world, drafter, verifier, 8, pass_ms=40.0, tpot_ms=10.0)  # repeated: it tells nothing new
        for _ in range(2):  # the first may have been under way
            await visit.page.wait_for_event("response")
        decide(world, drafter, verifier, 0, pass_ms=45.0, tpot_ms=50.0)
        await shows("× 2.30")


async def test_the_page_needs_no_key_and_asks_for_one(keyed: World, visiting: Visiting) -> None:
    async with visiting(address(keyed), may_be_refused=True) as visit:
        page = visit.page
        await page.wait_for_selector("#key:focus")
        asked = {url for url in visit.requests if "/console" not in url}
        assert asked == set(), "nothing is asked without a key"
        await page.fill("#key", "wrong")
        await page.press("#key", "Enter")
        await page.wait_for_selector("text=The gateway does not know this key")
        await page.fill("#key", KEYS["alice"])
        await page.press("#key", "Enter")
        await page.wait_for_selector("#prompt:focus")
        await visit.ask("hello")
        kept = await page.evaluate("({...localStorage, cookie: document.cookie, n: sessionStorage.length})")
        assert kept == {"cookie": "", "n": 1}
        assert KEYS["alice"] not in await page.content()
        await page.click("#requests-link")
        await page.wait_for_selector("#request-list tbody tr")
        await page.click("#key-button")
        await page.click("#forget-key")
        await page.wait_for_selector("#key:focus")
        await page.fill("#key", KEYS["bob"])
        await page.press("#key", "Enter")
        await page.wait_for_selector("text=No request is over yet.")


async def test_under_another_key_nothing_of_the_old_one_s_is_shown_or_sent(keyed: World, visiting: Visiting) -> None:
    async with visiting(address(keyed), may_be_refused=True) as visit:
        page = visit.page
        for key, num_turns in ((KEYS["alice"], 0), (KEYS["bob"], 1)):
            assert await page.locator(".turn").count() == num_turns
            if num_turns:
                await page.click("#key-button")
            await page.fill("#key", key)
            await page.press("#key", "Enter")
            await page.wait_for_selector("#key-form", state="hidden")
            await page.wait_for_function("() => document.querySelectorAll('.turn').length === 0")
            await visit.ask("hello")


async def test_a_key_that_could_not_be_checked_is_not_called_valid(keyed: World, visiting: Visiting) -> None:
    async with visiting(address(keyed), may_be_refused=True) as visit:
        page = visit.page
        await page.wait_for_selector("#key:focus")
        await page.fill("#key", "schlüssel\u20ac")
        await page.press("#key", "Enter")
        await page.wait_for_selector("#trouble:has-text('reached')")
        assert await page.is_visible("#key-form")
        assert "The key is valid" not in await page.content()


async def test_where_the_inspector_is_off_the_page_has_none(visiting: Visiting, tmp_path: Path) -> None:
    async with a_world(make_folder(tmp_path / "target"), inspector=False) as world:
        await world.verifier()
        async with visiting(address(world), view="#requests") as visit:
            assert not await visit.page.is_visible("#requests-link")
            await visit.ask("hello")
            assert "Timeline" not in await visit.text(".turn")


async def test_the_policy_is_in_force(world: World, visiting: Visiting) -> None:
    async with visiting(address(world)) as visit:
        finished: list[str] = []
        visit.page.on("requestfinished", lambda request: finished.append(request.url))
        told = await visit.page.evaluate("probes.trespass()")
        assert told["ran"] == 0
        assert told["results"][0] == told["results"][3] == "TypeError", "no text becomes a script or markup"
        assert told["results"][4] == "EvalError"
        assert {"style-src-elem", "style-src-attr", "img-src", "connect-src"} <= set(told["broken"])
        assert [url for url in finished if "elsewhere" in url] == []
        visit.problems.clear()
        visit.requests.clear()
        await visit.page.reload()


async def test_everything_is_done_with_the_keyboard_alone(world: World, visiting: Visiting) -> None:
    world.answer = "hello world"
    await world.verifier()
    await world.drafter()
    async with visiting(address(world)) as visit:
        page = visit.page

        async def tab_to(selector: str) -> None:
            for _ in range(40):
                await page.keyboard.press("Tab")
                if await page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                    return
            raise AssertionError(f"no way to {selector}")

        await tab_to("#prompt")
        await page.keyboard.type("first line")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("second line")
        await page.keyboard.press("Enter")
        await visit.idle()
        assert await visit.text(".prompt") == "first line\nsecond line"
        assert await page.evaluate("document.activeElement.id") == "prompt", "the next question can be typed at once"
        await page.keyboard.press("Shift+Tab")
        while not await page.evaluate("document.activeElement.matches('.turn button')"):
            await page.keyboard.press("Shift+Tab")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".comparison caption:has-text('Both answers have the same text')")
        await page.wait_for_selector(".turn button:focus")
        await tab_to(".turn a")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".timeline h3:focus")
        await tab_to(".timeline summary")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".timeline details[open] tbody tr")
        await page.evaluate("document.activeElement.blur()")
        await tab_to("nav a[href='#fleet']")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#fleet-tables tbody tr")
        await tab_to("#fleet-tables .scroll")
        await page.wait_for_timeout(1500)
        assert await page.evaluate("document.activeElement.matches('.scroll')"), "news of the fleet take no focus"


def decide(
    world: World,
    drafter: FakeDrafter,
    verifier: FakeVerifier,
    window: int,
    pass_ms: float = 40.0,
    tpot_ms: float = 25.0,
) -> None:
    """As if a controller had said it."""
    reason = Reason(1, 0.9, 10.0, 20.0, pass_ms, tpot_ms, 0.1, 1.0)
    ids = drafter.instance_id, verifier.instance_id
    decision = WindowDecision(*ids, window, 2, free_run=True, policy="adaptive", sequence=1, reason=reason)
    world.gateway.sessions.windows.observe(decision, "controller.0123456789ab", time.monotonic())


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_all_text_can_be_read_and_all_controls_have_names(world: World, visiting: Visiting, scheme: str) -> None:
    world.answer = "hello world, the quick brown fox " * 20
    verifier = await world.verifier(pass_s=0.02)
    drafter, lost = await world.drafter(), await world.drafter("lost", promised_s=0.3)
    for each, window in ((drafter, 8), (lost, 0)):
        decide(world, each, verifier, window)
    async with visiting(address(world), color_scheme=scheme) as visit:
        page = visit.page
        await page.click("#options summary")
        await page.wait_for_selector("#drafter option[value=lost]", state="attached")
        await page.select_option("#drafter", "lost")
        await page.click("nav a[href='#fleet']")
        await page.wait_for_selector("#picture .link.paused")
        await visit.check_text()
        await page.click("nav a[href='#chat']")
        await page.fill("#prompt", "hello")
        await page.press("#prompt", "Enter")
        await begins(visit)
        await lost.kill()
        await visit.idle()
        await page.select_option("#drafter", "")
        drafter.script = lambda prompt_ids: [1]
        await visit.ask("hello again")
        await page.click(".turn:last-child button")
        await visit.idle()
        await visit.check_text()
        await page.click("nav a[href='#fleet']")
        await page.wait_for_selector("#fleet-tables tbody tr")
        await visit.check_text()
        await page.click("nav a[href='#requests']")
        await page.click("#request-list tbody tr:last-child a")
        await page.wait_for_selector(".timeline .mark text")
        await visit.check_text()


async def test_settings_that_do_not_come_are_told(world: World, visiting: Visiting) -> None:
    async with visiting(address(world), may_be_refused=True) as visit:
        await visit.page.route("**/settings.json", lambda route: route.fulfill(status=503))
        await visit.page.reload()
        await visit.page.wait_for_selector("#trouble:has-text('Status 503. Load the page again later.')")
        assert visit.problems == []


async def test_it_fits_a_narrow_screen(world: World, visiting: Visiting) -> None:
    await world.verifier()
    await world.drafter()
    async with visiting(address(world), viewport={"width": 360, "height": 700}) as visit:
        await visit.ask("hello")
        for link in ("#chat", "#fleet", "#requests"):
            await visit.page.click(f"nav a[href='{link}']")
            await visit.page.wait_for_selector(f"{link}-view:visible")
            assert await visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), link


async def test_a_long_answer_stays_readable_while_it_comes(world: World, visiting: Visiting) -> None:
    world.answer = "hello world, the quick brown fox " * 200
    await world.verifier(pass_s=0.0)
    await world.drafter()
    async with visiting(address(world)) as visit:
        await visit.page.evaluate("document.getElementById('max-tokens').value = 400")
        await visit.ask("a lot, please")
        assert await visit.page.locator(".turn .token").count() > 300
        await visit.page.click(".turn a")
        await visit.page.wait_for_selector(".timeline svg")
        assert await visit.page.locator(".timeline svg *").count() < 80, "one path for all of a kind"
