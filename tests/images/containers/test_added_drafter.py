"""docs/deploy.md alone adds a drafter from another network namespace, and replaces its key while NATS runs.

It goes before the file that stops the overlay.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.processes import until
from tests.images.containers.conftest import Overlay
from tests.images.replay import ROOT

NAME, WAIT_S = "drafter-1", 60.0
MONITOR = 8222

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]


@asynccontextmanager
async def drafting(overlay: Overlay, step: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The commands of a step in the other namespace, until the gateway knows the drafter."""
    command = overlay.command(step, *overlay.place.prefix)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=overlay.folder, env=overlay.environment, start_new_session=True
    )
    try:
        await until(lambda: is_live(overlay), WAIT_S, f"{NAME} does not join")
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def is_live(overlay: Overlay) -> bool:
    async with aiohttp.ClientSession() as http, http.get(f"{overlay.url('gateway')}/dsd/fleet") as response:
        return NAME in [each["name"] for each in (await response.json())["drafters"]]


async def is_gone(overlay: Overlay) -> bool:
    return not await is_live(overlay)


async def ask(overlay: Overlay, **dsd: str) -> tuple[str, dict[str, object]]:
    """A text, and what speculation did for it."""
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Name three rivers."}], "dsd": dsd}
    body |= {"max_tokens": 48, "temperature": 0}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{overlay.url('gateway')}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        told = await response.json()
    return str(told["choices"][0]["message"]["content"]), told["dsd"]


async def refusal(overlay: Overlay, seed: Path) -> str:
    """What NATS answers to a drafter with this seed; empty: it gets in."""
    settings = {
        "DSD_NAME": NAME,
        "DSD_NATS_URL": f"nats://{overlay.place.reached_at}:4222",
        "DSD_NATS_NKEY_SEED": str(seed),
    }
    process = await asyncio.create_subprocess_exec(
        *overlay.place.prefix,
        sys.executable,
        "-m",
        "services.edge_drafter.access",
        cwd=ROOT,
        env=overlay.environment | settings,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return str(json.loads(out)["error"])


async def nats_start(overlay: Overlay) -> tuple[str, str]:
    """When the server says that it started, and podman its container."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{overlay.place.reached_at}:{MONITOR}/varz") as response,
    ):
        told = await response.json()
    started = await asyncio.to_thread(overlay.podman, "inspect", "--format", "{{.State.StartedAt}}", "nats-0-nats")
    return told["start"], started


async def test_a_drafter_joins_from_another_network_namespace_and_gets_a_new_key_while_nats_runs(
    overlay: Overlay,
) -> None:
    before = await nats_start(overlay)
    old = overlay.folder / "k8s/overlays/dev/example-keys/drafters" / NAME
    expected, _ = await ask(overlay, speculation="off")
    async with drafting(overlay, "draft"):

        async def it_guesses() -> bool:
            """On a busy machine its first guesses may come too late."""
            text, told = await ask(overlay, speculation="adaptive", drafter=NAME)
            assert (text, told["drafter"]) == (expected, NAME)
            return int(str(told["accepted"])) > 0

        await until(it_guesses, WAIT_S, "no guess is accepted")
        assert await refusal(overlay, old) == ""
        await asyncio.to_thread(overlay.run, "replace the key")
        await until(lambda: is_gone(overlay), WAIT_S, "the old key still serves")
    assert "authorization violation" in (await refusal(overlay, old)).lower()
    async with drafting(overlay, "draft with the new key"):
        text, told = await ask(overlay, speculation="adaptive", drafter=NAME)
        assert (text, told["drafter"]) == (expected, NAME)
    text, told = await ask(overlay, speculation="adaptive", drafter="drafter-0")
    assert (text, told["drafter"]) == (expected, "drafter-0"), "the others are not disturbed"
    assert await nats_start(overlay) == before
