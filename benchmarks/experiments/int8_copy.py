"""An int8 copy of a model as vLLM loads it: python -m benchmarks.experiments.int8_copy FOLDER OUT.

Weights of linear layers have one scale for each row, activations one for each token, in the format of
compressed-tensors. The copy can be vLLM's own draft model for its source.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "observer_kwargs": {}}
QUANTISATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": INT8 | {"strategy": "token", "dynamic": True},
        }
    },
}


def quantise(source: Path, folder: Path) -> Path:
    """Writes the copy. Returns its folder. The source must be one safetensors file with layers named …_proj."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    for name in [each for each in tensors if each.endswith("_proj.weight")]:
        weight = tensors[name].float()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale.bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"quantization_config": QUANTISATION}, indent=1)
    (folder / "config.json").write_text(text, encoding="utf-8")
    for path in source.glob("*.json"):
        if path.name != "config.json":
            shutil.copy(path, folder)
    return folder


if __name__ == "__main__":
    print(quantise(Path(sys.argv[1]), Path(sys.argv[2])))
