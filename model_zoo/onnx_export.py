"""Export a Hugging Face folder as an ONNX draft model for services/edge_drafter/model.py.

Invariant: a folder that this function has filled loads and computes; anything else is an error.

The work is done by onnxruntime-genai's model builder in a process of its own: it needs a lot of memory and prints much.
Precisions, all computing in float32 between the matrix products:
* fp32: plain weights.
* int8: MatMulNBits with 8-bit weights, symmetric, one scale for each 128 inputs: a fifth faster than with the builder's
  default of 32 at the same acceptance (docs/models.md). The embedding stays float32, as the builder quantises it to 4
  bits only.
* int4: MatMulNBits with 4-bit weights, symmetric, one scale for each 32 inputs; a tied embedding shares the quantised
  weights of the head.
Activations are quantised to 8 bits on the fly in both. The head is computed for the last position only: a drafter needs
no other logits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from services.edge_drafter.model import load_draft

Precision: TypeAlias = Literal["fp32", "int8", "int4"]

_OPTIONS: dict[Precision, list[str]] = {"fp32": [], "int8": ["block_size=128"], "int4": ["block_size=32"]}


class ExportError(RuntimeError):
    """The model builder failed, or what it made doesn't work."""


def export_draft(source_folder: Path, out_folder: Path, precision: Precision) -> None:
    """Write model.onnx, its data, genai_config.json and the tokenizer files to out_folder, which may be missing.

    source_folder: config.json, safetensors and tokenizer of a causal language model; no network is used.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(source_folder), "-o", str(out_folder), "-p", precision, "-e", "cpu", "-c", scratch]
        command += ["--extra_options", "prune_lm_head=true", "hf_token=false", *_OPTIONS[precision]]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-12:])
        raise ExportError(f"the model builder could not export {source_folder} as {precision}:\n{tail}")
    _check(out_folder)


def _check(folder: Path) -> None:
    # the builder reports success for some combinations of options whose graph does not even load
    try:
        model = load_draft(str(folder), num_threads=1)
    except Exception as error:
        raise ExportError(f"the export in {folder} does not load: {error}") from error
    logits = model.feed(model.new_cache(capacity=4), [0, 1, 2, 3], start=0)
    if not np.isfinite(logits).all():
        raise ExportError(f"the export in {folder} computes logits that are not finite")
