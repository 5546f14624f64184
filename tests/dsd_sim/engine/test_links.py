"""Links: messages are as long as the services', and bandwidth delays them."""

from __future__ import annotations

import pytest

from dsd_sim.engine.cloud import VERDICT_BYTES
from dsd_sim.engine.edge import DRAFT_BYTES
from dsd_sim.engine.events import TOKEN_BYTES
from dsd_sim.engine.fleet import SPECULATE_BYTES
from shared.protocol import subjects
from shared.protocol.messages import (
    Draft,
    Echo,
    Message,
    Sampling,
    Speculate,
    Speculation,
    Tally,
    TokenIds,
    Verdict,
    encode,
)
from tests.dsd_sim.builders import a_fleet, a_world, stop_and_wait, tpot_ms

TCP_IP_BYTES = 52  # IPv4 and TCP with timestamps
VERIFIER, DRAFTER, GATEWAY = (subjects.new_instance_id(name) for name in ("verifier-0", "drafter-0", "gateway"))
SESSION = subjects.new_session_id()
IDS = TokenIds(range(20_000, 20_008))


def on_the_wire(message: Message, service: subjects.Service, to: str, sender: str) -> int:
    """Bytes of a message in core NATS."""
    content = encode(message)
    command = f"PUB {subjects.to(service, to, type(message), sender)} {len(content)}\r\n"
    return TCP_IP_BYTES + len(command) + len(content) + len("\r\n")


def test_messages_are_as_long_as_those_of_the_services() -> None:
    draft = Draft(SESSION, 1, 3, 240, IDS, True, 123_456.789)
    verdict = Verdict(
        SESSION, 1, 3, 240, IDS, 7, None, Echo(123_456.789, 3.217), 23.456, 8, 0.0625, Tally(90, 4, 1, 20, 31), None, 44
    )
    speculate = Speculate(
        SESSION, 1, VERIFIER, IDS, TokenIds(), Sampling(), TokenIds((2,)), 256, Speculation("adaptive", 8, 0.0)
    )
    expected = {
        DRAFT_BYTES: on_the_wire(draft, "verifier", VERIFIER, DRAFTER),
        VERDICT_BYTES: on_the_wire(verdict, "drafter", DRAFTER, VERIFIER),
        SPECULATE_BYTES: on_the_wire(speculate, "drafter", DRAFTER, GATEWAY),
    }
    for assumed, sent in expected.items():
        assert assumed + TOKEN_BYTES * len(IDS) == pytest.approx(sent, rel=0.15)


def test_a_round_takes_longer_by_the_transmission_time_of_its_messages() -> None:
    """Stop-and-wait with right guesses: each of 80 rounds has a Draft of 4 tokens and a Verdict of 5."""
    tpots = {}
    for bits_per_ms in (0.0, 1000.0):  # no limit, and 1 Mbit/s
        world = a_world(1, choice=stop_and_wait(4), step_ms=5.0, tokens=400)
        world.devices["bits_per_ms"] = bits_per_ms
        a_fleet(world, rate=1.0).run()
        tpots[bits_per_ms] = float(tpot_ms(world)[0])
    wire_ms = 8 * (DRAFT_BYTES + 4 * TOKEN_BYTES + VERDICT_BYTES + 5 * TOKEN_BYTES) / 1000.0
    assert tpots[1000.0] - tpots[0.0] == pytest.approx(wire_ms * 80 / 399, rel=0.03)
