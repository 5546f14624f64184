"""`make gpu-check` where there is no GPU: its parts work, on the CPU, and it says that it did not run."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.e2e.ways import ALONE, SAMPLINGS, Way
from tests.gpu_check import NUM_SESSIONS, NUM_TOKENS, Findings, count_differing, measure, run_demo, show

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def findings(default_models: Path) -> Findings:
    ways = (ALONE, Way(8))
    return asyncio.run(measure(default_models, "cpu", 1, ways, num_repeats=1, context=64, most_compared=30))


def test_without_a_cuda_device_it_says_so_and_succeeds() -> None:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.gpu_check"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("not run: no CUDA device\n", 0), done.stderr


def test_on_the_cpu_it_finds_no_difference_in_texts_and_logits(findings: Findings) -> None:
    assert [one.sampling for one in findings.texts] == [sampling for sampling in SAMPLINGS for _ in range(2)]
    assert all(one.num_tokens > 20 for one in findings.texts)
    assert all(one.num_accepted > 0 for one in findings.texts if one.way.window)
    assert not any(one.num_differing_tokens or one.num_differing_texts for one in findings.texts)
    assert all(one.num_rows > 20 * one.num_sessions for one in findings.logits)
    assert not any(one.num_differing_rows or one.num_flips or one.greatest_difference for one in findings.logits)


def test_it_times_every_pass_that_has_a_token_for_each_session(findings: Findings) -> None:
    timed = [(one.num_sessions, one.num_tokens) for one in findings.passes]
    assert timed == [(sessions, tokens) for sessions in NUM_SESSIONS for tokens in NUM_TOKENS if tokens >= sessions]
    assert all(one.elapsed_ms > 0 for one in findings.passes)


def test_it_judges_the_texts_by_a_plain_forward(findings: Findings) -> None:
    assert findings.are_right
    assert findings.share_of_best > 0.9


def test_it_prints_all_that_it_found(findings: Findings) -> None:
    file = io.StringIO()
    show(Console(file=file, width=140), findings)
    printed = file.getvalue()
    assert findings.fingerprint in printed
    assert "differing tokens" in printed
    assert all(f"{one.elapsed_ms:.2f}" in printed for one in findings.passes)


@pytest.mark.parametrize(
    ("expected", "got", "number"), [([], [], 0), ([1, 2, 3], [1, 2, 3], 0), ([1, 2, 3], [1, 5, 3], 1), ([1, 2], [2], 2)]
)
def test_differing_tokens_are_counted_by_position(expected: list[int], got: list[int], number: int) -> None:
    assert count_differing(expected, got) == number


def test_the_demo_answers_on_the_device_that_it_is_given(
    default_models: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(default_models, "cpu", max_tokens=8) == 0
    assert "8 after a prompt of" in capfd.readouterr().out
