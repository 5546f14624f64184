"""What runs for one cell of a benchmark, as programs for services/local's supervisor.

Invariant: a cell differs from a system of `python -m services` by what its plan says and nothing else: cores, link,
stand-ins.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.link import Conditions
from benchmarks.relay import READY_LINE
from benchmarks.standin_settings import MODEL_NAME, STANDIN, Kind
from services.local.pair import default_pair
from services.local.supervisor import Program
from services.local.system import Plan, service_programs
from shared.profiles import read_profile

CONTROLLER, VERIFIER, DRAFTER, GATEWAY = "controller", "verifier-0", "drafter-0", "gateway"
ALL = (CONTROLLER, VERIFIER, DRAFTER, GATEWAY)
STANDIN_MODULES = {VERIFIER: "cloud_verifier", DRAFTER: "edge_drafter"}
NEAR = Conditions()


@dataclass(frozen=True, slots=True)
class Standin:
    """Which of verifier and drafter are stand-ins, and how."""

    kind: Kind
    profile: Path
    recording: Path | None = None
    names: tuple[str, ...] = (VERIFIER, DRAFTER)

    def __str__(self) -> str:
        """For titles."""
        return f"{STANDIN}: {self.kind} {read_profile(self.profile).name}"


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One cell. Without a controller its windows are the defaults, or what conductor.py says."""

    models: Path
    draft: str = "int8"
    names: tuple[str, ...] = ALL  # of the processes to start, beside the nats-server
    link: Conditions = NEAR  # of the drafter to everybody else
    is_pinned: bool = True  # verifier and drafter: a core each, where there are two
    standin: Standin | None = None
    env: dict[str, str] = field(default_factory=dict)  # more settings, of all services
    api_key: str = ""  # with which the gateway is asked whom it has heard of
    seed: int = 1

    @property
    def is_near(self) -> bool:
        """Whether the drafter's link needs no relay."""
        return self.link == NEAR

    def programs(self, nats_url: str, relay_url: str, http_port: int) -> list[Program]:
        """The services, in the order of their start; the drafter speaks to `relay_url`."""
        pair = default_pair(self.models, [self.draft], num_drafters=1)
        made = service_programs(Plan(pair, port=http_port), nats_url)
        return [self._adapted(program, relay_url) for program in made if program.name in self.names]

    def relay(self, nats_url: str, port: int) -> Program:
        """The relay in front of the nats-server."""
        link = self.link
        flags = {
            "to": nats_url,
            "port": port,
            "rtt-ms": 2 * link.delay_ms,
            "jitter-ms": link.jitter_ms,
            "bandwidth-mbit": link.bandwidth_mbit,
            "stall-rate": link.stall_rate,
            "stall-ms": link.stall_ms,
            "seed": self.seed,
        }
        argv = (sys.executable, "-m", "benchmarks.relay", *(f"--{name}={value}" for name, value in flags.items()))
        return Program("relay", argv, ready_line=READY_LINE)

    def _adapted(self, program: Program, relay_url: str) -> Program:
        env, argv = program.env | self.env, program.argv
        if program.name == VERIFIER:
            env |= {"DSD_NUM_THREADS": "1"} if self.is_pinned else {}
        if program.name == DRAFTER:
            env |= {"DSD_NATS_URL": relay_url}
        if self.standin is not None:
            env |= {"DSD_MODEL_NAME": MODEL_NAME}
            if program.name in self.standin.names:
                argv = (sys.executable, "-m", "benchmarks.standin", STANDIN_MODULES[program.name])
                env |= standin_env(self.standin, program.name)
        core = self._core(program.name)
        if core is not None:
            argv = (sys.executable, "-m", "benchmarks.pinned", str(core), *argv)
        return replace(program, argv=argv, env=env)

    def _core(self, name: str) -> int | None:
        """The drafter's is the first, the verifier's the second; others run wherever there is room."""
        cores = sorted(os.sched_getaffinity(0)) if self.is_pinned else []
        if len(cores) < 2 or name not in (DRAFTER, VERIFIER):
            return None
        return cores[0] if name == DRAFTER else cores[1]


def standin_env(standin: Standin, name: str) -> dict[str, str]:
    """Settings of one stand-in; empty ones don't count as set."""
    env = {
        "DSD_NAME": f"{STANDIN}-{name}",
        "DSD_STANDIN_KIND": standin.kind,
        "DSD_STANDIN_PROFILE": str(standin.profile),
        "DSD_STANDIN_RECORDING": str(standin.recording or ""),
    }
    return env | ({"DSD_TARGET": "", "DSD_DRAFT": ""} if standin.kind == "replayed" else {})
