"""Reduces an exported draft's head to the tokens that its target really uses: the head is half of a small draft's step.

After Zhao and others, FR-Spec, arXiv 2502.14856, section 3.2.

Invariant: the logits of the tokens that stay are the same, with quantised weights to the bit. The drafter takes all
others as impossible, and the text never depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from model_zoo.errors import ExportError
from services.edge_drafter.draft_config import VOCABULARY, read_config

PRODUCTS = ("MatMul", "MatMulNBits")


def reduce_vocabulary(folder: Path, token_ids: Sequence[int]) -> None:
    """Keeps the logits of these tokens (ascending ids) in the draft in `folder`, and writes draft_vocabulary.json.

    Raises ExportError if the graph's head is not found.
    """
    config = read_config(folder)
    model = onnx.load(folder / config.file)
    head = _head(model.graph, config.vocab_size)
    axis = 0 if head.op_type == "MatMulNBits" else 1
    for place, name in enumerate(head.input[1:], start=1):
        if name:
            head.input[place] = _reduced(model.graph, name, token_ids, axis)
    for attribute in head.attribute:
        if attribute.name == "N":
            attribute.i = len(token_ids)
    _declare(model, config.logits, len(token_ids))
    _drop_unused(model.graph)
    data = f"{config.file}.data"
    (folder / data).unlink(missing_ok=True)
    onnx.save(model, folder / config.file, save_as_external_data=True, location=data, size_threshold=1024)
    (folder / VOCABULARY).write_bytes(msgspec.json.encode(list(token_ids)) + b"\n")


def _head(graph: GraphProto, vocab_size: int) -> NodeProto:
    """The product with the weights of the whole vocabulary."""
    dims = {each.name: list(each.dims) for each in graph.initializer}
    found: list[NodeProto] = [
        node
        for node in graph.node
        if node.op_type in PRODUCTS
        and dims.get(node.input[1], [])[slice(0, 1) if node.op_type == "MatMulNBits" else slice(1, 2)] == [vocab_size]
    ]
    if len(found) != 1:
        raise ExportError(f"the graph has {len(found)} products with {vocab_size} outputs: its head is not known")
    return found[0]


def _reduced(graph: GraphProto, name: str, token_ids: Sequence[int], axis: int) -> str:
    """The name of a new initializer with these rows, or columns, of another one."""
    whole = next(each for each in graph.initializer if each.name == name)
    values = np.take(numpy_helper.to_array(whole), np.array(token_ids), axis=axis)
    graph.initializer.append(numpy_helper.from_array(values, f"{name}.reduced"))
    return f"{name}.reduced"


def _declare(model: ModelProto, logits: str, num_logits: int) -> None:
    (output,) = [each for each in model.graph.output if each.name == logits]
    last = output.type.tensor_type.shape.dim[-1]
    last.Clear()
    last.dim_value = num_logits
    del model.graph.value_info[:]  # shapes in between, which are optional


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
