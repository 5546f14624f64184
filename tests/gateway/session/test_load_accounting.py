"""At which instances a session counts as load, and until when."""

from __future__ import annotations

from tests.gateway.session.story import PROMPT, Story, running, two_of_each


def test_a_session_counts_as_load_where_it_is_and_nowhere_else() -> None:
    story = running(two_of_each())

    def loads() -> dict[str, int]:
        fleet = story.placement.fleet
        choices = (*fleet.choices("verifier", "m", story.now), *fleet.choices("drafter", "m", story.now))
        return {choice.instance_id: choice.num_since for choice in choices if choice.num_since}

    assert loads() == {"v1.1": 1, "d1.1": 1}
    story.failure("d1.1", "overloaded", retryable=True)
    assert loads() == {"v1.1": 1, "d2.1": 1}
    story.failure("d2.1", "overloaded", retryable=True)
    assert loads() == {"v1.1": 1}
    story.failure("v1.1", "unknown_session", retryable=False)
    assert loads() == {"v1.1": 1}, "the same one again"
    for each in ("v1.1", "v2.1"):
        story.failure(each, "overloaded", retryable=True)
    assert (story.session.phase, loads()) == ("waiting", {})
    story.opened("v2.1")
    assert (story.session.phase, loads()) == ("running", {"v2.1": 1})
    story.session.close(story.now)
    story.session.close(story.now)
    assert loads() == {}


def test_a_finished_session_is_no_load_of_its_drafter_and_one_of_its_verifier_until_it_is_closed() -> None:
    story = running()
    story.verdict("v1.1", PROMPT + 3, [4], finish="stop")
    fleet = story.placement.fleet
    assert [each.num_since for each in fleet.choices("drafter", "m", story.now)] == [0, 0]
    assert [each.num_since for each in fleet.choices("verifier", "m", story.now)] == [1, 0]
    story.session.close(story.now)
    assert [each.num_since for each in fleet.choices("verifier", "m", story.now)] == [0, 0]


def test_a_session_counts_at_its_drafter_until_that_is_told_and_its_heartbeats_can_say_so() -> None:
    story = Story(two_of_each())
    fleet = story.placement.fleet

    def loads() -> list[int]:
        choices = (*fleet.choices("verifier", "m", story.now), *fleet.choices("drafter", "m", story.now))
        return [choice.num_since for choice in choices]

    story.wait(1.0)
    assert loads() == [0, 0, 1, 0], "the verifier has been told, and says so by itself"
    story.opened("v1.1")
    assert loads() == [0, 0, 1, 0]
    story.wait(1.0)
    assert loads() == [0, 0, 0, 0], "now the drafter has, too"
    story.session.close(story.now)
    assert loads() == [-1, 0, -1, 0]
    story.wait(1.0)
    assert loads() == [0, 0, 0, 0]


def test_a_session_that_waits_counts_at_the_drafter_that_has_it_and_once_when_it_goes_on() -> None:
    story = running()
    fleet = story.placement.fleet
    for each in ("v1.1", "v2.1"):
        story.failure(each, "overloaded", retryable=True)
    assert story.session.phase == "waiting"
    assert [each.num_since for each in fleet.choices("drafter", "m", story.now)] == [1, 0]
    story.wait(10.0)
    assert (story.session.phase, story.session.drafter_id) == ("opening", "d1.1")
    assert [each.num_since for each in fleet.choices("drafter", "m", story.now)] == [0, 0], "its heartbeats tell it"


def test_a_verifier_that_took_a_session_late_tells_of_it_by_itself() -> None:
    story = running()
    for each in ("v1.1", "v2.1"):
        story.failure(each, "overloaded", retryable=True)
    story.opened("v2.1")
    assert story.session.phase == "running"
    story.wait(1.0)
    choices = story.placement.fleet.choices("verifier", "m", story.now)
    assert [choice.num_since for choice in choices] == [0, 0]


def test_a_session_that_ends_before_its_drafter_heard_of_it_leaves_nothing_there() -> None:
    story = Story(two_of_each())
    story.session.close(story.now)
    story.wait(1.0)
    choices = story.placement.fleet.choices("drafter", "m", story.now)
    assert [choice.num_since for choice in choices] == [0, 0]
