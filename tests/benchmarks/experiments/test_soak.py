"""A soak fails on memory growth and on peaks above their limits; it and the comparison with transformers run."""

from __future__ import annotations

import asyncio
import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks.experiments import against_transformers, soak
from benchmarks.experiments.soak import GROWTH_MIB, ProcessMemory, allowed_mib, memory_of
from benchmarks.harness.cell import own_mib
from benchmarks.harness.cell_plan import CONTROLLER, DRAFTER, GATEWAY, VERIFIER
from benchmarks.harness.latency import RequestSample
from benchmarks.harness.origin import Origin
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected
from benchmarks.load import arrivals
from client.gateway import GatewayClient
from shared.runtime.home import default_models_dir
from tests.benchmarks.fake_gateway import serving

ORIGIN = Origin("a command", "a machine", "a date", "3")


def test_memory_that_grows_in_the_last_third_is_not_flat() -> None:
    flat = memory_of([100.0] * 10 + [500.0] * 20, peak=510.0, allowed=600.0)
    assert (flat.peak, flat.middle, flat.last, flat.allowed) == (510.0, 500.0, 500.0, 600.0)
    assert flat.is_flat
    assert not ProcessMemory(510.0, 500.0, 500.0 + GROWTH_MIB + 1, None).is_flat


def a_soak(peak: float) -> soak.SoakResult:
    memory = {
        VERIFIER: ProcessMemory(peak, 500.0, 500.0, allowed=600.0),
        "nats-server": ProcessMemory(peak, 7.0, 7.0, None),
    }
    return soak.SoakResult(6.0, 12.0, {"ok": 3}, 120, None, None, memory, [], ORIGIN)


@pytest.mark.parametrize(("peak", "within", "status"), [(600.0, "yes", 0), (600.5, "no", 1)])
def test_a_peak_above_its_limit_fails_a_soak_and_is_marked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peak: float, within: str, status: int
) -> None:
    async def run(*asked: object) -> soak.SoakResult:
        return a_soak(peak)

    monkeypatch.setattr(soak, "run", run)
    result = CliRunner().invoke(soak.app, ["--folder", str(tmp_path)])
    assert result.exit_code == status, result.output
    assert [list(column.cells) for column in soak.table(a_soak(peak)).columns][3] == ["", within]


def test_tokens_per_second_of_a_soak_count_until_the_last_answer_ends() -> None:
    assert soak.table(a_soak(500.0)).title == "12 s, 120 tokens, 10.0 tokens/s"


async def test_clients_of_a_soak_do_not_wait_for_a_slow_answer_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each quick answer advances the clock by a second; one answer takes the whole run."""
    now, is_over = 0.0, asyncio.Event()
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(arrivals, "time", clock)
    monkeypatch.setattr(soak, "time", clock)

    async def measure(gateway: GatewayClient, template: RequestTemplate, request: ScheduledRequest) -> RequestSample:
        nonlocal now
        if request.prompt_number == 0:
            await is_over.wait()
        elif (now := now + 1.0) >= 20:
            is_over.set()
        return RequestSample(request.prompt_number, request.due_at - request.started_at, 0.0, 0.0, 0.0)

    monkeypatch.setattr(soak, "measure_request", measure)
    async with asyncio.timeout(10), serving() as fake, connected(fake.url) as gateway:
        samples = await soak.load(gateway, seconds=20.0, num_clients=2, max_tokens=8)
    assert sorted(sample.due_s for sample in samples) == [0.0, *range(20)]


def test_the_limit_of_a_service_is_its_model_its_kv_cache_and_headroom(default_models: Path) -> None:
    allowed = allowed_mib(default_models, "int8")
    # 134.5 M parameters of 2 bytes; 32768 tokens of 30 layers x 3 heads x 64 numbers x 2 bytes, keys and values
    assert allowed[VERIFIER] == pytest.approx(256.6 + 720 + 500, abs=5)
    assert 500 < allowed[DRAFTER] < 800, "half as much again as its 254 MiB, and 250"
    assert (allowed[GATEWAY], allowed[CONTROLLER]) == (300, 120)


def test_the_memory_of_a_process_excludes_mapped_files(tmp_path: Path) -> None:
    before = own_mib(os.getpid())
    with mmap.mmap(-1, 64 << 20) as held:  # anonymous memory
        held.write(bytes(64 << 20))
        assert own_mib(os.getpid()) > before + 60
    file = tmp_path / "weights"
    file.write_bytes(bytes(64 << 20))
    before = own_mib(os.getpid())
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert not any(mapped[:: mmap.PAGESIZE]), "all of its pages were read"
        assert own_mib(os.getpid()) < before + 8


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_short_soak_and_a_short_comparison_with_transformers_run(default_models: Path) -> None:
    models = default_models_dir()
    soaked = asyncio.run(soak.run(models, "int8", seconds=10.0, num_clients=4, max_tokens=16))
    assert soaked.complaints == []
    assert set(soaked.memory) == {"nats-server", CONTROLLER, VERIFIER, DRAFTER, GATEWAY}
    assert soaked.num_tokens > 100
    assert soak.table(soaked).row_count == 5
    found = asyncio.run(against_transformers.run(models, "int8", num_rounds=2, max_tokens=8, seed=1))
    assert found.complaints == []
    assert found.alone.value > 0
    assert against_transformers.table(found).row_count == 3
