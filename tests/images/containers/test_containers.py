"""The images are built and run: small, confined, within the memory that the manifests ask for, and they end in order.

`make test-images`. What is measured goes to build/images.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.e2e.processes import until
from tests.images.containers.conftest import NAMES, Images, Overlay
from tests.images.containers.memory import requested_memory
from tests.images.containers.podman import Podman
from tests.k8s.manifests import pod_of, workloads

READY_S = 240.0
BOUNDS_MB = {"tokenizer": 10, "controller": 120, "gateway": 140, "drafter": 200, "verifier": 1500, "models": 1800}
QUESTION = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Explain how rain is made, in many words."}],
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "dsd": {"speculation": "adaptive"},
}
KILLED = 137
SERVICES = ("gateway-gateway", "controller-controller", "verifier-0-verifier", "drafter-0-drafter")
CONFINED = """\
import os
assert (os.getuid(), os.getgid()) == (65532, 65532), (os.getuid(), os.getgid())
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status
assert int(status["NoNewPrivs"]) == 1 and int(status["Seccomp"]) == 2, status
for place in ("/", "/app", "/opt/dsd", "/var/lib/dsd"):
    if os.path.isdir(place) and not os.statvfs(place).f_flag & os.ST_RDONLY:
        raise SystemExit(f"{place} is not read-only")
open("/tmp/written", "w")
"""

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_holds_no_more_above_its_base_than_its_bound(images: Images, name: str) -> None:
    assert images.sizes[name] <= BOUNDS_MB[name] * 1e6, f"{images.sizes[name] / 1e6:.1f} MB"


@pytest.mark.parametrize("name", ["verifier", "models"])
def test_torch_is_the_build_for_cpus(podman: Podman, images: Images, name: str) -> None:
    code = "import torch; print(torch.__version__, torch.version.cuda)"
    shown = podman("run", "--rm", "--network=host", "--entrypoint=python", images.tags[name], "-c", code)
    assert shown.split()[0].endswith("+cpu")
    assert shown.split()[1] == "None"


def test_a_memory_limit_that_is_too_small_is_found(podman: Podman, images: Images) -> None:
    limits = ("--memory=256m", "--memory-swap=256m", "--env=DSD_HOME=/tmp")
    done = podman.run("run", "--rm", "--network=host", *limits, images.tags["models"])
    assert done.returncode == KILLED, done.stderr


async def chunks(http: aiohttp.ClientSession, url: str, max_tokens: int) -> AsyncIterator[dict[str, object]]:
    """Of one streamed answer."""
    async with http.post(f"{url}/v1/chat/completions", json=QUESTION | {"max_tokens": max_tokens}) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            text = line.decode().removeprefix("data: ").strip()
            if text and text != "[DONE]":
                yield json.loads(text)


async def test_the_overlay_answers_with_guesses_through_the_gateway(overlay: Overlay) -> None:
    async with aiohttp.ClientSession() as http:

        async def all_are_ready() -> bool:
            for pod in overlay.build.ports:
                try:
                    async with http.get(f"{overlay.url(pod)}/readyz") as response:
                        if response.status != 200:
                            return False
                except aiohttp.ClientError:
                    return False
            return True

        await until(all_are_ready, READY_S, "the services are not ready")
        found = [chunk async for chunk in chunks(http, overlay.url("gateway"), 64)]
    usage = found[-1]["usage"]
    assert isinstance(usage, dict)
    assert usage["completion_tokens"] == 64
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] > 0


@pytest.mark.parametrize("container", SERVICES)
def test_a_service_runs_as_nobody_without_rights_on_a_read_only_root(overlay: Overlay, container: str) -> None:
    overlay.podman("exec", container, "python", "-c", CONFINED)


@pytest.mark.parametrize(("flag", "told"), [("--read-only", ""), ("--read-only=false", "/ is not read-only")])
def test_a_root_that_is_not_read_only_is_found(podman: Podman, images: Images, flag: str, told: str) -> None:
    confined = ("--cap-drop=all", "--security-opt=no-new-privileges", "--network=host", "--entrypoint=python", flag)
    done = podman.run("run", "--rm", *confined, images.tags["gateway"], "-c", CONFINED)
    assert done.returncode == (1 if told else 0), done.stderr
    assert told in done.stderr


def test_containers_that_run_first_have_ended_well(overlay: Overlay) -> None:
    for pod, workload in zip(overlay.pods, workloads(overlay.manifests), strict=True):
        for container in pod_of(workload).get("initContainers", []):
            assert overlay.podman.status(f"{pod}-{container['name']}") == 0


async def test_a_gateway_that_stops_finishes_its_answer_and_every_container_ends_with_status_0(
    overlay: Overlay,
) -> None:
    async with aiohttp.ClientSession(read_bufsize=2**24) as http:
        answer = chunks(http, overlay.url("gateway"), 384)
        found = [await anext(answer), await anext(answer)]
        for container in ("drafter-0-drafter", "controller-controller"):
            assert await asyncio.to_thread(overlay.stop, container) == 0
        ending = asyncio.create_task(asyncio.to_thread(overlay.stop, "gateway-gateway"))
        found += [chunk async for chunk in answer]
        assert await ending == 0
    usage = found[-1]["usage"]
    assert isinstance(usage, dict)
    assert usage["completion_tokens"] == 384
    for container in ("verifier-0-verifier", "nats-0-reloader", "nats-0-nats"):
        assert overlay.stop(container) == 0


def test_what_the_manifests_request_covers_the_most_memory_that_each_container_needed(overlay: Overlay) -> None:
    peaks = overlay.peaks()
    requests = requested_memory(overlay.manifests)
    assert requests.keys() <= peaks.keys()
    assert {name: peaks[name] for name in requests if peaks[name] > requests[name]} == {}
