"""Drafters that users start with `dsd draft`, over WebSockets and a link of 30 ms, here and in another network
namespace: each serves the sessions of its API key alone, and the texts are those without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from services.local.nats_server import free_port
from tests.e2e.joining.system import WAIT_S, Keyed, Place, another_namespace, keyed_system

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

PROMPTS = ("What is a lighthouse for?", "Count from one to twelve.", "Name three rivers.")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["loopback", "namespace"])
async def keyed(
    request: pytest.FixtureRequest, default_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Keyed]:
    with ExitStack() as stack:
        place = Place() if request.param == "loopback" else stack.enter_context(another_namespace())
        async with keyed_system(default_models, tmp_path_factory.mktemp("joining"), place) as system:
            yield system


async def num_prompts(keyed: Keyed, port: int) -> float:
    """Prompts that a drafter was told."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{keyed.place.own}:{port}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        samples = [sample for family in families for sample in family.samples]
    return sum(
        each.value
        for each in samples
        if each.name.startswith("dsd_bus_received_messages") and each.labels.get("message") == "Speculate"
    )


async def until_a_guess_is_accepted(keyed: Keyed, owner: str, expected: str) -> None:
    """Asks again: beside other work a drafter may be too late for all tokens of an answer."""
    async with asyncio.timeout(WAIT_S):
        num_accepted = 0
        while not num_accepted:
            text, told = await keyed.ask(owner, PROMPTS[0], "adaptive")
            assert (text, told["drafter"]) == (expected, f"key-{owner}")
            num_accepted = told["accepted"]


async def test_a_drafter_serves_the_sessions_of_its_key_alone_and_changes_no_text(
    keyed: Keyed, default_models: Path
) -> None:
    draft, port = default_models / "draft-int8", free_port()
    expected = [(await keyed.ask("alice", prompt, "off"))[0] for prompt in PROMPTS]
    async with keyed.drafting("alice", draft, port):
        asked = [(owner, prompt) for prompt in PROMPTS for owner in ("alice", "bob")]
        answers = await asyncio.gather(*(keyed.ask(owner, prompt, "adaptive") for owner, prompt in asked))
        for (owner, prompt), (text, told) in zip(asked, answers, strict=True):
            assert text == expected[PROMPTS.index(prompt)]
            assert told["drafter"] == ("key-alice" if owner == "alice" else None)
        await until_a_guess_is_accepted(keyed, "alice", expected[0])
        seen = await num_prompts(keyed, port)
        assert seen >= len(PROMPTS)
        for prompt in PROMPTS:
            text, told = await keyed.ask("bob", prompt, "adaptive")
            assert (text, told["drafter"]) == (expected[PROMPTS.index(prompt)], None)
        assert await num_prompts(keyed, port) == seen, "bob's prompts went elsewhere"
        async with keyed.drafting("bob", draft):
            pairs = await asyncio.gather(*(keyed.ask(owner, PROMPTS[0], "adaptive") for owner in ("alice", "bob")))
            assert [(text, told["drafter"]) for text, told in pairs] == [
                (expected[0], "key-alice"),
                (expected[0], "key-bob"),
            ]


async def test_a_request_of_another_key_can_not_name_it(keyed: Keyed, default_models: Path) -> None:
    async with keyed.drafting("alice", default_models / "draft-int8"), keyed.http("bob") as http:
        body = {"model": keyed.system.plan.pair.model_name, "prompt": "hi", "dsd": {"drafter": "key-alice"}}
        async with http.post("/v1/completions", json=body) as response:
            assert response.status == 400
            assert "allows no drafter named 'key-alice'" in await response.text()


async def test_one_secret_without_the_other_joins_nothing(keyed: Keyed, default_models: Path) -> None:
    draft = str(default_models / "draft-int8")
    status, _, errors = await keyed.dsd("bob", "draft", "--draft", draft, DSD_DRAFTER_KEY=keyed.drafter_keys["alice"])
    assert (status, "is of none of the API key's drafters: key-bob" in errors) == (1, True)
    status, _, errors = await keyed.dsd("alice", "draft", "--draft", draft, DSD_DRAFTER_KEY="")
    assert (status, "set DSD_DRAFTER_KEY" in errors) == (1, True)
