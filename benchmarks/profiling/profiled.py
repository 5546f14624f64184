"""Runs a module as a program under cProfile: python -m benchmarks.profiling.profiled OUT MODULE ARGUMENTS.

Invariant: the profile is whole. A service that ends late is not cut off, as it otherwise is (shared/service.py).
"""

from __future__ import annotations

import cProfile
import runpy
import sys

from shared import service


def main(out: str, module: str, arguments: list[str]) -> None:
    setattr(service, "_exit_after", lambda seconds, status: None)  # noqa: B010
    sys.argv = [module, *arguments]
    profile = cProfile.Profile()
    try:
        profile.runcall(runpy.run_module, module, run_name="__main__")
    finally:
        profile.dump_stats(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
