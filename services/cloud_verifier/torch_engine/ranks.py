"""Tensor parallelism under torchrun, for target models that do not fit one device.

Invariant: rank 0 is the verifier; only it communicates with other services. It sends every pass to the other ranks
before computing it. All ranks then compute the pass together, each over its shard of the weights and KV caches. If a
rank exits early or fails in a pass, all ranks exit, because their KV caches may differ.
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
from services.cloud_verifier.torch_engine.network import WHOLE_VECTORS, Outputs, run_model
from services.cloud_verifier.torch_engine.packed import ROW_RULES, RowRule, strictest

PASS_TIMEOUT = timedelta(days=365)  # of ranks that wait for the next pass
EXIT_GRACE_S = 1.0  # between the first and the last rank that exits in order

log = structlog.get_logger(__name__)


class SegmentMessage(Struct, frozen=True, array_like=True):
    """One segment of a pass (attention.Segment)."""

    number: int  # of the cache
    capacity: int
    prefixes: list[tuple[int, int]]  # to copy first: number of the source cache, length
    start: int
    num_tokens: int
    offset: int


class PassMessage(Struct, frozen=True, array_like=True):
    """A pass, as rank 0 sends it to the other ranks."""

    freed: list[int]  # numbers of freed caches
    segments: list[SegmentMessage]
    token_ids: list[int]
    positions: list[int]
    drawing: list[int]


class Ranks:
    """The rank of this process under torchrun, and its communication; a singleton (`here`)."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.lock = threading.Lock()  # held by rank 0 while it sends a pass or the end
        self.has_ended = False
        self._group: dist.ProcessGroup | None = None

    @staticmethod
    @lru_cache(maxsize=1)
    def here() -> Ranks | None:
        """None if there is only one process."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return Ranks(int(os.environ["RANK"]), size) if size > 1 else None

    def join(self) -> None:
        """Creates the CPU process group for messages and starts watching the other ranks.

        All ranks call it after torch's process group exists.
        """
        self._group = dist.new_group(backend="gloo", timeout=PASS_TIMEOUT)
        host = int.from_bytes(sha256(socket.gethostname().encode()).digest()[:7])
        places = self._all_gather(torch.tensor([host, os.getpid()]))
        others = [int(pid) for rank, (where, pid) in enumerate(places) if rank != self.rank and where == host]
        threading.Thread(target=self._watch, args=(others,), name="ranks", daemon=True).start()

    def gather_digests(self, digest: bytes) -> str:
        """The digests of all ranks, in hexadecimal and separated by `/`. All ranks call it."""
        return "/".join(bytes(each.tolist()).hex() for each in self._all_gather(torch.tensor(list(digest))))

    def send(self, message: PassMessage) -> None:
        """Rank 0: sends a pass to all other ranks."""
        data = torch.frombuffer(bytearray(json.encode(message)), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(data)]), 0, group=self._group)
        dist.broadcast(data, 0, group=self._group)

    def receive(self) -> PassMessage | None:
        """Other ranks: waits for the next pass; None when rank 0 has ended."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self._group)
        if not length:
            self.has_ended = True
            return None
        data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self._group)
        return json.decode(data.numpy().tobytes(), type=PassMessage)

    def end(self) -> None:
        """Rank 0: sends the end to the other ranks if they have joined. Later passes raise RuntimeError."""
        with self.lock:
            self.has_ended = True
            if self._group is not None:
                dist.broadcast(torch.zeros(1, dtype=torch.int64), 0, group=self._group)

    def _all_gather(self, own: Tensor) -> list[Tensor]:
        """The tensors of all ranks, in the order of ranks."""
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(gathered, own, group=self._group)
        return gathered

    def _watch(self, pids: Sequence[int]) -> None:
        """Runs in a thread: exits when another rank on this machine exits early.

        Otherwise a GPU kernel would wait hours for the missing rank while the verifier still sends heartbeats.
        """
        with suppress(ProcessLookupError), selectors.DefaultSelector() as watched:  # it may have exited already
            for pid in pids:
                watched.register(os.pidfd_open(pid), selectors.EVENT_READ)
            watched.select()
        time.sleep(EXIT_GRACE_S)
        if not self.has_ended:
            log.critical("another rank has ended, so this one ends", rank=self.rank)
            os._exit(1)


