"""What a large fleet costs a gateway: python -m benchmarks.experiments.large_fleet.

Heartbeats: a gateway process and a nats-server; this process publishes the heartbeats of all drafters and verifiers,
each once a second, spread over it. Their cost is the gateway's processor time above that without them, a share of one
core. Placements: the choice of a verifier and of a drafter, timed in this process on a fleet of the same size, by every
drafter router and for three kinds of sessions: one that any drafter may serve, one whose key names a tenth of them by a
prefix, and one with a text too long for all. Loads and free KV cache differ, and a tenth of the drafters has a short
context.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from msgspec import structs
from rich.console import Console
from rich.table import Table

from benchmarks.harness.bus import bus_at
from benchmarks.harness.cell import RunningCell, running
from benchmarks.harness.cell_plan import GATEWAY, CellPlan
from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.origin import Origin
from benchmarks.harness.requests import connected
from services.gateway.fleet.peers import PeerFleet
from services.gateway.session.generation import Generation
from services.gateway.session.placement import Placement
from shared.bus.bus import Bus
from shared.policies.routing import ROUTERS
from shared.protocol.messages import Heartbeat, Load, Sampling, Service, Speculation, TokenIds
from shared.protocol.subjects import broadcast, new_instance_id, new_session_id
from shared.runtime.home import DEFAULT_MODEL, default_models_dir

MAX_CORE_SHARE, MAX_PLACEMENT_MS = 0.05, 0.5
HEARTBEAT_S, TICK_S = 1.0, 0.02
CONTEXT, SHORT_CONTEXT, VERIFIER_CONTEXT, KV_TOKENS = 8192, 512, 32768, 1 << 20
MAX_TOKENS, NUM_PLACEMENTS = 256, 2000
SESSIONS: dict[str, tuple[int, tuple[str, ...] | None]] = {  # prompt tokens, and the drafters that the key allows
    "any drafter": (1000, None),
    "a key for a tenth": (1000, ("drafter-1*",)),
    "no drafter suits": (CONTEXT, None),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class FleetCosts:
    """Shares are of one core; `placement_ms` are 99th percentiles, by kind of session and drafter router."""

    num_drafters: int
    num_verifiers: int
    heartbeats_per_s: float
    core_share: float
    idle_share: float  # without heartbeats, already subtracted
    placement_ms: dict[str, dict[str, float]]
    origin: Origin


def make_heartbeat(service: Service, number: int, rng: random.Random) -> Heartbeat:
    """Of an instance with a random load."""
    load = Load(num_sessions=rng.randrange(8), max_sessions=64, step_ms=rng.uniform(5, 30), rtt_ms=rng.uniform(1, 60))
    context = VERIFIER_CONTEXT
    if service == "drafter":
        context = SHORT_CONTEXT if rng.random() < 0.1 else CONTEXT
    else:
        load = structs.replace(load, kv_tokens=KV_TOKENS, free_kv_tokens=rng.randrange(KV_TOKENS))
    instance_id = new_instance_id(f"{service}-{number}")
    return Heartbeat(service, instance_id, HEARTBEAT_S, [DEFAULT_MODEL], context, 49152, "numerics", load, False)


def make_fleet(num_drafters: int, num_verifiers: int, seed: int) -> list[Heartbeat]:
    """A heartbeat of each instance, in random order."""
    rng = random.Random(seed)
    beats = [make_heartbeat("drafter", number, rng) for number in range(num_drafters)]
    beats += [make_heartbeat("verifier", number, rng) for number in range(num_verifiers)]
    rng.shuffle(beats)
    return beats


async def send_heartbeats(bus: Bus, beats: list[Heartbeat], seconds: float) -> int:
    """Publishes each heartbeat once in HEARTBEAT_S, evenly spread, and returns their number."""
    began, num_sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        while num_sent < elapsed / HEARTBEAT_S * len(beats):
            beat = beats[num_sent % len(beats)]
            await bus.publish(broadcast(Heartbeat, beat.service, beat.instance_id), beat)
            num_sent += 1
        await asyncio.sleep(TICK_S)
    return num_sent


async def gateway_share(cell: RunningCell, seconds: float) -> float:
    """The gateway's processor time in the next seconds, as a share of a core."""
    before, began = cell.usage()[GATEWAY].cpu_s, time.monotonic()
    await asyncio.sleep(seconds)
    return (cell.usage()[GATEWAY].cpu_s - before) / (time.monotonic() - began)


