"""One prompt to a running system: the answer as it streams, then what speculation did for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table


class AnswerFailed(Exception):
    """The gateway said no, or the stream broke."""


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of an answer: text, or the last chunk's statistics."""

    text: str = ""
    usage: dict[str, Any] | None = None
    dsd: dict[str, Any] | None = None


async def ask(address: str, prompt: str, max_tokens: int, speculation: dict[str, Any]) -> AsyncIterator[Event]:
    """Streams the answer of the gateway at `address` to one user message. Raises AnswerFailed."""
    body = {
        "model": await _first_model(address),
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "dsd": speculation,
    }
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{address}/v1/chat/completions", json=body) as response,
    ):
        if response.status != 200:
            raise AnswerFailed(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield _event(json.loads(line[6:]))


async def _first_model(address: str) -> str:
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{address}/v1/models") as response:
        return str((await response.json())["data"][0]["id"])


def _event(chunk: dict[str, Any]) -> Event:
    if "error" in chunk:
        raise AnswerFailed(chunk["error"]["message"])
    text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return Event(text, chunk.get("usage"), chunk.get("dsd"))


async def print_answer(
    console: Console, address: str, prompt: str, max_tokens: int, speculation: dict[str, Any]
) -> None:
    """Streams the answer to the terminal and ends with a table of statistics."""
    usage: dict[str, Any] = {}
    dsd: dict[str, Any] = {}
    console.print(f"[bold]> {prompt}[/bold]\n")
    async for event in ask(address, prompt, max_tokens, speculation):
        console.print(event.text, end="", markup=False, highlight=False, soft_wrap=True)
        usage, dsd = event.usage or usage, event.dsd or dsd
    console.print("\n")
    console.print(statistics(usage, dsd))


def statistics(usage: dict[str, Any], dsd: dict[str, Any]) -> Table:
    """The table under an answer."""
    judged = dsd["accepted"] + dsd["late"] + dsd["rejected"]
    table = Table(title="What speculation did", show_header=False)
    rows = {
        "tokens": f"{usage['completion_tokens']} after a prompt of {usage['prompt_tokens']}",
        "speed": _speed(dsd["tpot_ms"], dsd["ttft_ms"]),
        "acceptance": f"{(dsd['accepted'] + dsd['late']) / judged:.2f}" if judged else "no guesses",
        "guesses": ", ".join(f"{dsd[fate]} {fate}" for fate in ("accepted", "late", "rejected", "discarded")),
        "window": str(dsd["window"] or "adaptive"),
        "verdicts": f"{dsd['num_verdicts']}, {dsd['tokens_per_verdict']:.2f} tokens each",
        "served by": f"{dsd['verifier']}, drafts from {dsd['drafter'] or 'nobody'}",
        "seed": str(dsd["seed"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _speed(tpot_ms: float | None, ttft_ms: float | None) -> str:
    """An answer that came in one piece has no time per token; an empty one has none at all."""
    if ttft_ms is None:
        return "no tokens"
    per_token = f"{1000 / tpot_ms:.1f} tokens/s (TPOT {tpot_ms:.1f} ms), " if tpot_ms else ""
    return f"{per_token}TTFT {ttft_ms:.0f} ms"
