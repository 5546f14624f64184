"""The clients of a cell: each asks again as soon as it has its answer.

Invariant: clients begin one after the other over the time of an answer, so that no pass has all prompts, and answers
neither begin nor end at the same time. First answers count in no figure. Each request has an API key of its own, so no
session takes over what another has computed, of the chat template either.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.harness.latency import OK, RequestSample
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from benchmarks.scale.cells import Cell
from client.wire import AnswerOptions, DsdOptions


class RequestFailed(RuntimeError):
    """A request of a client failed, so the cell has fewer sessions than it says."""


@dataclass(slots=True)
class Load:
    """The clients, and the requests that have ended. api_keys: of the requests, in their order."""

    cell: Cell
    url: str
    api_keys: Sequence[str]
    prompts: Sequence[str]
    model: str
    samples: list[RequestSample] = field(default_factory=list)  # without the first of each client
    num_ended: int = 0
    _started_at: float = field(default_factory=time.monotonic)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _num_steady: int = 0  # clients that have had their first answer
    _all_steady: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until cancelled. Raises RequestFailed."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.cell.sessions):
                tasks.create_task(self._client(number), name=f"client-{number}")

    async def wait_until_steady(self) -> None:
        """Returns when each client has had its first answer."""
        await self._all_steady.wait()

    def since(self, at: float) -> list[RequestSample]:
        """What has ended since then (time.monotonic)."""
        return [each for each in self.samples if each.due_s + each.total_s >= at - self._started_at]

    async def _client(self, number: int) -> None:
        await asyncio.sleep(number / self.cell.sessions * self.cell.answer_s)
        await self._ask()
        self._num_steady += 1
        if self._num_steady == self.cell.sessions:
            self._all_steady.set()
        while True:
            self.samples.append(await self._ask())

    async def _ask(self) -> RequestSample:
        options = AnswerOptions(self.cell.answer_tokens, temperature=0.0, speculation=DsdOptions("adaptive"))
        number, now = next(self._numbers), time.monotonic()
        index = number % len(self.prompts)
        scheduled = ScheduledRequest(index, self.prompts[index], now, self._started_at)
        template = RequestTemplate(self.model, options, ignore_eos=True)
        async with connected(self.url, self.api_keys[number % len(self.api_keys)]) as gateway:
            sample = await measure_request(gateway, template, scheduled)
        if sample.status != OK:
            raise RequestFailed(f"a request failed: {sample.status}")
        self.num_ended += 1
        return sample
