"""One target over several processes: tensor parallel under torchrun, for models that no single device holds.

Invariant: rank 0 is the verifier, and the only one that anybody outside speaks to. Before it computes a pass it tells
the other ranks what is in it; they compute the same pass over their own parts of the weights and of every cache, in
step with it, since each layer needs all of them. What rank 0 never fed, they never hear of.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from weakref import finalize

import structlog
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from services.cloud_verifier.attention import Attention, Blocks, PassAttention, Segment
from services.cloud_verifier.head import Float32Head
from services.cloud_verifier.kv import KvCache, KvLayout, Prefix
from services.cloud_verifier.network import WHOLE_VECTORS, ComputedLogits, Outputs
from services.cloud_verifier.packed import ROW_RULES, RowRule

PATIENCE = timedelta(days=365)  # of ranks that wait for the next pass

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fed:
    """One session's part of a pass, by the number of its cache."""

    number: int
    capacity: int
    copied: tuple[tuple[int, int], ...]  # prefixes to take over first: number of the cache, length
    start: int
    num_tokens: int
    offset: int


@dataclass(frozen=True, slots=True)
class Pass:
    """What the other ranks need to know of a pass."""

    token_ids: list[int]
    positions: list[int]
    drawing: list[int]
    fed: list[Fed]
    freed: list[int]  # caches that are no more


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that torchrun started."""

    rank: int
    size: int

    @staticmethod
    def here() -> Ranks | None:
        """None where there is one process only."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return Ranks(int(os.environ["RANK"]), size) if size > 1 else None

    def tell(self, message: Pass | None) -> None:
        """Rank 0: to all others. None ends them."""
        dist.broadcast_object_list([message], src=0, group=_control())

    def hear(self) -> Pass | None:
        """The others: what rank 0 tells next."""
        messages: list[Pass | None] = [None]
        dist.broadcast_object_list(messages, src=0, group=_control())
        return messages[0]

    def end(self) -> None:
        """Rank 0: lets the others go, if they have come as far as to listen."""
        if _groups:
            self.tell(None)


_groups: list[dist.ProcessGroup] = []  # that for messages, once it was asked for


def _control() -> dist.ProcessGroup:
    """A group of its own, on the CPU, whose members may wait for long. All ranks must come here to make it."""
    if not _groups:
        _groups.append(dist.new_group(backend="gloo", timeout=PATIENCE))
    return _groups[0]


def digest_of_all(digest: str, ranks: Ranks) -> str:
    """What all ranks know of their parts; each of them calls this."""
    found: list[str] = [""] * ranks.size
    dist.all_gather_object(found, digest)
    return "/".join(found)


class GatheredHead(nn.Module):
    """float32 logits over a vocabulary of which each rank has a part."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        weight, bias = (local(each) for each in (head.weight, head.bias))
        assert weight is not None
        self._vocab_size = len(head.weight)
        self._part = Float32Head(weight, bias, packed=False)
        self._is_whole = len(weight) == self._vocab_size

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [1, rows, vocab] of hidden states [1, rows, hidden]."""
        part: Tensor = self._part(hidden)
        if self._is_whole:
            return part
        size = dist.get_world_size()
        width = -(-self._vocab_size // size)  # of all parts but the last ones
        padded = nn.functional.pad(part, (0, width - part.shape[-1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded)
        return torch.cat(parts, dim=-1)[..., : self._vocab_size]


def local(parameter: Tensor | None) -> Tensor | None:
    """This rank's part."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class PartNetwork:
    """A model that transformers has cut by its tp_plan: this rank's part, which computes with all others at once."""

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        model.set_output_embeddings(GatheredHead(head))  # type: ignore[no-untyped-call]
        self.row_rule = max(WHOLE_VECTORS, ROW_RULES[-1])
        self._model = model

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        logits: Tensor = self._model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=drawing,
            dsd_attention=attention,
        ).logits
        return ComputedLogits(logits[0].float())


# --- rank 0 -----------------------------------------------------------------------------------------------------------


class LeadingCache(KvCache):
    """A cache that the other ranks know by its number, once it was fed."""

    def __init__(self, layout: KvLayout, capacity: int, number: int) -> None:
        super().__init__(layout, capacity)
        self.number = number
        self.copied: list[tuple[int, int]] = []  # since the last pass

    def copy(self, prefix: Prefix) -> None:
        super().copy(prefix)
        assert isinstance(prefix.cache, LeadingCache)
        self.copied.append((prefix.cache.number, prefix.length))


@dataclass(slots=True)
class LeadingNetwork:
    """Tells the others before it computes; and makes the caches, of which they have their parts."""

    part: PartNetwork
    ranks: Ranks
    row_rule: RowRule
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _freed: deque[int] = field(default_factory=deque)

    def new_cache(self, layout: KvLayout, capacity: int) -> KvCache:
        cache = LeadingCache(layout, capacity, next(self._numbers))
        finalize(cache, self._freed.append, cache.number)
        return cache

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        assert isinstance(attention, PassAttention)
        freed = [self._freed.popleft() for _ in range(len(self._freed))]
        fed = [_fed(segment) for segment in attention.segments]
        self.ranks.tell(Pass(token_ids.tolist(), positions.tolist(), drawing.tolist(), fed, freed))
        try:
            return self.part(token_ids, positions, drawing, attention)
        except Exception:
            log.exception("a pass failed on rank 0 and not on the others, which can't be mended: the process ends")
            os._exit(1)


def _fed(segment: Segment) -> Fed:
    cache = segment.cache
    assert isinstance(cache, LeadingCache)
    copied, cache.copied = tuple(cache.copied), []
    return Fed(cache.number, cache.capacity, copied, segment.start, segment.num_tokens, segment.offset)


# --- the others -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def follow(part: PartNetwork, layout: KvLayout, blocks: Blocks, ranks: Ranks) -> None:
    """Computes every pass that rank 0 tells of, until it ends."""
    caches: dict[int, KvCache] = {}
    while (told := ranks.hear()) is not None:
        segments = []
        for fed in told.fed:
            cache = caches.get(fed.number) or caches.setdefault(fed.number, KvCache(layout, fed.capacity))
            for number, length in fed.copied:
                cache.copy(Prefix(caches[number], length))
            segments.append(Segment(cache, fed.start, fed.num_tokens, fed.offset))
        part(
            torch.tensor(told.token_ids, device=layout.device),
            torch.tensor(told.positions, device=layout.device),
            torch.tensor(told.drawing, dtype=torch.int64, device=layout.device),
            PassAttention(segments, len(told.token_ids), blocks, layout.device),
        )
        for number in told.freed:
            caches.pop(number, None)
    log.info("rank ends", rank=ranks.rank)
