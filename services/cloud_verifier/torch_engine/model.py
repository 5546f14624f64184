"""The target model: one forward pass over the new tokens of many sessions, with our own KV cache.

Invariant: the logits of a token depend on its session's text alone, bit for bit on the CPU: not on the other rows of
the pass, the chunk sizes, or tokens that were rolled back.

The tokens of a pass form one flat sequence with explicit positions. Linear layers compute the whole batch, attention
computes each session separately (attention.py), and only tokens that yield a draw go through the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ctypes import CDLL
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from services.cloud_verifier import sampler
from services.cloud_verifier.engine import Drawn
from services.cloud_verifier.torch_engine.architecture import (
    UnsupportedModel,
    check_config,
    check_logits,
    find_layout,
    probe_texts,
    read_config,
)
from services.cloud_verifier.torch_engine.attention import Segment, pass_attention
from services.cloud_verifier.torch_engine.fingerprint import fingerprint_of
from services.cloud_verifier.torch_engine.kv import KvCache, KvLayout
from services.cloud_verifier.torch_engine.llama import LlamaNetwork, is_llama
from services.cloud_verifier.torch_engine.network import Network, Outputs, TransformersNetwork
from services.cloud_verifier.torch_engine.packed import packing_works
from shared.protocol.guesses import common_prefix
from shared.protocol.messages import Sampling, TokenLogprobs
from shared.protocol.running_adjustment import RunningAdjustment
from shared.protocol.sampling import is_greedy
from shared.runtime.huge_pages import use_huge_pages

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NonFiniteLogits(ArithmeticError):
    """The highest logit of a row is NaN or infinite. The message names the rows; the others can be computed alone."""


@dataclass(frozen=True)
class Row:
    """One session's row of a pass; the fields are those of StepRow."""

    cache: KvCache
    start: int
    token_ids: Sequence[int]
    num_draws: int
    sampling: Sampling
    running: RunningAdjustment | None = None  # of the text up to the first draw, if its scores differ from logits
    num_top: int | None = None
    scored_ids: Sequence[int] = ()

    @property
    def guesses(self) -> Sequence[int]:
        """The fed tokens [num_draws - 1] to compare with all draws but the last."""
        return self.token_ids[len(self.token_ids) - self.num_draws + 1 :] if self.num_draws else ()


