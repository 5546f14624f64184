"""Child processes of a local system: started, watched, restarted, stopped.

Invariant: every child has its own process group in the supervisor's session and ends with the supervisor, which waits
while it drains. A child that crashes or can't be started is started again, after a longer pause each time. Each child's
output goes to a log file of bounded size; output that can't be written is lost, and the child goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from shared.timing import DRAIN_S

MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 15.0
STEADY_S = 30.0  # a child that ran for so long restarts after the shortest pause
AFTER_DRAIN_S = 10.0  # between the end of a drain and SIGKILL
MIN_END_S = DRAIN_S + AFTER_DRAIN_S  # between SIGTERM and SIGKILL
MAX_LOG_BYTES = 32 << 20
BAD_SETTINGS = 2  # exit status of a service that refuses its settings


class NotStarted(OSError):
    """A program refuses its settings, so it will not start however often it is tried."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run.

    ready_line: part of the line that it prints when it is ready. stage: consecutive programs of one stage are stopped
    together. gives_way: once it is ready it computes where no other program wants the core.
    """

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    ready_line: str = '"event": "ready"'
    stage: str = ""
    gives_way: bool = False

    @property
    def whole_env(self) -> dict[str, str]:
        return os.environ | self.env


def give_way(pid: int) -> None:
    """Lets all threads of a process compute only where no other thread of its session wants the core (sched(7),
    SCHED_IDLE and autogroup): unlike one of the lowest nice value, such a thread leaves the core at once."""
    for path in Path(f"/proc/{pid}/task").glob("*"):  # none where there is no SCHED_IDLE
        with suppress(OSError):  # it ended
            os.sched_setscheduler(int(path.name), os.SCHED_IDLE, os.sched_param(0))


def end_s(environment: Mapping[str, str]) -> float:
    """Seconds between SIGTERM and SIGKILL: the drain that `environment` sets, and AFTER_DRAIN_S."""
    try:
        drain_s = float(environment.get("DSD_DRAIN_S") or 0)
    except ValueError:  # the service itself refuses it
        drain_s = 0
    return max(MIN_END_S, drain_s + AFTER_DRAIN_S)


def turn_over(log_path: Path) -> None:
    """Renames a log that is too long to <name>.1, over an older one."""
    if log_path.exists() and log_path.stat().st_size > MAX_LOG_BYTES:
        log_path.replace(log_path.with_name(f"{log_path.name}.1"))


def last_line(log_path: Path) -> str:
    """The last line of a log; empty if it can't be read."""
    try:
        lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


class Child:
    """One program that runs or is about to restart. `notify` must not raise."""

    def __init__(self, program: Program, log_dir: Path, notify: Callable[[str], None]) -> None:
        self.program = program
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()  # it refused its settings before it was ever ready
        self.num_starts = 0
        self.urls: list[str] = []  # HTTP endpoints, newest last
        self._log_path = log_dir / f"{program.name}.log"
        self._is_log_whole = True
        self._notify = notify
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def run(self) -> None:
        """Keeps the program running until cancelled, then ends it. Returns if it refuses its settings at its start."""
        pause_s, was_ready = MIN_PAUSE_S, False
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                process = self._process = await self._start()
            except OSError as error:
                what = f"can't be started ({error})"
            else:
                status = await self._watch(process)
                was_ready |= self.ready.is_set()
                if status == BAD_SETTINGS and not was_ready:
                    self.ended.set()
                    return
                what = f"ended with status {status}"
            self.ready.clear()
            pause_s = MIN_PAUSE_S if loop.time() - started > STEADY_S else min(2 * pause_s, MAX_PAUSE_S)
            self._notify(f"{self.program.name} {what}, starting again in {pause_s:.0f} s")
            await asyncio.sleep(pause_s)

    async def _start(self) -> asyncio.subprocess.Process:
        self.num_starts += 1
        return await asyncio.create_subprocess_exec(
            *self.program.argv,
            env=self.program.whole_env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            process_group=0,
            limit=1 << 20,
        )

    async def _watch(self, process: asyncio.subprocess.Process) -> int:
        """Returns the exit status of the process. If cancelled, ends the process."""
        try:
            await self._read(process)
            return await process.wait()
        finally:
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Sends SIGTERM, then SIGKILL to the group if that takes too long. Logs the last lines too."""
        if process.returncode is not None:
            return
        patience_s = end_s(self.program.whole_env)
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience_s):
                await self._read(process)
                await process.wait()
        except TimeoutError:
            self._notify(f"{self.program.name} does not end within {patience_s:.0f} s and is killed")
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than the limit: asyncio dropped it
                line = b"(line too long)\n"
            if not line:
                return
            self._log(line)
            self._inspect(line.decode(errors="replace"))

    def _log(self, line: bytes) -> None:
        """Appends a line to the log. Notifies the user of the first line that is lost."""
        try:
            turn_over(self._log_path)
            with self._log_path.open("ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            if self._is_log_whole:
                self._notify(f"{self.program.name}: lines of its log are lost ({error})")
            self._is_log_whole = False

    def _inspect(self, line: str) -> None:
        """Reads from a log line whether the program is ready, where it listens, and errors for the user."""
        if self.program.ready_line in line:
            self.ready.set()
            if self.program.gives_way and self.pid is not None:
                give_way(self.pid)
        if not line.startswith("{"):
            return
        try:
            event = json.loads(line)
        except ValueError:
            return
        if event.get("event") == "http endpoints up":
            self.urls.append(event["url"])
        if event.get("level") in ("error", "critical"):
            self._notify(f"{self.program.name}: {event.get('event')} (see {self._log_path})")


class Supervisor:
    """The children of a local system, in the order of their start."""

    def __init__(self, log_dir: Path, notify: Callable[[str], None]) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._notify = notify
        self._tasks: dict[Child, asyncio.Task[None]] = {}
        self.children: dict[str, Child] = {}

    def start(self, program: Program) -> Child:
        child = Child(program, self._log_dir, self._notify)
        self.children[program.name] = child
        self._tasks[child] = asyncio.create_task(child.run(), name=program.name)
        return child

    async def wait_ready(self, child: Child, timeout_s: float) -> None:
        """Waits until a child is ready. Raises NotStarted or TimeoutError, which name the log."""
        name, where = child.program.name, self._log_dir / f"{child.program.name}.log"
        waits = [asyncio.create_task(event.wait()) for event in (child.ready, child.ended)]
        try:
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if child.ended.is_set():
            raise NotStarted(f"{name} refuses its settings: {last_line(where)} (see {where})")
        if not done:
            raise TimeoutError(f"{name} is not ready after {timeout_s:.0f} s: see {where}")

    async def stop(self) -> None:
        """Stops the children, the last started first, so that each stops before those it needs."""
        for _, members in groupby(reversed(self._tasks), key=lambda child: child.program.stage or child.program.name):
            tasks = [self._tasks[child] for child in members]
            for task in tasks:
                if not task.cancelling():  # as when a signal ends the loop; again, it would not wait for its child
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
