"""Exports drafts with torch's exporter, for architectures that the model builder does not know.

Run as its own process, `python -m model_zoo.exporting.torch_export`: exporter and quantiser print, warn and set up
logging for the whole process.

The graph is for services/edge_drafter/graphs/exported_graph.py. int8 and int4 quantise the weights of the matrix
products (MatMulNBits, symmetric, blocks as for the model builder) and keep embeddings and norms in float32. The
products' inputs are quantised to 8 bits on the fly.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import msgspec
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from model_zoo.exporting.draft_step import DraftStepModule, UnsupportedDraft, example_inputs, layer_sizes, with_products
from services.edge_drafter.draft_config import EXPORTED_CONFIG, ExportedConfig

PLAIN = "fp32"
BLOCKS = {"int8": (8, 128), "int4": (4, 32)}  # bits, inputs that share a scale
UNSUPPORTED = 3  # exit status: the last line printed says why the architecture can't be exported
_GRAPH = "model.onnx"


def main(source: Path, folder: Path, precisions: list[str]) -> None:
    """Writes a draft to folder/<precision> for each precision. The first must be PLAIN: the others are made from it."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    model.eval()  # type: ignore[no-untyped-call]
    config = export_graph(model, folder / PLAIN)
    for precision in precisions:
        if precision != PLAIN:
            quantise(folder / PLAIN, folder / precision, precision)
        (folder / precision / EXPORTED_CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config)))


@torch.no_grad()
def export_graph(model: PreTrainedModel, folder: Path) -> ExportedConfig:
    """Writes the graph in float32 and returns its configuration. Raises UnsupportedDraft."""
    folder.mkdir()
    sizes = layer_sizes(model)
    names = [f"{part}_{i}" for i in range(len(sizes)) for part in ("key", "value")]
    past, new = torch.export.Dim("past"), torch.export.Dim("new")
    with_products(model)
    try:
        torch.onnx.export(
            DraftStepModule(model),
            example_inputs(sizes),
            folder / _GRAPH,
            dynamo=True,
            external_data=True,
            input_names=["ids", *(f"past_{name}" for name in names)],
            output_names=["logits", *(f"new_{name}" for name in names)],
            dynamic_shapes=({1: new}, tuple({0: past} for _ in names)),
        )
    except Exception as error:  # the model's code may raise anything
        raise UnsupportedDraft(f"torch's exporter stops with {_root(error)!r}") from error
    return ExportedConfig(
        file=_GRAPH,
        vocab_size=model.config.get_text_config().vocab_size,
        max_context=max_context(model.config),
        eos_token_ids=eos_token_ids(model),
        ids="ids",
        logits="logits",
        kv=tuple((f"past_{name}", f"new_{name}") for name in names),
    )


def _root(error: BaseException) -> BaseException:
    """The first cause: the exporter wraps it in pages of advice."""
    return error if error.__cause__ is None else _root(error.__cause__)


def quantise(source: Path, folder: Path, precision: str) -> None:
    """Writes the graph with quantised matrix products."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    bits, block_size = BLOCKS[precision]
    folder.mkdir()
    model = onnx.load(source / _GRAPH)
    quantiser = MatMulNBitsQuantizer(model, bits=bits, block_size=block_size, is_symmetric=True, accuracy_level=4)
    quantiser.process()
    for node in quantiser.model.model.graph.node:
        node.ClearField("metadata_props")  # the exporter's stack traces
    onnx.save(quantiser.model.model, folder / _GRAPH, save_as_external_data=True, location=f"{_GRAPH}.data")


def max_context(config: PretrainedConfig) -> int:
    """The longest text. Sliding-window layers limit it to their window, as the step's mask shows them all tokens."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise UnsupportedDraft("its configuration has no max_position_embeddings")
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    window = getattr(text, "sliding_window", None) if "sliding_attention" in kinds else None
    return min(limit, window or limit)


def eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that end a text, as the model's own files name them."""
    generation = model.generation_config
    ids = generation.eos_token_id if generation is not None else model.config.eos_token_id
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (int(ids),)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except UnsupportedDraft as error:
        sys.stdout.flush()  # what torch has told comes before
        print(error, file=sys.stderr)
        sys.exit(UNSUPPORTED)
