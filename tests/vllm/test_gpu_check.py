"""The check for GPUs, with a tiny model on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm import gpu_check, tiny


@pytest.mark.timeout(600)
def test_the_check_measures_texts_and_passes_beside_plain_vllm(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.save(tiny.llama(), tmp_path)
    check = gpu_check.Check(
        folder, tiny.VOCABULARY, "float32", ("--enforce-eager",), contexts=(64, 200), num_sessions=(1, 4), num_repeats=4
    )
    assert gpu_check.measure(check)
    lines = capfd.readouterr().out.splitlines()
    assert "16 of 16 texts of 64 tokens are equal with guesses and without" in lines
    rows = [line.split() for line in lines if line.split()[:1] in (["1"], ["4"])]
    assert [(int(row[0]), int(row[1]), int(row[2])) for row in rows] == [
        (num, context, guesses) for context in (64, 200) for num in (1, 4) for guesses in (0, 1, 4)
    ]
    assert all(float(row[3]) > 0 for row in rows)
    assert all(float(row[4]) > 0 for row in rows if row[2] == "0")


def test_without_a_gpu_it_says_why_it_is_not_run() -> None:
    assert gpu_check.why_not() == "there is no CUDA device"
