"""vLLM's EngineCore in this process: requests in, draws out, without vLLM's servers, tokenizers and detokenizers.

Invariant: one thread at a time calls it. After a failed step nothing of that step stays in the KV cache.

One of three files that use vLLM's internal interfaces (tests/vllm/test_contract.py).
"""

from __future__ import annotations

import platform
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import llguidance
import msgspec
import numpy as np
import structlog
import torch
from vllm import EngineArgs, SamplingParams
from vllm import __version__ as vllm_version
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor
from vllm.v1.request import RequestStatus

from services.cloud_verifier.vllm_engine.scheduler import Planned, PlannedScheduler
from services.cloud_verifier.vllm_engine.worker import RULE_KEY, DrawRule

MAX_GUESSES = 16  # of one request in one step; a longer window takes several steps
LEAST_ROWS = 6  # of a padded pass
SHORTER = 0.95  # share of a single token's time that a padded pass must stay below
MAX_EMPTY_STEPS = 16  # that vLLM may need to forget ended requests
HERE = "services.cloud_verifier.vllm_engine"
INSTRUCTION_SETS = ("amx_tile", "avx512_bf16")  # by which vLLM chooses kernels, besides torch's own choice


log = structlog.get_logger(__name__)


def is_on_cpu() -> bool:
    """Whether this vLLM computes on CPUs."""
    return bool(current_platform.is_cpu())


def device_name() -> str:
    """Name of the GPU, or instruction sets of the CPU. Equal machines have equal names."""
    if not is_on_cpu():
        return str(current_platform.get_device_name())
    known = torch.cpu.get_capabilities()
    sets = [each for each in INSTRUCTION_SETS if known.get(each)]
    return " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *sets])


