"""Exports a user's Hugging Face model as a draft, and compares the draft with the model.

Invariant: the output folder appears only after the comparison. It holds all that the drafter and `check` need: graph,
configuration, tokenizer, and a record of the export.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from model_zoo.errors import ExportError
from model_zoo.exporting.draft_vocabulary import reduce_vocabulary
from model_zoo.exporting.onnx_export import (
    Exporter,
    Precision,
    builder_architectures,
    export_draft,
    run_exporter,
    tail_of,
)
from model_zoo.exporting.staging import settle, staging
from model_zoo.exporting.torch_export import PLAIN, UNSUPPORTED
from model_zoo.manifest import FileEntry, describe, sha256_of, sync
from model_zoo.measuring.agreement import Agreement, check_agreement, reference_of
from model_zoo.prepare import Notify
from model_zoo.source import ALL_FILES, Source, open_source
from services.edge_drafter.draft_config import VOCABULARY
from services.edge_drafter.model import load_draft

RECORD_FILE = "export.json"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "onnxscript", "torch", "transformers")


class ExportRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """export.json of a draft: its source, how it was exported, and how well it follows the source."""

    model: str
    architecture: str
    exporter: str
    precision: str
    agreement: float  # share of positions at which draft and source have the same top token
    correlation: float  # of their logits
    sources: dict[str, str]  # sha256 by file
    versions: dict[str, str]
    files: dict[str, FileEntry]


def export_model(model: str, out: Path, precision: Precision, exporter: Exporter, notify: Notify) -> ExportRecord:
    """Writes the draft of a folder or hub id to `out`, a new folder. Raises UnusableModel, ExportError, OSError."""
    if out.exists():
        raise ExportError(f"{out} exists already: choose another folder or remove it")
    source = open_source(model)
    chosen = _choose(exporter, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with staging(out.parent) as hidden:
        made = hidden / precision
        notify(f"exporting {source.architecture} as {precision} by {_NAMES[chosen]}")
        if chosen == Exporter.BUILDER:
            export_draft(source.folder, made, precision)
        else:
            _export_by_torch(source, hidden, precision)
        notify("comparing the draft with its source")
        agreement = _compare(source, made, precision, plain=hidden / PLAIN)
        if (vocabulary := source.folder / VOCABULARY).is_file():
            reduce_vocabulary(made, msgspec.json.decode(vocabulary.read_bytes(), type=tuple[int, ...]))
        for name in TEXT_FILES:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, made / name)
        record = _record(source, made, chosen, precision, agreement)
        (made / RECORD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(record, order="sorted")) + b"\n")
        settle(made)
        made.rename(out)
        sync(out.parent)
    return record


_NAMES = {Exporter.BUILDER: "onnxruntime-genai's model builder", Exporter.TORCH: "torch's exporter"}


def _choose(exporter: Exporter, source: Source) -> Exporter:
    knows = source.architecture in builder_architectures()
    if exporter == Exporter.BUILDER and not knows:
        raise ExportError(f"onnxruntime-genai's model builder does not know {source.architecture}")
    if exporter == Exporter.AUTO:
        return Exporter.BUILDER if knows else Exporter.TORCH
    return exporter


def _export_by_torch(source: Source, scratch: Path, precision: Precision) -> None:
    """Writes scratch/fp32 and, made from it, scratch/<precision>."""
    precisions = list(dict.fromkeys([PLAIN, precision]))
    done = run_exporter(
        "model_zoo.exporting.torch_export", [str(source.folder.resolve()), str(scratch.resolve()), *precisions]
    )
    if done.returncode == UNSUPPORTED:
        reason = done.stdout.strip().splitlines()[-1]
        raise ExportError(f"{source.named} ({source.architecture}) can't be exported: {reason}")
    if done.returncode != 0:
        raise ExportError(f"torch's exporter could not export {source.named}:\n{tail_of(done.stdout)}")


def _compare(source: Source, made: Path, precision: str, plain: Path) -> Agreement:
    """How well the draft in `made` follows its source. plain: folder of the unquantised graph, if any."""
    try:
        draft = load_draft(str(made), num_threads=1)
        reference = reference_of(_load(source), draft.max_context)
        if plain.is_dir():
            check_agreement(load_draft(str(plain), num_threads=1), reference, PLAIN)
        return check_agreement(draft, reference, precision)
    except ValueError as error:
        raise ExportError(f"the {precision} export of {source.named} is refused: {error}") from error


def _load(source: Source) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32)
    return model.eval()  # type: ignore[no-untyped-call, no-any-return]


def _record(source: Source, made: Path, exporter: Exporter, precision: str, agreement: Agreement) -> ExportRecord:
    entry = describe(made, revision=1, sources={}, packages=_PACKAGES)
    paths = sorted({path for pattern in ALL_FILES for path in source.folder.glob(pattern)})
    return ExportRecord(
        model=source.named,
        architecture=source.architecture,
        exporter=exporter,
        precision=precision,
        agreement=round(agreement.share, 4),
        correlation=round(agreement.correlation, 5),
        sources={path.name: sha256_of(path) for path in paths},
        versions=entry.versions,
        files=entry.files,
    )
