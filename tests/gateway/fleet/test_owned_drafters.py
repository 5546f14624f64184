"""A drafter that belongs to an API key gets that key's sessions alone, and those first."""

from __future__ import annotations

import pytest

from services.gateway.fleet.names import is_listed
from shared.policies.routing import Load
from tests.gateway.fleet.test_peers import beat, generation, placement

OWN, OTHERS, SHARED = "key-alice.1", "key-bob.1", "site-a.1"
BEATS = (beat("v.1"), *(beat(each, "drafter") for each in (OWN, OTHERS, SHARED)))


@pytest.mark.parametrize("drafters", [None, ("*",), ("k*",), ("site-*", "k*"), ("site-a",)])
def test_sessions_of_other_keys_never_go_to_it(drafters: tuple[str, ...] | None) -> None:
    chooser = placement(*BEATS)
    chosen = {chooser.drafter(generation(drafters=drafters), "v.1", 50, 0.1) for _ in range(50)}
    assert chosen == {SHARED} if drafters != ("k*",) else chosen == {None}


def test_not_even_where_it_is_the_only_drafter_or_the_request_names_it() -> None:
    chooser = placement(beat("v.1"), beat(OWN, "drafter"))
    assert chooser.drafter(generation(), "v.1", 50, 0.1) is None
    assert chooser.drafter(generation(drafter_name="key-alice"), "v.1", 50, 0.1) is None
    assert chooser.drafter(generation(drafter_name="key-alice", drafters=("k*",)), "v.1", 50, 0.1) is None
    assert chooser.drafter(generation(drafter_name="key-alice", own_drafters=("key-bob",)), "v.1", 50, 0.1) is None


@pytest.mark.parametrize("drafters", [None, (), ("site-a",)])
def test_sessions_of_its_key_go_to_it_first(drafters: tuple[str, ...] | None) -> None:
    busy = beat(OWN, "drafter", load=Load(num_sessions=9))
    chooser = placement(beat("v.1"), busy, beat(OTHERS, "drafter"), beat(SHARED, "drafter"))
    mine = generation(own_drafters=("key-alice",), drafters=drafters)
    assert chooser.drafter(mine, "v.1", 50, 0.1) == OWN
    left = chooser.drafter(mine, "v.1", 50, 0.1, avoid=(OWN,))
    assert left == (None if drafters == () else SHARED), "then to those that the key's sessions may go to anyway"


def test_its_key_may_name_it_or_a_shared_one() -> None:
    chooser = placement(*BEATS)
    own = ("key-alice",)
    assert chooser.drafter(generation(drafter_name="key-alice", own_drafters=own, drafters=()), "v.1", 50, 0.1) == OWN
    assert chooser.drafter(generation(drafter_name="site-a", own_drafters=own), "v.1", 50, 0.1) == SHARED
    assert chooser.drafter(generation(drafter_name="site-a", own_drafters=own, drafters=()), "v.1", 50, 0.1) is None


def test_no_beginning_of_names_stands_for_it() -> None:
    assert not is_listed("key-alice", None)
    assert not is_listed("key-alice", ("*", "key-*", "key-alice*"))
    assert is_listed("key-alice", ("key-alice",))
    assert not is_listed("key-alice", ("key-alic",))
