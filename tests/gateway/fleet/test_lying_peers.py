"""What a peer gains by what it says of itself."""

from __future__ import annotations

from shared.protocol.messages import Load
from tests.gateway.fleet.test_peers import beat, generation, placement


def test_a_verifier_that_claims_to_be_idle_draws_every_new_session() -> None:
    chooser, chosen = placement(beat("honest.1"), beat("liar.1")), []
    for number in range(20):
        now = number * 0.1
        chosen.append(str(chooser.verifier(generation(), now)))
        chooser.fleet.count_sessions(chosen[-1], 1, now)
        chooser.fleet.observe(beat("honest.1", load=Load(num_sessions=1)), now + 0.05)
        chooser.fleet.observe(beat("liar.1", load=Load()), now + 0.05)
    assert chosen.count("liar.1") >= 19
