"""The draft model: one ONNX decoder that feeds tokens into a cache and gives the logits after the last of them.

Invariant: after feed(cache, ids, start) the cache holds exactly start + len(ids) tokens, and the logits depend on those
tokens alone, not on what was fed and rolled back before.

The ONNX file has the form of onnxruntime-genai's model builder: GroupQueryAttention writes new keys and values into the
buffer that holds the past ones. Past and present of a layer are therefore the same memory, bound once for each cache,
and rolling back is feeding from a smaller start. Tensors are found by the names in genai_config.json, never by order:
keys and values have equal shapes, so a mix-up would be silent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

_NUMPY_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class DraftConfig:
    """What genai_config.json says about the model and its tensors' names."""

    file: str  # the ONNX file, beside genai_config.json
    vocab_size: int
    max_context: int
    num_kv_heads: int
    head_size: int
    ids: str
    mask: str
    logits: str
    kv: tuple[tuple[str, str], ...]  # (past input, present output) of the keys and of the values, layer by layer


class DraftCache:
    """Keys and values of one session, for at most `capacity` tokens. Made by DraftModel.new_cache."""

    def __init__(self, binding: ort.IOBinding, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # tokens held; what lies behind them is never read
        self.binding = binding  # the model's own business


class DraftModel:
    """Not thread-safe: one thread feeds, whatever the number of caches."""

    def __init__(self, session: ort.InferenceSession, config: DraftConfig, name: str) -> None:
        self.name = name
        self.vocab_size = config.vocab_size
        self.max_context = config.max_context
        self._config = config
        self._session = session
        inputs = {node.name: node for node in session.get_inputs()}
        outputs = {node.name: node for node in session.get_outputs()}
        _check_names(config, inputs.keys(), outputs.keys())
        self._kv_type = _numpy_type(inputs[config.kv[0][0]])
        self._logits_type = _numpy_type(outputs[config.logits])
        self._last_logits_only = outputs[config.logits].shape[1] == 1  # [batch, 1 or new tokens, vocab]
        self._ones = np.ones((1, config.max_context), dtype=np.int64)

    def new_cache(self, capacity: int) -> DraftCache:
        """An empty cache for `capacity` tokens; ValueError where the model can't see as many."""
        if not 1 <= capacity <= self.max_context:
            raise ValueError(f"capacity {capacity} is not in 1..{self.max_context}, the context length of {self.name}")
        binding = self._session.io_binding()
        shape = [1, self._config.num_kv_heads, capacity, self._config.head_size]
        for past_name, present_name in self._config.kv:
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(shape, self._kv_type)
            binding.bind_ortvalue_input(past_name, buffer)
            binding.bind_ortvalue_output(present_name, buffer)
        return DraftCache(binding, capacity)

    def feed(self, cache: DraftCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        """Put token_ids at the positions start, start + 1, ... and forget what was there and behind.

        Returns the logits after the last of them: [vocab_size] float32, the caller's own. Time and working memory grow
        with len(token_ids) * (start + len(token_ids)): feed a long prompt in chunks.
        ValueError: no ids, an id outside the vocabulary, a gap before start, or more tokens than the cache holds.
        """
        ids = self._checked_ids(cache, token_ids, start)
        end = start + ids.shape[1]
        binding = cache.binding
        rows = 1 if self._last_logits_only else ids.shape[1]
        logits = ort.OrtValue.ortvalue_from_shape_and_type([1, rows, self.vocab_size], self._logits_type)
        mask = self._ones[:, :end]  # its length tells the number of tokens, past and new
        binding.bind_cpu_input(self._config.ids, ids)
        binding.bind_cpu_input(self._config.mask, mask)
        binding.bind_ortvalue_output(self._config.logits, logits)
        cache.length = start  # should the run fail, only what it can't have touched is held
        self._session.run_with_iobinding(binding)
        cache.length = end
        after_last: np.ndarray = logits.numpy()[0, -1]
        return after_last.astype(np.float32)

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
    """The draft model in `folder`: genai_config.json and the ONNX file that it names.

    FileNotFoundError: one of them is missing. ValueError: they are broken or don't fit each other.
    """
    config_file = Path(folder) / "genai_config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"no draft model in {folder}: genai_config.json is missing")
    config = _read_config(config_file)
    model_file = config_file.parent / config.file
    if not model_file.is_file():
        raise FileNotFoundError(f"no draft model in {folder}: {config.file} is missing")
    try:
        session = ort.InferenceSession(model_file, _session_options(num_threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base below this one
        raise ValueError(f"{model_file} does not load: {error}") from error
    return DraftModel(session, config, config_file.parent.absolute().name)


def _read_config(path: Path) -> DraftConfig:
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        decoder = model["decoder"]
        inputs, outputs = decoder["inputs"], decoder["outputs"]
        patterns = [(inputs[f"past_{kind}_names"], outputs[f"present_{kind}_names"]) for kind in ("key", "value")]
        layers = range(decoder["num_hidden_layers"])
        return DraftConfig(
            file=decoder["filename"],
            vocab_size=model["vocab_size"],
            max_context=model["context_length"],
            num_kv_heads=decoder["num_key_value_heads"],
            head_size=decoder["head_size"],
            ids=inputs["input_ids"],
            mask=inputs["attention_mask"],
            logits=outputs["logits"],
            kv=tuple((past % layer, present % layer) for layer in layers for past, present in patterns),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a decoder with a KV cache: {error!r}") from error


def _check_names(config: DraftConfig, inputs: Set[str], outputs: Set[str]) -> None:
    """A graph with other tensors than the configuration names would compute garbage, or want what nobody feeds."""
    past, present = zip(*config.kv, strict=True)
    if odd := ({config.ids, config.mask, *past} ^ inputs) | ({config.logits, *present} ^ outputs):
        raise ValueError(f"{config.file} and genai_config.json disagree about {', '.join(sorted(odd))}")


def _numpy_type(tensor: Any) -> Any:
    if tensor.type not in _NUMPY_TYPES:
        raise ValueError(f"{tensor.name} is a {tensor.type}; supported are {', '.join(_NUMPY_TYPES)}")
    return _NUMPY_TYPES[tensor.type]


def _session_options(num_threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # a spinning thread would keep the core from whatever else runs on this machine between two draft steps
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options
