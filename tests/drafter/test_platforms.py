"""A drafter starts, drafts and ends where the system has none of what only some systems have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.endpoints import END_S, logged
from tests.plugins.nats import NatsServer

ROOT = Path(__file__).parents[2]
# As on Windows: an event loop that handles no signals, no SIGHUP, no fork, no madvise, no /proc, no cores to ask for.
BARE = """
import asyncio, ctypes, mmap, os, signal, sys
for module in ("fcntl", "grp", "pwd", "resource", "termios", "uvloop"):
    sys.modules[module] = None
for home, names in {
    mmap: ("MAP_ANONYMOUS", "MAP_ANON", "MADV_HUGEPAGE"),
    os: ("fork", "getuid", "sched_getaffinity", "sched_setaffinity", "sysconf", "killpg", "setsid"),
    signal: ("SIGHUP", "SIGUSR1", "SIGKILL", "pthread_sigmask"),
}.items():
    for name in names:
        if hasattr(home, name):
            delattr(home, name)
os.process_cpu_count = os.cpu_count  # Python 3.13 has it everywhere; elsewhere it calls what was deleted
def no_signals(*_):
    raise NotImplementedError
asyncio.unix_events._UnixSelectorEventLoop.add_signal_handler = no_signals
real_open = open
def without_proc(file, *args, **options):
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(2, "No such file", str(file))
    return real_open(file, *args, **options)
import builtins, io
builtins.open = io.open = without_proc
import services.edge_drafter.service  # with it the standard library
sys.platform = "win32"
import runpy
sys.argv = ["drafter", *sys.argv[1:]]
runpy.run_module("services.edge_drafter", run_name="__main__")
"""


def test_it_starts_without_uvloop_signals_of_the_loop_madvise_and_proc(
    nats_server: NatsServer, default_models: Path
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("DSD_")}
    argv = ["--draft", str(default_models / "draft-int8"), "--nats-url", nats_server.url, "--log-format", "json"]
    with subprocess.Popen(
        [sys.executable, "-c", BARE, *argv], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            logged(process, "ready")
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=END_S)
        finally:
            process.kill()
    assert process.returncode == 0, rest
    assert '"draining"' in rest
