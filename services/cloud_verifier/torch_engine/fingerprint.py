"""The numerics fingerprint: on CPUs, two verifiers with equal fingerprints give bit-identical text.

Invariant: it changes with anything that may change a bit of a score: weights, configuration, dtype, library versions,
instruction set, kernels, and our own shapes (NUMERICS: increment it when they change).
"""

from __future__ import annotations

import json
from hashlib import sha256

import llguidance
import numba
import numpy as np
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

NUMERICS = 6
_SAMPLES = 64  # per tensor; a training step changes some of them
# Without effect, or hashed separately.
_IGNORED_KEYS = {"_name_or_path", "transformers_version", "dtype", "architectures"}


def fingerprint_of(model: PreTrainedModel, name: str, *, packed: bool) -> str:
    """`dsd-` and 16 hexadecimal digits. Call it before layers are replaced."""
    device = model.device
    is_cpu = device.type == "cpu"
    machine = torch.backends.cpu.get_cpu_capability() if is_cpu else torch.cuda.get_device_name(device)
    versions = [each.__version__ for each in (torch, transformers, numba, np, llguidance)]
    facts = [name, str(model.dtype), *versions, device.type, machine]
    facts += ["packed" if packed else "plain", str(NUMERICS), _config(model.config), _weights(model)]
    return "dsd-" + sha256("\n".join(facts).encode()).hexdigest()[:16]


def _config(config: PretrainedConfig) -> str:
    facts = {key: value for key, value in config.to_dict().items() if key not in _IGNORED_KEYS}
    return json.dumps(facts, sort_keys=True, default=str)


def _weights(model: PreTrainedModel) -> str:
    """Hash of the name, shape and sampled values of every tensor."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.flatten()
        sample = values[:: max(1, len(values) // _SAMPLES)].contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
