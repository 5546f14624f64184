"""A cell whose gateway and verifier run under cProfile, which writes when they end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness.cell_plan import GATEWAY, VERIFIER, CellPlan
from services.local.supervisor import Program


@dataclass(frozen=True, slots=True)
class ProfiledPlan(CellPlan):
    """profiles: folder of the profiles."""

    profiles: Path = Path()

    def profile(self, name: str) -> Path:
        return self.profiles / f"{name}.prof"

    def programs(self, nats_url: str, relay_url: str, http_port: int) -> list[Program]:
        return [self._profiled(each) for each in CellPlan.programs(self, nats_url, relay_url, http_port)]

    def _profiled(self, program: Program) -> Program:
        if program.name not in (GATEWAY, VERIFIER):
            return program
        python, _, *module = program.argv  # python -m module …
        profiled = (python, "-m", "benchmarks.profiling.profiled", str(self.profile(program.name)))
        return replace(program, argv=(*profiled, *module))
