"""Graphs of onnxruntime-genai's model builder: past and present of a layer share their memory.

GroupQueryAttention writes new keys and values into the memory of the past ones. It takes a batch in which each row has
a length of its own, the sum of its row of the mask, but then only one new token in each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from services.edge_drafter.draft_config import GENAI_CONFIG, GenaiConfig
from services.edge_drafter.graphs.graph import DraftCache, Prefix, numpy_type, tensors_by_name
from services.edge_drafter.graphs.kv_arena import KvArena
from shared.policies.stepping import MAX_ROWS


class GenaiGraph:
    """A graph with inputs for ids, mask and past keys and values, and outputs for logits and present ones.

    kept_tokens: memory for caches that are not in use, in tokens.
    """

    def __init__(self, session: ort.InferenceSession, config: GenaiConfig, kept_tokens: int = 0) -> None:
        past, present = zip(*config.kv, strict=True)
        inputs, outputs = (config.ids, config.mask, *past), (config.logits, *present)
        tensors = tensors_by_name(session, config, inputs, outputs, GENAI_CONFIG)
        self.config = config
        self.max_context = config.max_context
        self.max_rows = MAX_ROWS
        self._session = session
        self._kv_type = numpy_type(tensors[past[0]])
        self._logits_type = numpy_type(tensors[config.logits])
        self._last_logits_only = tensors[config.logits].shape[1] == 1  # [batch, 1 or new tokens, vocab]
        num_heads, head_size = config.num_kv_heads, config.head_size
        self._arena = KvArena(len(config.kv), num_heads, head_size, self._kv_type, config.max_context, kept_tokens)
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}  # by first row and number of rows
        self._bound_size = self._arena.num_sizes
        self._logits = np.empty(0, self._logits_type)  # memory that all bindings share

    @property
    def kv_bytes(self) -> int:
        return self._arena.num_bytes

    def new_cache(self, capacity: int) -> DraftCache:
        return DraftCache(capacity)

    def num_caches(self, num_used: int, length: int) -> int:
        return self._arena.num_rows(num_used, length)

    def copy(self, prefix: Prefix, target: DraftCache) -> None:
        self._arena.copy(prefix, target)

    def run(self, caches: Sequence[DraftCache], ids: np.ndarray, starts: Sequence[int]) -> np.ndarray:
        num_rows, num_new = ids.shape
        longest = max(starts) + num_new
        rows = self._arena.line_up(caches, longest)
        order = np.argsort(rows)  # of the caches, by their row
        ends = np.array(starts)[order, None] + num_new
        shape = [num_rows, 1 if self._last_logits_only else num_new, self.config.num_logits]
        logits = self._logits_memory(shape)
        binding = self._bound(min(rows), num_rows)
        binding.bind_cpu_input(self.config.ids, ids[order])
        binding.bind_cpu_input(self.config.mask, (np.arange(longest) < ends).astype(np.int64))
        binding.bind_output(self.config.logits, "cpu", 0, self._logits_type, shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        after_last: np.ndarray = logits[np.argsort(order), -1]
        return after_last

    def _logits_memory(self, shape: Sequence[int]) -> np.ndarray:
        size = math.prod(shape)
        if self._logits.size < size:
            self._logits = np.empty(size, self._logits_type)
        return self._logits[:size].reshape(shape)

    def _bound(self, first: int, num_rows: int) -> ort.IOBinding:
        """A binding of adjacent rows as past and present."""
        if self._bound_size != self._arena.num_sizes:
            self._bindings, self._bound_size = {}, self._arena.num_sizes
        binding = self._bindings.get((first, num_rows))
        if binding is None:
            binding = self._bindings[first, num_rows] = self._session.io_binding()
            shape = (num_rows, *self._arena.row_shape)
            for tensor, (past, present) in enumerate(self.config.kv):
                address = self._arena.address(tensor, first)
                binding.bind_input(past, "cpu", 0, self._kv_type, shape, address)
                binding.bind_output(present, "cpu", 0, self._kv_type, shape, address)
        return binding
