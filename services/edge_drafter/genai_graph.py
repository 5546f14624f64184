"""Graphs of onnxruntime-genai's model builder: past and present of a layer share their memory.

GroupQueryAttention writes new keys and values into the buffer of the past ones, so a session binds each buffer once, as
input and as output.
"""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort

from services.edge_drafter.draft_config import GENAI_CONFIG, GenaiConfig
from services.edge_drafter.graph import numpy_type, tensors_by_name
from shared.runtime.huge_pages import own_pages


class GenaiGraph:
    """A graph with inputs for ids, mask and past keys and values, and outputs for logits and present ones."""

    def __init__(self, session: ort.InferenceSession, config: GenaiConfig) -> None:
        past, present = zip(*config.kv, strict=True)
        inputs, outputs = (config.ids, config.mask, *past), (config.logits, *present)
        tensors = tensors_by_name(session, inputs, outputs, GENAI_CONFIG)
        self.session = session
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_context = config.max_context
        self.kv_type = numpy_type(tensors[config.kv[0][0]])
        self.logits_type = numpy_type(tensors[config.logits])
        self.last_logits_only = tensors[config.logits].shape[1] == 1  # [batch, 1 or new tokens, vocab]
        self.ones = np.ones((1, config.max_context), dtype=np.int64)

    def new_memory(self, capacity: int) -> GenaiMemory:
        return GenaiMemory(self, capacity)


class GenaiMemory:
    """For each layer a buffer [1, kv_heads, capacity, head_dim] of its keys, and one of its values."""

    def __init__(self, graph: GenaiGraph, capacity: int) -> None:
        self._graph = graph
        self._binding = graph.session.io_binding()
        shape = (1, graph.config.num_kv_heads, capacity, graph.config.head_size)
        size = math.prod(shape)
        num_bytes = len(graph.config.kv) * size * np.dtype(graph.kv_type).itemsize
        self._numbers = np.frombuffer(own_pages(num_bytes), graph.kv_type).reshape(-1, size)
        for (past_name, present_name), numbers in zip(graph.config.kv, self._numbers, strict=True):
            address = numbers.ctypes.data
            self._binding.bind_input(past_name, "cpu", 0, graph.kv_type, shape, address)
            self._binding.bind_output(present_name, "cpu", 0, graph.kv_type, shape, address)

    def run(self, ids: np.ndarray, start: int) -> np.ndarray:
        graph, binding, num_new = self._graph, self._binding, ids.shape[1]
        rows = 1 if graph.last_logits_only else num_new
        logits = ort.OrtValue.ortvalue_from_shape_and_type([1, rows, graph.vocab_size], graph.logits_type)
        mask = graph.ones[:, : start + num_new]  # its length is the number of tokens, past and new
        binding.bind_cpu_input(graph.config.ids, ids)
        binding.bind_cpu_input(graph.config.mask, mask)
        binding.bind_ortvalue_output(graph.config.logits, logits)
        graph.session.run_with_iobinding(binding)
        after_last: np.ndarray = logits.numpy()[0, -1]
        return after_last
