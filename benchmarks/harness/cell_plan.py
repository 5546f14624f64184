"""What runs for one cell of a benchmark, as programs for services/local's supervisor.

Invariant: a cell differs from a system of `python -m services` by what its plan says and nothing else: cores, link,
stand-ins.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness.link import Conditions
from benchmarks.harness.relay import READY_LINE
from benchmarks.standins.settings import MODEL_NAME, STANDIN, Kind
from services.local.nats_server import Access
from services.local.pair import default_pair
from services.local.supervisor import Program
from services.local.system import SystemPlan, service_programs
from shared.data.profiles import read_profile

# The first verifier's and the first drafter's name stand for all of their kind.
CONTROLLER, VERIFIER, DRAFTER, GATEWAY = "controller", "verifier-0", "drafter-0", "gateway"
ALL = (CONTROLLER, VERIFIER, DRAFTER, GATEWAY)
MODULES = {VERIFIER: "cloud_verifier", DRAFTER: "edge_drafter"}  # services that have a model
NEAR = Conditions()


def kind_of(name: str) -> str:
    """The name that stands for a process's kind: drafter-0 for drafter-3."""
    stem, _, number = name.rpartition("-")
    return f"{stem}-0" if stem and number.isdigit() else name


@dataclass(frozen=True, slots=True)
class Standin:
    """Which of verifiers and drafters are stand-ins, and how."""

    kind: Kind
    profile: Path
    recording: Path | None = None
    names: tuple[str, ...] = (VERIFIER, DRAFTER)  # of kinds

    def __str__(self) -> str:
        """For titles."""
        return f"{STANDIN}: {self.kind} {read_profile(self.profile).name}"


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One cell. Without a controller its windows are the defaults, or what conductor.py says."""

    models: Path
    draft: str = "int8"
    names: tuple[str, ...] = ALL  # of the kinds of processes to start, beside the nats-server
    link: Conditions = NEAR  # of each drafter to everybody else
    is_pinned: bool = True  # all verifiers on one core and all drafters on another, where there are two
    standin: Standin | None = None
    env: dict[str, str] = field(default_factory=dict)  # more settings, of all services
    api_key: str = ""  # with which the gateway is asked whom it has heard of
    seed: int = 1
    drafts: tuple[str, ...] = ()  # of several drafters; empty: one, with `draft`
    num_verifiers: int = 1
    clocks: Path | None = None  # folder in which verifiers and drafters note their passes and steps (validate_clock.py)

    @property
    def is_near(self) -> bool:
        """Whether the drafters' links need no relay."""
        return self.link == NEAR

    @property
    def draft_of_each(self) -> tuple[str, ...]:
        """Of each drafter."""
        return self.drafts or (self.draft,)

    def processes(self, kind: str) -> list[str]:
        """The verifiers or the drafters that run, by the names of their processes."""
        num = self.num_verifiers if kind == VERIFIER else len(self.draft_of_each)
        return [f"{kind.removesuffix('-0')}-{number}" for number in range(num)] if kind in self.names else []

    @property
    def drafter_names(self) -> list[str]:
        """By which requests may ask for each drafter."""
        is_standin = self.standin is not None and DRAFTER in self.standin.names
        return [standin_name(name) if is_standin else name for name in self.processes(DRAFTER)]

    def programs(self, nats_url: str, relay_url: str, http_port: int) -> list[Program]:
        """The services, in the order of their start; drafters speak to `relay_url`."""
        drafts = self.draft_of_each
        pair = default_pair(self.models, drafts, num_drafters=len(drafts))
        made = service_programs(SystemPlan(pair, self.num_verifiers, port=http_port), Access(nats_url))
        return [self._adapted(program, relay_url) for program in made if kind_of(program.name) in self.names]

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
        argv = (
            sys.executable,
            "-m",
            "benchmarks.harness.relay",
            *(f"--{name}={value}" for name, value in flags.items()),
        )
        return Program("relay", argv, ready_line=READY_LINE)

    def _adapted(self, program: Program, relay_url: str) -> Program:
        kind, env = kind_of(program.name), program.env | self.env
        if kind == VERIFIER:
            env |= {"DSD_NUM_THREADS": "1"} if self.is_pinned else {}
        if kind == DRAFTER:
            env |= {"DSD_NATS_URL": relay_url}
        if self.standin is not None:
            env |= {"DSD_MODEL_NAME": MODEL_NAME}
            if kind in self.standin.names:
                env |= standin_env(self.standin, program.name)
        argv, core = self._argv(program, kind), self._core(kind)
        if core is not None:
            argv = (sys.executable, "-m", "benchmarks.harness.pinned", str(core), *argv)
        return replace(program, argv=argv, env=env)

    def _argv(self, program: Program, kind: str) -> tuple[str, ...]:
        """The service itself, or one with a stand-in for its model, with a clock or without."""
        if kind not in MODULES:
            return program.argv
        is_standin = self.standin is not None and kind in self.standin.names
        if self.clocks is not None:
            notes = str(self.clocks / f"{program.name}.jsonl")
            clocked = (sys.executable, "-m", "benchmarks.validation.clock", notes, MODULES[kind])
            return (*clocked, STANDIN) if is_standin else clocked
        return (sys.executable, "-m", "benchmarks.standins", MODULES[kind]) if is_standin else program.argv

    def _core(self, kind: str) -> int | None:
        """The drafters' is the first, the verifiers' the second; others run wherever there is room."""
        cores = sorted(os.sched_getaffinity(0)) if self.is_pinned else []
        if len(cores) < 2 or kind not in MODULES:
            return None
        return cores[0] if kind == DRAFTER else cores[1]


def standin_name(name: str) -> str:
    """Of a process with a stand-in for its model."""
    return f"{STANDIN}-{name}"


def standin_env(standin: Standin, name: str) -> dict[str, str]:
    """Settings of one stand-in; empty ones don't count as set."""
    env = {
        "DSD_NAME": standin_name(name),
        "DSD_STANDIN_KIND": standin.kind,
        "DSD_STANDIN_PROFILE": str(standin.profile),
        "DSD_STANDIN_RECORDING": str(standin.recording or ""),
    }
    return env | ({"DSD_TARGET": "", "DSD_DRAFT": ""} if standin.kind == "replayed" else {})
