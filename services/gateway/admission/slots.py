"""Slots for answers under way, and the queue of requests that wait for some.

Invariant: first come, first served, whatever the number of slots a request needs. A slot is either free or held by one
request, also when a request is cancelled just as it gets its slots. No request waits while the first in the queue
could be served.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class QueueFull(Exception):
    """There are too few free slots, and no further request may wait."""


class QueueTimeout(Exception):
    """The slots did not become free in time."""


class QueueClosed(Exception):
    """No slots are given any more."""


class AdmissionSlots:
    """`capacity` slots and a queue of at most `max_waiting` requests."""

    def __init__(self, capacity: int, max_waiting: int) -> None:
        self.capacity = capacity
        self.max_waiting = max_waiting
        self._num_free = capacity
        self._queue: OrderedDict[asyncio.Future[None], int] = OrderedDict()  # waiting request -> slots it needs
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    def has_room(self, num: int) -> bool:
        """Whether a request for `num` slots would get them, or may wait for them."""
        return (not self._queue and num <= self._num_free) or len(self._queue) < self.max_waiting

    @asynccontextmanager
    async def taken(self, num: int, patience_s: float) -> AsyncIterator[None]:
        """Holds `num` slots for the block. Raises QueueFull, QueueClosed, QueueTimeout after `patience_s` seconds, and
        ValueError for more slots than there are."""
        if num > self.capacity:
            raise ValueError(f"there are {self.capacity} slots, not {num}")
        await self._take(num, patience_s)
        try:
            yield
        finally:
            self._give_back(num)

    async def wait_idle(self) -> None:
        """Returns once all slots are free and no request waits."""
        await self._idle.wait()

    def close(self) -> None:
        """Raises QueueClosed in every waiting request, and in every later one."""
        self._closed = True
        for waiting in self._queue:
            if not waiting.done():  # done: its owner is being cancelled
                waiting.set_exception(QueueClosed())
        self._queue.clear()

    async def _take(self, num: int, patience_s: float) -> None:
        if self._closed:
            raise QueueClosed
        if not self.has_room(num):
            raise QueueFull
        if self._queue or num > self._num_free:
            await self._wait(num, patience_s)
            return
        self._num_free -= num
        self._idle.clear()

    async def _wait(self, num: int, patience_s: float) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._queue[waiting] = num
        try:
            async with asyncio.timeout(patience_s):
                await waiting
        except BaseException as error:
            self._leave(waiting, num)
            if isinstance(error, TimeoutError):
                raise QueueTimeout from error
            raise

    def _leave(self, waiting: asyncio.Future[None], num: int) -> None:
        """A waiting request gives up, perhaps just after it got its slots."""
        if self._queue.pop(waiting, None) is not None:
            self._serve()
        elif waiting.done() and not waiting.cancelled() and waiting.exception() is None:
            self._give_back(num)

    def _give_back(self, num: int) -> None:
        self._num_free += num
        self._serve()
        if self._num_free == self.capacity and not self._queue:
            self._idle.set()

    def _serve(self) -> None:
        """Serves the queue from its head while the free slots suffice."""
        while self._queue:
            waiting, num = next(iter(self._queue.items()))
            if waiting.done():  # its owner is being cancelled
                del self._queue[waiting]
                continue
            if num > self._num_free:
                return
            self._num_free -= num
            del self._queue[waiting]
            waiting.set_result(None)
