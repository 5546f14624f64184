"""Exports a Hugging Face folder as an ONNX draft model for services/edge_drafter/model.py.

Invariant: an exported folder loads and computes finite logits; else ExportError is raised.

onnxruntime-genai's model builder does the work in its own process, since it needs much memory and prints a lot.

Precisions; all compute in float32 between the matrix products:
* fp32: plain weights.
* int8: MatMulNBits with 8-bit weights, symmetric, one scale for 128 inputs: a fifth faster than the builder's default
  of 32 at the same acceptance (docs/models.md). The embedding stays float32, since the builder would quantise it to 4
  bits. Llama models are rotated first, which makes 8 bits more exact (rotation.py) but 4 bits less.
* int4: MatMulNBits with 4-bit weights, symmetric, one scale for 32 inputs; a tied embedding shares the quantised
  weights of the head.

int8 and int4 quantise activations to 8 bits on the fly. The head is computed for the last position only: a drafter
needs no other logits.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from safetensors import SafetensorError

from model_zoo.errors import ExportError
from services.edge_drafter.model import load_draft

Precision: TypeAlias = Literal["fp32", "int8", "int4"]


class Exporter(StrEnum):
    """The exporter of a graph; auto: the model builder if it knows the architecture, else torch."""

    AUTO = "auto"
    BUILDER = "builder"
    TORCH = "torch"


_OPTIONS: dict[Precision, list[str]] = {"fp32": [], "int8": ["block_size=128"], "int4": ["block_size=32"]}


def export_draft(source_folder: Path, out_folder: Path, precision: Precision) -> None:
    """Writes model.onnx, its data, genai_config.json and the tokenizer files to out_folder. Raises ExportError.

    source_folder: config.json, safetensors and tokenizer of a causal language model. It uses no network.
    """
    with tempfile.TemporaryDirectory(dir=out_folder.parent) as scratch:
        source = _easier(source_folder, Path(scratch)) if precision == "int8" else source_folder
        arguments = ["-i", str(source.resolve()), "-o", str(out_folder.resolve()), "-c", scratch]
        arguments += ["-p", precision, "-e", "cpu"]
        arguments += ["--extra_options", "prune_lm_head=true", "hf_token=false", *_OPTIONS[precision]]
        done = run_exporter("onnxruntime_genai.models.builder", arguments)
    if done.returncode != 0:
        raise ExportError(f"the model builder could not export {source_folder} as {precision}:\n{tail_of(done.stdout)}")
    _check(out_folder)


def _easier(source_folder: Path, scratch: Path) -> Path:
    """The folder of the rotated model, or the folder itself if it can't be rotated."""
    from model_zoo.exporting.rotation import can_rotate, rotate  # loads torch: `prepare` without work must stay quick

    config = source_folder / "config.json"
    if not config.is_file() or not can_rotate(json.loads(config.read_text(encoding="utf-8"))):
        return source_folder
    try:
        rotate(source_folder, scratch / "rotated")
    except (KeyError, OSError, SafetensorError) as error:
        raise ExportError(f"the weights of {source_folder} are not those of a complete Llama model: {error}") from error
    return scratch / "rotated"


def run_exporter(module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a Python module in its own process, without network; stdout collects all that it prints.

    Paths in the arguments must be absolute: the process runs in the folder of our packages.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def tail_of(printed: str) -> str:
    """The last lines that an exporter printed, which say why it stopped."""
    return "\n".join(printed.strip().splitlines()[-12:])


def builder_architectures() -> frozenset[str]:
    """The architectures that the model builder knows, read from its source."""
    package = importlib.util.find_spec("onnxruntime_genai")
    if package is None or package.origin is None:
        raise ExportError("onnxruntime-genai is not installed")
    text = (Path(package.origin).parent / "models" / "builder.py").read_text(encoding="utf-8")
    names = frozenset(_compared_architectures(ast.parse(text)))
    if not names:
        raise ExportError("this onnxruntime-genai does not say which architectures its model builder knows")
    return names


def _compared_architectures(tree: ast.AST) -> Iterator[str]:
    """X of each `config.architectures[0] == X`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "config.architectures[0]":
            yield from (ast.literal_eval(each) for each in node.comparators)


def _check(folder: Path) -> None:
    # the builder reports success for some options whose graph does not load
    try:
        model = load_draft(str(folder), num_threads=1)
    except Exception as error:
        raise ExportError(f"the export in {folder} does not load: {error}") from error
    logits = model.feed(model.new_cache(capacity=4), [0, 1, 2, 3], start=0)
    if not np.isfinite(logits).all():
        raise ExportError(f"the export in {folder} computes logits that are not finite")
