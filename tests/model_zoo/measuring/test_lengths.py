"""Measured lengths: every one is counted, the simulator reads the file, and answers are as long as the target's are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsd_sim.scenario.demand import MeasuredLengths as ReadLengths
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.scenario.workload import make_requests
from model_zoo.measuring.lengths import MeasuredLengths, histogram, lengths_of_trace
from tests.model_zoo.command import model_zoo

ROOT = Path(__file__).parents[3]
PROMPTS = ["Name three colours of the sea.", "Count from one to twelve in words, please."]
TRACE = [{"arrival_ms": 25.0 * i, "prompt_tokens": 20 + i, "target_tokens": 100 + i % 7} for i in range(40)]


# --- histograms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_length_is_counted_once_in_12_to_20_bins(seed: int) -> None:
    lengths = np.random.default_rng(seed).lognormal(5, 0.6, 500).astype(int).clip(1).tolist()
    found = histogram(lengths)
    assert list(found.edges) == sorted(set(found.edges))
    assert (found.edges[0], found.edges[-1]) == (min(lengths), max(lengths) + 1)
    assert list(found.counts) == np.histogram(lengths, found.edges)[0].tolist()
    assert sum(found.counts) == 500
    assert min(found.counts) > 0
    assert 12 <= len(found.counts) <= 20


def test_bins_are_narrow_where_lengths_are_many() -> None:
    found = histogram([10] * 90 + list(range(100, 110)))
    assert found.edges[:2] == (10, 100)
    assert found.counts[0] == 90
    assert len(found.edges) > 3


def test_answers_cut_at_a_limit_have_a_bin_of_their_own() -> None:
    found = histogram([*range(10, 60), *[512] * 50])
    assert found.edges[-2:] == (512, 513)
    assert found.counts[-1] == 50


def test_drawn_from_its_histogram_a_mean_comes_back() -> None:
    lengths = np.random.default_rng(1).lognormal(5, 0.6, 2000).astype(int).clip(1).tolist()
    found = histogram(lengths)
    drawn = [(low + high - 1) / 2 for low, high in zip(found.edges, found.edges[1:], strict=False)]
    assert np.average(drawn, weights=found.counts) == pytest.approx(np.mean(lengths), rel=0.05)


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_nothing_and_lengths_of_nothing_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="each must be at least 1"):
        histogram(lengths)


def test_a_single_length_is_a_histogram() -> None:
    assert (histogram([7]).edges, histogram([7]).counts) == ((7, 8), (1,))


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_simulator_draws_from_the_file(tmp_path: Path) -> None:
    MeasuredLengths("some test", histogram([5, 6, 7]), histogram([50, 60])).write(tmp_path / "lengths.json")
    lengths = {"file": "lengths.json", "max_tokens": 100}
    content = {
        "name": "lengths",
        "workload": {"kind": "poisson", "rate_per_s": 1.0, "num_requests": 500, "lengths": lengths},
        "cloud": [{"count": 1, "times": {"base_ms": 10.0}}],
        "policies": {"drafting": False},
    }
    workload = Scenario.model_validate_json(json.dumps(content)).workload
    requests = make_requests(workload, tmp_path, np.random.default_rng(1))
    assert set(requests.prompt.tolist()) == {5, 6, 7}
    assert (requests.answer.min(), requests.answer.max()) == (50, 60)


@pytest.mark.parametrize("name", ["gsm8k", "humaneval", "cnndm"])
def test_a_file_that_ships_says_where_it_comes_from(name: str) -> None:
    found = ReadLengths.model_validate_json((ROOT / "scenarios" / "lengths" / f"{name}.json").read_bytes())
    assert found.origin.startswith(f"model_zoo lengths, {name}")
    assert sum(found.prompt.counts) == sum(found.answer.counts) >= 50


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt_tokens": 3}', "trace.jsonl:2: target_tokens must be a whole number of at least 1"),
        ('{"prompt_tokens": 0, "target_tokens": 3}', "trace.jsonl:2: prompt_tokens must be a whole number"),
        ('{"prompt_tokens": true, "target_tokens": 3}', "trace.jsonl:2: prompt_tokens must be a whole number"),
        ("[]", "trace.jsonl:2: must be a JSON object"),
    ],
)
def test_a_trace_without_lengths_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(TRACE[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        lengths_of_trace(path)


# --- the command ------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "model_zoo", "lengths", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))


def test_the_command_takes_both_lengths_from_a_trace(tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.jsonl", tmp_path / "lengths.json"
    trace.write_text("".join(json.dumps(row) + "\n" for row in TRACE))
    done = model_zoo("lengths", "--trace", str(trace), "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = ReadLengths.model_validate_json(out.read_bytes())
    assert found.origin == "model_zoo lengths, trace.jsonl, 40 requests"
    assert (found.prompt.edges[0], found.prompt.edges[-1]) == (20, 60)
    assert (found.answer.edges[0], found.answer.edges[-1]) == (100, 107)


def test_the_command_lets_the_target_answer(default_models: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "some.jsonl", tmp_path / "lengths.json"
    prompts.write_text("".join(json.dumps({"question": prompt}) + "\n" for prompt in [*PROMPTS, "left out"]))
    done = command("--prompts", str(prompts), "--out", str(out), "--max-tokens", "6", "--most", "2")
    assert done.returncode == 0, done.stderr
    found = ReadLengths.model_validate_json(out.read_bytes())
    assert found.origin.startswith(
        "model_zoo lengths, some.jsonl, 2 prompts, greedy answers of smollm2-135m of at most"
    )
    assert (found.answer.edges, found.answer.counts) == ((6, 7), (2,))
    assert sum(found.prompt.counts) == 2
    assert found.prompt.edges[0] > 20, "the chat template counts"


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ('{"prompt": 3}', [], "one of the fields prompt"),
        ('{"prompt": "hi"}', ["--max-tokens", "9000"], "prompt 1: "),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    default_models: Path, tmp_path: Path, line: str, arguments: list[str], message: str
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "lengths.json"
    prompts.write_text(line + "\n")
    done = model_zoo("lengths", "--prompts", str(prompts), "--out", str(out), *arguments)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("lengths failed: ")
    assert message in done.stderr
    assert not out.exists()


def test_prompts_or_a_trace_must_be_given(tmp_path: Path) -> None:
    done = model_zoo("lengths", "--out", str(tmp_path / "lengths.json"))
    assert done.returncode == 2
    assert "either --prompts or --trace must be given" in done.stderr


def test_lengths_without_a_folder_to_write_to_are_refused_before_the_work(tmp_path: Path) -> None:
    out = tmp_path / "no-folder" / "lengths.json"
    for source in ("--prompts", "--trace"):
        done = model_zoo("lengths", source, str(tmp_path / "no-file"), "--out", str(out))
        assert done.returncode == 2
        assert "the folder of --out" in done.stderr
    done = model_zoo("lengths", "--trace", str(tmp_path / "no-file"), "--out", str(tmp_path))
    assert done.returncode == 2
    assert "is a folder" in " ".join(done.stderr.replace("│", " ").split())
