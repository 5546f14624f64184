"""Hostile peers on the bus beside honest clients: after each role all services live, and the honest texts are the same.

Invariant: the honest clients ask from before the first hostile message until after the last.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace

from benchmarks.hostile.honest import HonestClients
from benchmarks.hostile.messages import Known
from benchmarks.hostile.peers import hostile_peer
from services.local.nats_server import Access


@dataclass(frozen=True, slots=True)
class Siege:
    """The messages of one role, and the honest answers meanwhile. num_left_out: of sessions placed with the role."""

    role: str
    num_packets: int
    seconds: float
    types: Counter[str]
    denied: int
    num_equal: int
    num_left_out: int
    disturbed: list[str]


async def known_of(url: str, model: str, honest: HonestClients) -> Known:
    """What hostile peers know: all instances, and at any time the sessions in use."""
    async with honest.http.get(f"{url}/dsd/fleet") as response:
        fleet = await response.json()
    services = ("verifier", "drafter", "controller")
    ids = {service: [each["instance_id"] for each in fleet[f"{service}s"]] for service in services}
    ids["gateway"] = [fleet["gateway"]["instance_id"]]
    return Known(ids, honest.session_ids, [model], own_id="")


async def besiege(
    access: Access, role: str, name: str, known: Known, honest: HonestClients, num: int, rate: float, seed: int
) -> Siege:
    """One role sends `num` packets at `rate` a second while one honest client asks."""
    began, num_equal, num_left_out = time.monotonic(), honest.num_equal, honest.num_left_out
    disturbed = len(honest.disturbed)
    async with hostile_peer(access, role, name, replace(known), honest.not_ours, seed) as peer, honest.asking():
        await peer.attack(num, rate)
    return Siege(
        role,
        peer.num_sent,
        time.monotonic() - began,
        peer.types,
        sum(number for error, number in peer.errors.items() if "violation" in error.lower()),
        honest.num_equal - num_equal,
        honest.num_left_out - num_left_out,
        honest.disturbed[disturbed:],
    )
