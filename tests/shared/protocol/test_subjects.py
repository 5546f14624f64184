"""Subjects and instance ids."""

import re

import pytest

from shared.bus.memory_bus import matches
from shared.protocol import subjects
from shared.protocol.messages import Close, Draft, Heartbeat, Load, Open, Report, Verdict, WindowDecision

VERIFIER, DRAFTER = "cloud.0123456789ab", "edge-1.ba9876543210"


def test_an_instance_id_is_the_name_and_a_fresh_nonce() -> None:
    first, second = subjects.new_instance_id("edge-1"), subjects.new_instance_id("edge-1")
    assert re.fullmatch(r"edge-1\.[0-9a-f]{12}", first)
    assert first != second


@pytest.mark.parametrize("name", ["", "Edge", "edge_1", "edge.1", "edge 1", "edge*", "edge>", "ä", "edge\n", "x" * 65])
def test_a_name_that_can_not_be_a_subject_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 64 characters"):
        subjects.new_instance_id(name)


def test_session_ids_are_128_random_bits() -> None:
    ids = {subjects.new_session_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", session_id) for session_id in ids)


def test_a_direct_subject_tells_receiver_verb_and_sender() -> None:
    subject = subjects.to("verifier", VERIFIER, Draft, DRAFTER)
    assert subject == "dsd.v1.verifier.cloud.0123456789ab.draft.edge-1.ba9876543210"
    assert subjects.sender(subject) == DRAFTER
    assert subjects.verb(subject) == "draft"


def test_a_broadcast_tells_service_and_sender() -> None:
    subject = subjects.broadcast(Heartbeat, "verifier", VERIFIER)
    assert subject == "dsd.v1.heartbeat.verifier.cloud.0123456789ab"
    assert subjects.sender(subject) == VERIFIER


def test_an_inbox_gets_all_that_is_said_to_one_instance_and_nothing_else() -> None:
    inbox = subjects.inbox("verifier", VERIFIER)
    assert matches(inbox, subjects.to("verifier", VERIFIER, Draft, DRAFTER))
    assert matches(inbox, subjects.to("verifier", VERIFIER, Open, "gateway.000000000000"))
    assert not matches(inbox, subjects.to("verifier", "cloud.ffffffffffff", Draft, DRAFTER))
    assert not matches(inbox, subjects.to("drafter", VERIFIER, Draft, DRAFTER))
    assert not matches(inbox, subjects.broadcast(Heartbeat, "verifier", VERIFIER))


def test_broadcasts_of_a_verb_are_heard_from_all_instances_of_one_service() -> None:
    pattern = subjects.all_broadcasts(Heartbeat, "drafter")
    assert matches(pattern, subjects.broadcast(Heartbeat, "drafter", DRAFTER))
    assert not matches(pattern, subjects.broadcast(Heartbeat, "verifier", VERIFIER))
    assert not matches(pattern, subjects.to("controller", "controller.000000000000", Report, DRAFTER))
    assert not matches(pattern, subjects.to("verifier", VERIFIER, Heartbeat, DRAFTER))


def test_all_that_is_said_with_a_verb_to_a_service_is_heard_whoever_it_is_for() -> None:
    pattern = subjects.all_said("drafter", WindowDecision)
    assert matches(pattern, subjects.to("drafter", DRAFTER, WindowDecision, "controller.000000000000"))
    assert not matches(pattern, subjects.to("drafter", DRAFTER, Verdict, VERIFIER))
    assert not matches(pattern, subjects.to("verifier", VERIFIER, WindowDecision, "controller.000000000000"))


@pytest.mark.parametrize(
    ("pattern", "subject", "is_match"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*", "a", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*.b", "a.b", True),
    ],
)
def test_patterns_match_as_nats_does(pattern: str, subject: str, is_match: bool) -> None:
    assert matches(pattern, subject) is is_match


@pytest.mark.parametrize(
    ("subject", "fits"),
    [
        (f"dsd.v1.verifier.{VERIFIER}.close.{DRAFTER}", True),
        (f"dsd.v1.close.gateway.{DRAFTER}", False),
        (f"dsd.v1.verifier.{VERIFIER}.open.{DRAFTER}", False),
        (f"dsd.v1.verifier.{VERIFIER}.close", False),
        (f"dsd.v1.verifier.{VERIFIER}.close.edge", False),
        (f"dsd.v1.verifier.{VERIFIER}.close.*.>", False),
        (f"dsd.v1.verifier.{VERIFIER}.open.{DRAFTER}.close.{DRAFTER}", False),
        (f"dsd.v2.verifier.{VERIFIER}.close.{DRAFTER}", False),
    ],
)
def test_a_subject_fits_a_message_of_its_verb_by_a_well_formed_sender(subject: str, fits: bool) -> None:
    assert subjects.fits(subject, Close("ab" * 16, 1)) is fits


@pytest.mark.parametrize(
    ("subject", "fits"),
    [
        (f"dsd.v1.heartbeat.drafter.{DRAFTER}", True),
        (f"dsd.v1.heartbeat.verifier.{DRAFTER}", False),
        (f"dsd.v1.heartbeat.drafter.{VERIFIER}", False),
        (f"dsd.v1.heartbeat.{DRAFTER}", False),
        (f"dsd.v1.report.drafter.{DRAFTER}", False),
        (f"dsd.v1.gateway.{VERIFIER}.heartbeat.{DRAFTER}", False),
    ],
)
def test_a_heartbeat_fits_the_subject_of_its_service_and_its_instance_alone(subject: str, fits: bool) -> None:
    assert subjects.fits(subject, Heartbeat("drafter", DRAFTER, 1.0, [], 0, 0, "", Load(), False)) is fits


def test_a_report_fits_the_subject_of_its_drafter_alone() -> None:
    controller, report = "controller.000000000000", Report(DRAFTER, 1, [])
    assert subjects.fits(subjects.to("controller", controller, Report, DRAFTER), report)
    assert not subjects.fits(subjects.to("controller", controller, Report, VERIFIER), report)
    assert not subjects.fits(subjects.to("controller", controller, Heartbeat, DRAFTER), report)
    assert not subjects.fits(subjects.broadcast(Report, "drafter", DRAFTER), report)
