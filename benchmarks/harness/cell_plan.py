"""The processes of one benchmark cell, as programs for the supervisor of services/local.

Invariant: a cell differs from `python -m services` only in what its plan names: cores, link, stand-ins, compute logs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness.link import LinkConditions
from benchmarks.harness.pinned import pinned
from benchmarks.harness.relay import READY_LINE
from benchmarks.harness.standin import MODEL_NAME, STANDIN, StandinKind
from services.local import nats_server
from services.local.engine import EngineName, VerifierEngine
from services.local.nats_server import Access
from services.local.pair import default_pair
from services.local.supervisor import Program
from services.local.system import SystemPlan, service_programs
from shared.data.profiles import read_profile

# Kinds of processes. The name of the first verifier and of the first drafter stands for its kind.
CONTROLLER, VERIFIER, DRAFTER, GATEWAY = "controller", "verifier-0", "drafter-0", "gateway"
ALL_KINDS = (CONTROLLER, VERIFIER, DRAFTER, GATEWAY)
WITHOUT_CONTROLLER = (VERIFIER, DRAFTER, GATEWAY)  # for a ScriptedController in the benchmark's own process
MODULES = {VERIFIER: "cloud_verifier", DRAFTER: "edge_drafter"}  # services that load a model
NEAR = LinkConditions()


def kind_of(name: str) -> str:
    """Kind of a process: drafter-0 for drafter-3."""
    stem, _, number = name.rpartition("-")
    return f"{stem}-0" if stem and number.isdigit() else name


@dataclass(frozen=True, slots=True)
class StandinPlan:
    """Which kinds of processes run stand-ins, and of which sort."""

    kind: StandinKind
    profile: Path
    recording: Path | None = None
    names: tuple[str, ...] = (VERIFIER, DRAFTER)  # kinds of processes

    def __str__(self) -> str:
        """For titles."""
        return f"{STANDIN}: {self.kind} {read_profile(self.profile).name}"


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One cell. Without a controller, windows are the defaults or those of a ScriptedController."""

    models: Path
    names: tuple[str, ...] = ALL_KINDS  # kinds of processes to start, beside nats-server
    link: LinkConditions = NEAR  # between each drafter and everything else; NEAR: no relay
    is_pinned: bool = True  # all drafters on the first core, all verifiers on the second, if there are two
    standin: StandinPlan | None = None
    env: dict[str, str] = field(default_factory=dict)  # extra environment of every service
    api_keys: tuple[str, ...] = ()  # that the gateway accepts; empty: it asks for none
    seed: int = 1
    drafts: tuple[str, ...] = ("int8",)  # one for each drafter
    num_verifiers: int = 1
    compute_logs: Path | None = None  # folder in which verifiers and drafters log their passes and steps
    profiles: Path | None = None  # folder for profiles of the processor time of gateway and verifiers
    conditions: Path | None = None  # JSON file of LinkConditions that the relay reads on SIGHUP; None: they stay
    engine: VerifierEngine = field(default_factory=VerifierEngine)
    verifier_threads: int | None = None  # of each; None: one if pinned, else as `python -m services` has it
    prefill_threads: int = 0  # of pinned verifiers on vLLM; if not 0, verifiers have all cores

    def processes(self, kind: str) -> list[str]:
        """Process names of the verifiers or the drafters; empty if that kind does not run."""
        num = self.num_verifiers if kind == VERIFIER else len(self.drafts)
        return [f"{kind.removesuffix('-0')}-{number}" for number in range(num)] if kind in self.names else []

    @property
    def drafter_names(self) -> list[str]:
        """Instance names of the drafters, for requests that choose one."""
        is_standin = self.standin is not None and DRAFTER in self.standin.names
        return [standin_name(name) if is_standin else name for name in self.processes(DRAFTER)]

    def programs(self, nats_url: str, relay_url: str, http_port: int) -> list[Program]:
        """The services in start order. Drafters connect to `relay_url`, the others to `nats_url`."""
        pair = default_pair(self.models, self.drafts, num_drafters=len(self.drafts))
        made = service_programs(
            SystemPlan(pair, self.num_verifiers, port=http_port, engine=self.engine), Access(nats_url)
        )
        return [self._adapted(program, relay_url) for program in made if kind_of(program.name) in self.names]

    def nats(self, folder: Path) -> Program:
        """The NATS server whose configuration is in `folder`."""
        return nats_server.program(folder)

    @property
    def has_relay(self) -> bool:
        return self.link != NEAR or self.conditions is not None

    def relay(self, nats_url: str, port: int) -> Program:
        """The relay between the drafters and nats-server."""
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
        flags |= {"conditions": self.conditions} if self.conditions else {}
        options = (f"--{name}={value}" for name, value in flags.items())
        command = (sys.executable, "-m", "benchmarks.harness.relay", *options)
        return Program("relay", command, ready_line=READY_LINE)

    def _adapted(self, program: Program, relay_url: str) -> Program:
        kind, env = kind_of(program.name), program.env | self.env
        if kind == VERIFIER:
            num_threads = self.verifier_threads or (1 if self.is_pinned else None)
            env |= {"DSD_NUM_THREADS": str(num_threads)} if num_threads else {}
            if self.is_pinned and self.engine.name is EngineName.VLLM:
                env |= {"DSD_PREFILL_THREADS": str(self.prefill_threads)}
        if kind == DRAFTER:
            env |= {"DSD_NATS_URL": relay_url}
        if self.standin is not None:
            env |= {"DSD_MODEL_NAME": MODEL_NAME}
            if kind in self.standin.names:
                env |= standin_env(self.standin, program.name)
        argv, core = self._profiled(self._argv(program, kind), program.name), self._core(kind)
        return replace(program, argv=argv if core is None else pinned(core, argv), env=env)

    def _argv(self, program: Program, kind: str) -> tuple[str, ...]:
        """The command of a service, or of the program that runs it with a stand-in or with a compute log."""
        if kind not in MODULES:
            return program.argv
        is_standin = self.standin is not None and kind in self.standin.names
        if self.compute_logs is not None:
            log = str(self.compute_logs / f"{program.name}.jsonl")
            timed = (program.argv[0], "-m", "benchmarks.standins.timed", log, MODULES[kind])
            return (*timed, f"--{STANDIN}") if is_standin else timed
        return (sys.executable, "-m", "benchmarks.standins", MODULES[kind]) if is_standin else program.argv

    def _profiled(self, argv: tuple[str, ...], name: str) -> tuple[str, ...]:
        """The same `python -m …` under Python's profiler, which writes its file when the process ends."""
        if self.profiles is None or kind_of(name) not in (GATEWAY, VERIFIER):
            return argv
        python, flag, *module = argv
        return (python, flag, "benchmarks.tracing.profiled", str(self.profiles / f"{name}.prof"), *module)

    def _core(self, kind: str) -> int | None:
        """The core of a service that loads a model; None: any."""
        cores = sorted(os.sched_getaffinity(0)) if self.is_pinned else []
        if len(cores) < 2 or kind not in MODULES:
            return None
        if kind == DRAFTER:
            return cores[0]
        return None if self.prefill_threads else cores[1]


def standin_name(name: str) -> str:
    """Instance name of a process that runs a stand-in."""
    return f"{STANDIN}-{name}"


def standin_env(standin: StandinPlan, name: str) -> dict[str, str]:
    """Environment of one stand-in. The empty model folders unset those of the service. The verifier does not guess from
    the text, since a stand-in's repeats a recording."""
    env = {
        "DSD_LOOKUP_TOKENS": "0",
        "DSD_NAME": standin_name(name),
        "DSD_STANDIN_KIND": standin.kind,
        "DSD_STANDIN_PROFILE": str(standin.profile),
        "DSD_STANDIN_RECORDING": str(standin.recording or ""),
    }
    return env | ({"DSD_TARGET": "", "DSD_DRAFT": ""} if standin.kind == "replayed" else {})
