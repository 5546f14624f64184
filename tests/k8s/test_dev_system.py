"""The real services answer on a NATS server with the configuration and keys of the overlay for trying out."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from services.local.nats_server import Access, free_port
from services.local.pair import default_pair
from services.local.system import Plan, running
from tests.e2e.processes import Processes, Question, until
from tests.k8s.machine import Machine
from tests.k8s.manifests import K8S

EXAMPLE_KEYS = K8S / "overlays/dev/example-keys"


async def hears_decisions(http: aiohttp.ClientSession, plan: Plan) -> bool:
    async with http.get(f"{plan.address}/v1/dsd/windows") as response:
        return bool((await response.json())["windows"])


@pytest.mark.timeout(300)
async def test_rights_are_enough_for_an_answer_with_guesses_and_window_decisions(
    default_models: Path, tmp_path: Path, machine: Machine
) -> None:
    keys = {path.name: {"DSD_NATS_NKEY_SEED": str(path)} for path in EXAMPLE_KEYS.glob("*/*")}
    nats = Access(machine.start("dev").url, keys)
    plan = Plan(default_pair(default_models, ["int8"], 1), port=free_port(), nats=nats)
    async with running(plan, tmp_path, lambda notice: None) as whole, aiohttp.ClientSession() as http:
        processes = Processes(whole, http, [])
        answer = await processes.ask(Question("Why is the sky blue?", max_tokens=96), speculation="adaptive")
        assert answer.num_accepted > 0
        await until(lambda: hears_decisions(http, plan), 20, "the gateway hears no window decision")
        for name in whole.children:
            denied = (await processes.metrics(name)).total("dsd_bus_errors_total", kind="permission violation")
            assert denied == 0, name
