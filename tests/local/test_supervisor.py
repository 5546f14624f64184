"""Children of a local system run on whatever goes wrong around them, and get the time that they need to end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from services.local import cli, nats_server, supervisor
from services.local.pair import ModelPair
from services.local.supervisor import NotStarted, Program, Supervisor
from services.local.system import SystemPlan

AT_MOST_S = 30.0
TURNING = "echo ready; while :; do sleep 0.05; done"


def shell(name: str, script: str, *, env: dict[str, str] | None = None, **more: str) -> Program:
    return Program(name, ("sh", "-c", script), env or {}, ready_line="ready", **more)


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(AT_MOST_S):
        while not is_so():  # noqa: ASYNC110  what is waited for sets no event
            await asyncio.sleep(0.02)


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def whole(tmp_path: Path, notices: list[str], monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr(supervisor, "MIN_PAUSE_S", 0.02)
    monkeypatch.delenv("DSD_DRAIN_S", raising=False)
    return Supervisor(tmp_path / "logs", notices.append)


async def test_a_child_whose_log_can_not_be_written_runs_on_and_the_user_is_told_once(
    tmp_path: Path, whole: Supervisor, notices: list[str]
) -> None:
    (tmp_path / "logs/child.log").symlink_to("/dev/full")
    child = whole.start(shell("child", "trap 'echo again' USR1; echo first; " + TURNING))
    try:
        await whole.wait_ready(child, AT_MOST_S)
        assert child.pid is not None
        (tmp_path / "logs/child.log").unlink()
        os.kill(child.pid, signal.SIGUSR1)
        await until((tmp_path / "logs/child.log").exists)
        assert child.num_starts == 1
    finally:
        await whole.stop()
    assert (tmp_path / "logs/child.log").read_text() == "again\n"
    assert len(notices) == 1
    assert notices[0].startswith("child: lines of its log are lost (")


async def test_a_child_that_can_not_be_started_is_started_later_and_the_user_is_told(
    tmp_path: Path, whole: Supervisor, notices: list[str]
) -> None:
    path = tmp_path / "program"
    child = whole.start(Program("child", (str(path),), ready_line="ready"))
    try:
        await until(lambda: notices)
        draft = tmp_path / "draft"
        draft.write_text(f"#!/bin/sh\n{TURNING}\n")
        draft.chmod(0o700)
        draft.rename(path)
        await whole.wait_ready(child, AT_MOST_S)
    finally:
        await whole.stop()
    assert notices[0].startswith("child can't be started (")
    assert "No such file or directory" in notices[0]


async def test_a_child_that_refuses_its_settings_is_not_tried_again(whole: Supervisor) -> None:
    child = whole.start(shell("child", "echo '--speed: must be a number'; exit 2"))
    try:
        with pytest.raises(NotStarted, match=r"child refuses its settings: --speed: must be a number"):
            await whole.wait_ready(child, AT_MOST_S)
        assert child.num_starts == 1
    finally:
        await whole.stop()


async def test_a_child_that_ends_with_status_2_after_it_was_ready_is_started_again(whole: Supervisor) -> None:
    child = whole.start(shell("child", "echo ready; exit 2"))
    try:
        await until(lambda: child.num_starts > 2)
    finally:
        await whole.stop()


async def test_a_log_that_becomes_too_long_takes_the_place_of_the_one_before(
    tmp_path: Path, whole: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_LOG_BYTES", 40, raising=False)
    child = whole.start(shell("child", "for n in $(seq 10 40); do echo line $n; done; " + TURNING))
    try:
        await whole.wait_ready(child, AT_MOST_S)
    finally:
        await whole.stop()
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["child.log", "child.log.1"]
    lines = [(tmp_path / "logs" / name).read_text().splitlines() for name in ("child.log.1", "child.log")]
    assert [*lines[0], *lines[1]][-7:] == [*(f"line {number}" for number in range(35, 41)), "ready"]
    assert len(lines[0]) == 6


def test_a_system_left_running_sets_its_own_log_aside_when_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_LOG_BYTES", 10, raising=False)
    monkeypatch.setattr(sys, "executable", "false")  # what ends at once
    (tmp_path / "services.log").write_text("long enough\n")
    with pytest.raises(typer.Exit):
        cli._detach(SystemPlan(ModelPair("pair", tmp_path, ()), port=nats_server.free_port()), tmp_path)
    assert (tmp_path / "services.log").read_text() == ""
    assert (tmp_path / "services.log.1").read_text() == "long enough\n"


def ending(order: Path, name: str, wait: str = "") -> str:
    """A script that notes when it is told to end and when it does, and waits for something in between."""
    return f"trap 'echo {name} ends >> {order}; {wait} echo {name} ended >> {order}; exit' TERM; {TURNING}"


async def test_children_of_a_stage_end_side_by_side_and_stages_one_after_the_other(
    tmp_path: Path, whole: Supervisor, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MIN_END_S", 5.0, raising=False)
    order = tmp_path / "order"
    both = f"until grep -q one.ends {order} && grep -q two.ends {order}; do sleep 0.05; done;"
    programs = [
        shell("ground", ending(order, "ground")),
        shell("one", ending(order, "one", both), stage="middle"),
        shell("two", ending(order, "two", both), stage="middle"),
        shell("top", ending(order, "top", "sleep 0.3;")),
    ]
    try:
        for child in [whole.start(program) for program in programs]:
            await whole.wait_ready(child, AT_MOST_S)
    finally:
        await whole.stop()
    lines = order.read_text().splitlines()
    assert (lines[:2], lines[-2:]) == (["top ends", "top ended"], ["ground ends", "ground ended"])
    assert set(lines[2:4]) == {"one ends", "two ends"}
    assert set(lines[4:6]) == {"one ended", "two ended"}
    assert notices == []


def test_a_child_has_ended_before_a_program_that_a_signal_ends(tmp_path: Path) -> None:
    """The signal's SystemExit leaves the loop, which then cancels every task, before `stop` would."""
    order = tmp_path / "order"

    async def main() -> None:
        whole = Supervisor(tmp_path / "logs", str)
        try:
            await whole.wait_ready(whole.start(shell("child", ending(order, "child", "sleep 0.3;"))), AT_MOST_S)
            asyncio.get_running_loop().call_soon(sys.exit, 128 + signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            await whole.stop()

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert order.read_text().splitlines() == ["child ends", "child ended"]


@pytest.mark.parametrize(("drain_s", "is_killed"), [("20", False), ("0", True)])
async def test_a_child_is_killed_only_when_its_drain_is_over(
    whole: Supervisor, notices: list[str], monkeypatch: pytest.MonkeyPatch, drain_s: str, is_killed: bool
) -> None:
    for name in ("MIN_END_S", "AFTER_DRAIN_S", "END_S"):
        monkeypatch.setattr(supervisor, name, 0.2, raising=False)
    slow = shell("child", "trap 'sleep 1; exit' TERM; " + TURNING, env={"DSD_DRAIN_S": drain_s})
    try:
        await whole.wait_ready(whole.start(slow), AT_MOST_S)
    finally:
        await whole.stop()
    assert any("is killed" in notice for notice in notices) == is_killed


@pytest.mark.parametrize(("told", "seconds"), [({}, 30), ({"DSD_DRAIN_S": "600"}, 610), ({"DSD_DRAIN_S": "long"}, 30)])
def test_a_child_may_take_its_drain_and_ten_seconds_and_never_less_than_thirty(
    told: dict[str, str], seconds: float
) -> None:
    assert supervisor.end_s(told) == seconds


async def test_a_child_that_gives_way_runs_where_the_core_is_idle_and_shares_the_session_of_the_others(
    whole: Supervisor,
) -> None:
    children = [whole.start(replace(shell(name, TURNING), gives_way=name == "low")) for name in ("low", "usual")]
    for child in children:
        await whole.wait_ready(child, AT_MOST_S)
    assert [os.sched_getscheduler(child.pid) for child in children] == [os.SCHED_IDLE, os.SCHED_OTHER]
    assert {os.getsid(child.pid) for child in children} == {os.getsid(0)}
    assert [os.getpgid(child.pid) for child in children] == [child.pid for child in children]
