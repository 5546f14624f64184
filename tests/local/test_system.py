"""Where a local system listens, and how its processes are ended."""

from __future__ import annotations

import itertools
import json
import shlex
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from services.local.cli import address_lines
from services.local.engine import EngineName, VerifierEngine
from services.local.nats_server import Access
from services.local.pair import ModelPair
from services.local.system import NUM_STAGES, SystemPlan, check_address, num_cores, service_programs

PAIR = ModelPair("pair", Path("target"), (Path("draft"), Path("draft")))


def needs(host: str) -> None:
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except OSError:
        pytest.skip(f"no {host} on this machine")


async def healthy(request: web.Request) -> web.Response:
    return web.Response(text="healthy")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
async def test_a_gateway_is_reached_at_the_address_that_is_told(host: str) -> None:
    needs(host)
    app = web.Application()
    app.router.add_get("/healthz", healthy)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0).start()
        plan = SystemPlan(PAIR, host=host, port=runner.addresses[0][1])
        async with aiohttp.ClientSession() as session, session.get(f"{plan.address}/healthz") as response:
            assert await response.text() == "healthy"
    finally:
        await runner.cleanup()


def test_a_host_of_ipv6_is_told_in_brackets_and_quoted_for_the_shell() -> None:
    plan = SystemPlan(PAIR, host="::1")
    gateway, curl = address_lines(plan).splitlines()
    assert gateway == "gateway at http://[::1]:8080"
    assert " 'http://[::1]:8080/v1/chat/completions' " in curl
    assert json.loads(shlex.split(curl)[-1])["model"] == "pair"


def test_an_ipv6_port_is_free_while_another_program_has_that_of_ipv4() -> None:
    needs("::")
    with socket.create_server(("0.0.0.0", 0)) as taken:
        check_address(SystemPlan(PAIR, host="::", port=taken.getsockname()[1]))


def test_the_gateway_ends_first_and_then_all_other_services_side_by_side() -> None:
    stages = [
        program.stage or program.name for program in service_programs(SystemPlan(PAIR, 2), Access("nats://there"))
    ]
    assert [stage for stage, _ in itertools.groupby(stages)] == ["fleet", "gateway"]
    assert len({"nats-server", *stages}) == NUM_STAGES


@pytest.mark.parametrize(("engine", "names"), [(EngineName.VLLM, ["drafter-0", "drafter-1"]), (EngineName.TORCH, [])])
def test_drafters_give_way_where_passes_take_their_cores(engine: EngineName, names: list[str]) -> None:
    made = service_programs(SystemPlan(PAIR, engine=VerifierEngine(engine)), Access("nats://there"))
    assert [program.name for program in made if program.gives_way] == names


@pytest.mark.parametrize(("num_cores", "num_verifiers", "num_threads"), [(2, 1, 1), (8, 1, 6), (8, 3, 2)])
def test_verifiers_share_the_cores_that_drafters_leave(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, num_verifiers: int, num_threads: int
) -> None:
    monkeypatch.delenv("DSD_NUM_THREADS", raising=False)
    monkeypatch.setattr("services.local.system.num_cores", lambda: num_cores)
    made = service_programs(SystemPlan(PAIR, num_verifiers), Access("nats://there"))
    threads = [program.env["DSD_NUM_THREADS"] for program in made if program.name.startswith("verifier")]
    assert threads == [str(num_threads)] * num_verifiers


@pytest.mark.parametrize("engine", EngineName)
def test_prompts_have_all_cores_on_vllm(engine: EngineName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSD_PREFILL_THREADS", raising=False)
    made = {
        program.name: program.env
        for program in service_programs(SystemPlan(PAIR, engine=VerifierEngine(engine)), Access("nats://there"))
    }
    wanted = {EngineName.VLLM: str(num_cores()), EngineName.TORCH: None}  # the built-in engine refuses the setting
    assert made["verifier-0"].get("DSD_PREFILL_THREADS") == wanted[engine]
    assert "DSD_PREFILL_THREADS" not in made["gateway"] | made["drafter-0"]
