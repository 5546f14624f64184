"""Honest clients beside hostile traffic: their texts, and their time per token.

Invariant: every answer is compared with the text that the same prompt had before the hostile traffic began. Only
answers whose session is in `not_ours` are left out: those that a hostile gateway or verifier was given.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from shared.policies.kv_cache import KV_STEP

PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "Tell me how to bake bread, step by step.",
    "Describe a day in the life of a beaver.",
    "Write a long letter from a sailor to his family.",
)
FILLER = 1000  # a token id
NUM_KNOWN = 64  # newest session ids that hostile peers may name
ANSWER_S = 120.0


class Disturbed(Exception):
    """An honest request got an error, or no whole answer."""


@dataclass(frozen=True, slots=True)
class HonestAnswer:
    """One answer in full. tpot_ms: after the first token, as the client measures it."""

    session_id: str
    text: str
    tpot_ms: float


@dataclass(slots=True)
class HonestClients:
    """Clients that ask the same greedy prompts again and again."""

    url: str
    model: str
    http: aiohttp.ClientSession
    prompts: Sequence[str] = PROMPTS
    max_tokens: int = 32
    expected: dict[str, str] = field(default_factory=dict)  # texts by prompt
    session_ids: deque[str] = field(default_factory=lambda: deque(maxlen=NUM_KNOWN))  # the newest last
    not_ours: set[str] = field(default_factory=set)
    num_equal: int = 0
    num_left_out: int = 0
    disturbed: list[str] = field(default_factory=list)

    async def learn(self) -> None:
        """Asks every prompt once, with nothing going on."""
        for prompt in self.prompts:
            self.expected[prompt] = (await self.ask(prompt)).text

    @asynccontextmanager
    async def asking(self, num_clients: int = 1) -> AsyncIterator[None]:
        """Clients ask all the time during the block. Answers under way at its end are read to theirs."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for number in range(num_clients):
                tasks.create_task(self._keep_asking(number, stop), name=f"honest client {number}")
            try:
                yield
            finally:
                stop.set()

    async def _keep_asking(self, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.compare(self.prompts[number % len(self.prompts)])
            number += 1

    async def compare(self, prompt: str) -> HonestAnswer | None:
        """Asks a prompt, and counts whether its text is the expected one; None: there was no answer."""
        num_given, began = len(self.not_ours), time.monotonic()
        try:
            answer = await self.ask(prompt)
        except (Disturbed, aiohttp.ClientError, TimeoutError) as error:
            if len(self.not_ours) > num_given:  # an error names no session
                self.num_left_out += 1
            else:
                self.disturbed.append(f"{prompt!r} after {time.monotonic() - began:.1f} s: {error!r}")
            return None
        if answer.text == self.expected[prompt]:
            self.num_equal += 1
        elif answer.session_id in self.not_ours:
            self.num_left_out += 1
        else:
            self.disturbed.append(f"{prompt!r}: {answer.text!r}, expected {self.expected[prompt]!r}")
        return answer

    async def ask(self, prompt: str, drafter: str = "") -> HonestAnswer:
        """One streamed answer, drafted for by any drafter or this one. Raises Disturbed."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "dsd": {"drafter": drafter} if drafter else {},
        }
        async with asyncio.timeout(ANSWER_S), self.http.post(f"{self.url}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                raise Disturbed(f"{response.status} {(await response.text())[:500]}")
            return await self._read(response)

    async def fill_cache(self, kv_tokens: int) -> None:
        """Asks for one token behind a text that takes the whole KV cache. The verifier drops what it kept of earlier
        texts for it, so its memory is comparable afterwards. Raises Disturbed."""
        body = {"model": self.model, "prompt": [FILLER] * (kv_tokens - KV_STEP), "max_tokens": 1}
        async with asyncio.timeout(ANSWER_S), self.http.post(f"{self.url}/v1/completions", json=body) as response:
            if response.status != 200:
                raise Disturbed(f"{response.status} {(await response.text())[:500]}")

    async def _read(self, response: aiohttp.ClientResponse) -> HonestAnswer:
        text, session_id, first_at, last_at, num_tokens, is_whole = "", "", 0.0, 0.0, 0, False
        async for line in response.content:
            if line.startswith(b"data: [DONE]"):
                is_whole = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise Disturbed(f"{event} after {text!r}")
                if not session_id:
                    session_id = event["id"].partition("-")[2]
                    self.session_ids.append(session_id)
                num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
                if piece := "".join(choice.get("delta", {}).get("content") or "" for choice in event["choices"]):
                    text, last_at = text + piece, time.monotonic()
                    first_at = first_at or last_at
        if not is_whole:
            raise Disturbed(f"broken off after {text!r}")
        return HonestAnswer(session_id, text, (last_at - first_at) * 1e3 / max(1, num_tokens - 1))
