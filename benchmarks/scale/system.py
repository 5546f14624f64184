"""The processes of a cell, and what they read: stretched times, and a recording with a prompt for each request.

Invariant: a cell differs from a real system in this only: models are replayed, their times are stretched, and with them
the gateway's patience with a verifier; drafters share processes; limits are so high that no session waits.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path

from benchmarks.harness.cell_plan import CONTROLLER, DRAFTER, GATEWAY, VERIFIER, CellPlan, StandinPlan, standin_env
from benchmarks.harness.files import ROOT
from benchmarks.harness.prompts import DEFAULT_PROMPTS, encode_prompts
from benchmarks.harness.standin import MODEL_NAME
from benchmarks.scale.cells import Cell, Timing
from benchmarks.standins.stretched import stretched
from model_zoo.prompt_file import read_prompts
from services.gateway.admission.api_keys import new_key
from services.gateway.settings import GatewaySettings
from services.gateway.text.tokenizer import TargetTokenizer
from services.local import nats_server
from services.local.supervisor import Program
from shared.data.profiles import Profile
from shared.data.recording import Recorded, Recording, read_recording

# A draft step is a fair part of a pass: a much faster draft would fill windows of which most is discarded, and with it
# the process of the drafters.
TARGET = ROOT / "profiles" / "roofline-h100x4-llama-3.1-70b.json"
DRAFT = ROOT / "profiles" / "roofline-orin-qwen2.5-0.5b.json"
GUESSES = ROOT / "recordings" / "smollm2-135m-int4.jsonl"  # where a draft was right
DRAFTERS = "drafters"  # names of their processes begin so
MAX_TOGETHER = 500  # drafters in one process: its event loop must have room
POLL_AFTER_S = float(GatewaySettings.model_fields["poll_after_s"].default)
MAX_SESSIONS, TOKEN_BUDGET, KV_TOKENS = 4096, 16384, 4_000_000
ENV = {
    "DSD_MAX_SESSIONS": str(MAX_SESSIONS),
    "DSD_TOKEN_BUDGET": str(TOKEN_BUDGET),
    "DSD_KV_TOKENS": str(KV_TOKENS),
    "DSD_DRAIN_S": "1",
}


@dataclass(frozen=True)
class ScalePlan(CellPlan):
    """A CellPlan whose drafters run many in one process, and whose NATS server counts messages at `monitor_port`."""

    num_drafters: int = 1
    monitor_port: int = 0

    def processes(self, kind: str) -> list[str]:
        """Of the drafters the names alone: they have no processes of their own."""
        if kind == DRAFTER:
            return [f"drafter-{number}" for number in range(self.num_drafters)]
        return super().processes(kind)

    def nats(self, folder: Path) -> Program:
        program = nats_server.program(folder)
        return Program(program.name, (*program.argv, "-m", str(self.monitor_port)), ready_line=program.ready_line)

    def programs(self, nats_url: str, relay_url: str, http_port: int) -> list[Program]:
        shared = [self._drafters(nats_url, numbers) for numbers in shared_out(self.num_drafters)]
        return [*super().programs(nats_url, relay_url, http_port), *shared]

    def _drafters(self, nats_url: str, numbers: range) -> Program:
        assert self.standin is not None
        assert self.compute_logs is not None
        name = f"{DRAFTERS}-{numbers.start}"
        log = str(self.compute_logs / f"{name}.jsonl")
        argv = (sys.executable, "-m", "benchmarks.scale.drafters", str(numbers.start), str(len(numbers)), log)
        own = {"DSD_NATS_URL": nats_url, "DSD_LOG_FORMAT": "json", "DSD_PREFIX_CACHE_TOKENS": "0"}
        named = {"DSD_MODEL_NAME": MODEL_NAME} | standin_env(self.standin, "drafter")
        return Program(name, argv, own | self.env | named)


def shared_out(num_drafters: int) -> list[range]:
    """The numbers of the drafters of each process: as few processes as can be, of about the same size."""
    num_processes = ceil(num_drafters / MAX_TOGETHER)
    ends = [num_drafters * each // num_processes for each in range(num_processes + 1)]
    return [range(*pair) for pair in pairwise(ends)]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files of a cell, and its prompts in the order of the requests."""

    profile: Path
    recording: Path
    prompts: list[str]


def times_of(slower: float) -> Profile:
    """Of target and draft, so many times as long."""
    return stretched("scale", TARGET, DRAFT, slower)


def write_inputs(cell: Cell, slower: float, tokenizer: TargetTokenizer, folder: Path) -> Inputs:
    """Writes the files into `folder`."""
    profile, recording = folder / "profile.json", folder / "recording.jsonl"
    profile.write_text(times_of(slower).model_dump_json(), encoding="utf-8")
    long_enough = [each for each in answers() if len(each.target_ids) >= cell.answer_tokens]
    prompts = numbered(read_prompts(DEFAULT_PROMPTS), 3 * cell.sessions)
    encoded = encode_prompts(tokenizer, prompts)
    recorded = [answered(ids, long_enough[i % len(long_enough)], cell) for i, ids in enumerate(encoded)]
    Recording(read_recording(GUESSES).header, tuple(recorded)).write(recording)
    return Inputs(profile, recording, prompts)


def answers() -> tuple[Recorded, ...]:
    return read_recording(GUESSES).prompts


def numbered(prompts: Sequence[str], number: int) -> list[str]:
    """So many prompts, all different."""
    return [f"{i}. {prompts[i % len(prompts)]}" for i in range(number)]


def answered(prompt_ids: Sequence[int], recorded: Recorded, cell: Cell) -> Recorded:
    """A prompt with the first tokens of another one's answer."""
    end = cell.answer_tokens
    return Recorded(tuple(prompt_ids), recorded.target_ids[:end], recorded.draft_right[:end], recorded.confidence[:end])


def plan_of(cell: Cell, inputs: Inputs, slower: float, models: Path, timing: Timing, folder: Path) -> ScalePlan:
    """A first pass takes longer too, so the gateway's patience grows with the times of the models."""
    logs = folder / "compute"
    logs.mkdir()
    return ScalePlan(
        models,
        names=(CONTROLLER, VERIFIER, GATEWAY),
        is_pinned=False,
        standin=StandinPlan("replayed", inputs.profile, inputs.recording),
        env=ENV | {"DSD_POLL_AFTER_S": f"{max(1.0, slower) * POLL_AFTER_S:g}"},
        num_verifiers=cell.verifiers,
        api_keys=tuple(new_key() for _ in range(2 * timing.num_requests(cell))),  # it may be quicker
        compute_logs=logs,
        num_drafters=cell.drafters,
        monitor_port=nats_server.free_port(),
    )


def allow_connections() -> None:
    """Raises the limit of open files, which the processes of a cell inherit, as far as this user may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
