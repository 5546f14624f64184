"""Which faults of a schedule excuse that a request fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.histories.schedule import Fault, FaultKind, make

AT_MS, FOR_MS = 200.0, 400.0


def trouble_after(fault: Fault, name: str) -> float:
    return replace(make(0), faults=(fault,)).trouble_until(name, now_ms=1000.0)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("delay", AT_MS, FOR_MS, "", verb="draft", ms=0.0),
        Fault("delay", AT_MS, FOR_MS, "", verb="draft", ms=400.0),
        Fault("delay", AT_MS, FOR_MS, "", ms=0.0),
        Fault("overtaking", AT_MS, FOR_MS, "v0", ms=0.0),
        Fault("loss", AT_MS, FOR_MS, "", verb="speculate"),
        Fault("loss", AT_MS, FOR_MS, "", share=0.0),
        Fault("duplication", AT_MS, FOR_MS, ""),
        Fault("partition", AT_MS, FOR_MS, "d0"),
        Fault("steer", AT_MS, FOR_MS, "d0"),
        Fault("kill", AT_MS, FOR_MS, "v1"),
        Fault("kill", at_ms=1100.0, for_ms=FOR_MS, name="v0"),
    ],
    ids=str,
)
def test_a_fault_that_parts_no_verifier_from_its_gateways_excuses_no_failure(fault: Fault) -> None:
    assert trouble_after(fault, "v0") == 0.0


@pytest.mark.parametrize("verb", ["", "open", "opened", "verdict", "poll", "close", "heartbeat", "failure"])
@pytest.mark.parametrize("kind", ["loss", "delay", "overtaking", "partition", "outage"])
def test_a_fault_of_messages_between_gateways_and_verifiers_does(kind: FaultKind, verb: str) -> None:
    assert trouble_after(Fault(kind, AT_MS, FOR_MS, "", share=0.05, verb=verb, ms=30.0), "v0") == AT_MS + FOR_MS


@pytest.mark.parametrize("kind", ["kill", "pause", "drain", "errors"])
def test_so_does_one_of_the_verifier_itself(kind: FaultKind) -> None:
    assert trouble_after(Fault(kind, AT_MS, FOR_MS, "v0"), "v0") == AT_MS + FOR_MS
