"""vLLM's flags and environment for a verifier's settings.

vLLM's own flags pass through under their own names. DSD owns those that its batching rule, protocol or command line
decide; they are refused with the name of DSD's setting. So are those that cannot work.
"""

from __future__ import annotations

import os
import shlex
import sys

from vllm import EngineArgs

from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.vllm_engine.core import is_on_cpu, parse_flags

OWNED = {  # flag of vLLM: what to set instead
    "model": "--target",
    "served_model_name": "--model-name",
    "dtype": "--dtype",
    "max_num_seqs": "--max-sessions",
    "max_num_batched_tokens": "--token-budget",
    "long_prefill_token_threshold": "--prefill-chunk",
    "scheduling_policy": "",
    "scheduler_cls": "",
    "worker_cls": "",
    "speculative_config": "",
    "async_scheduling": "",
}
REFUSED = {  # flag of vLLM: why, and what to do
    "enable_lora": "no request can name an adapter; merge it into the target's weights",
    "pipeline_parallel_size": "guesses give wrong text with it in this vLLM; use --tensor-parallel-size",
}
CPU_KV_GIB = 2  # vLLM's own default is nearly all memory of the machine
_KV_FLAGS = ("kv_cache_memory_bytes", "gpu_memory_utilization")


def engine_args(settings: VerifierSettings) -> EngineArgs:
    """vLLM's arguments. Exits with status 2, in vLLM's words, for a flag that vLLM refuses."""
    given, changed = parse_flags(shlex.split(settings.vllm_args))
    for name in OWNED.keys() & changed:
        instead = f"use {OWNED[name]}" if OWNED[name] else "DSD decides it"
        _refuse(f"--{name.replace('_', '-')} is not passed on to vLLM: {instead}")
    for name in REFUSED.keys() & changed:
        _refuse(f"--{name.replace('_', '-')}: {REFUSED[name]}")
    if is_on_cpu():
        _prepare_cpu(is_kv_chosen=bool(changed & set(_KV_FLAGS)))
    args = EngineArgs.from_cli_args(given)
    args.model, args.served_model_name, args.dtype = settings.target, [settings.model_name], settings.dtype
    args.max_num_seqs, args.max_num_batched_tokens = settings.max_sessions, settings.token_budget
    if settings.prefill_threads and is_on_cpu():  # vLLM tries its longest pass before: oneDNN keeps the threads it had
        args.max_num_batched_tokens += 1
    return args


def _prepare_cpu(is_kv_chosen: bool) -> None:
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")  # what vLLM stores so can't be loaded: it compiles every time
    if not is_kv_chosen:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_KV_GIB))


def _refuse(message: str) -> None:
    print(f"python -m services.cloud_verifier: {message}", file=sys.stderr)
    raise SystemExit(2)
