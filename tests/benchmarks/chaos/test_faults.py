"""The faults of a chaos run follow its seed, and spare the last ready verifier, gateway and NATS server."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.chaos import faults
from benchmarks.chaos.faults import KINDS, FaultPlan, Injector, fault_list, not_runnable
from benchmarks.chaos.records import Fault
from benchmarks.chaos.system import ChaosSystem
from benchmarks.harness.link import LinkConditions

NAMES = ("nats-0", "nats-1", "relay-0", "controller", "verifier-0", "verifier-1", "drafter-0", "gateway-0", "gateway-1")


class FakeSystem(ChaosSystem):
    """Processes that are ready at once after a kill, unless the test says that they are not."""

    def __init__(self, run_dir: Path, unready: Iterable[str] = ()) -> None:
        children = {name: SimpleNamespace(num_starts=1) for name in NAMES}
        super().__init__(cast(Any, children), {}, {}, run_dir, True, [], cast(Any, None))
        self.unready = set(unready)
        self.signals: list[tuple[str, signal.Signals]] = []
        self.links: list[LinkConditions] = []
        self.clocks: list[int] = []
        self.num_wholes = 0

    async def whole(self) -> None:
        self.num_wholes += 1

    async def is_ready(self, name: str) -> bool:
        return name not in self.unready | self.stopped

    def signal(self, name: str, number: signal.Signals) -> None:
        self.signals.append((name, number))
        if number in (signal.SIGKILL, signal.SIGTERM):
            cast(Any, self.children[name]).num_starts += 1

    def set_link(self, conditions: LinkConditions) -> None:
        self.links.append(conditions)

    def set_clock(self, name: str, offset_s: int) -> None:
        self.clocks.append(offset_s)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HANG_S", "CUT_S", "LOSS_S", "FULL_S", "STEP_S", "MEMORY_S"):
        monkeypatch.setattr(faults, name, 0.01)
    monkeypatch.setattr(faults, "MEMORY_LEFT_MIB", 1 << 30)  # more than there is: it takes a page
    monkeypatch.setattr(faults, "REST_S", 0.01)


async def injected(system: FakeSystem, kinds: Iterable[str], number: int) -> list[Fault]:
    over = asyncio.Event()
    injector = Injector(system, FaultPlan(tuple(kinds), 1, period_s=0.01), lambda: 0.0, lambda text: None)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(injector.run(over))
        while len(injector.faults) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        over.set()
        await running
    return injector.faults


def test_the_list_follows_its_seed_and_has_every_kind_once_in_a_round() -> None:
    listed = [list(itertools.islice(fault_list(KINDS, seed), 2 * len(KINDS))) for seed in (1, 1, 2)]
    assert listed[0] == listed[1] != listed[2]
    assert Counter(fault.kind for fault in listed[0]) == dict.fromkeys(KINDS, 2)


@pytest.mark.parametrize("service", ["verifier", "gateway", "nats"])
async def test_the_last_ready_process_of_a_kind_is_not_hit(tmp_path: Path, service: str) -> None:
    system = FakeSystem(tmp_path, unready=[f"{service}-1"])
    found = await injected(system, [f"kill-{service}", f"hang-{service}", f"term-{service}", "kill-drafter"], 3)
    assert {fault.target for fault in found} == {"drafter-0"}


async def test_a_process_that_is_held_is_not_hit_by_another_fault(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path)
    system.stopped = {"verifier-0"}
    assert {fault.kind for fault in await injected(system, ["kill-verifier", "loss"], 3)} == {"loss"}


async def test_every_fault_has_ended_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    system = FakeSystem(tmp_path)
    kinds = [kind for kind in KINDS if kind != "full-disk"]  # here it would fill the machine's own disk
    found = await injected(system, kinds, 3 * len(kinds))
    assert {fault.kind for fault in found} == set(kinds)
    assert None not in [fault.ended_s for fault in found]
    assert system.stopped == set()
    assert system.links[-1] == LinkConditions()
    assert system.clocks[-1] == 0
    held = [name for name, number in system.signals if number == signal.SIGSTOP]
    assert sorted(held) == sorted(name for name, number in system.signals if number == signal.SIGCONT)


async def test_one_by_one_a_fault_begins_when_all_is_well_again(tmp_path: Path) -> None:
    system, clock = FakeSystem(tmp_path), itertools.count()
    injector = Injector(system, FaultPlan(("kill-drafter", "loss"), 1), lambda: next(clock), lambda text: None)
    await injector.one_by_one(4)
    assert sorted(fault.kind for fault in injector.faults) == ["kill-drafter", "kill-drafter", "loss", "loss"]
    assert system.num_wholes == 4
    for before, after in itertools.pairwise(injector.faults):
        assert before.ended_s is not None
        assert before.ended_s < after.begun_s


def test_memory_is_taken_until_little_is_left() -> None:
    script = faults.TAKE_MEMORY.replace("time.sleep", "print(len(held) >> 20) or time.sleep")
    available = next(
        int(line.split()[1]) >> 10
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("MemAvailable")
    )

    def taken(left_mib: int) -> int:
        argv = (sys.executable, "-c", script, str(left_mib), "0")
        return int(subprocess.run(argv, capture_output=True, check=True).stdout)

    if available < 4096:
        pytest.skip("needs 4 GiB of memory")
    less, more = taken(available - 512), taken(available - 2560)
    assert 1024 < more - less < 3072, "about 2048; others take and free memory meanwhile"


def test_what_the_machine_lacks_is_named_with_its_reason(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path)
    assert not_runnable(system, has_clock=True) == {}
    system.is_log_disk = False
    assert set(not_runnable(system, has_clock=False)) == {"full-disk", "clock"}
