"""Graphs of `python -m model_zoo export`: they take past keys and values and return only the new ones, of one session.

A layer's keys are in one buffer, tokens first, and its values in another. The past is bound to the beginning of the
buffer, the output to the place right after it, so each run writes where the next one reads.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort

from services.edge_drafter.draft_config import EXPORTED_CONFIG, ExportedConfig
from services.edge_drafter.graphs.graph import DraftCache, Prefix, numpy_type, tensors_by_name
from shared.runtime.huge_pages import own_pages


class ExportedGraph:
    """A graph with inputs for ids and past keys and values, and outputs for the last token's logits and new ones."""

    def __init__(self, session: ort.InferenceSession, config: ExportedConfig) -> None:
        past, new = zip(*config.kv, strict=True)
        self.tensors = tensors_by_name(session, config, (config.ids, *past), (config.logits, *new), EXPORTED_CONFIG)
        self.session = session
        self.config = config
        self.max_context = config.max_context
        self.max_rows = 1
        self.logits_type = numpy_type(self.tensors[config.logits])
        self._memories: WeakKeyDictionary[DraftCache, ExportedMemory] = WeakKeyDictionary()

    @property
    def kv_bytes(self) -> int:
        return sum(memory.num_bytes for memory in list(self._memories.values()))

    def new_cache(self, capacity: int) -> DraftCache:
        cache = DraftCache(capacity)
        self._memories[cache] = ExportedMemory(self, capacity)
        return cache

    def num_caches(self, num_used: int, length: int) -> int:
        return sys.maxsize  # each has memory of its own, which is taken as texts reach it

    def copy(self, prefix: Prefix, target: DraftCache) -> None:
        self._memories[target].copy(self._memories[prefix.cache], slice(prefix.start, prefix.length))

    def run(self, caches: Sequence[DraftCache], ids: np.ndarray, starts: Sequence[int]) -> np.ndarray:
        return self._memories[caches[0]].run(ids, starts[0])


class ExportedMemory:
    """For each layer a buffer [capacity, kv_heads, head_dim] of its keys, and one of its values."""

    def __init__(self, graph: ExportedGraph, capacity: int) -> None:
        self._session, self._config = graph.session, graph.config
        self._logits_type = graph.logits_type
        self._binding = graph.session.io_binding()
        self._buffers = [_Buffer(graph, past, new, capacity) for past, new in graph.config.kv]
        self.num_bytes = sum(buffer.memory.nbytes for buffer in self._buffers)

    def run(self, ids: np.ndarray, start: int) -> np.ndarray:
        """As Graph.run, with one row."""
        config, binding = self._config, self._binding
        logits = ort.OrtValue.ortvalue_from_shape_and_type([1, config.num_logits], self._logits_type)
        binding.bind_cpu_input(config.ids, ids)
        binding.bind_ortvalue_output(config.logits, logits)
        for buffer in self._buffers:
            buffer.bind(binding, start, ids.shape[1])
        self._session.run_with_iobinding(binding)
        after_last: np.ndarray = logits.numpy()
        return after_last

    def copy(self, other: ExportedMemory, part: slice) -> None:
        for mine, theirs in zip(self._buffers, other._buffers, strict=True):
            mine.memory[part] = theirs.memory[part]


class _Buffer:
    """The memory of one past input and its new output."""

    def __init__(self, graph: ExportedGraph, past: str, new: str, capacity: int) -> None:
        tensor = graph.tensors[past]
        self._past, self._new = past, new
        self._row_shape = tuple(tensor.shape[1:])  # (kv_heads, head_dim)
        kind = np.dtype(numpy_type(tensor))
        room = own_pages(capacity * math.prod(self._row_shape) * kind.itemsize)
        self.memory = np.frombuffer(room, kind).reshape(capacity, *self._row_shape)
        self._address = self.memory.ctypes.data
        self._row_bytes = self.memory.strides[0]

    def bind(self, binding: ort.IOBinding, start: int, num_new: int) -> None:
        kind = self.memory.dtype.type
        binding.bind_input(self._past, "cpu", 0, kind, (start, *self._row_shape), self._address)
        behind = self._address + start * self._row_bytes
        binding.bind_output(self._new, "cpu", 0, kind, (num_new, *self._row_shape), behind)
