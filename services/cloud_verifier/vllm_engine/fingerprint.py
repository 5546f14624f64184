"""The numerics fingerprint of a model on vLLM: it changes with model, vLLM, torch, device and what chooses kernels.

Equal ones do not promise equal bits: vLLM's kernels may also depend on the shape of a pass and, on CPUs, on the number
of threads (docs/sampling.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

_SAMPLES, _SAMPLE_BYTES = 64, 64  # of each file of weights
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


def fingerprint_of(model: str, name: str, numerics: Mapping[str, str]) -> str:
    """`dsd-` and 16 hexadecimal digits. model: a folder, or a hub id."""
    facts = dict(numerics) | {"name": name, "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT", "0")}
    digest = sha256(json.dumps(facts, sort_keys=True).encode())
    folder = Path(model)
    digest.update(_folder_bytes(folder) if folder.is_dir() else model.encode())
    return f"dsd-{digest.hexdigest()[:16]}"


def _folder_bytes(folder: Path) -> bytes:
    """The configuration, and name, size and samples of each file of weights."""
    parts = [(folder / "config.json").read_bytes()]
    for path in sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        size = path.stat().st_size
        parts.append(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * size // _SAMPLES)
                parts.append(file.read(_SAMPLE_BYTES))
    return b"".join(parts)
