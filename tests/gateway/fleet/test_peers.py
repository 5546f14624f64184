"""Who may be chosen, and who is."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import msgspec
import pytest

from services.gateway.fleet.missing import LostPeer
from services.gateway.fleet.peers import BACK_S, CONTROLLERS_PER_NAME, KNOWN, MAX_PEERS, PeerFleet
from services.gateway.session.generation import Generation
from services.gateway.session.load_accounting import LoadAccounting
from services.gateway.session.placement import Placement
from shared.policies.routing import ROUTERS
from shared.protocol.messages import Heartbeat, Load, Sampling, Service, Speculation, TokenIds
from shared.timing import MAX_SILENCE_S, STALE_HEARTBEATS

MODEL = "m"


def beat(instance_id: str, service: Service = "verifier", **changes: object) -> Heartbeat:
    heartbeat = Heartbeat(service, instance_id, 1.0, [MODEL], 1000, 300, "cpu", Load(), False)
    return msgspec.structs.replace(heartbeat, **changes)


def placement(*beats: Heartbeat, drafter_routing: str = "jsq") -> Placement:
    fleet = PeerFleet()
    for each in beats:
        fleet.observe(each, 0.0)
    return Placement(fleet, ROUTERS["jsq"](), ROUTERS[drafter_routing](), random.Random(0))


def generation(num_prompt: int = 10, max_tokens: int = 50, **changes: object) -> Generation:
    order = Generation(
        "0" * 32, MODEL, TokenIds(range(num_prompt)), max_tokens, Sampling(), TokenIds(), Speculation(), None
    )
    return dataclasses.replace(order, **changes)


def test_an_instance_is_a_choice_while_it_beats() -> None:
    fleet = PeerFleet()
    assert fleet.observe(beat("a.1", interval_s=2.0), 10.0)
    assert not fleet.observe(beat("a.1", interval_s=2.0), 12.0)
    stale_at = 12.0 + STALE_HEARTBEATS * 2.0
    assert [c.instance_id for c in fleet.choices("verifier", MODEL, stale_at - 0.1)] == ["a.1"]
    assert fleet.expire(stale_at - 0.1) == []
    assert fleet.choices("verifier", MODEL, stale_at) == []
    assert fleet.expire(stale_at) == ["a.1"]
    assert fleet.observe(beat("a.1"), 20.0), "it has come back"


def test_a_model_has_just_lost_its_verifiers_for_a_while_if_none_of_them_said_so() -> None:
    fleet = PeerFleet()
    assert not fleet.has_just_lost(MODEL, 0.0)
    for instance_id in ("a.1", "b.1"):
        fleet.observe(beat(instance_id), 0.0)
    stale_at = STALE_HEARTBEATS * 1.0
    assert [fleet.has_just_lost(MODEL, now) for now in (0.0, stale_at - 0.1, stale_at)] == [False, False, True]
    fleet.expire(stale_at + 1.0)
    lost = [fleet.has_just_lost(model, stale_at + BACK_S) for model in (MODEL, "other")]
    assert lost == [True, False]
    fleet.observe(beat("c.1"), stale_at + 2.0)
    assert not fleet.has_just_lost(MODEL, stale_at + 2.0), "there is one"
    fleet.observe(beat("c.1", draining=True), stale_at + 3.0)
    fleet.expire(stale_at + 3.0 + BACK_S)
    assert not fleet.has_just_lost(MODEL, stale_at + 3.0 + BACK_S), "it said that it drains"


def test_a_draining_instance_is_alive_but_no_choice() -> None:
    fleet = PeerFleet()
    fleet.observe(beat("a.1"), 0.0)
    assert not fleet.observe(beat("a.1", draining=True), 0.5)
    assert fleet.is_alive("a.1", 1.0)
    assert fleet.choices("verifier", MODEL, 1.0) == []
    assert fleet.max_context(MODEL, 1.0) == 0


def test_an_instance_that_leaves_without_a_drain_is_lost() -> None:
    fleet = PeerFleet()
    fleet.observe(beat("a.1"), 0.0)
    fleet.observe(beat("b.1", service="drafter"), 0.0)
    fleet.observe(beat("b.1", service="drafter", draining=True), 0.5)
    fleet.expire(10.0)
    assert fleet.take_lost() == [LostPeer("verifier", "a")]
    assert not fleet.knows(LostPeer("verifier", "a"))
    fleet.observe(beat("a.2"), 11.0)
    fleet.observe(beat("a.3"), 13.0)  # it has been restarted, faster than its heartbeat got stale
    assert fleet.take_lost() == [LostPeer("verifier", "a")]
    assert fleet.knows(LostPeer("verifier", "a"))
    assert not fleet.take_lost()


def test_other_models_services_and_shorter_contexts_are_no_choice() -> None:
    fleet = PeerFleet()
    fleet.observe(beat("a.1", models=["other"]), 0.0)
    fleet.observe(beat("b.1", service="drafter"), 0.0)
    fleet.observe(beat("c.1", max_context=100), 0.0)
    assert not fleet.observe(beat("g.1", service="gateway"), 0.0)
    assert fleet.choices("verifier", MODEL, 0.1, 101) == []
    assert [c.instance_id for c in fleet.choices("verifier", MODEL, 0.1, 100)] == ["c.1"]


def test_no_flood_of_heartbeats_fills_the_memory() -> None:
    fleet = PeerFleet()
    for number in range(MAX_PEERS + 10):
        fleet.observe(beat(f"a{number}.1"), 0.0)
    assert fleet.count("verifier") == MAX_PEERS


@pytest.mark.parametrize("service", ["verifier", "drafter"])
def test_a_newer_instance_of_a_name_replaces_the_oldest_for_good(service: Service) -> None:
    fleet = PeerFleet(instances_per_name=2)
    for number in range(3):
        assert fleet.observe(beat(f"a.{number}", service), float(number))
    assert not fleet.observe(beat("a.0", service), 2.5), "it was replaced"
    assert [peer.heartbeat.instance_id for peer in fleet.alive(service, 2.6)] == ["a.1", "a.2"]
    assert fleet.expire(2.7) == ["a.0"], "its sessions go elsewhere"
    assert fleet.expire(2.8) == []


def test_an_instance_that_is_about_to_end_replaces_none() -> None:
    fleet = PeerFleet()
    assert fleet.observe(beat("a.new"), 0.0)
    assert not fleet.observe(beat("a.old", draining=True), 1.0), "the gateway has just started, and hears it late"
    assert [choice.instance_id for choice in fleet.choices("verifier", MODEL, 1.1)] == ["a.new"]


@pytest.mark.parametrize("service", KNOWN)
def test_the_nonces_of_one_name_crowd_out_nobody(service: Service) -> None:
    fleet = PeerFleet()
    assert fleet.observe(beat("cloud.1"), 0.0)
    assert fleet.observe(beat("cloud.2"), 1.0)
    for number in range(3 * MAX_PEERS):
        fleet.observe(beat(f"liar.{number}", service, interval_s=3600.0), 2.0 + number)
    assert fleet.count(service) <= CONTROLLERS_PER_NAME + 1
    now = 2.0 + 3 * MAX_PEERS
    assert not fleet.observe(beat("cloud.1"), now), "it was replaced"
    assert fleet.observe(beat("cloud.3"), now), "a gateway that was deaf for long forgets nobody for it"
    assert fleet.observe(beat("honest.1", "drafter"), now)


def test_a_session_costs_a_peer_no_memory_for_longer_than_a_heartbeat_travels() -> None:
    fleet = PeerFleet()
    far = beat("d.1", "drafter", interval_s=3600.0, load=Load(rtt_ms=1e15))
    fleet.observe(far, 0.0)
    for second in range(100):
        fleet.count_sessions("d.1", 1, float(second))
        fleet.observe(far, second + 0.5)
    (peer,) = fleet.alive("drafter", 99.6)
    assert len(peer.known) <= 3


FLOODS: dict[str, Callable[[int], Heartbeat]] = {
    "new nonces": lambda number: beat(f"liar.{number}", "drafter"),
    "coming and going": lambda number: beat("liar.1", "drafter", draining=number % 2 == 1),
    "stale at once": lambda number: beat("liar.1", "drafter", interval_s=1e-9),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_of_heartbeats_of_one_name_joins_once_a_second(flood: Callable[[int], Heartbeat]) -> None:
    """Each session looks at an instance that joins, and the log has a line on it."""
    fleet, num_joined = PeerFleet(), 0
    for number in range(1000):
        num_joined += fleet.observe(flood(number), number / 100)
        if number % 100 == 99:
            fleet.expire(number / 100)
    assert 1 <= num_joined <= 20


def test_a_heartbeat_that_names_an_hour_holds_for_a_minute() -> None:
    fleet = PeerFleet()
    fleet.observe(beat("a.1", interval_s=3600.0), 0.0)
    assert fleet.is_alive("a.1", MAX_SILENCE_S - 1)
    assert not fleet.is_alive("a.1", MAX_SILENCE_S)


def test_a_verifier_of_few_words_lowers_nothing_for_others_and_gets_no_text_beyond_them() -> None:
    chooser = placement(beat("a.1", vocab_size=1), beat("b.1", load=Load(num_sessions=9)))
    assert chooser.fleet.vocab_size(MODEL, 0.1) == 300
    assert chooser.verifier(generation(vocab_size=300), 0.1) == "b.1"
    assert chooser.verifier(generation(vocab_size=1), 0.1) == "a.1"


def test_a_drafter_that_claims_to_be_idle_gets_its_share_of_the_sessions() -> None:
    chooser = placement(beat("v.1"), beat("honest.1", "drafter"), beat("liar.1", "drafter"))
    chosen = []
    for number in range(20):
        drafter_id = chooser.drafter(generation(), "v.1", 50, number * 0.1)
        assert drafter_id is not None
        chosen.append(drafter_id)
        chooser.fleet.count_sessions(drafter_id, 1, number * 0.1)
        num_honest = chosen.count("honest.1")
        chooser.fleet.observe(beat("honest.1", "drafter", load=Load(num_sessions=num_honest)), number * 0.1 + 0.05)
        chooser.fleet.observe(beat("liar.1", "drafter"), number * 0.1 + 0.05)
        chooser.fleet.observe(beat("v.1"), number * 0.1 + 0.05)
    assert chosen.count("liar.1") == 10


def test_the_sessions_of_a_replaced_drafter_count_at_its_name() -> None:
    chooser = placement(beat("v.1"), beat("honest.1", "drafter"), beat("liar.0", "drafter"))
    chosen: list[str] = []
    for number in range(40):
        drafter_id = str(chooser.drafter(generation(), "v.1", 50, number))
        chosen.append(drafter_id)
        chooser.fleet.count_sessions(drafter_id, 1, number)
        num_honest = chosen.count("honest.1")
        chooser.fleet.observe(beat("honest.1", "drafter", load=Load(num_sessions=num_honest)), number + 1)
        chooser.fleet.observe(beat(f"liar.{number + 1}", "drafter"), number + 1)
        chooser.fleet.observe(beat("v.1"), number + 1)
    assert chosen.count("honest.1") == 20
    for drafter_id in chosen:
        chooser.fleet.count_sessions(drafter_id, -1, 40.0)
    chooser.fleet.observe(beat("honest.1", "drafter", load=Load(num_sessions=1)), 40.5)
    assert str(chooser.drafter(generation(), "v.1", 50, 40.6)).startswith("liar."), "what has ended counts no more"


@pytest.mark.parametrize("routing", ROUTERS)
def test_no_claim_gets_a_drafter_more_than_two_shares_and_three_sessions(routing: str) -> None:
    """Though it says that it has no session, no round trip and no step, and the honest one those of eight gateways."""
    best = Load(step_ms=1e-9)
    beats = [beat("v.1"), beat("honest.1", "drafter"), beat("a-liar.1", "drafter", load=best)]
    chooser, chosen = placement(*beats, drafter_routing=routing), list[str]()
    for number in range(60):
        now = number * 0.1
        drafter_id = str(chooser.drafter(generation(), "v.1", 50, now))
        chosen.append(drafter_id)
        chooser.fleet.count_sessions(drafter_id, 1, now)
        of_all = Load(num_sessions=8 * chosen.count("honest.1"), step_ms=20.0, rtt_ms=30.0)
        for each in (beat("honest.1", "drafter", load=of_all), beat("a-liar.1", "drafter", load=best), beat("v.1")):
            chooser.fleet.observe(each, now + 0.05)
    assert chosen.count("a-liar.1") <= 2 * chosen.count("honest.1") + 3


@pytest.mark.parametrize(
    ("drafters", "chosen"),
    [(None, "a-site.1"), (("b-*",), "b-site.1"), (("b-site",), "b-site.1"), (("b",), None), ((), None)],
)
def test_only_drafters_that_the_key_names_see_a_prompt(drafters: tuple[str, ...] | None, chosen: str | None) -> None:
    chooser = placement(beat("v.1"), beat("a-site.1", "drafter"), beat("b-site.1", "drafter"))
    assert chooser.drafter(generation(drafters=drafters), "v.1", 50, 0.1) == chosen


def test_what_drafters_say_of_vocabulary_and_numerics_counts_for_no_request() -> None:
    liar = beat("d.1", "drafter", vocab_size=1 << 48, max_context=1 << 48, fingerprint="gpu")
    chooser = placement(beat("v1.1", fingerprint="cpu"), beat("v2.1", load=Load(num_sessions=9)), liar)
    assert (chooser.fleet.vocab_size(MODEL, 0.1), chooser.fleet.max_context(MODEL, 0.1)) == (300, 1000)
    assert chooser.verifier(generation(), 0.1, fingerprints=["gpu"]) == "v1.1"


def test_sessions_given_and_taken_since_the_heartbeat_count_as_load() -> None:
    chooser = placement(beat("a.1", load=Load(num_sessions=2)), beat("b.1", load=Load(num_sessions=1)))
    assert chooser.verifier(generation(), 0.1) == "b.1"
    chooser.fleet.count_sessions("b.1", 2, 0.1)
    assert chooser.verifier(generation(), 0.1) == "a.1"
    chooser.fleet.count_sessions("b.1", -2, 0.1)
    assert chooser.verifier(generation(), 0.1) == "b.1"
    chooser.fleet.count_sessions("b.1", 2, 0.1)
    chooser.fleet.observe(beat("b.1", load=Load(num_sessions=1)), 0.2)
    assert chooser.verifier(generation(), 0.3) == "b.1", "a heartbeat tells all of them"


def num_since(fleet: PeerFleet) -> int:
    (peer,) = fleet.alive("drafter", 1.0)
    return peer.since.num_sessions


def test_a_heartbeat_doesnt_know_what_its_sender_heard_behind_it() -> None:
    fleet, far = PeerFleet(), beat("d.1", "drafter", load=Load(num_sessions=2, rtt_ms=100.0))
    fleet.observe(far, 0.0)
    fleet.count_sessions("d.1", -1, 1.0)
    fleet.count_sessions("d.1", -1, 1.06)
    fleet.observe(far, 1.09)
    assert num_since(fleet) == -2
    fleet.observe(far, 1.17)
    assert num_since(fleet) == -1
    fleet.observe(far, 1.19)
    assert num_since(fleet) == 0


def test_a_round_trip_that_is_told_longer_than_heartbeats_are_apart_counts_as_that() -> None:
    fleet, strange = PeerFleet(), beat("d.1", "drafter", load=Load(rtt_ms=1e12))
    fleet.observe(strange, 0.0)
    fleet.count_sessions("d.1", 1, 0.5)
    fleet.observe(strange, 1.0)
    assert num_since(fleet) == 1
    fleet.observe(strange, 2.0)
    assert num_since(fleet) == 0


def test_what_was_given_to_an_instance_that_was_forgotten_leaves_no_debt_when_it_comes_back() -> None:
    fleet, near = PeerFleet(), beat("d.1", "drafter")
    fleet.observe(near, 0.0)
    fleet.count_sessions("d.1", 1, None)
    assert fleet.expire(float(STALE_HEARTBEATS)) == ["d.1"]
    fleet.observe(near, STALE_HEARTBEATS + 1.0)
    fleet.count_sessions("d.1", -1, None)
    assert num_since(fleet) == 0


def test_a_session_that_its_drafter_has_not_been_told_of_outlives_heartbeats() -> None:
    fleet, near = PeerFleet(), beat("d.1", "drafter")
    fleet.observe(near, 0.0)
    fleet.count_sessions("d.1", 1, None)
    fleet.observe(near, 1.0)
    assert num_since(fleet) == 1
    fleet.count_sessions("d.1", -1, None)
    assert num_since(fleet) == 0


def test_a_verifier_of_the_same_numerics_is_preferred() -> None:
    chooser = placement(beat("a.1", fingerprint="cpu"), beat("b.1", fingerprint="gpu", load=Load(num_sessions=9)))
    assert chooser.verifier(generation(), 0.1, fingerprints=["gpu"]) == "b.1"
    assert chooser.verifier(generation(), 0.1, fingerprints=["gpu", "cpu"]) == "b.1", "the first counts most"
    assert chooser.verifier(generation(), 0.1, fingerprints=["tpu", "gpu"]) == "b.1"
    assert chooser.verifier(generation(), 0.1, avoid=["b.1"], fingerprints=["gpu"]) == "a.1"
    assert chooser.verifier(generation(), 0.1, avoid=["a.1", "b.1"]) is None


@pytest.mark.parametrize(("prefill_ms", "expected"), [(0.1, "d.1"), (30.0, None)])
def test_no_drafter_is_asked_whose_prefill_would_outlast_the_answer(prefill_ms: float, expected: str | None) -> None:
    chooser = placement(
        beat("v.1", load=Load(step_ms=20.0)), beat("d.1", service="drafter", load=Load(prefill_ms=prefill_ms))
    )
    assert chooser.drafter(generation(num_prompt=100, max_tokens=50), "v.1", 50, 0.1) == expected


@pytest.mark.parametrize(("num_tokens", "expected"), [(400, None), (600, "d.1")])
def test_of_a_long_prompt_the_part_that_a_slow_drafter_reads_is_what_counts(
    num_tokens: int, expected: str | None
) -> None:
    slow = beat("d.1", "drafter", load=Load(prefill_ms=10.0), max_context=4000)
    chooser = placement(beat("v.1", load=Load(step_ms=10.0)), slow)
    assert chooser.drafter(generation(num_prompt=3000, max_tokens=num_tokens), "v.1", num_tokens, 0.1) == expected


def test_a_drafter_is_asked_while_its_context_has_room_for_one_more_token() -> None:
    chooser = placement(beat("v.1"), beat("d.1", service="drafter", max_context=60))
    order = generation(num_prompt=10, max_tokens=500)
    assert chooser.drafter(order, "v.1", 500, 0.1) == "d.1"
    assert chooser.drafter(order, "v.1", 451, 0.1) == "d.1"
    assert chooser.drafter(order, "v.1", 450, 0.1) is None


def test_only_a_drafter_of_the_wanted_name_is_asked_and_none_when_speculation_is_off() -> None:
    chooser = placement(beat("v.1"), beat("fast.1", service="drafter"), beat("slow.1", service="drafter"))
    assert chooser.drafter(generation(drafter_name="slow"), "v.1", 50, 0.1) == "slow.1"
    assert chooser.drafter(generation(drafter_name="none"), "v.1", 50, 0.1) is None
    assert chooser.drafter(generation(speculation=None), "v.1", 50, 0.1) is None
    assert chooser.fleet.serves("drafter", "slow", MODEL, 0.1)
    assert not chooser.fleet.serves("drafter", "none", MODEL, 0.1)


def test_a_controller_is_heard_of_and_is_no_choice() -> None:
    fleet = PeerFleet()
    assert not fleet.observe(beat("c.1", service="controller"), 0.0)
    assert not fleet.observe(beat("g.1", service="gateway"), 0.0)
    assert [peer.heartbeat.instance_id for peer in fleet.alive("controller", 1.0)] == ["c.1"]
    assert fleet.alive("gateway", 1.0) == []
    assert fleet.choices("verifier", MODEL, 1.0) == fleet.choices("drafter", MODEL, 1.0) == []
    assert fleet.alive("controller", STALE_HEARTBEATS + 0.1) == []


def kv(free_kv_tokens: int, num_sessions: int = 0) -> Load:
    return Load(num_sessions=num_sessions, free_kv_tokens=free_kv_tokens, kv_tokens=1024)


def test_a_verifier_without_room_is_not_chosen_while_another_has_room() -> None:
    chooser = placement(beat("a.1", load=kv(127)), beat("b.1", load=kv(128, 9)), beat("c.1", load=kv(128, 5)))
    order = generation(num_prompt=40, max_tokens=60)
    assert chooser.verifier(order, 0.1) == "c.1", "the router's choice among those with room"
    assert chooser.verifier(order, 0.1, avoid=["b.1", "c.1"]) == "a.1", "none has room"
    assert chooser.verifier(order, 0.1, holder="a.1") == "a.1", "it has the session already"
    assert chooser.verifier(generation(num_prompt=4, max_tokens=60), 0.1) == "a.1"


def test_a_session_needs_room_for_its_text_and_what_is_likely_to_follow() -> None:
    chooser = placement(beat("a.1", load=kv(319)), beat("b.1", load=kv(320, 9)))
    order = generation(num_prompt=10, max_tokens=900)
    assert chooser.verifier(order, 0.1) == "b.1"
    assert chooser.verifier_with_room(order, 0.1, (), (), num_committed=54) == "b.1"
    assert chooser.verifier_with_room(order, 0.1, (), (), num_committed=55) is None
    assert chooser.verifier_with_room(order, 0.1, (), (), num_committed=700) is None


def test_a_session_that_goes_gives_back_what_was_counted_for_it() -> None:
    chooser = placement(beat("a.1", load=kv(1024)))
    load = LoadAccounting(chooser.fleet, kv_tokens=64)
    load.count_at(0.1, "a.1")
    load.kv_tokens = 128
    assert chooser.fleet.choices("verifier", MODEL, 0.1)[0].kv_since == 64
    load.count_at(0.1)
    assert chooser.fleet.choices("verifier", MODEL, 0.1)[0].kv_since == 0


def test_a_verifier_that_tells_of_no_kv_cache_counts_as_one_with_room() -> None:
    chooser = placement(beat("a.1", load=kv(0)), beat("b.1", load=Load(num_sessions=9)))
    assert chooser.verifier(generation(), 0.1) == "b.1"


def test_room_goes_before_numerics() -> None:
    chooser = placement(beat("a.1", fingerprint="cpu", load=kv(0)), beat("b.1", fingerprint="gpu", load=kv(128)))
    assert chooser.verifier(generation(), 0.1, fingerprints=["cpu"]) == "b.1"
    chooser.fleet.observe(beat("a.1", fingerprint="cpu", load=kv(128, 9)), 0.2)
    assert chooser.verifier(generation(), 0.3, fingerprints=["cpu"]) == "a.1"


def test_sessions_given_since_the_heartbeat_take_room_until_a_heartbeat_tells_of_them() -> None:
    chooser = placement(beat("a.1", load=kv(128)), beat("b.1", load=kv(1024, 9)))
    chooser.fleet.count_sessions("a.1", 1, None, 64)
    assert chooser.verifier(generation(), 0.1) == "a.1"
    chooser.fleet.count_sessions("a.1", 1, None, 64)
    assert chooser.verifier(generation(), 0.1) == "b.1"
    chooser.fleet.count_sessions("a.1", -1, None, -64)
    assert chooser.verifier(generation(), 0.1) == "a.1", "it never got that one"
    chooser.fleet.count_sessions("a.1", 1, 0.1, 64)
    chooser.fleet.count_sessions("a.1", -1, 0.1)
    assert chooser.verifier(generation(), 0.1) == "b.1", "what was given back shows in heartbeats"
    chooser.fleet.observe(beat("a.1", load=kv(128)), 0.2)
    assert chooser.verifier(generation(), 0.3) == "a.1"
