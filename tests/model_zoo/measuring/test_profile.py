"""Profiles: the fit finds known times, and the command times the very models of the default pair."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from model_zoo.measuring.profile import PassPoint, StepPoint, fit_passes, fit_steps
from shared.data.profiles import PassTimes, StepTimes, read_profile
from tests.model_zoo.command import model_zoo

ROOT = Path(__file__).parents[3]


def test_a_fit_finds_the_times_that_made_the_points() -> None:
    rng = random.Random(1)
    true = PassTimes(base_ms=20.0, session_ms=1.5, token_ms=0.4, above_ms=(0.2, 0.1, 0.0), cached_ms=3.0)
    sizes = [(rng.randint(1, 8), rng.randint(1, 250), rng.randint(0, 6000)) for _ in range(200)]
    passes, error = fit_passes([PassPoint(*size, true.pass_ms(*size) * rng.uniform(0.99, 1.01)) for size in sizes])
    assert passes.weights == pytest.approx(true.weights, rel=0.1, abs=0.05)
    assert 0 < error.median < error.worst < 0.02

    step = StepTimes(step_ms=9.0, step_ms_per_1000=2.0, fed_ms=1.2)
    points = [StepPoint(c, n, step.feed_ms(n, c)) for c in (0, 100, 900) for n in (1, 8, 64)]
    steps, error = fit_steps(points)
    assert (steps.step_ms, steps.step_ms_per_1000, steps.fed_ms) == pytest.approx((9.0, 2.0, 1.2), rel=1e-4)
    assert error.worst < 1e-4
    assert steps.session_ms is None

    shared = step.model_copy(update={"session_ms": 3.5})
    sizes = [(n, n * c) for n in (1, 2, 8) for c in (0, 900)]
    points += [StepPoint(context, n, shared.feed_ms(n, context, n), n) for n, context in sizes]
    steps, error = fit_steps(points)
    assert steps.model_dump() == pytest.approx(shared.model_dump(), rel=1e-4)
    assert error.worst < 1e-4


def test_a_further_token_of_a_large_pass_may_take_less_time() -> None:
    true = PassTimes(base_ms=43.0, token_ms=5.0, above_ms=(-1.0, -1.5, 0.5))
    sizes = [(num, num * tokens, 0) for num in (1, 4) for tokens in (1, 2, 4, 8, 16, 32, 48, 64)]
    passes, error = fit_passes([PassPoint(*size, true.pass_ms(*size)) for size in sizes])
    assert passes.weights == pytest.approx(true.weights, rel=1e-3, abs=1e-3)
    assert error.worst < 1e-3


def test_beyond_the_largest_measured_pass_a_token_takes_what_it_took_there() -> None:
    true = PassTimes(base_ms=40.0, token_ms=5.0, above_ms=(-2.0, 0.0, 0.0))
    passes, _ = fit_passes([PassPoint(1, num, 0, true.pass_ms(1, num, 0)) for num in range(1, 31)])
    assert passes.pass_ms(1, 250, 0) == pytest.approx(true.pass_ms(1, 250, 0), rel=1e-3)


def test_passes_that_take_longer_now_and_then_are_fitted_to_their_mean() -> None:
    rng = random.Random(2)
    small = [PassPoint(1, 1 + i % 5, 200, 40.0 * rng.uniform(0.98, 1.02)) for i in range(200)]
    large = [PassPoint(1, 40 + i, 40 + i, 55.0 + (25.0 if i % 3 == 0 else 0.0)) for i in range(21)]
    passes, _ = fit_passes([*small, *large])
    predicted = sum(passes.pass_ms(p.num_sessions, p.num_tokens, p.num_cached) for p in large)
    assert predicted == pytest.approx(sum(p.elapsed_ms for p in large), rel=0.01)


def test_a_fit_has_no_negative_times_and_tells_how_far_it_is_off() -> None:
    steps, error = fit_steps([StepPoint(0, 1, 10.0), StepPoint(500, 1, 8.0), StepPoint(0, 9, 12.0)])
    assert min(steps.step_ms, steps.step_ms_per_1000, steps.fed_ms) >= 0
    assert error.worst > 0.05


def profile(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "model_zoo", "profile", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))


def test_the_command_times_a_draft_and_says_on_what_and_how_well_it_fits(default_models: Path, tmp_path: Path) -> None:
    out = tmp_path / "my-edge.json"
    done = profile("--draft", str(default_models / "draft-int4"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = read_profile(out)
    assert found.name == "my-edge"
    assert found.verifier is None
    assert found.step_times.step_ms > 0
    assert found.step_times.feed_ms(64) > 2 * found.step_times.feed_ms(1)
    assert found.step_times.session_ms is not None
    assert found.origin.startswith("model_zoo profile: draft-int4, 1 thread, ")
    assert "off by" in found.origin


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "either --target or --draft must be given"),
        (["--draft", "nowhere"], 1, "profile failed: no draft model in /"),
        (["--target", "nowhere"], 1, "profile failed: "),
        (
            ["--draft", "nowhere", "--out", "My_Edge.json"],
            2,
            "the file name of --out is the profile's name and must match",
        ),
        (["--draft", "nowhere", "--out", "no-folder/edge.json"], 2, "the folder of --out, no-folder, does not exist"),
    ],
)
def test_what_cannot_be_timed_is_told(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    arguments = [str(tmp_path / each) if each == "nowhere" else each for each in arguments]
    done = model_zoo("profile", "--out", str(tmp_path / "out.json"), *arguments)
    assert done.returncode == status
    assert message in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out.json").exists()
