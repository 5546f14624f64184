"""Child processes of a local system: started, watched, restarted, stopped.

Invariant: every child has a process group of its own and is ended with the supervisor, which gives it the time that it
may drain; one that crashes or can't be started starts again, later each time; all that children print goes to a log
file each, of bounded size, and what can't be written there is lost without harm to the child.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from shared.timing import DRAIN_S

MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 15.0
STEADY_S = 30.0  # a child that ran so long starts again with the shortest pause
AFTER_DRAIN_S = 10.0  # between the end of a drain and SIGKILL
MIN_END_S = DRAIN_S + AFTER_DRAIN_S  # between SIGTERM and SIGKILL
MAX_LOG_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. `ready_line` is what one of its lines contains when it can work; programs that are started one after
    the other with the same `stage` are ended side by side."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    ready_line: str = '"event": "ready"'
    stage: str = ""

    @property
    def whole_env(self) -> dict[str, str]:
        return os.environ | self.env


def end_s(environment: Mapping[str, str]) -> float:
    """The seconds between SIGTERM and SIGKILL: a drain as `environment` sets it, and the time to end after it."""
    try:
        drain_s = float(environment.get("DSD_DRAIN_S") or 0)
    except ValueError:  # the services refuse it themselves
        drain_s = 0
    return max(MIN_END_S, drain_s + AFTER_DRAIN_S)


def turn_over(log_path: Path) -> None:
    """Sets a log aside that has become too long, in place of the one set aside before."""
    if log_path.exists() and log_path.stat().st_size > MAX_LOG_BYTES:
        log_path.replace(log_path.with_name(f"{log_path.name}.1"))


class Child:
    """One program, running or about to run again. `notify` must not raise."""

    def __init__(self, program: Program, log_dir: Path, notify: Callable[[str], None]) -> None:
        self.program = program
        self.ready = asyncio.Event()
        self.num_starts = 0
        self.urls: list[str] = []  # of its HTTP endpoints, newest last
        self._log_path = log_dir / f"{program.name}.log"
        self._is_log_whole = True
        self._notify = notify
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def run(self) -> None:
        """Keeps the program running until cancelled, then ends it."""
        pause_s = MIN_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                process = self._process = await self._start()
            except OSError as error:
                what = f"can't be started ({error})"
            else:
                what = f"ended with status {await self._watch(process)}"
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
            start_new_session=True,
            limit=1 << 20,
        )

    async def _watch(self, process: asyncio.subprocess.Process) -> int:
        """Returns the status with which the process ends; ends it when cancelled."""
        try:
            await self._read(process)
            return await process.wait()
        finally:
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """SIGTERM, and SIGKILL to the whole group when that takes too long; the last lines are logged too."""
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
            except ValueError:  # longer than the limit; what was read is gone
                line = b"(line too long)\n"
            if not line:
                return
            self._log(line)
            self._look_at(line.decode(errors="replace"))

    def _log(self, line: bytes) -> None:
        """Appends a line to the log; the user is told of the first that is lost."""
        try:
            turn_over(self._log_path)
            with self._log_path.open("ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            if self._is_log_whole:
                self._notify(f"{self.program.name}: lines of its log are lost ({error})")
            self._is_log_whole = False

    def _look_at(self, line: str) -> None:
        """Learns from a log line whether the program is ready, where it listens, and what the user should see."""
        if self.program.ready_line in line:
            self.ready.set()
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
    """All children of a local system, in the order of their start."""

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
        """Raises TimeoutError with the log's place when the child is not ready in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await child.ready.wait()
        except TimeoutError:
            where = self._log_dir / f"{child.program.name}.log"
            raise TimeoutError(f"{child.program.name} is not ready after {timeout_s:.0f} s: see {where}") from None

    async def stop(self) -> None:
        """Ends the children, last started first, so that nobody misses whom it still needs; a stage side by side."""
        for _, members in groupby(reversed(self._tasks), key=_stage):
            tasks = [self._tasks[child] for child in members]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _stage(child: Child) -> str:
    return child.program.stage or child.program.name