class TargetModel:
    """A loaded causal language model; not thread-safe."""

    def __init__(
        self, network: Network, config: PretrainedConfig, layout: KvLayout, name: str, fingerprint: str
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.vocab_size = int(config.get_text_config().vocab_size)
        self.max_context = int(config.get_text_config().max_position_embeddings)
        self._network = network
        self._layout = layout

    def new_cache(self, capacity: int) -> KvCache:
        """An empty cache for at least `capacity` tokens."""
        return KvCache(self._layout, capacity)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Logits [num_draws, vocab] float32 of each row. Raises ValueError for an invalid row."""
        if not rows:
            return []
        outputs, spans = self._feed(rows)
        return [outputs.logits(torch.tensor(span.draws, dtype=torch.int64)) for span in spans]

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> list[Drawn]:
        """The draws of each row.

        Raises ValueError for an invalid row, and NonFiniteLogits after the pass: the same rows may be fed again.
        """
        if not rows:
            return []
        outputs, spans = self._feed(rows)
        results = _Results(outputs, rows, spans)
        draws = [results.draw(row, span.draws) for row, span in zip(rows, spans, strict=True) if span.draws]
        token_ids = iter(torch.cat(draws).tolist() if draws else [])
        drawn = [list(islice(token_ids, row.num_draws)) for row in rows]
        bad = [index for index, ids in enumerate(drawn) if sampler.NO_DRAW in ids]
        if bad:
            raise NonFiniteLogits(f"the highest logit of row {', '.join(map(str, bad))} is not finite")
        return [
            Drawn(ids, results.logprobs(row, span.draws, ids), _forced(row, ids), results.scores(row, span.scored))
            for row, span, ids in zip(rows, spans, drawn, strict=True)
        ]

    def _feed(self, rows: Sequence[Row]) -> tuple[Outputs, list[_Span]]:
        """Computes one pass. Returns its outputs and the output rows of each row."""
        self._check(rows)
        segments: list[Segment] = []
        drawing: list[int] = []  # tokens of the flat sequence that yield a draw, or logprobs of the token behind them
        spans: list[_Span] = []
        offset = 0
        for row in rows:
            segments.append(Segment(row.cache, row.start, len(row.token_ids), offset))
            first_draw = len(drawing) + len(row.scored_ids)
            spans.append(_Span(range(len(drawing), first_draw), range(first_draw, first_draw + row.num_draws)))
            drawing.extend(range(offset, offset + len(row.scored_ids)))
            offset += len(row.token_ids)
            drawing.extend(range(offset - row.num_draws, offset))
        token_ids = [token_id for row in rows for token_id in row.token_ids]
        positions = [row.start + i for row in rows for i in range(len(row.token_ids))]
        padding = [0] * (self._network.row_rule.round_up(len(token_ids)) - len(token_ids))
        outputs = self._compute(token_ids + padding, positions + padding, drawing, segments)
        for row in rows:
            row.cache.length = row.start + len(row.token_ids)
        return outputs, spans

    def _compute(
        self, token_ids: list[int], positions: list[int], drawing: list[int], segments: Sequence[Segment]
    ) -> Outputs:
        device = self._layout.device
        return self._network(
            torch.tensor(token_ids, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(drawing, dtype=torch.int64, device=device),
            pass_attention(segments, device),
        )

    def _check(self, rows: Sequence[Row]) -> None:
        if len({id(row.cache) for row in rows}) < len(rows):
            raise ValueError("two rows of a pass share a cache")
        for row in rows:
            end = row.start + len(row.token_ids)
            if not 0 <= row.num_draws <= len(row.token_ids) or not row.token_ids:
                raise ValueError(f"{row.num_draws} draws from {len(row.token_ids)} tokens")
            if len(row.scored_ids) > len(row.token_ids) - row.num_draws:
                raise ValueError(f"{len(row.scored_ids)} tokens are scored behind {len(row.token_ids)} fed ones")
            if not 0 <= row.start <= row.cache.length:
                raise ValueError(f"a row starts at {row.start}, its cache holds {row.cache.length} tokens")
            capacity = min(row.cache.capacity, self.max_context)
            if end > capacity:
                raise ValueError(f"a row ends at {end}, beyond the {capacity} tokens of its cache")
            if min(row.token_ids) < 0 or max(row.token_ids) >= self.vocab_size:
                raise ValueError(f"a token id is outside the vocabulary of {self.vocab_size}")


@dataclass(frozen=True, slots=True)
class _Span:
    """Output rows of one row."""

    scored: range
    draws: range


class _Results:
    """The outputs that the rows of a pass need: greedy rows without logprobs need no logits."""

    def __init__(self, outputs: Outputs, rows: Sequence[Row], spans: Sequence[_Span]) -> None:
        best: list[int] = []
        scored: list[int] = []
        for row, span in zip(rows, spans, strict=True):
            scored.extend(span.scored)
            if _is_argmax(row):
                best.extend(span.draws)
            if not _is_argmax(row) or row.num_top is not None:
                scored.extend(span.draws)
        self._best, self._scored = ({index: i for i, index in enumerate(each)} for each in (best, scored))
        self._token_ids = outputs.best(torch.tensor(best)) if best else None
        self._logits = outputs.logits(torch.tensor(scored)) if scored else None

    def draw(self, row: Row, span: range) -> Tensor:
        """Token ids [num_draws]; num_draws > 0."""
        if _is_argmax(row):
            assert self._token_ids is not None
            return self._token_ids[self._best[span.start] : self._best[span.start] + len(span)]
        scores = sampler.adjust(self._logits_of(span), row.running, row.guesses)
        return sampler.draw(scores, row.sampling, row.start + len(row.token_ids) - row.num_draws + 1)

    def logprobs(self, row: Row, span: range, token_ids: list[int]) -> list[TokenLogprobs]:
        if row.num_top is None or not token_ids:
            return []
        num_valid = common_prefix(row.guesses, token_ids) + 1
        return sampler.logprobs(self._logits_of(span)[:num_valid], token_ids[:num_valid], row.num_top)

    def scores(self, row: Row, span: range) -> list[TokenLogprobs]:
        """Logprobs of the text behind fed tokens."""
        return sampler.logprobs(self._logits_of(span), row.scored_ids, row.num_top or 0) if span else []

    def _logits_of(self, span: range) -> Tensor:
        assert self._logits is not None
        return self._logits[self._scored[span.start] : self._scored[span.start] + len(span)]


def _forced(row: Row, token_ids: list[int]) -> list[int]:
    """What must follow the draws; not with logprobs, which these tokens would lack."""
    if row.running is None or row.num_top is not None or not token_ids:
        return []
    return row.running.forced_after(token_ids[: common_prefix(row.guesses, token_ids) + 1])


def _is_argmax(row: Row) -> bool:
    """Whether each draw is the token with the highest logit."""
    return is_greedy(row.sampling) and row.running is None


@torch.inference_mode()
def load_target(
    folder_or_id: str, device: str = "auto", dtype: str = "auto", num_threads: int | None = None
) -> TargetModel:
    """Loads a Hugging Face causal LM. Raises UnsupportedModel, or OSError if there is no model.

    device: auto, cpu, cuda or cuda:N. dtype: auto, float32 or bfloat16. num_threads: of the CPU, for the whole process.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    place = pick_device(device)
    target = _convert(_read(folder_or_id, place, pick_dtype(dtype, place)), name_of(folder_or_id))
    _tidy_memory()
    return target


def _convert(model: PreTrainedModel, name: str) -> TargetModel:
    """Consumes the model. Raises UnsupportedModel unless mixed passes give the logits of its plain forward pass."""
    config = model.config
    texts = probe_texts(config.get_text_config().vocab_size)
    expected = [model(torch.tensor([text], device=model.device), use_cache=False).logits[0] for text in texts]
    packed = model.device.type == "cpu" and packing_works(model.dtype)
    fingerprint = fingerprint_of(model, name, packed=packed)
    layout = find_layout(model, texts[0])
    network = (LlamaNetwork if is_llama(model) else TransformersNetwork)(model, packed=packed)
    target = TargetModel(network, config, layout, name, fingerprint)
    check_logits(config, _feed_in_chunks(target, texts), expected, layout.dtype)
    return target


def pick_device(device: str) -> torch.device:
    """auto: a GPU if there is one. Raises ValueError for a GPU that torch does not see."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no GPU")
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 if the device supports it, else float32."""
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def _read(folder_or_id: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    config = read_config(folder_or_id)
    check_config(config, device)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder_or_id, config=config, dtype=dtype, attn_implementation="eager"
        )
    except ValueError as error:
        raise UnsupportedModel(config, str(error).splitlines()[0]) from error
    if not isinstance(model.get_output_embeddings(), nn.Linear):  # type: ignore[no-untyped-call]
        raise UnsupportedModel(config, "its language model head is not a linear layer")
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    model.to(device)  # type: ignore[arg-type]
    for parameter in model.parameters():  # copy out of the mapped file, to unmap it
        parameter.data = parameter.data.clone()
    return model


def _tidy_memory() -> None:
    """Returns freed heap (some 50 MiB) to the system, if the C library can, and moves the weights to huge pages."""
    with suppress(AttributeError, OSError):
        CDLL(None).malloc_trim(0)
    use_huge_pages()


def name_of(folder_or_id: str) -> str:
    """The hub id, or the folder's name; for `model_zoo`'s folders, which are called `target`, the parent's name."""
    folder = Path(folder_or_id)
    if not folder.is_dir():
        return folder_or_id
    folder = folder.resolve()
    return folder.parent.name if folder.name == "target" else folder.name


def _feed_in_chunks(target: TargetModel, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [tokens, vocab] of two texts, fed together in three passes of different chunks."""
    cuts = [(0, 17, 20, None), (0, 4, 5, None)]
    caches = [target.new_cache(len(text)) for text in texts]
    logits: list[list[Tensor]] = [[], []]
    for turn in range(3):
        chunks = [text[cut[turn] : cut[turn + 1]] for text, cut in zip(texts, cuts, strict=True)]
        rows = [
            Row(cache, cache.length, chunk, len(chunk), Sampling()) for cache, chunk in zip(caches, chunks, strict=True)
        ]
        for parts, part in zip(logits, target.forward(rows), strict=True):
            parts.append(part)
    return [torch.cat(parts) for parts in logits]