async def measure_heartbeats(models: Path, beats: list[Heartbeat], seconds: float) -> tuple[float, float, float]:
    """Heartbeats a second, the gateway's share of a core above that of an idle one, and the idle one's share."""
    plan = CellPlan(models, names=(GATEWAY,))
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        async with running(plan, Path(folder), print) as cell, bus_at(cell.nats_url) as bus:
            idle = await gateway_share(cell, seconds)
            await send_heartbeats(bus, beats, 2 * HEARTBEAT_S)  # all join
            began = time.monotonic()
            sending = asyncio.create_task(send_heartbeats(bus, beats, seconds), name="heartbeats")
            busy = await gateway_share(cell, seconds)
            num_sent = await sending
            await check_known(cell, beats)
            if found := cell.complaints():
                raise RuntimeError(f"the gateway complains: {found[0]}")
            return num_sent / (time.monotonic() - began), busy - idle, idle


async def check_known(cell: RunningCell, beats: list[Heartbeat]) -> None:
    """Raises RuntimeError unless the gateway knows every instance."""
    async with connected(cell.url) as gateway:
        fleet = await gateway.fleet()
    if (known := len(fleet.drafters) + len(fleet.verifiers)) != len(beats):
        raise RuntimeError(f"invalid measurement: the gateway knows {known} of {len(beats)} instances")


def measure_placements(beats: list[Heartbeat], seed: int) -> dict[str, dict[str, float]]:
    """As FleetCosts.placement_ms."""
    return {kind: {name: _placement_ms(beats, kind, name, seed) for name in ROUTERS} for kind in SESSIONS}


def _placement_ms(beats: list[Heartbeat], kind: str, router: str, seed: int) -> float:
    fleet = PeerFleet()
    for beat in beats:
        fleet.observe(beat, 0.0)
    placement = Placement(fleet, ROUTERS["jsq"](), ROUTERS[router](), random.Random(seed))
    num_prompt, drafters = SESSIONS[kind]
    session = Generation(
        new_session_id(),
        DEFAULT_MODEL,
        TokenIds(range(num_prompt)),
        MAX_TOKENS,
        Sampling(),
        TokenIds(),
        Speculation(),
        drafters=drafters,
    )
    return float(np.percentile([_timed_ms(lambda: _place(placement, session)) for _ in range(NUM_PLACEMENTS)], 99))


def _place(placement: Placement, session: Generation) -> None:
    verifier_id = placement.verifier(session, 0.1)
    assert verifier_id is not None
    drafter_id = placement.drafter(session, verifier_id, MAX_TOKENS, 0.1)
    for instance_id in filter(None, (verifier_id, drafter_id)):
        placement.fleet.count_sessions(instance_id, 1, None)


def _timed_ms(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


def table(costs: FleetCosts) -> Table:
    title = f"{costs.num_drafters} drafters and {costs.num_verifiers} verifiers at one gateway"
    shown = Table("what", "figure", "limit", title=title)
    share = f"{costs.core_share:.1%} of a core at {costs.heartbeats_per_s:.0f} a second"
    shown.add_row("heartbeats", share, f"< {MAX_CORE_SHARE:.0%}")
    for kind, by_router in costs.placement_ms.items():
        for router, placement_ms in by_router.items():
            figure = f"{placement_ms:.3f} ms (99th percentile)"
            shown.add_row(f"placement, {kind}, by {router}", figure, f"≤ {MAX_PLACEMENT_MS} ms")
    return shown


@app.command()
def main(
    drafters: Annotated[int, typer.Option(min=1, help="Number of drafters.")] = 2000,
    verifiers: Annotated[int, typer.Option(min=1, help="Number of verifiers.")] = 100,
    seconds: Annotated[float, typer.Option(min=1.0, help="Time with heartbeats, and as long without.")] = 30.0,
    folder: Annotated[Path, typer.Option(help="Folder for large_fleet.json.")] = REPORTS,
    seed: Annotated[int, typer.Option(help="Seed of the loads and choices.")] = 1,
) -> None:
    """Status 1 if a limit is missed."""
    beats = make_fleet(drafters, verifiers, seed)
    placement_ms = measure_placements(beats, seed)
    per_s, share, idle = asyncio.run(measure_heartbeats(default_models_dir(), beats, seconds))
    origin = Origin.here("benchmarks.experiments.large_fleet")
    costs = FleetCosts(drafters, verifiers, round(per_s, 1), share, idle, placement_ms, origin)
    write_result(folder / "large_fleet.json", costs)
    Console().print(table(costs))
    slowest_ms = max(ms for by_router in placement_ms.values() for ms in by_router.values())
    raise typer.Exit(share >= MAX_CORE_SHARE or slowest_ms > MAX_PLACEMENT_MS)


if __name__ == "__main__":
    app()
