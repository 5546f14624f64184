"""Places of answers under way, and the line of requests that wait for some.

Invariant: first come, first served, whatever the number of places asked for; places given are taken or given back,
also when their owner is cancelled in between; nobody waits while the first in line could be served.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LineFull(Exception):
    """No place is free, and as many requests wait as may."""


class WaitedTooLong(Exception):
    """No place became free in time."""


class Closed(Exception):
    """No more places are given."""


class Places:
    """`capacity` places and a line of at most `max_waiting` requests."""

    def __init__(self, capacity: int, max_waiting: int) -> None:
        self.capacity = capacity
        self.max_waiting = max_waiting
        self._num_free = capacity
        self._line: OrderedDict[asyncio.Future[None], int] = OrderedDict()  # who waits, and for how many places
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    def has_room(self, num: int) -> bool:
        """Whether a request for `num` places would get them or may wait for them."""
        return (not self._line and num <= self._num_free) or len(self._line) < self.max_waiting

    @asynccontextmanager
    async def taken(self, num: int, patience_s: float) -> AsyncIterator[None]:
        """`num` places as long as the block lasts; raises LineFull, WaitedTooLong or Closed. Raises ValueError for
        more places than there are."""
        if num > self.capacity:
            raise ValueError(f"there are {self.capacity} places, not {num}")
        await self._take(num, patience_s)
        try:
            yield
        finally:
            self._give_back(num)

    async def wait_idle(self) -> None:
        """Returns when no place is taken and nobody waits."""
        await self._idle.wait()

    def close(self) -> None:
        """Sends everybody in the line away, and all who come later."""
        self._closed = True
        for waiting in self._line:
            if not waiting.done():  # it is done where its owner is just being cancelled
                waiting.set_exception(Closed())
        self._line.clear()

    async def _take(self, num: int, patience_s: float) -> None:
        if self._closed:
            raise Closed
        if not self.has_room(num):
            raise LineFull
        if self._line or num > self._num_free:
            await self._wait(num, patience_s)
            return
        self._num_free -= num
        self._idle.clear()

    async def _wait(self, num: int, patience_s: float) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._line[waiting] = num
        try:
            async with asyncio.timeout(patience_s):
                await waiting
        except BaseException as error:
            self._leave(waiting, num)
            if isinstance(error, TimeoutError):
                raise WaitedTooLong from error
            raise

    def _leave(self, waiting: asyncio.Future[None], num: int) -> None:
        """Somebody who waited goes, perhaps just when the places were given."""
        if self._line.pop(waiting, None) is not None:
            self._serve()
        elif waiting.done() and not waiting.cancelled() and waiting.exception() is None:
            self._give_back(num)

    def _give_back(self, num: int) -> None:
        self._num_free += num
        self._serve()
        if self._num_free == self.capacity and not self._line:
            self._idle.set()

    def _serve(self) -> None:
        """Gives places from the head of the line on, as far as they go."""
        while self._line:
            waiting, num = next(iter(self._line.items()))
            if waiting.done():  # its owner is just being cancelled
                del self._line[waiting]
                continue
            if num > self._num_free:
                return
            self._num_free -= num
            del self._line[waiting]
            waiting.set_result(None)
