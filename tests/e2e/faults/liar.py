"""Drafters that lie."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from services.edge_drafter.graphs.graph import DraftCache
from services.edge_drafter.model import DraftModel, DraftRow
from shared.bus.bus import Absent, Bus
from shared.protocol import subjects
from shared.protocol.messages import NO_TOKENS, Draft, Message, Speculate


class Liar:
    """A draft model that guesses random ids, whatever the text."""

    def __init__(self, honest: DraftModel, seed: int) -> None:
        self.name = "liar"
        self.vocab_size = honest.vocab_size
        self.max_context = honest.max_context
        self.max_rows = honest.max_rows
        self.num_nodes = honest.num_nodes
        self._honest = honest
        self._random = np.random.default_rng(seed)

    def new_cache(self, capacity: int) -> DraftCache:
        return self._honest.new_cache(capacity)

    @property
    def kv_bytes(self) -> int:
        return self._honest.kv_bytes

    def num_caches(self, num_used: int, length: int) -> int:
        return self._honest.num_caches(num_used, length)

    def step(self, rows: Sequence[DraftRow]) -> list[np.ndarray]:
        return [self._random.permutation(logits) for logits in self._honest.step(rows)]


class StubbornDrafter:
    """A drafter that guesses nothing and asks its verifier for ever to wait, in drafts from a far future."""

    def __init__(self, bus: Bus) -> None:
        self.instance_id = subjects.new_instance_id("stubborn")
        self.num_sent = 0
        self._bus = bus
        self._requests: asyncio.Queue[Speculate] = asyncio.Queue()

    async def run(self) -> None:
        """Lies about the first session it is bound to, until cancelled."""
        await self._bus.subscribe(subjects.inbox("drafter", self.instance_id), self._receive)
        request = await self._requests.get()
        draft = Draft(request.session_id, request.term, 0, len(request.prompt_ids), NO_TOKENS, False, 1e15)
        while True:
            await self._bus.publish(subjects.to("verifier", request.verifier_id, Draft, self.instance_id), draft)
            self.num_sent += 1
            await asyncio.sleep(0.02)

    def _receive(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, Speculate):
            self._requests.put_nowait(message)
