"""The draft model: one ONNX decoder that feeds tokens into a cache and gives the logits after the last of them.

Invariant: after feed(cache, ids, start) the cache holds exactly start + len(ids) tokens, and the logits depend on those
tokens alone, not on what was fed and rolled back before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from services.edge_drafter.draft_config import GenaiConfig, read_config
from services.edge_drafter.exported_graph import ExportedGraph
from services.edge_drafter.genai_graph import GenaiGraph
from services.edge_drafter.graph import Graph, GraphMemory, open_session
from shared.runtime.huge_pages import use_huge_pages


class DraftCache:
    """Keys and values of one session, for at most `capacity` tokens. Made by DraftModel.new_cache."""

    def __init__(self, memory: GraphMemory, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # tokens held; what lies behind them is never read
        self.memory = memory  # the model's own business


class DraftModel:
    """Not thread-safe: one thread feeds, whatever the number of caches."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.name = name
        self.vocab_size = graph.vocab_size
        self.max_context = graph.max_context
        self._graph = graph

    def new_cache(self, capacity: int) -> DraftCache:
        """An empty cache for `capacity` tokens; ValueError where the model can't see as many."""
        if not 1 <= capacity <= self.max_context:
            raise ValueError(f"capacity {capacity} is not in 1..{self.max_context}, the context length of {self.name}")
        return DraftCache(self._graph.new_memory(capacity), capacity)

    def feed(self, cache: DraftCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        """Put token_ids at the positions start, start + 1, ... and forget what was there and behind.

        Returns the logits after the last of them: [vocab_size] float32, the caller's own. Time and working memory grow
        with len(token_ids) * (start + len(token_ids)): feed a long prompt in chunks.
        ValueError: no ids, an id outside the vocabulary, a gap before start, or more tokens than the cache holds.
        """
        ids = self._checked_ids(cache, token_ids, start)
        cache.length = start  # should the run fail, only what it can't have touched is held
        logits = cache.memory.run(ids, start)
        cache.length = start + ids.shape[1]
        return logits.astype(np.float32)

    def _checked_ids(self, cache: DraftCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        ids = np.asarray(token_ids, dtype=np.int64).reshape(1, -1)  # [1, new tokens]
        if ids.size == 0:
            raise ValueError("no token ids to feed")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"token ids {ids.min()}..{ids.max()} are not all in 0..{self.vocab_size - 1}")
        if not 0 <= start <= cache.length:
            raise ValueError(f"start {start} is not in 0..{cache.length}, the tokens that the cache holds")
        if start + ids.size > cache.capacity:
            raise ValueError(f"{start} + {ids.size} tokens exceed the cache's capacity of {cache.capacity}")
        return ids


def load_draft(folder: str, num_threads: int) -> DraftModel:
    """The draft model in `folder`: its configuration (draft_config.py) and the ONNX file that it names.

    FileNotFoundError: one of them is missing. ValueError: they are broken or don't fit each other.
    """
    place = Path(folder)
    config = read_config(place)
    session = open_session(place / config.file, num_threads)
    graph = GenaiGraph(session, config) if isinstance(config, GenaiConfig) else ExportedGraph(session, config)
    use_huge_pages()
    return DraftModel(graph, place.absolute().name)
