"""Who is missing: names that fell silent and have not come back, within bounds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from services.gateway.fleet.missing import FORGET_S, MAX_MISSING, LostPeer, MissingPeers
from services.gateway.metrics import GatewayMetrics


def test_a_lost_name_is_missing_until_it_comes_back_or_an_hour_has_passed() -> None:
    missing, known = MissingPeers(), set[LostPeer]()
    one, two = LostPeer("drafter", "one"), LostPeer("verifier", "two")
    assert missing.update([one, two], known.__contains__, 0.0) == {one, two}
    known.add(two)
    assert missing.update([], known.__contains__, 10.0) == {one}
    known.clear()
    assert missing.update([], known.__contains__, FORGET_S - 1) == {one}, "who came back is forgotten"
    assert missing.update([], known.__contains__, FORGET_S) == frozenset()


def test_so_many_names_are_missing_at_most_the_newest() -> None:
    lost = [LostPeer("drafter", f"d{number}") for number in range(MAX_MISSING + 5)]
    assert MissingPeers().update(lost, lambda peer: False, 0.0) == set(lost[5:])


def test_only_missing_peers_have_a_series() -> None:
    registry = CollectorRegistry()
    metrics, one = GatewayMetrics(registry), LostPeer("drafter", "one")
    labels = {"service": "drafter", "peer": "one"}
    for missing, value in ((frozenset([one]), 1.0), (frozenset(), None), (frozenset([one]), 1.0)):
        metrics.show_missing(missing)
        assert registry.get_sample_value("dsd_gateway_missing_peers", labels) == value
