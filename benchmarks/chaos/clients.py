"""Clients of a chaos run: they ask, note what comes when, and take another gateway when theirs refuses or breaks off.

Invariant: every attempt is written down with its gateway and how it ended. A request is asked again until it is
answered or GIVE_UP_S have passed.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.chaos.questions import Asking
from benchmarks.chaos.records import Attempt, RequestRecord
from benchmarks.harness.latency import OK

CONNECT_S, SILENCE_S, GIVE_UP_S = 5.0, 120.0, 300.0
PAUSE_S = 0.2  # before a request is asked again
REFUSED, SILENT, BROKEN, RESET = "connection refused", "silent", "broken off", "connection reset"


@dataclass(slots=True)
class Clients:
    """`num_clients` that ask one request after another. gateways: addresses by name."""

    gateways: Mapping[str, str]
    model: str
    now: Callable[[], float]
    seed: int
    records: list[RequestRecord]

    async def ask_all(self, askings: Iterable[Asking], num_clients: int, answered: Callable[[], None]) -> None:
        """Returns when each request has its answer or is given up. Calls `answered` after each."""
        waiting = iter(askings)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)

        async def client(http: aiohttp.ClientSession, chance: random.Random) -> None:
            for asking in waiting:
                await self._ask(http, asking, chance)
                answered()

        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http, asyncio.TaskGroup() as tasks:
            for number in range(num_clients):
                tasks.create_task(client(http, random.Random(f"{self.seed} {number}")))

    async def _ask(self, http: aiohttp.ClientSession, asking: Asking, chance: random.Random) -> None:
        question = asking.question
        record = RequestRecord(asking.number, question.number, question.num_choices, asking.is_streamed)
        names, given_up_s = list(self.gateways), self.now() + GIVE_UP_S
        name = chance.choice(names)
        while True:
            attempt = Attempt(name, self.now())
            record.attempts.append(attempt)
            await self._try(http, asking, attempt)
            attempt.ended_s = self.now()
            if attempt.status == OK or self.now() > given_up_s:
                break
            await asyncio.sleep(PAUSE_S)
            name = names[(names.index(name) + 1) % len(names)]
        self.records.append(record)

    async def _try(self, http: aiohttp.ClientSession, asking: Asking, attempt: Attempt) -> None:
        url, headers = f"{self.gateways[attempt.gateway]}/v1/completions", {"Authorization": f"Bearer {asking.key}"}
        try:
            async with http.post(url, json=asking.body(self.model), headers=headers) as response:
                if response.status != 200:
                    attempt.status = str(response.status)
                elif asking.is_streamed:
                    await self._read_events(response, attempt, asking.question.num_choices)
                else:
                    _take_whole(await response.json(), attempt)
        except aiohttp.ClientConnectorError:
            attempt.status = REFUSED
        except TimeoutError:
            attempt.status = SILENT
        except (aiohttp.ClientError, OSError, ValueError):
            attempt.status = BROKEN if attempt.texts else RESET

    async def _read_events(self, response: aiohttp.ClientResponse, attempt: Attempt, num_choices: int) -> None:
        attempt.texts, attempt.finishes = [""] * num_choices, [""] * num_choices
        attempt.arrivals_s = [[] for _ in range(num_choices)]
        attempt.status = BROKEN  # until its end has come
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                attempt.status = OK if all(attempt.finishes) else BROKEN
                return
            event = json.loads(line[6:])
            if "error" in event:
                attempt.status = f"error {event['error']['code']}"
                return
            self._take(event, attempt)

    def _take(self, event: dict[str, Any], attempt: Attempt) -> None:
        for choice in event["choices"]:
            index = choice["index"]
            if choice["text"]:
                attempt.texts[index] += choice["text"]
                attempt.arrivals_s[index].append(self.now())
            attempt.finishes[index] = choice["finish_reason"] or attempt.finishes[index]
        _take_usage(event.get("usage"), attempt)


def _take_whole(answer: dict[str, Any], attempt: Attempt) -> None:
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    attempt.texts = [choice["text"] for choice in choices]
    attempt.finishes = [choice["finish_reason"] for choice in choices]
    _take_usage(answer["usage"], attempt)
    attempt.status = OK


def _take_usage(usage: dict[str, Any] | None, attempt: Attempt) -> None:
    if usage:
        attempt.num_tokens, attempt.num_prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
