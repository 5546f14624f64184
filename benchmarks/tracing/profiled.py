"""A module under Python's profiler: python -m benchmarks.tracing.profiled FILE MODULE [ARGUMENT …].

Invariant: times are processor time of the main thread, so that other processes don't count. The file is written when
the module ends, and is whole: a service that ends late is not cut off, as it otherwise is (shared/service.py).
"""

from __future__ import annotations

import cProfile
import runpy
import sys
import time

from shared import service


def main(file: str, module: str, *arguments: str) -> None:
    setattr(service, "_exit_after", lambda seconds, status: None)  # noqa: B010
    sys.argv = [module, *arguments]
    profile = cProfile.Profile(time.thread_time)
    try:
        profile.runcall(runpy.run_module, module, run_name="__main__", alter_sys=True)
    finally:
        profile.dump_stats(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
