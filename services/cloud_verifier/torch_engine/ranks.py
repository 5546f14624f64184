"""One target over several processes: tensor parallel under torchrun, for models that no single device holds.

Invariant: rank 0 is the verifier, and the only one that anybody outside speaks to. Before it computes a pass it tells
the other ranks what is in it; they compute the same pass over their own parts of the weights and of every cache, in
step with it, since each layer needs all of them. What rank 0 never fed, they never hear of. Where one of them ends
before its time, or fails in a pass, all end: nobody could tell what the others have computed.
"""

from __future__ import annotations

import itertools
import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256
from weakref import finalize

import structlog
import torch
import torch.distributed as dist
from msgspec import Struct, json
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from services.cloud_verifier.torch_engine.attention import Attention, PassAttention, Segment
from services.cloud_verifier.torch_engine.head import Float32Head
from services.cloud_verifier.torch_engine.kv import KvCache, KvLayout, Prefix
from services.cloud_verifier.torch_engine.network import WHOLE_VECTORS, Outputs, computed
from services.cloud_verifier.torch_engine.packed import ROW_RULES, RowRule, strictest

PATIENCE = timedelta(days=365)  # of ranks that wait for the next pass
END_S = 1.0  # between the first rank that ends in order and the last

log = structlog.get_logger(__name__)


class Fed(Struct, frozen=True, array_like=True):
    """One session's part of a pass, by the number of its cache."""

    number: int
    capacity: int
    copied: list[tuple[int, int]]  # prefixes to take over first: number of the cache, length
    start: int
    num_tokens: int
    offset: int


class Pass(Struct, frozen=True, array_like=True):
    """What the other ranks need to know of a pass."""

    freed: list[int]  # caches that are no more
    fed: list[Fed]
    token_ids: list[int]
    positions: list[int]
    drawing: list[int]


class Ranks:
    """This process's place among those that torchrun started; there is one of it (`here`)."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.lock = threading.Lock()  # of who speaks: a pass, or the end
        self.is_over = False
        self._group: dist.ProcessGroup | None = None

    @staticmethod
    @lru_cache(maxsize=1)
    def here() -> Ranks | None:
        """None where there is one process only."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return Ranks(int(os.environ["RANK"]), size) if size > 1 else None

    def join(self) -> None:
        """All ranks come here, once torch knows of them: they get a group for what they tell each other, on the CPU,
        whose members may wait for long; and watch each other."""
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        host = int.from_bytes(sha256(socket.gethostname().encode()).digest()[:7])
        places = self._gathered(torch.tensor([host, os.getpid()]))
        others = [int(pid) for number, (where, pid) in enumerate(places) if number != self.rank and where == host]
        threading.Thread(target=self._watch, args=(others,), name="ranks", daemon=True).start()

    def digest_of_all(self, digest: bytes) -> str:
        """What all ranks know of their parts; each of them calls this."""
        return "/".join(bytes(each.tolist()).hex() for each in self._gathered(torch.tensor(list(digest))))

    def tell(self, message: Pass) -> None:
        """Rank 0: to all others."""
        data = torch.frombuffer(bytearray(json.encode(message)), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(data)]), 0, group=self._group)
        dist.broadcast(data, 0, group=self._group)

    def hear(self) -> Pass | None:
        """The others: what rank 0 tells next; None at the end."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self._group)
        if not length:
            self.is_over = True
            return None
        data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self._group)
        return json.decode(data.numpy().tobytes(), type=Pass)

    def end(self) -> None:
        """Rank 0: lets the others go, if they have come as far as to listen. No pass begins any more."""
        with self.lock:
            self.is_over = True
            if self._group is not None:
                dist.broadcast(torch.zeros(1, dtype=torch.int64), 0, group=self._group)

    def _gathered(self, own: Tensor) -> list[Tensor]:
        """Everybody's, by rank."""
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self._group)
        return found

    def _watch(self, pids: Sequence[int]) -> None:
        """In a thread: ends this process with the first other one of this machine that ends before its time. Kernels of
        a GPU wait for a rank that is gone for hours, while the verifier would go on to say that it lives."""
        with suppress(ProcessLookupError), selectors.DefaultSelector() as watched:  # it may be gone already
            for pid in pids:
                watched.register(os.pidfd_open(pid), selectors.EVENT_READ)
            watched.select()
        time.sleep(END_S)
        if not self.is_over:
            log.critical("another rank has ended, so this one ends", rank=self.rank)
            os._exit(1)


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
        if not part.shape[1]:  # alike on all ranks: nobody gathers
            return part.new_empty((1, 0, self._vocab_size))
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
        self.row_rule = strictest((WHOLE_VECTORS, ROW_RULES[-1]))
        self._model = model

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        return computed(self._model, token_ids, positions, drawing, attention)


# --- rank 0 -----------------------------------------------------------------------------------------------------------


class LeadingCache(KvCache):
    """A cache that the other ranks know by its number, once it was fed."""

    def __init__(self, layout: KvLayout, capacity: int, number: int) -> None:
        super().__init__(layout, capacity)
        self.number = number
        self.is_known = False
        # Prefixes since the last pass, cache and length; kept, so that no cache is gone before it was copied.
        self.copied: list[tuple[LeadingCache, int]] = []

    def copy(self, prefix: Prefix) -> None:
        assert isinstance(prefix.cache, LeadingCache)
        if not prefix.cache.is_known:
            raise ValueError("a prefix was never fed on all ranks")
        super().copy(prefix)
        self.copied.append((prefix.cache, prefix.length))

    def told(self, segment: Segment) -> Fed:
        """Its part of a pass, for the others."""
        copied = [(cache.number, length) for cache, length in self.copied]
        return Fed(self.number, self.capacity, copied, segment.start, segment.num_tokens, segment.offset)


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
        with self.ranks.lock:
            if self.ranks.is_over:
                raise RuntimeError("the ranks have ended")
            try:
                self._tell(token_ids, positions, drawing, attention.segments)
                return self.part(token_ids, positions, drawing, attention)
            except Exception:
                log.exception("a pass failed on rank 0 and not on the others, which can't be mended: the process ends")
                os._exit(1)

    def _tell(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, segments: Sequence[Segment]) -> None:
        freed = [self._freed.popleft() for _ in range(len(self._freed))]
        caches = [segment.cache for segment in segments if isinstance(segment.cache, LeadingCache)]
        fed = [cache.told(segment) for cache, segment in zip(caches, segments, strict=True)]
        self.ranks.tell(Pass(freed, fed, token_ids.tolist(), positions.tolist(), drawing.tolist()))
        for cache in caches:
            cache.is_known, cache.copied = True, []


# --- the others -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def follow(part: PartNetwork, layout: KvLayout, ranks: Ranks) -> None:
    """Computes every pass that rank 0 tells of, until it ends. Signals, which torchrun hands to all ranks, are rank 0's
    affair from now on."""
    for ignored in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    caches: dict[int, KvCache] = {}
    try:
        while (told := ranks.hear()) is not None:
            for number in told.freed:
                caches.pop(number, None)
            _compute(told, caches, part, layout)
    except Exception:
        log.exception("a pass failed on this rank, which can't be mended: the process ends", rank=ranks.rank)
        os._exit(1)
    log.info("rank ends", rank=ranks.rank)


def _compute(told: Pass, caches: dict[int, KvCache], part: PartNetwork, layout: KvLayout) -> None:
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
        PassAttention.of(segments, layout.device),
    )
