"""The containers of the overlay for trying out run as processes of this machine, and answer a request."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import aiohttp
import pytest

from services.local.nats_server import find_binary, free_port
from services.local.supervisor import Child, Program, Supervisor
from shared.runtime.home import default_models_dir
from tests.e2e.processes import Metrics, until
from tests.k8s.containers import inside, mount, program_of
from tests.k8s.machine import Built, Machine, here, nats_container
from tests.k8s.manifests import ROOT, Manifest, pod_names, pod_of, service_of, workloads
from tests.k8s.services import metrics_in, metrics_of

READY_S = 120.0
BODY = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    "temperature": 0,
    "max_tokens": 96,
    "dsd": {"speculation": "adaptive"},
}


def make_models(pod: Manifest, name: str, manifests: list[Manifest], root: Path) -> None:
    """Runs the init containers; the volume is the home of the default pair, where all is made already."""
    home = Path(inside(root, "/var/lib/dsd"))
    home.parent.mkdir(parents=True)
    home.symlink_to(default_models_dir().parents[1], target_is_directory=True)
    for container in pod["initContainers"]:
        if container["image"].startswith("dsd-tokenizer:"):
            continue  # it copies what is there
        program = program_of(name, container, manifests, root, {})
        command = [*program.argv]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | program.env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr


def nats_program(manifests: list[Manifest], machine: Machine, port: int) -> Program:
    """The overlay has one server."""
    container = nats_container(manifests, "nats")
    folder = machine.write("dev")
    words = [here(word, folder).replace("8222", str(free_port())) for word in container["args"]]
    assert container["command"] == ["nats-server"]
    argv = (str(find_binary()), *words, "--addr=127.0.0.1", f"--port={port}")
    return Program("nats", argv, machine.env("dev"), ready_line="Server is ready")


@pytest.mark.timeout(300)
async def test_each_container_s_command_runs_and_together_they_answer_with_guesses(
    default_models: Path, tmp_path: Path, built: Built, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [variable for variable in os.environ if variable.startswith("DSD_")]:
        if variable != "DSD_HOME":  # where the default pair is
            monkeypatch.delenv(variable)
    manifests, nats_port = built("dev"), free_port()
    there = {"DSD_NATS_URL": f"nats://127.0.0.1:{nats_port}", "DSD_HTTP_HOST": "127.0.0.1", "DSD_HTTP_PORT": "0"}
    notices: list[str] = []
    supervisor = Supervisor(tmp_path / "logs", notices.append)
    try:
        await supervisor.wait_ready(supervisor.start(nats_program(manifests, machine, nats_port)), 20)
        for workload in workloads(manifests):
            for name in pod_names(workload, manifests) if service_of(workload) else []:
                root, pod = tmp_path / name, pod_of(workload)
                if "initContainers" in pod:
                    await asyncio.to_thread(make_models, pod, name, manifests, root)
                (container,) = pod["containers"]
                mount(workload, container, name, manifests, {}, root)
                program = program_of(name, container, manifests, root, there | {"DSD_LOG_FORMAT": "json"})
                assert program.env["DSD_NAME"] == name
                supervisor.start(program)
        services = {name: child for name, child in supervisor.children.items() if name != "nats"}
        for child in services.values():
            await supervisor.wait_ready(child, READY_S)
        await answers(services)
    finally:
        await supervisor.stop()
    assert not notices, notices


async def answers(services: dict[str, Child]) -> None:
    """Asks the gateway, once it is ready, until a controller has decided; nobody may have been denied anything."""
    (gateway,) = (child for name, child in services.items() if name.startswith("gateway"))
    url = gateway.urls[-1]
    async with aiohttp.ClientSession() as http:

        async def is_ready() -> bool:
            async with http.get(f"{url}/readyz") as response:
                return response.status == 200

        async def hears_decisions() -> bool:
            async with http.get(f"{url}/v1/dsd/windows") as response:
                return bool((await response.json())["windows"])

        await until(is_ready, READY_S, "the gateway is not ready")
        async with http.post(f"{url}/v1/chat/completions", json=BODY) as response:
            answer = await response.json()
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 0, answer
        await until(hears_decisions, 20, "the gateway hears no window decision")
        for name, child in services.items():
            async with http.get(f"{child.urls[-1]}/metrics") as response:
                text = await response.text()
            assert Metrics(text).total("dsd_bus_errors_total", kind="permission violation") == 0, name
            assert metrics_of(child.program.argv[2].removeprefix("services.")) <= metrics_in(text), name
