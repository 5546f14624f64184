"""Child processes of a local system: started, watched, restarted, stopped.

Invariant: every child has a process group of its own and is ended with the supervisor; one that crashes starts again,
later each time; all that children print goes to a log file each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 15.0
END_S = 30.0  # between SIGTERM and SIGKILL
STEADY_S = 30.0  # a child that ran so long starts again with the shortest pause


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. `ready_line` is what one of its lines contains when it can work."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    ready_line: str = '"event": "ready"'


class Child:
    """One program, running or about to run again."""

    def __init__(self, program: Program, log_dir: Path, notify: Callable[[str], None]) -> None:
        self.program = program
        self.ready = asyncio.Event()
        self.num_starts = 0
        self.urls: list[str] = []  # of its HTTP endpoints, newest last
        self._log_path = log_dir / f"{program.name}.log"
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
            status = await self._run_once()
            self.ready.clear()
            pause_s = MIN_PAUSE_S if loop.time() - started > STEADY_S else min(2 * pause_s, MAX_PAUSE_S)
            self._notify(f"{self.program.name} ended with status {status}, starting again in {pause_s:.0f} s")
            await asyncio.sleep(pause_s)

    async def _run_once(self) -> int:
        self.num_starts += 1
        process = self._process = await asyncio.create_subprocess_exec(
            *self.program.argv,
            env=os.environ | self.program.env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=1 << 20,
        )
        try:
            await self._read(process)
            return await process.wait()
        finally:
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """SIGTERM, and SIGKILL to the whole group when that takes too long; the last lines are logged too."""
        if process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(END_S):
                await self._read(process)
                await process.wait()
        except TimeoutError:
            self._notify(f"{self.program.name} does not end within {END_S:.0f} s and is killed")
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with self._log_path.open("ab") as file:
            while True:
                try:
                    line = await process.stdout.readline()
                except ValueError:  # longer than the limit; what was read is gone
                    line = b"(line too long)\n"
                if not line:
                    return
                file.write(line)
                file.flush()
                self._look_at(line.decode(errors="replace"))

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
        self._tasks: list[asyncio.Task[None]] = []
        self.children: dict[str, Child] = {}

    def start(self, program: Program) -> Child:
        child = Child(program, self._log_dir, self._notify)
        self.children[program.name] = child
        self._tasks.append(asyncio.create_task(child.run(), name=program.name))
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
        """Ends the children, last started first, so that nobody misses whom it still needs."""
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
