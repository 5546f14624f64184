"""Environment variables that vLLM and OpenMP read when they are imported."""

from __future__ import annotations

import os

from services.cloud_verifier.settings import VerifierSettings

ALWAYS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's core runs in this process
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # our draw replaces that of the V1 runner
}
DEFAULTS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several ranks else want a NUMA node each
    "VLLM_CONFIGURE_LOGGING": "0",  # its lines go through our log
    "VLLM_NO_USAGE_STATS": "1",
}


def prepare(settings: VerifierSettings) -> None:
    """Sets them. Call it before torch or vLLM is imported; worker processes inherit them."""
    os.environ.update(ALWAYS)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if settings.num_threads:
        os.environ["OMP_NUM_THREADS"] = str(settings.num_threads)
