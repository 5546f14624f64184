"""`dsd status`: the fleet as people and as programs see it."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import pytest

from shared.protocol.guesses import Fates
from tests.client.conftest import OtherServer, address, decide, dsd, start
from tests.client.terminal import CTRL_C, terminal
from tests.gateway.conftest import World
from tests.gateway.fakes import CONTEXT

pytestmark = pytest.mark.timeout(60)


def row(text: str, *words: str) -> list[str]:
    """The words of the only line that begins so."""
    (found,) = [line.split() for line in text.splitlines() if line.split()[: len(words)] == list(words)]
    return found


async def test_it_lists_who_is_there_and_the_windows_decided(world: World) -> None:
    verifier, drafter = await world.verifier("v-0"), await world.drafter("d-0")
    await decide(world, drafter.instance_id, verifier.instance_id, 6)
    done = await dsd("status", url=address(world))
    assert (done.status, done.err) == (0, "")
    assert "gateway gateway serves tiny: 0 of 256 sessions, 0 requests waiting" in done.out
    assert row(done.out, "verifier", "v-0")[2:-2] == ["0/0", "0", "0", "0.0", "0.00", str(CONTEXT)]
    assert row(done.out, "drafter", "d-0")
    assert row(done.out, "d-0", "v-0") == ["d-0", "v-0", "6", "2", "ladder"]
    assert "\x1b" not in done.out


async def test_it_shows_what_computes_a_draft_and_what_became_of_its_guesses(world: World) -> None:
    await world.verifier("v-0")
    drafter = await world.drafter("d-0")
    seen = world.gateway.sessions.placement.guesses
    seen.observe(drafter.instance_id, Fates(accepted=60, rejected=20, late=20), time.monotonic())
    done = await dsd("status", url=address(world))
    name, provider, guesses_per_s, *shares = row(done.out, "d-0")
    assert (name, provider, shares) == ("d-0", "CUDA", ["80%", "75%"])
    assert float(guesses_per_s) > 0


async def test_an_empty_fleet_is_told(world: World) -> None:
    done = await dsd("status", url=address(world))
    assert "no other instances" in done.out
    assert "no windows decided" in done.out


async def test_json_is_what_the_gateway_says_in_one_line(world: World) -> None:
    verifier = await world.verifier()
    done = await dsd("status", "--json", url=address(world))
    assert len(done.out.splitlines()) == 1
    told = json.loads(done.out)
    assert [each["instance_id"] for each in told["verifiers"]] == [verifier.instance_id]
    assert set(told) == {"gateway", "verifiers", "drafters", "controllers", "windows"}


async def test_watched_json_is_one_line_each_time_until_ctrl_c(world: World) -> None:
    process = await start("status", "--json", "--watch", "0.1", url=address(world))
    assert process.stdout is not None
    async with asyncio.timeout(20):
        for _ in range(3):
            json.loads(await process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


async def test_a_watched_table_follows_the_fleet(world: World) -> None:
    async with terminal("status", "--watch", "0.1", url=address(world)) as user:
        await user.shows("no other instances")
        await world.verifier("v-0")
        await user.shows("v-0")
        user.type(CTRL_C)
        assert await user.ends() == 130


async def test_a_server_without_a_fleet_ends_it_with_status_1(other: OtherServer) -> None:
    done = await dsd("status", url=other.url)
    assert (done.status, done.out, done.err) == (1, "", "dsd: Not Found (status 404)\n")


@pytest.mark.parametrize("argv", [["status", "--json"], ["status"]], ids=" ".join)
async def test_a_page_in_place_of_a_fleet_is_told_as_no_gateway(other: OtherServer, argv: list[str]) -> None:
    other.fleet_page = "<html>It works!</html>"
    done = await dsd(*argv, url=other.url)
    assert (done.status, done.out) == (1, "")
    assert done.err == f"dsd: {other.url} is not a DSD gateway: its /dsd/fleet is not JSON\n"
