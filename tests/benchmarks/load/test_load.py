"""The load generator asks when and as often as it should, and tells what came of it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import kstest
from typer.testing import CliRunner

from benchmarks.harness.asking import Asking, Due, connected, measure
from benchmarks.harness.latency import Sample
from benchmarks.harness.prompts import OWN, Arrival, read_arrivals
from benchmarks.load import __main__ as load
from benchmarks.load import arrivals
from benchmarks.load.arrivals import closed_loop, open_loop, poisson_times
from client.wire import AnswerOptions, DsdOptions
from model_zoo.prompt_file import read_prompts
from tests.benchmarks.load.fake_gateway import serving

PROMPTS = ["a", "b", "c"]
WAIT_S = 30.0
ROOT = Path(__file__).parents[3]


def answered(due: Due) -> Sample:
    return Sample(due.prompt_number, due.at - due.beginning, 0.0, 0.0, 0.0)


# --- arrivals ---------------------------------------------------------------------------------------------------------


def test_poisson_arrivals_have_their_rate_and_exponential_gaps() -> None:
    gaps = np.diff(poisson_times(4.0, 4000, seed=1))
    assert np.mean(gaps) == pytest.approx(1 / 4, rel=0.05)
    assert kstest(gaps, "expon", args=(0, 1 / 4)).pvalue > 0.01
    assert kstest(gaps, "expon", args=(0, 1 / 5)).pvalue < 0.01


def test_poisson_arrivals_begin_at_once_and_depend_on_the_seed_alone() -> None:
    times = poisson_times(2.0, 20, seed=3)
    assert times[0] == 0
    assert times == poisson_times(2.0, 20, seed=3) != poisson_times(2.0, 20, seed=4)


async def test_an_open_loop_is_not_held_back_by_answers_that_do_not_come() -> None:
    everybody = asyncio.Barrier(6)

    async def wait_for_all(due: Due) -> Sample:
        await everybody.wait()
        return answered(due)

    async with asyncio.timeout(WAIT_S):
        samples = await open_loop(wait_for_all, PROMPTS, [0.0, 0.01, 0.01, 0.02, 0.05, 0.06])
    assert [sample.due_s for sample in samples] == pytest.approx([0.0, 0.01, 0.01, 0.02, 0.05, 0.06])
    assert [sample.prompt_number for sample in samples] == [0, 1, 2, 0, 1, 2]


async def test_an_open_loop_asks_for_answers_as_long_as_a_trace_says_and_never_early() -> None:
    asked: list[tuple[float, int | None]] = []

    async def note(due: Due) -> Sample:
        asked.append((time.monotonic() - due.at, due.max_tokens))
        return answered(due)

    await open_loop(note, PROMPTS, [Arrival(0.0, 5), Arrival(0.03, 7)])
    assert [num_tokens for _, num_tokens in asked] == [5, 7]
    assert min(late_s for late_s, _ in asked) >= 0


async def test_in_a_closed_loop_each_client_asks_one_at_a_time() -> None:
    at_once, most = 0, 0

    async def note(due: Due) -> Sample:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        return answered(due)

    samples = await closed_loop(note, PROMPTS, num_clients=3, num_requests=10, think_s=0.0)
    assert most == 3
    assert sorted(sample.prompt_number for sample in samples) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


async def test_a_closed_loop_ends_at_its_time_and_nobody_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that every quick answer moves on by a second."""
    now, is_over = 0.0, asyncio.Event()
    monkeypatch.setattr(arrivals, "time", SimpleNamespace(monotonic=lambda: now))

    async def note(due: Due) -> Sample:
        nonlocal now
        if due.prompt_number == 0:
            await is_over.wait()
        elif (now := now + 1.0) >= 10:
            is_over.set()
        return answered(due)

    prompts = [str(number) for number in range(100)]
    async with asyncio.timeout(WAIT_S):
        samples = await closed_loop(note, prompts, num_clients=2, num_requests=None, think_s=0.0, seconds=10.0)
    assert sorted(sample.due_s for sample in samples) == [0.0, *range(10)]
    assert {sample.prompt_number for sample in samples} == set(range(11)), "what was begun is waited for"


# --- requests ---------------------------------------------------------------------------------------------------------


def asking(**options: object) -> Asking:
    return Asking("fake", AnswerOptions(**options))  # type: ignore[arg-type]


async def test_an_answer_is_measured_with_its_tokens_and_fates() -> None:
    async with serving() as fake, connected(fake.url) as gateway:
        now = time.monotonic()
        sample = await measure(gateway, asking(), Due(2, "hello", now, now))
    assert (sample.status, sample.prompt_number, sample.num_tokens, sample.num_prompt_tokens) == ("ok", 2, 3, 7)
    assert (sample.accepted, sample.rejected, sample.late, sample.discarded) == (4, 2, 1, 5)
    assert sample.first_s is not None
    assert 0 <= sample.sent_s < sample.first_s < sample.total_s


async def test_latency_counts_from_when_a_request_was_due() -> None:
    async with serving() as fake, connected(fake.url) as gateway:
        now = time.monotonic()
        sample = await measure(gateway, asking(), Due(0, "hello", at=now - 5.0, beginning=now - 9.0))
    assert sample.due_s == pytest.approx(4.0)
    assert sample.first_s is not None
    assert min(sample.sent_s, sample.first_s, sample.total_s) >= 5.0


@pytest.mark.parametrize(("prompt", "status"), [("refuse", "429"), ("break", "broken off")])
async def test_what_a_failed_request_came_to_is_its_status(prompt: str, status: str) -> None:
    async with serving() as fake, connected(fake.url) as gateway:
        now = time.monotonic()
        sample = await measure(gateway, asking(), Due(0, prompt, now, now))
    assert (sample.status, sample.num_tokens) == (status, 0)


