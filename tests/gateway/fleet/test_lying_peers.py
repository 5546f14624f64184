"""What a peer says of itself: what draws sessions, and what changes no placement however extreme it is."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest

from services.gateway.fleet.peers import PeerFleet
from services.gateway.session.placement import Placement
from shared.policies.routing import ROUTERS
from shared.protocol.messages import Heartbeat, Load, Service
from tests.gateway.fleet.test_peers import beat, generation, placement

USUAL = Load(1, 64, 10, 512, 1, 4096, 8192, 20.0, 0.1, 5.0)
SERVICES: tuple[Service, ...] = ("verifier", "drafter", "controller", "gateway")
BEATS = [beat(f"{service}-{name}.1", service, load=USUAL) for service in SERVICES for name in "ab"]
LARGEST = 1 << 48
EXTREMES: dict[str, tuple[object, ...]] = {
    "models": ([], [f"m{number}" for number in range(64)]),
    "max_context": (0, LARGEST),
    "vocab_size": (0, LARGEST),
    "fingerprint": ("", "x" * 256),
    **dict.fromkeys(("provider", "machine"), ("", "x" * 64)),
    "interval_s": (1e-9, 3600.0),
    "draining": (True,),
    "load": (Load(), Load(LARGEST, LARGEST, LARGEST, LARGEST, LARGEST, LARGEST, LARGEST, 1e15, 1e15, 1e15)),
    **dict.fromkeys(("num_sessions", "max_sessions", "queue_tokens", "token_budget", "batch"), (0, LARGEST)),
    **dict.fromkeys(("free_kv_tokens", "kv_tokens"), (0, LARGEST)),
    **dict.fromkeys(("step_ms", "prefill_ms", "rtt_ms"), (0.0, 1e15)),
}
UNUSED: dict[Service, tuple[str, ...]] = {  # docs/trust.md
    "verifier": ("provider", "machine", "max_sessions", "token_budget", "prefill_ms"),
    "drafter": (
        *("vocab_size", "fingerprint", "provider", "machine"),
        *("max_sessions", "token_budget", "free_kv_tokens", "kv_tokens"),
    ),
    "controller": tuple(EXTREMES),
    "gateway": tuple(EXTREMES),
}


def lies(honest: Heartbeat, field: str) -> Iterator[Heartbeat]:
    """The heartbeat with each extreme of a field, one of its load too."""
    for extreme in EXTREMES[field]:
        if field in Load.__struct_fields__:
            yield msgspec.structs.replace(honest, load=msgspec.structs.replace(honest.load, **{field: extreme}))
        else:
            yield msgspec.structs.replace(honest, **{field: extreme})


def placements(beats: list[Heartbeat], routing: str) -> list[tuple[str | None, str | None]]:
    """The verifiers and drafters of sessions that follow each other."""
    fleet, found = PeerFleet(), []
    chooser = Placement(fleet, ROUTERS[routing](), ROUTERS[routing](), random.Random(0))
    for number in range(12):
        now = number * 0.1
        for each in beats if number % 4 == 0 else ():
            fleet.observe(each, now)
        verifier_id = chooser.verifier(generation(), now, fingerprints=["cpu"])
        drafter_id = chooser.drafter(generation(), verifier_id or "", 50, now)
        found.append((verifier_id, drafter_id))
        for instance_id in filter(None, found[-1]):
            fleet.count_sessions(instance_id, 1, now, 64)
    return found


def lying(service: Service, field: str) -> Iterator[list[Heartbeat]]:
    """The usual heartbeats, but for the first one of a service."""
    place = next(place for place, each in enumerate(BEATS) if each.service == service)
    for lie in lies(BEATS[place], field):
        yield [*BEATS[:place], lie, *BEATS[place + 1 :]]


@pytest.mark.parametrize("routing", ROUTERS)
@pytest.mark.parametrize(("service", "field"), [(service, field) for service in UNUSED for field in UNUSED[service]])
def test_what_a_peer_says_in_a_field_that_is_not_used_changes_no_placement(
    service: Service, field: str, routing: str
) -> None:
    honest = placements(BEATS, routing)
    assert all(verifier_id and drafter_id for verifier_id, drafter_id in honest)
    for beats in lying(service, field):
        assert placements(beats, routing) == honest


@pytest.mark.parametrize("service", ["verifier", "drafter"])
@pytest.mark.parametrize("field", ["batch", "step_ms"])
def test_steps_and_their_sessions_count_with_rtt_jsq_alone(service: Service, field: str) -> None:
    changed = {
        routing
        for routing in ROUTERS
        for beats in lying(service, field)
        if placements(beats, routing) != placements(BEATS, routing)
    }
    assert changed == {"rtt-jsq"}


def test_a_verifier_that_claims_to_be_idle_draws_every_new_session() -> None:
    chooser, chosen = placement(beat("honest.1"), beat("liar.1")), []
    for number in range(20):
        now = number * 0.1
        chosen.append(str(chooser.verifier(generation(), now)))
        chooser.fleet.count_sessions(chosen[-1], 1, now)
        chooser.fleet.observe(beat("honest.1", load=Load(num_sessions=1)), now + 0.05)
        chooser.fleet.observe(beat("liar.1", load=Load()), now + 0.05)
    assert chosen.count("liar.1") >= 19
