"""The draft model: an ONNX decoder that feeds tokens into a cache and returns the logits after the last one.

Invariant: after feed(cache, ids, start) the cache holds exactly start + len(ids) tokens. The logits depend on those
tokens only, not on tokens that were rolled back.
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
    """Keys and values of at most `capacity` tokens of one session. Made by DraftModel.new_cache."""

    def __init__(self, memory: GraphMemory, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # tokens held; later entries are never read
        self.memory = memory


class DraftModel:
    """A loaded draft model. Not thread-safe: one thread feeds all caches."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.name = name
        self.vocab_size = graph.vocab_size
        self.max_context = graph.max_context
        self._graph = graph

    def new_cache(self, capacity: int) -> DraftCache:
        """An empty cache for `capacity` tokens. Raises ValueError above the context length."""
        if not 1 <= capacity <= self.max_context:
            raise ValueError(f"capacity must be 1…{self.max_context}, the context of {self.name}, got {capacity}")
        return DraftCache(self._graph.new_memory(capacity), capacity)

    def feed(self, cache: DraftCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        """Feeds token_ids at the positions start, start + 1, ... and drops the entries from `start` on.

        Returns the logits after the last of them: [vocab_size] float32, a copy. Time and working memory grow with
        len(token_ids) * (start + len(token_ids)): feed a long prompt in chunks.
        Raises ValueError for no ids, an id outside the vocabulary, a gap before `start`, or too many tokens.
        """
        ids = self._checked_ids(cache, token_ids, start)
        cache.length = start  # if the run fails, the cache holds the entries before `start`
        logits = cache.memory.run(ids, start)
        cache.length = start + ids.shape[1]
        return logits.astype(np.float32)

    def _checked_ids(self, cache: DraftCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        ids = np.asarray(token_ids, dtype=np.int64).reshape(1, -1)  # [1, new tokens]
        if ids.size == 0:
            raise ValueError("no token ids to feed")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"token ids must be 0…{self.vocab_size - 1}, got {ids.min()}…{ids.max()}")
        if not 0 <= start <= cache.length:
            raise ValueError(f"start must be 0…{cache.length}, the tokens in the cache, got {start}")
        if start + ids.size > cache.capacity:
            raise ValueError(f"{start} + {ids.size} tokens exceed the cache's capacity of {cache.capacity}")
        return ids


def load_draft(folder: str, num_threads: int) -> DraftModel:
    """Loads the draft model in `folder`: its configuration (draft_config.py) and the ONNX file that it names.

    Raises FileNotFoundError if one of them is missing, ValueError if they are malformed or don't fit each other.
    """
    place = Path(folder)
    config = read_config(place)
    session = open_session(place / config.file, num_threads)
    graph = GenaiGraph(session, config) if isinstance(config, GenaiConfig) else ExportedGraph(session, config)
    use_huge_pages()
    return DraftModel(graph, place.absolute().name)