def parse_flags(flags: Sequence[str]) -> tuple[Namespace, set[str]]:
    """vLLM's engine flags, and the names of those that differ from their defaults. Exits as vLLM does for bad ones."""
    parser = FlexibleArgumentParser(prog="vllm", add_help=False)
    EngineArgs.add_cli_args(parser)
    given = parser.parse_args(list(flags))
    return given, {name for name, value in vars(given).items() if value != parser.get_default(name)}


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step did for a request."""

    num_tokens: int  # computed
    length: int  # leading tokens of the text in the KV cache
    output: EngineCoreOutput | None  # None: nothing was drawn
    is_gone: bool  # it holds no KV cache: at the longest text, preempted or not admitted; add it again to go on


class Core:
    """The engine behind `VllmEngine`."""

    def __init__(self, args: EngineArgs, prefill_threads: int = 0) -> None:
        """Loads the model. Raises whatever vLLM raises, with its words.

        prefill_threads: of passes of many tokens on CPUs; 0: as of the others.
        """
        config = replace(
            args,
            async_scheduling=False,
            disable_log_stats=True,
            scheduler_cls=f"{HERE}.scheduler.PlannedScheduler",
            scheduling_policy="priority",  # by arrival_time: under pressure the newest session is preempted
            worker_cls=f"{HERE}.worker.Worker",
            speculative_config={
                "method": "custom_class",
                "model": f"{HERE}.worker.NoProposer",
                "num_speculative_tokens": MAX_GUESSES,
            },
        ).create_engine_config(UsageContext.ENGINE_CONTEXT)
        self.config = config
        self._core = EngineCore(config, Executor.get_class(config), log_stats=False)
        if is_on_cpu():
            self._pad_short_passes()
        if prefill_threads and is_on_cpu():
            self._core.collective_rpc("use_prefill_threads", args=(prefill_threads,))
        self._scheduler = cast(PlannedScheduler, self._core.scheduler)

    @property
    def vocab_size(self) -> int:
        return int(self.config.model_config.get_vocab_size())

    @property
    def max_context(self) -> int:
        return int(self.config.model_config.max_model_len)

    @property
    def kv_tokens(self) -> int:
        return int(self.config.cache_config.kv_cache_size_tokens)

    @property
    def block_size(self) -> int:
        return int(self.config.cache_config.block_size)

    @property
    def free_kv_tokens(self) -> int:
        """Tokens in blocks that no request holds, those of the prefix cache included."""
        pool = self._scheduler.kv_cache_manager.block_pool
        return int(self.kv_tokens * pool.get_num_free_blocks() / max(1, pool.num_gpu_blocks - 1))

    def numerics(self) -> dict[str, str]:
        """What the bits of a score depend on, besides the model."""
        config = self.config
        return {
            "vllm": vllm_version,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "llguidance": llguidance.__version__,
            "device": device_name(),
            "attention": ",".join(self._core.collective_rpc("attention_backends")[0]),
            "dtype": str(config.model_config.dtype),
            "quantization": str(config.model_config.quantization),
            "kv_cache_dtype": str(config.cache_config.cache_dtype),
            "tensor_parallel_size": str(config.parallel_config.tensor_parallel_size),
            "compilation": str(config.compilation_config.mode),
        }

    def add(self, request_id: str, token_ids: Sequence[int], rule: DrawRule, salt: str, age: float) -> None:
        """Adds a request that runs until it is dropped. age: under pressure, the highest is preempted first."""
        params = SamplingParams(
            temperature=0,
            max_tokens=self.max_context,  # vLLM ends the request at the longest text
            ignore_eos=True,
            detokenize=False,
            logprobs=rule.num_top,
            extra_args={RULE_KEY: msgspec.to_builtins(rule)},
        )
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(token_ids),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=age,
            lora_request=None,
            cache_salt=salt,
            data_parallel_rank=None,
        )
        self._core.add_request(*self._core.preprocess_add_request(request))

    def drop(self, request_ids: Sequence[str]) -> None:
        """Ends requests. Their whole blocks stay in the prefix cache until others need the memory."""
        self._core.abort_requests(list(request_ids))

    def step(self, plan: Mapping[str, Planned]) -> dict[str, Stepped]:
        """Computes one step over the planned requests. A request that found no KV cache is dropped."""
        self._scheduler.plan = plan
        outputs, _ = self._core.step_fn()
        by_id = {each.request_id: each for group in (outputs or {}).values() for each in group.outputs}
        return {request_id: self._stepped(request_id, by_id.get(request_id)) for request_id in plan}

    @property
    def preempted_ids(self) -> list[str]:
        """Requests that the last step took the KV cache from, planned or not. They must be dropped."""
        return self._scheduler.preempted_ids

    def reset(self) -> None:
        """Forgets all requests and the prefix cache, which may name blocks that a failed step did not compute."""
        self.drop(list(self._scheduler.requests))
        self._scheduler.plan = {}
        for _ in range(MAX_EMPTY_STEPS):
            if not self._scheduler.has_requests():
                break
            self._core.step_fn()
        if not self._core.reset_prefix_cache():
            raise RuntimeError("vLLM's prefix cache can't be reset")

    def shutdown(self) -> None:
        self._core.shutdown()

    def _pad_short_passes(self) -> None:
        """Pads passes of fewer than LEAST_ROWS tokens if a padded pass is faster than one of a single token."""
        least = min(LEAST_ROWS, self.config.scheduler_config.max_num_batched_tokens)
        alone, padded = self._core.collective_rpc("pass_seconds", args=((1, least),))[0]
        if padded < SHORTER * alone:
            self._core.collective_rpc("pad_passes", args=(least,))
            log.info("short passes are padded", num_rows=least, ms=padded * 1e3, unpadded_ms=alone * 1e3)

    def _stepped(self, request_id: str, output: EngineCoreOutput | None) -> Stepped:
        request = self._scheduler.requests.get(request_id)
        num_tokens = self._scheduler.num_scheduled.get(request_id, 0)
        if request is None or request.status != RequestStatus.RUNNING:
            return Stepped(num_tokens, 0, output, is_gone=True)
        return Stepped(num_tokens, request.num_computed_tokens, output, is_gone=False)
