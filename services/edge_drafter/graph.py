"""What the draft model asks of an ONNX graph, whatever its form, and what all forms share.

Invariant: a session's keys and values lie in memory of our own, bound to the graph's tensors: nothing is copied between
two runs, and rolling back is running from a smaller start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

_NUMPY_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class GraphMemory(Protocol):
    """Keys and values of one session."""

    def run(self, ids: np.ndarray, start: int) -> np.ndarray:
        """Puts ids ([1, new tokens] int64) at the positions from start on, over what was there.

        Returns the logits after the last of them, [vocab_size]. What lies at start and behind is never read.
        """


class Graph(Protocol):
    """A loaded graph; `run` of its memories is for one thread."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_context(self) -> int: ...

    def new_memory(self, capacity: int) -> GraphMemory:
        """Room for the keys and values of `capacity` tokens."""


def open_session(model_file: Path, num_threads: int) -> ort.InferenceSession:
    """The graph on the CPU; ValueError where it does not load."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # a spinning thread would keep the core from whatever else runs on this machine between two draft steps
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model_file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base below this one
        raise ValueError(f"{model_file} does not load: {error}") from error


def tensors_by_name(
    session: ort.InferenceSession, inputs: Iterable[str], outputs: Iterable[str], config_file: str
) -> Mapping[str, Any]:
    """A graph's inputs and outputs. ValueError: with others than configured it computes garbage, or wants more."""
    taken = {node.name: node for node in session.get_inputs()}
    given = {node.name: node for node in session.get_outputs()}
    if odd := (taken.keys() ^ set(inputs)) | (given.keys() ^ set(outputs)):
        raise ValueError(f"the ONNX graph and {config_file} disagree about {', '.join(sorted(odd))}")
    return taken | given


def numpy_type(tensor: Any) -> Any:
    """The type of a floating-point tensor's numbers; ValueError for one that can't be bound."""
    if tensor.type not in _NUMPY_TYPES:
        raise ValueError(f"{tensor.name} is a {tensor.type}; supported are {', '.join(_NUMPY_TYPES)}")
    return _NUMPY_TYPES[tensor.type]
