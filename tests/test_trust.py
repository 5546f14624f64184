"""docs/trust.md has a row on each field of each message of each sender, and the tests that it names exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest

from services.local.nats_server import LIMITS
from services.local.nats_users import KINDS
from shared.protocol.messages import KINDS as MESSAGES
from shared.protocol.messages import Wire
from tests.test_docs import ROOT, named_paths, names_of_tests, section, text_of

PAGE = "docs/trust.md"
FOLLOWS = "follows from the lines above"
SENDERS = ("drafter", "gateway", "verifier", "controller")


def messages_of(sender: str) -> list[type[Wire]]:
    """The types that its NATS rights let a service send."""
    subjects = [subject.split(".") for subject in KINDS[sender].publish]
    verbs = {tokens[0] if tokens[0] in MESSAGES else tokens[3] for tokens in subjects}
    return [MESSAGES[verb] for verb in verbs]


def structs_in(kind: Any) -> Iterator[type[Wire]]:
    """The structs that a type is, or is made of."""
    if isinstance(kind, type) and issubclass(kind, Wire):
        yield kind
        for field in get_type_hints(kind).values():
            yield from structs_in(field)
    for part in get_args(kind):
        yield from structs_in(part)


def fields_of(sender: str) -> set[str]:
    """`Type.field` of all that a service sends, nested ones too."""
    structs = {struct for message in messages_of(sender) for struct in structs_in(message)}
    return {f"{struct.__name__}.{name}" for struct in structs for name in struct.__struct_fields__}


def rows_of(sender: str) -> list[list[str]]:
    rows = re.findall(r"^\| (`.+) \|$", section(PAGE, sender.capitalize()), re.MULTILINE)
    return [row.split(" | ") for row in rows]


def letters() -> dict[str, str]:
    return dict(re.findall(r"^\| ([A-Z]+) \| `(tests/.+)` \|$", section(PAGE, "Names of test files"), re.MULTILINE))


def named_tests(cell: str) -> list[tuple[str, str]]:
    """File and name; a letter or a path applies to the names after it."""
    found, place, known = [], "", letters()
    for letter, path, test in re.findall(r"\b([A-Z]{1,2})\b|`(tests/[\w./]+)`|`(test_\w+)`", cell):
        place = known.get(letter) or path or place
        if test:
            found.append((place, test))
    return found


def test_all_senders_and_their_nested_types_are_looked_at() -> None:
    sent = {kind for sender in SENDERS for kind in messages_of(sender)}
    assert sent == set(MESSAGES.values())
    assert {"Load.rtt_ms", "PairReport.tpot_ms"} <= fields_of("drafter")
    assert {"Bias.bias", "Speculation.mode"} <= fields_of("gateway")
    assert {"Echo.hold_ms", "Tally.late", "TokenLogprobs.logprob"} <= fields_of("verifier")
    assert "Reason.acceptance" in fields_of("controller")


@pytest.mark.parametrize("sender", SENDERS)
def test_every_field_that_a_sender_fills_has_one_row(sender: str) -> None:
    named = [field for fields, *_ in rows_of(sender) for field in re.findall(r"`(\w+\.\w+)`", fields)]
    assert sorted(named) == sorted(fields_of(sender))


@pytest.mark.parametrize("sender", SENDERS)
def test_every_row_names_a_test_that_exists(sender: str) -> None:
    for fields, gain, bound, tests in rows_of(sender):
        assert gain.strip(), fields
        assert bound.strip(), fields
        assert named_tests(tests), f"{fields} has no test"
        for place, test in named_tests(tests):
            assert test in names_of_tests(ROOT / place), f"{test} is not in {place}"


def test_every_letter_is_used_and_the_page_is_found_from_the_protocol() -> None:
    used = {place for sender in SENDERS for *_, tests in rows_of(sender) for place, _ in named_tests(tests)}
    assert set(letters().values()) <= used
    assert set(named_paths(text_of(PAGE))) >= set(letters().values())
    assert "(trust.md)" in text_of("docs/protocol.md")


def test_every_test_that_the_page_on_security_names_exists() -> None:
    tests = named_tests(text_of("docs/security.md"))
    assert len(tests) > 40
    for place, test in tests:
        assert test in names_of_tests(ROOT / place), f"{test} is not in {place}"


def test_every_row_of_the_page_on_security_names_a_test_or_follows_from_rows_that_do() -> None:
    tables = re.findall(r"^\|.* tests \|\n\| ---.*\n((?:\|.*\n)+)", text_of("docs/security.md"), re.MULTILINE)
    rows = [row.removesuffix(" |").rpartition(" | ") for table in tables for row in table.splitlines()]
    assert len(tables) == 8
    assert sum(line.startswith("| can") for line, _, _ in rows) > 20
    for line, _, tests in rows:
        assert "`test_" in tests or tests == FOLLOWS, line


def test_the_page_on_security_has_the_limits_of_the_servers() -> None:
    page = section("docs/security.md", "Limits of NATS")
    for name, value in re.findall(r"^(max_\w+|write_deadline): \"?(\w+)\"?$", LIMITS, re.MULTILINE):
        number, unit = re.fullmatch(r"(\d+)(.*)", value).groups()  # type: ignore[union-attr]
        assert re.search(rf"^\| `{name}` \| .+ \| {number} ?{unit} \|", page, re.MULTILINE), name
