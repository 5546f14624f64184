"""dsd status: who serves, how busy they are, and which windows are decided."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from client.fates import printable
from client.gateway import ClientError, Gateway
from client.wire import Fleet, PeerStatus

FIGURES = ("sessions", "queue", "batch", "free KV", "step ms", "prefill ms", "context", "heard")


@dataclass(frozen=True, slots=True)
class Row:
    """An instance in the table; figures that its kind of service doesn't have are left out."""

    service: str
    peer: PeerStatus

    @property
    def figures(self) -> list[str]:
        peer, age = self.peer, f"{self.peer.heartbeat_age_ms / 1e3:.1f} s"
        if self.service == "controller":
            return [*[""] * (len(FIGURES) - 1), age]
        return [
            f"{peer.num_sessions}/{peer.max_sessions}",
            str(peer.queue_tokens),
            str(peer.batch),
            f"{peer.free_kv_tokens / peer.kv_tokens:.0%}" if peer.kv_tokens else "",
            f"{peer.step_ms:.1f}",
            f"{peer.prefill_ms:.2f}",
            str(peer.max_context),
            age,
        ]


async def show(gateway: Gateway, console: Console) -> None:
    """The fleet once."""
    console.print(view(await gateway.fleet()))


async def show_json(gateway: Gateway, every_s: float | None) -> None:
    """The fleet as one line of JSON, once or again and again."""
    while True:
        sys.stdout.write((await gateway.raw_fleet()).decode() + "\n")
        sys.stdout.flush()
        if every_s is None:
            return
        await asyncio.sleep(every_s)


async def watch(gateway: Gateway, console: Console, every_s: float) -> None:
    """The fleet again and again until cancelled: in place on a terminal, else one table below the other."""
    async with aclosing(_looks(gateway, every_s)) as looks:
        if not console.is_terminal:
            async for seen in looks:
                console.print(seen)
            return
        with Live(console=console, auto_refresh=False) as live:
            async for seen in looks:
                live.update(seen, refresh=True)


async def _looks(gateway: Gateway, every_s: float) -> AsyncGenerator[RenderableType, None]:
    """A gateway that stops answering is told, and asked again; one that never did raises ClientError."""
    yield view(await gateway.fleet())
    while True:
        await asyncio.sleep(every_s)
        try:
            seen = view(await gateway.fleet())
        except ClientError as error:
            seen = Text(str(error), style="bold red")
        yield seen


def view(fleet: Fleet) -> RenderableType:
    """The gateway, a table of peers, a table of windows."""
    gateway = fleet.gateway
    sessions = f"{gateway.num_sessions} of {gateway.max_sessions} sessions, {gateway.num_waiting} requests wait"
    head = Text(printable(f"gateway {gateway.name} serves {gateway.model}: {sessions}"))
    return Group(head, "", peers(fleet), "", windows(fleet))


def peers(fleet: Fleet) -> RenderableType:
    """Verifiers, drafters and controllers, one in a row; with their models where these are not the gateway's alone."""
    rows = [
        *(Row("verifier", peer) for peer in fleet.verifiers),
        *(Row("drafter", peer) for peer in fleet.drafters),
        *(Row("controller", peer) for peer in fleet.controllers),
    ]
    if not rows:
        return Text("nobody else is there", style="bold")
    tells_models = any(row.peer.models not in ([], [fleet.gateway.model]) for row in rows)
    table = Table(box=None, padding=(0, 1, 0, 0))  # narrow: it has to fit into 80 columns
    for column in ("service", "name"):
        table.add_column(column, no_wrap=True)
    for column in FIGURES:
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("models" if tells_models else "", overflow="fold")
    for row in rows:
        words = [*(["draining"] if row.peer.draining else []), *(row.peer.models if tells_models else [])]
        cells = [row.service, row.peer.name, *row.figures, ", ".join(words)]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def windows(fleet: Fleet) -> RenderableType:
    """What the controller has decided for each pair."""
    names = {peer.instance_id: peer.name for peer in (*fleet.verifiers, *fleet.drafters)}
    if not fleet.windows:
        return Text("no window is decided")
    table = Table(box=None, pad_edge=False)
    for column in ("drafter", "verifier"):
        table.add_column(column, overflow="fold")
    for column in ("window", "chunk"):
        table.add_column(column, justify="right")
    table.add_column("policy")
    for pair in fleet.windows:
        drafter, verifier = names.get(pair.drafter_id, pair.drafter_id), names.get(pair.verifier_id, pair.verifier_id)
        cells = (drafter, verifier, str(pair.window), str(pair.chunk), pair.policy)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table
