"""The systems of the comparison, and how each uses the two cores.

Invariant: all serve the default target in the same dtype, llama.cpp in bfloat16, greedily or sampled, on the same two
cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LLAMA, LLAMA_DRAFT = "llama.cpp", "llama.cpp, Q4_1 draft"
VLLM, VLLM_ONE = "vLLM", "vLLM, one thread"
VLLM_NGRAM, VLLM_DRAFT = "vLLM, n-gram", "vLLM, distilled draft"
TRANSFORMERS = "transformers"
TRANSFORMERS_READY_LINE = "transformers is listening"  # here, since its module loads torch
TORCH_PLAIN, TORCH_INT8, TORCH_DISTILLED = (f"DSD, {way}" for way in ("target-only", "int8", "distilled"))
ON_VLLM_PLAIN, ON_VLLM_INT8, ON_VLLM_DISTILLED = (f"DSD on vLLM, {way}" for way in ("target-only", "int8", "distilled"))

Engine = Literal["torch", "vllm"]
Dtype = Literal["bfloat16", "float32"]

ALL_GIB = 26  # of memory that all systems need at once, in float32; five of them are servers of vLLM

TWO_THREADS = "two threads for the model; its server and the client beside them"
ASIDE = "one thread for the model on one core; its server, scheduler and the client on the other"
SPLIT = "verifier: one thread on one core; drafter (one thread), gateway, NATS, controller, client on the other"
SHARED = (
    "verifier: two threads; gateway, NATS, controller and client beside them, drafter (one thread) where a core is idle"
)
DSD_CORES: dict[Engine, str] = {
    "torch": SPLIT,
    "vllm": f"{SHARED}; at RTT 30 and 100 ms the verifier has one core, the drafter and all else the other, since so "
    "far away it has a machine of its own, and passes of 64 tokens or more have both; prompts take what is left of a "
    "pass (prefill_chunk 256)",
}


@dataclass(frozen=True, slots=True)
class System:
    """plain: the same system without speculation, whose greedy texts must be the same; None: it is plain itself.

    is_counted: whether a peer counts as one; it does not if it runs a draft that DSD made.
    """

    name: str
    cores: str = TWO_THREADS
    plain: str | None = None
    is_counted: bool = True

    @property
    def engine(self) -> Engine | None:
        """DSD's engine; None: a peer."""
        if not self.name.startswith("DSD"):
            return None
        return "vllm" if "on vLLM" in self.name else "torch"

    @property
    def draft(self) -> str | None:
        """DSD's draft; None: it is target-only, or a peer."""
        way = self.name.rpartition(", ")[2]
        return way if self.engine and self.plain else None


@dataclass(frozen=True, slots=True)
class Choice:
    """What is fixed before a run."""

    has_distilled: bool = True  # the distilled draft was made on this machine
    has_room: bool = True  # the memory holds all systems at once
    dtype: Dtype = "bfloat16"  # in which frameworks compute


def systems(choice: Choice) -> list[System]:
    """All that can run."""
    found = [
        System(LLAMA),
        System(LLAMA_DRAFT, f"{TWO_THREADS}; the draft has the same two threads, in turn", LLAMA),
        System(VLLM),
        System(VLLM_ONE, ASIDE),
        System(VLLM_NGRAM, ASIDE, VLLM_ONE),
        System(VLLM_DRAFT, ASIDE, VLLM_ONE, is_counted=False),
        System(TRANSFORMERS),
        System(TORCH_PLAIN, DSD_CORES["torch"]),
        System(TORCH_INT8, DSD_CORES["torch"], TORCH_PLAIN),
        System(TORCH_DISTILLED, DSD_CORES["torch"], TORCH_PLAIN),
        System(ON_VLLM_PLAIN, DSD_CORES["vllm"]),
        System(ON_VLLM_INT8, DSD_CORES["vllm"], ON_VLLM_PLAIN),
        System(ON_VLLM_DISTILLED, DSD_CORES["vllm"], ON_VLLM_PLAIN),
    ]
    found = [each for each in found if choice.has_distilled or "distilled" not in each.name]
    return [each for each in found if choice.has_room or each.is_counted]
