"""The roofline model: its times follow from published figures and never fall with more work; bad setups are refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_sim.roofline.roofline import (
    COMPUTE_EFFICIENCY,
    DEVICES,
    MEMORY_EFFICIENCY,
    MODELS,
    MOST_TOKENS,
    SHIPPED,
    Role,
    Setup,
    encode,
    not_negative_fit,
    profile_of,
)
from shared.data.profiles import read_profile

ROOT = Path(__file__).parents[3]
TARGET = Setup(Role.VERIFIER, "a100", "llama-2-70b", 2)
VERIFIERS = [setup for setup in SHIPPED if setup.role == Role.VERIFIER]
DRAFTERS = [setup for setup in SHIPPED if setup.role == Role.DRAFTER]


def name_of(setup: Setup) -> str:
    return setup.name


# --- the formulas -----------------------------------------------------------------------------------------------------


def test_a_pass_bound_by_memory_takes_its_bytes_over_the_bandwidth_within_the_stated_efficiency() -> None:
    """138 GB in half precision over twice 2,039 GB/s; layers and exchanges add less than a tenth."""
    at_best = 2 * 68.98e9 / (2 * 2039e9) * 1000
    assert at_best < TARGET.pass_ms(1) * MEMORY_EFFICIENCY < 1.1 * at_best
    assert TARGET.pass_ms(1) == pytest.approx(42.3 + 0.8 + 1.6, rel=0.01)


def test_a_pass_bound_by_arithmetic_takes_its_operations_over_the_published_rate_within_the_stated_efficiency() -> None:
    setup = Setup(Role.VERIFIER, "a100", "llama-2-7b")
    at_best = 2 * 6.738e9 * 4096 / 312e12 * 1000
    assert setup.pass_ms(4096) * COMPUTE_EFFICIENCY == pytest.approx(at_best, rel=0.01)


def test_cached_tokens_take_the_bytes_of_their_keys_and_values() -> None:
    """Llama-2-70B: 2 x 80 layers x 8 heads x 128 numbers in half precision."""
    assert MODELS["llama-2-70b"].kv_bytes == 327_680
    longer = TARGET.pass_ms(1, 10_000) - TARGET.pass_ms(1)
    assert longer * MEMORY_EFFICIENCY == pytest.approx(10_000 * 327_680 / (2 * 2039e9) * 1000)


def test_the_published_sizes_follow_from_the_published_shapes() -> None:
    """Shapes: vocabulary, width, layers, width of queries, width of keys and values, width of the feed-forward part."""
    shapes = {
        "llama-2-7b": (32_000, 4096, 32, 4096, 4096, 11_008),
        "llama-2-70b": (32_000, 8192, 80, 8192, 1024, 28_672),
        "llama-3.1-70b": (128_256, 8192, 80, 8192, 1024, 28_672),
        "llama-3.2-1b": (128_256, 2048, 16, 2048, 512, 8192),
        "qwen2-7b": (152_064, 3584, 28, 3584, 512, 18_944),
        "qwen2-72b": (152_064, 8192, 80, 8192, 1024, 29_568),
        "qwen2.5-0.5b": (151_936, 896, 24, 896, 128, 4864),
        "smollm2-135m": (49_152, 576, 30, 576, 192, 1536),
    }
    tied, with_bias = {"llama-3.2-1b", "qwen2.5-0.5b", "smollm2-135m"}, {"qwen2-7b", "qwen2-72b", "qwen2.5-0.5b"}
    assert set(shapes) == set(MODELS)
    for name, (vocab, width, layers, queries, keys, inner) in shapes.items():
        model = MODELS[name]
        assert (model.hidden_size, model.num_layers) == (width, layers)
        assert model.num_kv_heads * model.head_dim == keys
        bias = queries + 2 * keys if name in with_bias else 0
        layer = 2 * width * queries + 2 * width * keys + bias + 3 * width * inner + 2 * width
        assert model.num_parameters == vocab * width * (1 if name in tied else 2) + layers * layer + width, name


def test_fewer_bits_take_less_time_if_memory_bound() -> None:
    half, quarter = Setup(Role.DRAFTER, "orin", "llama-3.2-1b"), Setup(Role.DRAFTER, "orin", "llama-3.2-1b", 1, 4)
    overhead = 0.01 * 16
    assert quarter.pass_ms(1) - overhead == pytest.approx((half.pass_ms(1) - overhead) / 4)


def test_more_devices_take_less_time_except_for_their_exchange() -> None:
    times = [Setup(Role.VERIFIER, "a100", "llama-2-70b", gpus).pass_ms(8) for gpus in (2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert times[0] < 2 * times[1] < 4 * times[2], "the exchange does not become shorter"


def test_an_h100_is_no_slower_than_an_a100_and_that_no_slower_than_a_v100() -> None:
    for model in ("llama-2-7b", "qwen2-7b"):
        for tokens in range(1, MOST_TOKENS + 1):
            times = [Setup(Role.VERIFIER, device, model).pass_ms(tokens, 4000) for device in ("h100", "a100", "v100")]
            assert times == sorted(times), (model, tokens)


# --- the profiles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", VERIFIERS, ids=name_of)
def test_times_of_passes_are_never_negative_and_never_fall_with_tokens_or_context(setup: Setup) -> None:
    times = profile_of(setup).pass_times
    assert min(times.weights) >= 0
    for cached in (0, 20_000):
        passes = [times.pass_ms(8, tokens, cached) for tokens in range(1, 4 * MOST_TOKENS)]
        assert passes[0] > 0
        assert passes == sorted(passes)
    assert times.pass_ms(8, 8, 20_000) > times.pass_ms(8, 8, 0)


@pytest.mark.parametrize("setup", VERIFIERS, ids=name_of)
def test_the_fit_error_of_a_profile_is_what_its_origin_says(setup: Setup) -> None:
    profile = profile_of(setup)
    ratios = [profile.pass_times.pass_ms(1, n, 0) / setup.pass_ms(n) for n in range(1, MOST_TOKENS + 1)]
    stated = re.search(r"off by ([\d.]+)% in the median, ([\d.]+)% at worst", profile.origin)
    assert stated is not None
    worst = max(abs(ratio - 1) for ratio in ratios)
    assert worst == pytest.approx(float(stated[2]) / 100, abs=0.0006)
    assert worst < 0.12
    assert profile.pass_times.pass_ms(1, 1, 0) == pytest.approx(setup.pass_ms(1), rel=0.03)


@pytest.mark.parametrize("setup", DRAFTERS, ids=name_of)
def test_a_draft_step_of_one_token_takes_what_the_roofline_says(setup: Setup) -> None:
    times = profile_of(setup).step_times
    assert times.feed_ms(1) == pytest.approx(setup.pass_ms(1))
    assert times.feed_ms(64) == pytest.approx(setup.pass_ms(64), rel=1e-4)
    assert times.feed_ms(1, 1000) == pytest.approx(setup.pass_ms(1, 1000), rel=1e-4)
    assert 0 <= times.fed_ms < 0.1 * times.step_ms


@pytest.mark.parametrize("setup", SHIPPED, ids=name_of)
def test_a_profile_that_ships_equals_the_computed_one(setup: Setup) -> None:
    path = ROOT / "profiles" / f"{setup.name}.json"
    assert path.read_text(encoding="utf-8") == encode(profile_of(setup))
    assert read_profile(path) == profile_of(setup)


def test_no_other_roofline_ships() -> None:
    assert {path.stem for path in (ROOT / "profiles").glob("roofline-*.json")} == {setup.name for setup in SHIPPED}


def test_every_figure_has_its_source() -> None:
    assert all(part.source for part in (*DEVICES.values(), *MODELS.values()))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a100", "llama-2-70b"), "llama-2-70b in 16 bits takes 128.5 GiB, but 1 x a100 has room for 72.0 GiB"),
        (("a6000", "llama-2-70b", 2), "llama-2-70b in 16 bits takes 128.5 GiB, but 2 x a6000 has room for 86.4 GiB"),
        (("phone-npu", "llama-2-7b", 1, 8), "llama-2-7b in 8 bits takes 6.3 GiB, but 1 x phone-npu has room for 5.4"),
        (("orin", "qwen2-7b", 2), "gpus must be 1 to 1, got 2: orin has no link"),
        (("h100", "qwen2-7b", 8), "gpus must be 1 to 4, got 8: qwen2-7b has 4 KV heads"),
        (("h100", "qwen2-7b", 0), "gpus must be 1 to 4, got 0"),
        (("b200", "qwen2-7b"), f"device must be one of {', '.join(DEVICES)}, got 'b200'"),
        (("h100", "gpt-2"), f"model must be one of {', '.join(MODELS)}, got 'gpt-2'"),
        (("h100", "qwen2-7b", 1, 0.5), "weight_bits must be 1 to 32, got 0.5"),
    ],
)
def test_an_impossible_setup_is_refused_with_its_reason(arguments: tuple[Any, ...], message: str) -> None:
    device, model, *others = arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        Setup(Role.VERIFIER, device, model, *others)


def test_quantised_weights_fit_where_half_precision_does_not() -> None:
    profile = profile_of(Setup(Role.VERIFIER, "a100", "llama-2-70b", weight_bits=4))
    assert profile.name == "roofline-a100-llama-2-70b-4bit"
    assert profile.drafter is None


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_no_other_non_negative_weights_fit_better() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        features, values = rng.normal(size=(12, 4)), rng.normal(size=12)
        weights = not_negative_fit(features, values)
        assert weights.min() >= 0
        least = np.sum((values - features @ weights) ** 2)
        others = np.maximum(0, weights + 0.1 * rng.normal(size=(200, 4)))
        assert np.sum((values[:, None] - features @ others.T) ** 2, axis=0).min() >= least - 1e-9


def test_a_fit_finds_the_weights_that_made_the_values() -> None:
    features = np.random.default_rng(2).uniform(size=(30, 4))
    weights = np.array([3.0, 0.0, 0.5, 0.0])
    assert not_negative_fit(features, features @ weights) == pytest.approx(weights, abs=1e-6)


# --- the command ------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "dsd_sim", "roofline", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_writes_a_profile_and_prints_the_kv_tokens(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    done = command("--device", "a100", "--model", "llama-2-70b", "--gpus", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert read_profile(out) == profile_of(TARGET)
    assert done.stderr == "roofline-a100x2-llama-2-70b: room for 50,859 tokens of KV cache\n"


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    done = command("--device", "v100", "--model", "llama-2-70b", "--out", str(tmp_path / "profile.json"))
    assert done.returncode == 2
    assert done.stderr == "llama-2-70b in 16 bits takes 128.5 GiB, but 1 x v100 has room for 28.8 GiB\n"
    assert not list(tmp_path.iterdir())
    done = command("--device", "v100")
    assert (done.returncode, done.stderr) == (2, "either --device and --model or --shipped must be given\n")


def test_the_command_writes_the_profiles_that_ship(tmp_path: Path) -> None:
    done = command("--shipped", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in tmp_path.iterdir()} == {setup.name for setup in SHIPPED}
