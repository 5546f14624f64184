"""The holder of one role's NATS key attacks, beside honest clients: after it all services live, and the honest texts
are the same.

Invariant: the honest clients ask from before the first hostile message until after the last.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.hostile.honest import HonestClients
from benchmarks.hostile.messages import Known
from benchmarks.hostile.peers import GIVEN_WITH, hostile_peer
from benchmarks.hostile.records import RoleFigures
from services.local.nats_server import Access


async def known_of(url: str, model: str, honest: HonestClients) -> Known:
    """What hostile peers know: all instances, and at any time the sessions in use."""
    async with honest.http.get(f"{url}/dsd/fleet") as response:
        fleet = await response.json()
    services = ("verifier", "drafter", "controller")
    ids = {service: [each["instance_id"] for each in fleet[f"{service}s"]] for service in services}
    ids["gateway"] = [fleet["gateway"]["instance_id"]]
    return Known(ids, honest.session_ids, [model], own_id="")


async def attack_as(
    access: Access, role: str, name: str, known: Known, honest: HonestClients, num: int, rate: float, seed: int
) -> RoleFigures:
    """One role sends `num` packets at `rate` a second while one honest client asks."""
    began, num_equal, num_left_out = time.monotonic(), honest.num_equal, honest.num_left_out
    disturbed = len(honest.disturbed)
    async with hostile_peer(access, role, name, replace(known), honest.not_ours, seed) as peer, honest.asking():
        await peer.attack(num, rate)
    return RoleFigures(
        role,
        peer.num_sent,
        time.monotonic() - began,
        dict(peer.types),
        sum(number for error, number in peer.errors.items() if "violation" in error.lower()),
        len(peer.sessions),
        honest.num_equal - num_equal,
        honest.num_left_out - num_left_out,
        honest.disturbed[disturbed:],
    )


def together(parts: Sequence[RoleFigures]) -> RoleFigures:
    """The parts of an attack of one role as one."""
    return RoleFigures(
        parts[0].role,
        sum(part.num_packets for part in parts),
        sum(part.seconds for part in parts),
        dict(sum((Counter(part.types) for part in parts), Counter())),
        sum(part.denied for part in parts),
        sum(part.num_sessions for part in parts),
        sum(part.num_equal for part in parts),
        sum(part.num_left_out for part in parts),
        [each for part in parts for each in part.disturbed],
    )


def violations_of(figures: RoleFigures, *, is_warm_up: bool = False) -> list[str]:
    """What the attack of a role must not show: a refused packet, or that no session was within its reach, for which a
    warm-up may be too short."""
    found = [f"{figures.denied} packets were denied that the key allows"] if figures.denied else []
    if figures.role in GIVEN_WITH and not figures.num_sessions and not is_warm_up:
        found.append("it had no session, so its attack says nothing")
    return [f"{figures.role}: {each}" for each in found]
