"""Clients of a chaos run: they ask, note what comes when, and take another gateway when theirs refuses or breaks off.

Invariant: every attempt is written down with its gateway and how it ended. A request is asked again until it is
answered or GIVE_UP_S have passed. The gateway that answered is asked when the sessions of the answer moved.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.chaos.moves import ids_of_request, moves
from benchmarks.chaos.questions import Asking
from benchmarks.chaos.records import Attempt, Move, RequestRecord
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
            session_id = await self._try(http, asking, attempt)
            attempt.ended_s = self.now()
            if attempt.status == OK and session_id is not None:
                await self._look(http, asking, attempt, session_id)
            if attempt.status == OK or self.now() > given_up_s:
                break
            await asyncio.sleep(PAUSE_S)
            name = names[(names.index(name) + 1) % len(names)]
        self.records.append(record)

    async def _try(self, http: aiohttp.ClientSession, asking: Asking, attempt: Attempt) -> str | None:
        """Returns the id of the session of one choice."""
        url = f"{self.gateways[attempt.gateway]}/v1/completions"
        try:
            async with http.post(url, json=asking.body(self.model), headers=_headers(asking)) as response:
                if response.status != 200:
                    attempt.status = await _refusal(response)
                elif asking.is_streamed:
                    return await self._read_events(response, attempt, asking.question.num_choices)
                else:
                    return _take_whole(await response.json(), attempt)
        except aiohttp.ClientConnectorError:
            attempt.status = REFUSED
        except TimeoutError:
            attempt.status = SILENT
        except (aiohttp.ClientError, OSError, ValueError):
            if attempt.status != OK:  # else its gateway ended behind the whole answer
                attempt.status = BROKEN if attempt.texts else RESET
        return None

    async def _look(self, http: aiohttp.ClientSession, asking: Asking, attempt: Attempt, session_id: str) -> None:
        """Asks the gateway when the answer's sessions moved. It may have ended since."""
        url = f"{self.gateways[attempt.gateway]}/v1/dsd/requests"
        try:
            async with http.get(url, headers=_headers(asking), raise_for_status=True) as response:
                ids = ids_of_request((await response.json())["requests"], session_id)
            found: list[Move] = []
            for each in ids:
                async with http.get(f"{url}/{each}", headers=_headers(asking), raise_for_status=True) as response:
                    found += moves(await response.json(), attempt.gateway, attempt.sent_s)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            return
        attempt.moves = found if len(ids) == asking.question.num_choices else None

    async def _read_events(self, response: aiohttp.ClientResponse, attempt: Attempt, num_choices: int) -> str | None:
        """Reads to the end of the response: then its sessions are over too."""
        attempt.texts, attempt.finishes = [""] * num_choices, [""] * num_choices
        attempt.arrivals_s = [[] for _ in range(num_choices)]
        attempt.status = BROKEN  # until its end has come
        session_id = None
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                attempt.status = OK if all(attempt.finishes) else BROKEN
                continue
            event = json.loads(line[6:])
            if "error" in event:
                attempt.status = f"error {event['error']['code']}"
                return None
            session_id = _session_id(event)
            self._take(event, attempt)
        return session_id

    def _take(self, event: dict[str, Any], attempt: Attempt) -> None:
        for choice in event["choices"]:
            index = choice["index"]
            if choice["text"]:
                attempt.texts[index] += choice["text"]
                attempt.arrivals_s[index].append(self.now())
            attempt.finishes[index] = choice["finish_reason"] or attempt.finishes[index]
        _take_usage(event.get("usage"), attempt)


async def _refusal(response: aiohttp.ClientResponse) -> str:
    """The status, and the code in the body."""
    try:
        return f"{response.status} {(await response.json())['error']['code']}"
    except (aiohttp.ContentTypeError, ValueError, KeyError, TypeError):
        return str(response.status)


def _headers(asking: Asking) -> dict[str, str]:
    return {"Authorization": f"Bearer {asking.key}"}


def _session_id(answer: Mapping[str, Any]) -> str:
    return str(answer["id"]).rpartition("-")[2]


def _take_whole(answer: dict[str, Any], attempt: Attempt) -> str:
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    attempt.texts = [choice["text"] for choice in choices]
    attempt.finishes = [choice["finish_reason"] for choice in choices]
    _take_usage(answer["usage"], attempt)
    attempt.status = OK
    return _session_id(answer)


def _take_usage(usage: dict[str, Any] | None, attempt: Attempt) -> None:
    if usage:
        attempt.num_tokens, attempt.num_prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