class GatheredHead(nn.Module):
    """float32 logits over a vocabulary that is split among the ranks."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        weight, bias = (local_shard(each) for each in (head.weight, head.bias))
        assert weight is not None
        self._vocab_size = len(head.weight)
        self._shard = Float32Head(weight, bias, packed=False)
        self._is_whole = len(weight) == self._vocab_size

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [1, rows, vocab] of hidden states [1, rows, hidden]."""
        shard: Tensor = self._shard(hidden)
        if self._is_whole:
            return shard
        if not shard.shape[1]:  # the same on all ranks, so none of them gathers
            return shard.new_empty((1, 0, self._vocab_size))
        size = dist.get_world_size()
        width = -(-self._vocab_size // size)  # of all shards but the last ones
        padded = nn.functional.pad(shard, (0, width - shard.shape[-1])).contiguous()
        shards = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(shards, padded)
        return torch.cat(shards, dim=-1)[..., : self._vocab_size]


def local_shard(parameter: Tensor | None) -> Tensor | None:
    """This rank's shard of a distributed parameter; any other parameter itself."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class ShardNetwork:
    """This rank's shard of a model that transformers split by its tp_plan. A call is a collective operation."""

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        model.set_output_embeddings(GatheredHead(head))  # type: ignore[no-untyped-call]
        self.row_rule = strictest((WHOLE_VECTORS, ROW_RULES[-1]))
        self._model = model

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        return run_model(self._model, token_ids, positions, drawing, attention)


# --- rank 0 -----------------------------------------------------------------------------------------------------------


class LeaderCache(KvCache):
    """Rank 0's shard of a cache. The other ranks create theirs, under the same number, when it is first fed."""

    def __init__(self, layout: KvLayout, capacity: int, number: int) -> None:
        super().__init__(layout, capacity)
        self.number = number
        self.is_sent = False
        # Prefixes copied since the last pass: cache and length. The reference delays freeing until they are sent.
        self.copied: list[tuple[LeaderCache, int]] = []

    def copy(self, prefix: Prefix) -> None:
        assert isinstance(prefix.cache, LeaderCache)
        if not prefix.cache.is_sent:
            raise ValueError(f"prefix of cache {prefix.cache.number}: the other ranks do not have this cache")
        super().copy(prefix)
        self.copied.append((prefix.cache, prefix.length))

    def message(self, segment: Segment) -> SegmentMessage:
        prefixes = [(cache.number, length) for cache, length in self.copied]
        return SegmentMessage(self.number, self.capacity, prefixes, segment.start, segment.num_tokens, segment.offset)


@dataclass(slots=True)
class LeaderNetwork:
    """Rank 0's network: creates the caches, and sends each pass to the other ranks before computing its shard."""

    shard: ShardNetwork
    ranks: Ranks
    row_rule: RowRule
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _freed: deque[int] = field(default_factory=deque)

    def new_cache(self, layout: KvLayout, capacity: int) -> KvCache:
        cache = LeaderCache(layout, capacity, next(self._numbers))
        finalize(cache, self._freed.append, cache.number)
        return cache

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        assert isinstance(attention, PassAttention)
        with self.ranks.lock:
            if self.ranks.has_ended:
                raise RuntimeError("rank 0 has ended, no pass can start")
            try:
                self._send(token_ids, positions, drawing, attention.segments)
                return self.shard(token_ids, positions, drawing, attention)
            except Exception:
                log.exception("a pass failed on rank 0, so all ranks end")
                os._exit(1)

    def _send(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, segments: Sequence[Segment]) -> None:
        freed = [self._freed.popleft() for _ in range(len(self._freed))]
        caches = [segment.cache for segment in segments if isinstance(segment.cache, LeaderCache)]
        messages = [cache.message(segment) for cache, segment in zip(caches, segments, strict=True)]
        self.ranks.send(PassMessage(freed, messages, token_ids.tolist(), positions.tolist(), drawing.tolist()))
        for cache in caches:
            cache.is_sent, cache.copied = True, []


# --- other ranks ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def follow(shard: ShardNetwork, layout: KvLayout, ranks: Ranks) -> None:
    """Computes every pass that rank 0 sends, until rank 0 ends.

    Ignores SIGTERM and SIGINT, which torchrun sends to all ranks: rank 0 handles them.
    """
    for ignored in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    caches: dict[int, KvCache] = {}
    try:
        while (message := ranks.receive()) is not None:
            for number in message.freed:
                caches.pop(number, None)
            _compute(message, caches, shard, layout)
    except Exception:
        log.exception("a pass failed on this rank, so all ranks end", rank=ranks.rank)
        os._exit(1)
    log.info("rank ends", rank=ranks.rank)


def _compute(message: PassMessage, caches: dict[int, KvCache], shard: ShardNetwork, layout: KvLayout) -> None:
    segments = []
    for each in message.segments:
        cache = caches.get(each.number) or caches.setdefault(each.number, KvCache(layout, each.capacity))
        for number, length in each.prefixes:
            cache.copy(Prefix(caches[number], length))
        segments.append(Segment(cache, each.start, each.num_tokens, each.offset))
    shard(
        torch.tensor(message.token_ids, device=layout.device),
        torch.tensor(message.positions, device=layout.device),
        torch.tensor(message.drawing, dtype=torch.int64, device=layout.device),
        PassAttention.of(segments, layout.device),
    )