async def test_a_gateway_that_is_not_there_is_a_status_too() -> None:
    async with connected("http://127.0.0.1:1") as gateway:
        now = time.monotonic()
        assert (await measure(gateway, asking(), Due(0, "x", now, now))).status == "unreachable"


async def test_options_reach_the_gateway() -> None:
    options = AnswerOptions(max_tokens=9, temperature=0.0, seed=5, speculation=DsdOptions("static", 4))
    async with serving() as fake, connected(fake.url) as gateway:
        now = time.monotonic()
        await measure(gateway, Asking("fake", options, ignore_eos=True), Due(0, "x", now, now))
        await measure(gateway, Asking("fake", options), Due(0, "x", now, now, max_tokens=3))
    first, second = fake.bodies
    assert (first["max_tokens"], first["temperature"], first["seed"], first["ignore_eos"]) == (9, 0.0, 5, True)
    assert first["dsd"] == {"speculation": "static", "window": 4}
    assert second["max_tokens"] == 3
    assert "ignore_eos" not in second


async def test_more_answers_than_a_usual_client_has_connections_run_at_once() -> None:
    async with asyncio.timeout(WAIT_S), serving() as fake, connected(fake.url) as gateway:
        fake.together = asyncio.Barrier(150)
        samples = await open_loop(partial(measure, gateway, asking()), PROMPTS, [0.0] * 150)
    assert {sample.status for sample in samples} == {"ok"}


def test_a_run_against_a_gateway_ends_well_and_tells_goodput() -> None:
    async def generate() -> tuple[str, list[str]]:
        async with serving() as fake:
            argv = [sys.executable, "-m", "benchmarks.load", "--url", fake.url, "--requests", "5", "--clients", "2"]
            objective = ["--ttft-ms", "60000", "--tpot-ms", "60000", "--window", "4"]
            run = await asyncio.create_subprocess_exec(*argv, *objective, stdout=PIPE, cwd=ROOT)
            async with asyncio.timeout(WAIT_S):
                output, _ = await run.communicate()
            assert run.returncode == 0
            return output.decode(), [body["dsd"]["speculation"] for body in fake.bodies]

    output, modes = asyncio.run(generate())
    assert "model fake" in output
    assert "5 ok" in output
    assert "100% of requests" in output
    assert "20 accepted, 5 late, 10 rejected, 25 discarded; acceptance 0.714" in output
    assert modes == ["static"] * 5


def test_a_run_is_told_as_a_table_and_written_as_json(tmp_path: Path) -> None:
    """Against nobody: every request fails, is counted, and the program says so by its status."""
    path = tmp_path / "out.json"
    command = ["--url", "http://127.0.0.1:1", "--model", "m", "--requests", "3", "--rate", "1000"]
    result = CliRunner().invoke(load.app, [*command, "--output", str(path)])
    assert result.exit_code == 1, result.output
    assert "3 unreachable" in result.output
    content = json.loads(path.read_text())
    assert content["summary"]["statuses"] == {"unreachable": 3}
    assert len(content["samples"]) == 3
    assert content["origin"]["machine"]


@pytest.mark.parametrize("closed", [("--clients", "1"), ("--think-s", "0")], ids=lambda flags: flags[0])
@pytest.mark.parametrize("opened", [("--rate", "9"), ("--trace", "no-file")], ids=lambda flags: flags[0])
def test_flags_of_a_closed_loop_are_refused_in_an_open_one(opened: tuple[str, str], closed: tuple[str, str]) -> None:
    result = CliRunner().invoke(load.app, ["--url", "http://127.0.0.1:1", "--model", "m", *opened, *closed])
    assert result.exit_code == 2
    assert "of a closed loop" in result.output


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_our_own_prompts_are_read() -> None:
    assert len(read_prompts(OWN)) == len(OWN.read_text().splitlines())
    assert read_prompts(OWN, "prompt") == read_prompts(OWN)


def test_the_field_of_a_prompt_is_found_or_named(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"id": 1, "question": "why?", "answer": "so"}\n{"question": "how?", "answer": "thus"}\n')
    assert read_prompts(path) == ["why?", "how?"]
    assert read_prompts(path, "answer") == ["so", "thus"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "empty"), ("{}", ":1"), ('{"prompt": "a"}\n{"prompt": ""}', ":2"), ("[1]", ":1"), ("{", ":1")],
)
def test_a_file_without_prompts_is_refused_with_the_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_prompts(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_a_line_of_a_file_ends_at_a_newline_and_nowhere_else(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(f'{{"prompt": "a{separator}b"}}\r\n{{"prompt": "c"}}\n'.encode())
    assert read_prompts(path) == [f"a{separator}b", "c"]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"prompt": "\ufeffa"}\n', encoding="utf-8-sig")
    assert read_prompts(path) == ["\ufeffa"]


def test_a_file_that_is_no_utf_8_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes('{"prompt": "a"}\n{"prompt": "\u00e9"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"file\.jsonl:2: "):
        read_prompts(path)


def test_a_trace_gives_arrivals_in_the_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival_ms": 50, "target_tokens": 7}\n{"arrival_ms": 0.0, "target_tokens": 3}\n')
    assert read_arrivals(path) == [Arrival(0.0, 3), Arrival(0.05, 7)]
    path.write_text('{"arrival_ms": 3600100, "target_tokens": 7}\n{"arrival_ms": 3600000, "target_tokens": 3}\n')
    assert read_arrivals(path) == [Arrival(0.0, 3), Arrival(0.1, 7)], "times count from the first"
    path.write_text('{"arrival_ms": 50}')
    with pytest.raises(ValueError, match=":1"):
        read_arrivals(path)
