"""GET /dsd/fleet and /v1/dsd/windows: the live instances, their load, and the decided windows (docs/api.md).

Invariant: only live instances appear, with the figures of their newest heartbeat and the newest decision. What became
of a drafter's guesses is what verifiers say. People and consoles read this; no token depends on it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import asdict

from services.gateway.fleet.guesses import DrafterGuesses
from services.gateway.fleet.peers import Peer
from services.gateway.fleet.windows import HeardDecision
from services.gateway.session.manager import Sessions
from shared.protocol.subjects import instance_name


class GatewayStatus(msgspec.Struct, frozen=True):
    """The gateway that answers."""

    name: str
    instance_id: str
    model: str
    num_sessions: int
    max_sessions: int
    num_waiting: int  # requests in the admission queue


class PeerStatus(msgspec.Struct, frozen=True):
    """One live instance. Figures that its kind of service does not have are 0."""

    name: str
    instance_id: str
    models: list[str]
    fingerprint: str
    max_context: int
    num_sessions: int
    max_sessions: int
    queue_tokens: int
    batch: int
    free_kv_tokens: int
    kv_tokens: int
    step_ms: float
    prefill_ms: float
    draining: bool
    heartbeat_age_ms: float


class DrafterStatus(PeerStatus, frozen=True):
    """One live drafter.

    provider: the execution provider that computes most of its draft. rtt_ms: mean round trip to its verifiers; 0: not
    measured yet. The others are what became of its guesses in this gateway's sessions lately, as verifiers tell it
    (fleet/guesses.py). in_time: of the right guesses, those accepted.
    """

    provider: str
    rtt_ms: float
    guesses_per_s: float
    acceptance: float | None
    in_time: float | None


class WindowReason(msgspec.Struct, frozen=True):
    """The figures that a controller decided from (`Reason` of shared/protocol/messages.py)."""

    num_sessions: int
    acceptance: float | None
    draft_ms: float
    rtt_ms: float
    pass_ms: float
    tpot_ms: float
    queue: float
    batch: float


class PairWindow(msgspec.Struct, frozen=True):
    """The newest decision for one live drafter and one live verifier, and its reason."""

    drafter_id: str
    verifier_id: str
    window: int
    chunk: int
    free_run: bool
    min_confidence: float
    policy: str
    reason: WindowReason | None
    controller_id: str
    sequence: int
    age_ms: float


class WindowList(msgspec.Struct, frozen=True):
    """The answer of GET /v1/dsd/windows."""

    windows: list[PairWindow]


class FleetStatus(msgspec.Struct, frozen=True):
    """The answer of GET /dsd/fleet."""

    gateway: GatewayStatus
    verifiers: list[PeerStatus]
    drafters: list[DrafterStatus]
    controllers: list[PeerStatus]
    windows: list[PairWindow]


def fleet_status(sessions: Sessions, num_waiting: int, model: str, now: float) -> FleetStatus:
    """The status as of `now`, in seconds of the fleet's clock. num_waiting: requests in the admission queue."""
    fleet = sessions.fleet
    return FleetStatus(
        gateway=GatewayStatus(
            name=instance_name(sessions.instance_id),
            instance_id=sessions.instance_id,
            model=model,
            num_sessions=len(sessions),
            max_sessions=sessions.max_sessions,
            num_waiting=num_waiting,
        ),
        verifiers=[_peer(peer, now) for peer in fleet.alive("verifier", now)],
        drafters=[_drafter(peer, sessions.placement.guesses, now) for peer in fleet.alive("drafter", now)],
        controllers=[_peer(peer, now) for peer in fleet.alive("controller", now)],
        windows=pair_windows(sessions, now),
    )


def pair_windows(sessions: Sessions, now: float) -> list[PairWindow]:
    """The newest decision for every live pair, ordered by ids."""
    fleet = sessions.fleet
    alive = {peer.heartbeat.instance_id for service in ("drafter", "verifier") for peer in fleet.alive(service, now)}
    pairs = [
        _pair(heard, now)
        for heard in sessions.windows
        if {heard.decision.drafter_id, heard.decision.verifier_id} <= alive
    ]
    return sorted(pairs, key=lambda pair: (pair.drafter_id, pair.verifier_id))


def _pair(heard: HeardDecision, now: float) -> PairWindow:
    fields, reason = asdict(heard.decision), heard.decision.reason
    fields["reason"] = WindowReason(**asdict(reason)) if reason else None
    return PairWindow(**fields, controller_id=heard.controller_id, age_ms=_age_ms(heard.heard_at, now))


def _peer(peer: Peer, now: float) -> PeerStatus:
    figures = _told(peer, now)
    return PeerStatus(**{name: figures[name] for name in PeerStatus.__struct_fields__})


def _drafter(peer: Peer, guesses: DrafterGuesses, now: float) -> DrafterStatus:
    quality = guesses.quality(peer.heartbeat.instance_id, now)
    seen = {"guesses_per_s": quality.per_s, "acceptance": quality.acceptance, "in_time": quality.in_time}
    figures = _told(peer, now) | seen
    return DrafterStatus(**{name: figures[name] for name in DrafterStatus.__struct_fields__})


def _told(peer: Peer, now: float) -> dict[str, Any]:
    """What the newest heartbeat of an instance says, and its age."""
    heartbeat = peer.heartbeat
    own = {"name": instance_name(heartbeat.instance_id), "heartbeat_age_ms": _age_ms(peer.heard_at, now)}
    return asdict(heartbeat) | asdict(heartbeat.load) | own


def _age_ms(heard_at: float, now: float) -> float:
    return round((now - heard_at) * 1e3, 1)
