"""How long one request can hold a gateway's event loop: python -m benchmarks.hostile.worst_bodies.

Each body of bad_bodies.py is sent to a gateway in this process, over HTTP, while a task looks at the clock every
millisecond. Its longest delay is the time that the loop was held: by work on the loop itself, or by a thread that keeps
the interpreter lock. The least of several repeats counts.

Invariant: requests that pass all checks reach a session. Its verifier is only announced, so they end with status 503.
"""

from __future__ import annotations

import asyncio
import http.client
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from aiohttp import web
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks.harness.files import write_result
from benchmarks.hostile.bad_bodies import MODEL, BadBody, bad_bodies
from services.gateway.http.endpoints.joining import Joining
from services.gateway.http.routes import Routes, make_app
from services.gateway.service import Gateway, formats_of, make_authenticator
from services.gateway.settings import GatewaySettings
from services.gateway.text.tokenizer import load_tokenizer
from shared.bus.bus import Bus
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import MAX_TOKENS, Heartbeat, Load
from shared.protocol.subjects import broadcast, new_instance_id
from shared.runtime.health import Health
from shared.runtime.home import default_models_dir
from shared.service import Context

LIMIT_MS = 50.0  # of the loop being held
HEARTBEAT_S = 10.0
TICK_S = 0.001
HOST = "127.0.0.1"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class BodyCost:
    """What one body costs. held_ms: the longest time that the loop was held; cpu_s: of all threads."""

    name: str
    status: int
    held_ms: float
    cpu_s: float


class LoopWatch:
    """Tells how long the loop was held. longest_s: since it was last set to 0.

    A delay counts as far as this process computed meanwhile: the rest is other work of the machine.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def run(self) -> None:
        while True:
            began_s, cpu_began_s = time.perf_counter(), time.process_time()
            await asyncio.sleep(TICK_S)
            delay_s = time.perf_counter() - began_s - TICK_S
            self.longest_s = max(self.longest_s, min(delay_s, time.process_time() - cpu_began_s))


@asynccontextmanager
async def serving(target: Path) -> AsyncIterator[int]:
    """A gateway with the longest possible context; gives its port."""
    settings = GatewaySettings(target=str(target), model_name=MODEL, session_timeout_s=0.5)
    network, registry = MemoryNetwork(), CollectorRegistry()
    routes = Routes(settings.client_timeout_s, Joining(settings))
    authenticator, tokenizer = make_authenticator(settings), load_tokenizer(target)
    context = Context(new_instance_id("gateway"), network.connect(), registry, Health(registry))
    gateway = Gateway(settings, context, tokenizer, formats_of(settings, tokenizer), routes, authenticator)
    work = asyncio.create_task(gateway.run(), name="gateway")
    runner = web.AppRunner(make_app(routes, authenticator, settings.max_body_bytes))
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    verifier = asyncio.create_task(send_heartbeats(network.connect(), tokenizer.vocab_size), name="verifier")
    try:
        await asyncio.sleep(0)  # the gateway subscribes
        yield runner.addresses[0][1]
    finally:
        work.cancel()
        verifier.cancel()
        await asyncio.wait({work, verifier})
        await runner.cleanup()


async def send_heartbeats(bus: Bus, vocab_size: int) -> None:
    """As a verifier of the longest context."""
    verifier_id = new_instance_id("verifier")
    heartbeat = Heartbeat("verifier", verifier_id, HEARTBEAT_S, [MODEL], MAX_TOKENS, vocab_size, "", Load(), False)
    while True:
        await bus.publish(broadcast(Heartbeat, "verifier", verifier_id), heartbeat)
        await asyncio.sleep(HEARTBEAT_S)


def post(port: int, body: BadBody) -> int:
    """The status of the answer. Runs in a thread, and hardly needs the interpreter lock."""
    connection = http.client.HTTPConnection(HOST, port, timeout=120)
    try:
        connection.request("POST", body.path, body.raw, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


async def cost_of(body: BadBody, port: int, watch: LoopWatch, repeats: int) -> BodyCost:
    held, cpu_s, status = [], 0.0, 0
    for _ in range(repeats):
        await asyncio.sleep(10 * TICK_S)
        watch.longest_s, before = 0.0, time.process_time()
        status = await asyncio.to_thread(post, port, body)
        held.append(watch.longest_s)
        cpu_s = time.process_time() - before
    return BodyCost(body.name, status, round(min(held) * 1e3, 1), round(cpu_s, 2))


async def measure(target: Path, repeats: int, only: str = "") -> list[BodyCost]:
    """The costs of all bodies with `only` in their names."""
    watch = LoopWatch()
    async with serving(target) as port:
        watching = asyncio.create_task(watch.run(), name="watch")
        try:
            return [await cost_of(body, port, watch, repeats) for body in bad_bodies() if only in body.name]
        finally:
            watching.cancel()


def table(costs: list[BodyCost]) -> Table:
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shown = Table("body", "status", "loop held, ms", "processor time, s", "", caption=f"peak memory {peak_mib:.0f} MiB")
    for each in sorted(costs, key=lambda cost: -cost.held_ms):
        verdict = "too long" if each.held_ms > LIMIT_MS else ""
        shown.add_row(each.name, str(each.status), f"{each.held_ms:.1f}", f"{each.cpu_s:.2f}", verdict)
    return shown


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1, help="Requests with each body.")] = 3,
    only: Annotated[str, typer.Option(help="Only bodies with this in their names.")] = "",
    output: Annotated[Path | None, typer.Option(help="Write results to this JSON file.")] = None,
) -> None:
    """Measures every body with the default pair's tokenizer. Status 1 if one holds the loop for too long."""
    costs = asyncio.run(measure(default_models_dir() / "target", repeats, only))
    Console().print(table(costs))
    if output is not None:
        write_result(output, costs)
    raise typer.Exit(any(cost.held_ms > LIMIT_MS for cost in costs))


if __name__ == "__main__":
    app()
