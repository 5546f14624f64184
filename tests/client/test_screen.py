"""An answer on the screen, without a process around it."""

from __future__ import annotations

import io
import itertools
import random

import pyte
from rich.console import Console
from rich.text import Text

from client.screen import GrowingAnswer
from client.sources import STYLES
from client.status import peers
from client.wire import FleetStatus, GatewayStatus, PeerStatus, TokenPiece

TEXT = "The quick brown fox jumps over the lazy dog.\n\n    indented\n\tlast " + "a" * 50 + " end\n" + "words " * 200


def shown(pieces: list[str]) -> list[str]:
    """The lines of a terminal of 40 columns and 10 rows at the end, those that have scrolled away included."""
    out, screen = io.StringIO(), pyte.HistoryScreen(40, 10, history=1000)
    with GrowingAnswer(Console(file=out, force_terminal=True, width=40, height=10)) as answer:
        for piece in pieces:
            answer.add([TokenPiece(piece)], Text("status"))
    pyte.Stream(screen).feed(out.getvalue().replace("\n", "\r\n"))
    scrolled = ["".join(line[column].data for column in range(40)) for line in screen.history.top]
    return [line.rstrip() for line in [*scrolled, *screen.display]]


def test_an_answer_stands_there_the_same_however_it_was_cut() -> None:
    expected, rng = shown([TEXT]), random.Random(0)
    assert expected[:4] == ["The quick brown fox jumps over the lazy", "dog.", "", "    indented"]
    assert sum(line.count("words") for line in expected) == 200
    for _ in range(5):
        ends = [0, *sorted(rng.sample(range(1, len(TEXT)), 60)), len(TEXT)]
        assert shown([TEXT[a:b] for a, b in itertools.pairwise(ends)]) == expected


def test_the_status_line_is_gone_at_the_end_even_after_a_failure() -> None:
    out = io.StringIO()
    screen = pyte.Screen(40, 10)
    try:
        with GrowingAnswer(Console(file=out, force_terminal=True, width=40, height=10)) as answer:
            answer.add([TokenPiece("half an ans")], Text("status"))
            raise RuntimeError
    except RuntimeError:
        pass
    pyte.Stream(screen).feed(out.getvalue().replace("\n", "\r\n"))
    assert screen.display[0].rstrip() == "half an ans"
    assert "status" not in "".join(screen.display)


def test_sources_differ_without_colour() -> None:
    assert len({str(style.without_color) for style in STYLES.values()}) == len(STYLES)


def test_the_table_of_a_large_fleet_fits_into_80_columns() -> None:
    peer = PeerStatus(
        name="drafter-12",
        instance_id="drafter-12.0123456789ab",
        models=["m"],
        fingerprint="f",
        max_context=131072,
        num_sessions=12,
        max_sessions=256,
        queue_tokens=10240,
        batch=12,
        free_kv_tokens=1 << 19,
        kv_tokens=1 << 20,
        step_ms=123.4,
        prefill_ms=12.34,
        draining=False,
        heartbeat_age_ms=12345.6,
    )
    gateway = GatewayStatus(name="gateway", model="m", num_sessions=1, max_sessions=256, num_waiting=0)
    console = Console(file=io.StringIO(), width=80)
    console.print(peers(FleetStatus(gateway, [peer], [peer], [peer], [])))
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    for service in ("verifier", "drafter"):
        figures = ["12/256", "10240", "12", "50%", "123.4", "12.34", "131072", "12.3", "s"]
        assert [service, "drafter-12", *figures] in lines
