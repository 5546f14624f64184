"""The interface of the draft model's ONNX graphs, and what both kinds share.

Invariant: keys and values of sessions are in our own memory, bound to the graph's tensors. So a rollback is a run from
a smaller start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from services.edge_drafter.draft_config import DraftConfig
from services.edge_drafter.graphs.providers import CPU, KNOWN, Providers, full_name, short_name

_NUMPY_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class DraftCache:
    """Keys and values of at most `capacity` tokens of one session. Its graph keeps them as long as the cache lives."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # tokens held; later entries are never read


@dataclass(frozen=True, slots=True)
class Prefix:
    """What another cache begins like `cache`: the entries from `start` to `length`. Those before are its own already.

    is_moved: nobody needs `cache` any more, so its memory may be taken over instead of copied.
    """

    cache: DraftCache
    start: int
    length: int
    is_moved: bool


class Graph(Protocol):
    """A loaded graph. One thread runs it; any thread may make and drop caches."""

    @property
    def config(self) -> DraftConfig: ...

    @property
    def max_context(self) -> int: ...

    @property
    def max_rows(self) -> int:
        """Most rows of a run that has one new token in each. A run with more new tokens has one row."""

    @property
    def kv_bytes(self) -> int:
        """Memory of all caches. Pages that no token has reached take none of it yet."""

    def new_cache(self, capacity: int) -> DraftCache: ...

    def num_caches(self, num_used: int, length: int) -> int:
        """How many caches there may be, so that those not in use take no more memory than they are allowed.

        num_used: caches in use; length: tokens of the longest of them.
        """

    def copy(self, prefix: Prefix, target: DraftCache) -> None:
        """Gives `target` the entries of a prefix; a repetition changes nothing."""

    def run(self, caches: Sequence[DraftCache], ids: np.ndarray, starts: Sequence[int]) -> np.ndarray:
        """Computes ids ([rows, new tokens] int64) of each cache from its start on and overwrites what was there.

        Returns the logits after the last token of each row, [rows, num_logits]. Entries from a start on are not read.
        """


def open_session(model_file: Path, num_threads: int, providers: Providers) -> ort.InferenceSession:
    """Loads a graph. Raises ValueError if it does not load, or not on all these providers.

    Asked for a provider that does not start, ONNX Runtime itself would go on without it.
    """
    for name in providers.names:
        if full_name(name) not in ort.get_available_providers():
            package = KNOWN[name].package
            raise ValueError(f"the installed ONNX Runtime has no provider {name}; it comes with {package}")
    with_options = [(full_name(name), _options(name, num_threads, providers)) for name in providers.names]
    try:
        session = ort.InferenceSession(
            model_file, _session_options(num_threads, providers), providers=with_options, enable_fallback=False
        )
    except Exception as error:  # onnxruntime's exceptions have no closer common base
        raise ValueError(f"{model_file} does not load on {', '.join(providers.names)}: {error}") from error
    for name in providers.names:
        if full_name(name) not in session.get_providers():
            raise ValueError(f"the provider {name} did not start; ONNX Runtime has printed why")
    return session


def _session_options(num_threads: int, providers: Providers) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # spinning threads would take the core from other processes between two draft steps
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if CPU not in providers.names:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _options(name: str, num_threads: int, providers: Providers) -> dict[str, str]:
    """ONNX Runtime's options of a provider. OpenVINO would take all cores by default."""
    own = {"num_of_threads": str(num_threads)} if name == "OpenVINO" else {}
    return own | dict(providers.options.get(name, {}))


def nodes_by_provider(session: ort.InferenceSession) -> Mapping[str, int]:
    """How many nodes of the graph each provider computes, the most first."""
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[short_name(part.ep_name)] += len(part.get_nodes())
    return dict(counts.most_common())


def tensors_by_name(
    session: ort.InferenceSession, config: DraftConfig, inputs: Iterable[str], outputs: Iterable[str], config_file: str
) -> Mapping[str, Any]:
    """A graph's inputs and outputs by name. Raises ValueError if they are not exactly the configured ones, or if there
    are more or fewer logits than configured."""
    taken = {node.name: node for node in session.get_inputs()}
    given = {node.name: node for node in session.get_outputs()}
    if odd := (taken.keys() ^ set(inputs)) | (given.keys() ^ set(outputs)):
        raise ValueError(f"the ONNX graph and {config_file} disagree about {', '.join(sorted(odd))}")
    if (num_logits := given[config.logits].shape[-1]) not in (config.num_logits, None) and isinstance(num_logits, int):
        raise ValueError(f"the ONNX graph has {num_logits} logits, its configuration {config.num_logits}")
    return taken | given


def numpy_type(tensor: Any) -> Any:
    """The numpy type of a floating-point tensor. Raises ValueError for an unsupported type."""
    if tensor.type not in _NUMPY_TYPES:
        raise ValueError(f"{tensor.name} is a {tensor.type}; supported are {', '.join(_NUMPY_TYPES)}")
    return _NUMPY_TYPES[tensor.type]
