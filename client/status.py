"""dsd status: the live instances, their load, the quality of guesses, and the decided windows."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from client.gateway import ClientError, GatewayClient
from client.sources import printable
from client.wire import FleetStatus, PeerStatus

FIGURES = ("sessions", "queue", "batch", "free KV", "step ms", "prefill ms", "context", "heard")


def figures_of(service: str, peer: PeerStatus) -> list[str]:
    """The FIGURES of an instance. A controller has only the age of its heartbeat."""
    age = f"{peer.heartbeat_age_ms / 1e3:.1f} s"
    if service == "controller":
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


async def show_json(gateway: GatewayClient, every_s: float | None) -> None:
    """Prints the fleet as one line of JSON, once or every `every_s` seconds."""
    while True:
        sys.stdout.write((await gateway.raw_fleet()).decode() + "\n")
        sys.stdout.flush()
        if every_s is None:
            return
        await asyncio.sleep(every_s)


async def watch(gateway: GatewayClient, console: Console, every_s: float) -> None:
    """Prints the fleet every `every_s` seconds until cancelled: in place on a terminal, else one after the other."""
    async with aclosing(_views(gateway, every_s)) as views:
        if not console.is_terminal:
            async for each in views:
                console.print(each)
            return
        with Live(console=console, auto_refresh=False) as live:
            async for each in views:
                live.update(each, refresh=True)


async def _views(gateway: GatewayClient, every_s: float) -> AsyncGenerator[RenderableType, None]:
    """Once the first request has succeeded, errors are shown in place of the fleet. Raises ClientError before that."""
    yield view(await gateway.fleet())
    while True:
        await asyncio.sleep(every_s)
        try:
            current = view(await gateway.fleet())
        except ClientError as error:
            current = Text(str(error), style="bold red")
        yield current


def view(fleet: FleetStatus) -> RenderableType:
    """The gateway, a table of peers, a table of guesses, a table of windows."""
    gateway = fleet.gateway
    sessions = f"{gateway.num_sessions} of {gateway.max_sessions} sessions, {gateway.num_waiting} requests waiting"
    head = Text(printable(f"gateway {gateway.name} serves {gateway.model}: {sessions}"))
    tables = [peers(fleet), *([guesses(fleet)] if fleet.drafters else []), windows(fleet)]
    return Group(head, *(part for table in tables for part in ("", table)))


def peers(fleet: FleetStatus) -> RenderableType:
    """Verifiers, drafters and controllers, one per row. Models are shown if any differ from the gateway's."""
    rows = [
        *(("verifier", peer) for peer in fleet.verifiers),
        *(("drafter", peer) for peer in fleet.drafters),
        *(("controller", peer) for peer in fleet.controllers),
    ]
    if not rows:
        return Text("no other instances", style="bold")
    shows_models = any(peer.models not in ([], [fleet.gateway.model]) for _, peer in rows)
    table = Table(box=None, padding=(0, 1, 0, 0))  # narrow, to fit into 80 columns
    for column in ("service", "name"):
        table.add_column(column, no_wrap=True)
    for column in FIGURES:
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("models" if shows_models else "", overflow="fold")
    for service, peer in rows:
        words = [*(["draining"] if peer.draining else []), *(peer.models if shows_models else [])]
        cells = [service, peer.name, *figures_of(service, peer), ", ".join(words)]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def guesses(fleet: FleetStatus) -> RenderableType:
    """What computes each drafter's guesses, and what became of them lately in this gateway's sessions."""
    table = Table(box=None, pad_edge=False)
    for column in ("drafter", "provider"):
        table.add_column(column, overflow="fold")
    for column in ("guesses/s", "acceptance", "in time"):
        table.add_column(column, justify="right")
    for each in fleet.drafters:
        shares = ["" if share is None else f"{share:.0%}" for share in (each.acceptance, each.in_time)]
        cells = (each.name, each.provider, f"{each.guesses_per_s:.1f}", *shares)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def windows(fleet: FleetStatus) -> RenderableType:
    """The newest decision for each pair."""
    names = {peer.instance_id: peer.name for peer in (*fleet.verifiers, *fleet.drafters)}
    if not fleet.windows:
        return Text("no windows decided")
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
