"""The draft model: an ONNX decoder that feeds tokens into caches and returns the logits after the last one of each.

Invariant: after a step a row's cache holds exactly start + len(token_ids) tokens. The logits of a row depend on those
tokens only, not on tokens that were rolled back; on the other rows of its step they depend by rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.edge_drafter.draft_config import GenaiConfig, read_config
from services.edge_drafter.graphs.exported_graph import ExportedGraph
from services.edge_drafter.graphs.genai_graph import GenaiGraph
from services.edge_drafter.graphs.graph import DraftCache, Graph, Prefix, nodes_by_provider, open_session
from services.edge_drafter.graphs.providers import Providers
from shared.runtime.huge_pages import use_huge_pages


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One session's part of a step: tokens for the positions start, start + 1, ... of its cache.

    prefix: entries that the cache gets before that from another one.
    """

    cache: DraftCache
    start: int
    token_ids: Sequence[int]
    prefix: Prefix | None = None


class DraftModel:
    """A loaded draft model. One thread runs its steps; any thread may make and drop caches.

    num_nodes: of its graph, by the execution provider that computes them, the most first.
    """

    def __init__(self, graph: Graph, name: str, num_nodes: Mapping[str, int]) -> None:
        self.name = name
        self.num_nodes = num_nodes
        self.vocab_size = graph.config.vocab_size
        self.max_context = graph.max_context
        self.max_rows = graph.max_rows  # of a step that feeds one token to each
        self._graph = graph
        token_ids = graph.config.token_ids
        self._token_ids = None if token_ids is None else np.array(token_ids)

    @property
    def kv_bytes(self) -> int:
        """Memory of all caches (Graph.kv_bytes)."""
        return self._graph.kv_bytes

    def new_cache(self, capacity: int) -> DraftCache:
        """An empty cache for `capacity` tokens. Raises ValueError above the context length."""
        if not 1 <= capacity <= self.max_context:
            raise ValueError(f"capacity must be 1…{self.max_context}, the context of {self.name}, got {capacity}")
        return self._graph.new_cache(capacity)

    def num_caches(self, num_used: int, length: int) -> int:
        """Caches that may exist while `num_used` are in use, the longest of `length` tokens (Graph.num_caches)."""
        return self._graph.num_caches(num_used, length)

    def step(self, rows: Sequence[DraftRow]) -> list[np.ndarray]:
        """Feeds the tokens of each row and drops the entries of its cache from `start` on.

        Returns the logits after the last token of each row: [vocab_size] float32, a copy; -inf for tokens that the
        draft does not know. Several rows have one token each. Time and working memory of one row grow with
        len(token_ids) * (start + len(token_ids)): feed a long prompt in chunks. Raises ValueError for no rows or too
        many, no ids, an id outside the vocabulary, a gap before `start`, or too many tokens; then no cache has changed.
        """
        if not 1 <= len(rows) <= self.max_rows or (len(rows) > 1 and any(len(row.token_ids) != 1 for row in rows)):
            raise ValueError(f"a step must have one row, or 1…{self.max_rows} of one token each")
        if len({id(row.cache) for row in rows}) < len(rows):
            raise ValueError("two rows of a step have the same cache")
        ids = np.concatenate([self._checked_ids(row) for row in rows])
        for row in rows:
            if row.prefix is not None:
                self._graph.copy(row.prefix, row.cache)
        for row in rows:
            row.cache.length = row.start  # if the run fails, the cache holds the entries before `start`
        logits = self._graph.run([row.cache for row in rows], ids, [row.start for row in rows])
        for row in rows:
            row.cache.length = row.start + ids.shape[1]
        if self._token_ids is None:
            return list(logits.astype(np.float32))
        known = np.full((len(rows), self.vocab_size), -np.inf, np.float32)
        known[:, self._token_ids] = logits
        return list(known)

    def feed(self, cache: DraftCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        """The logits of a step with one row."""
        return self.step([DraftRow(cache, start, token_ids)])[0]

    def _checked_ids(self, row: DraftRow) -> np.ndarray:
        cache, start = row.cache, row.start
        length = max(cache.length, row.prefix.length) if row.prefix else cache.length
        ids = np.asarray(row.token_ids, dtype=np.int64).reshape(1, -1)  # [1, new tokens]
        if ids.size == 0:
            raise ValueError("no token ids to feed")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"token ids must be 0…{self.vocab_size - 1}, got {ids.min()}…{ids.max()}")
        if not 0 <= start <= length:
            raise ValueError(f"start must be 0…{length}, the tokens in the cache, got {start}")
        if start + ids.size > cache.capacity:
            raise ValueError(f"{start} + {ids.size} tokens exceed the cache's capacity of {cache.capacity}")
        return ids


def load_draft(folder: str, num_threads: int, kept_tokens: int = 0, providers: Providers | None = None) -> DraftModel:
    """Loads the draft model in `folder`: its configuration (draft_config.py) and the ONNX file that it names.

    kept_tokens: memory for caches that are not in use, in tokens. providers: None for the CPU. Raises FileNotFoundError
    if one of the files is missing, ValueError if they are malformed or don't fit each other, or if the graph does not
    load on the providers.
    """
    place = Path(folder)
    config = read_config(place)
    session = open_session(place / config.file, num_threads, providers or Providers())
    graph: Graph
    if isinstance(config, GenaiConfig):
        graph = GenaiGraph(session, config, kept_tokens)
    else:
        graph = ExportedGraph(session, config)
    use_huge_pages()
    return DraftModel(graph, place.absolute().name, nodes_by_provider(session))
