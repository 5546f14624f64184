"""Profiles of hardware computed by a roofline model from published figures (docs/roofline.md).

A pass takes the time to read the weights or to compute its tokens, whichever is longer, plus the time of its caches,
its layers, and the exchange between devices. Nothing is measured: the figures are the vendors', and the shares of them
that real kernels reach are assumptions.

Invariant: times are not negative and don't fall with more tokens or longer contexts. A model that doesn't fit into the
memory is refused. The same arguments give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.data.profiles import PassTimes, Profile, StepTimes
from shared.policies.batching import HINGES

MEMORY_EFFICIENCY = 0.8  # share of the published bandwidth
COMPUTE_EFFICIENCY = 0.6  # share of the published dense half-precision arithmetic
LAYER_MS = 0.01  # fixed time of each layer: kernel launches
EXCHANGE_MS = 0.01  # fixed time of each all-reduce
EXCHANGES = 2  # all-reduces per layer: after attention and after the feed-forward part
HALF_BYTES = 2  # bytes of a half-precision number: KV cache and exchanged states
MEMORY_SHARE = 0.9  # share of the memory for weights and KV cache
MOST_TOKENS = 256  # largest pass that a profile is fitted to: the services' token budget
LONGEST_STEP = 64  # tokens of the longest draft step that a profile is fitted to
GIB = 2**30


class Role(StrEnum):
    VERIFIER = "verifier"
    DRAFTER = "drafter"


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Published figures of one accelerator."""

    bandwidth: float  # of the memory, GB/s
    tflops: float  # dense, half precision
    memory_gib: float
    link: float  # GB/s each way, to devices of the same kind; 0: no link
    source: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Published shape of a decoder-only transformer."""

    num_parameters: int
    num_layers: int
    hidden_size: int
    num_kv_heads: int
    head_dim: int
    source: str

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache per token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * HALF_BYTES


DEVICES: dict[str, DeviceSpec] = {
    "a40": DeviceSpec(696, 149.7, 48, 32, "NVIDIA A40 datasheet; link: PCIe 4.0 x16, as NVLink joins two cards only"),
    "v100": DeviceSpec(900, 125, 32, 150, "NVIDIA V100 datasheet, SXM2 with 32 GB; NVLink 300 GB/s both ways"),
    "a6000": DeviceSpec(
        768, 154.8, 48, 32, "NVIDIA RTX A6000 datasheet, half of the sparse 309.7 TFLOPS; link as the A40"
    ),
    "a100": DeviceSpec(2039, 312, 80, 300, "NVIDIA A100 datasheet, SXM with 80 GB; NVLink 600 GB/s both ways"),
    "h100": DeviceSpec(3350, 989.4, 80, 450, "NVIDIA H100 datasheet and white paper, SXM; NVLink 900 GB/s both ways"),
    "orin": DeviceSpec(204.8, 42.5, 64, 0, "NVIDIA Jetson AGX Orin technical brief; a quarter of 170 sparse TOPS"),
    "phone-npu": DeviceSpec(
        76.8,
        17.5,
        6,
        0,
        "an assumed class of phones: 64 bits of LPDDR5X at 4,800 MHz (Qualcomm Snapdragon 8 Gen 3 product brief), half "
        "of the 35 TOPS announced for Apple's A17 Pro, and half of 12 GB of memory",
    ),
}

MODELS: dict[str, ModelSpec] = {
    "llama-2-7b": ModelSpec(6_738_415_616, 32, 4096, 32, 128, "config.json of meta-llama/Llama-2-7b-hf"),
    "llama-2-70b": ModelSpec(68_976_648_192, 80, 8192, 8, 128, "config.json of meta-llama/Llama-2-70b-hf"),
    "llama-3.1-70b": ModelSpec(70_553_706_496, 80, 8192, 8, 128, "config.json of meta-llama/Llama-3.1-70B"),
    "llama-3.2-1b": ModelSpec(1_235_814_400, 16, 2048, 8, 64, "config.json of meta-llama/Llama-3.2-1B"),
    "qwen2-7b": ModelSpec(7_615_616_512, 28, 3584, 4, 128, "config.json of Qwen/Qwen2-7B"),
    "qwen2-72b": ModelSpec(72_706_203_648, 80, 8192, 8, 128, "config.json of Qwen/Qwen2-72B"),
    "qwen2.5-0.5b": ModelSpec(494_032_768, 24, 896, 2, 64, "config.json of Qwen/Qwen2.5-0.5B"),
    "smollm2-135m": ModelSpec(134_515_008, 30, 576, 3, 64, "config.json of HuggingFaceTB/SmolLM2-135M"),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """One model on one device, or on several by tensor parallelism. Raises ValueError for an impossible setup."""

    role: Role
    device_name: str
    model_name: str
    gpus: int = 1
    weight_bits: float = 16

    def __post_init__(self) -> None:
        _check_known("device", self.device_name, DEVICES)
        _check_known("model", self.model_name, MODELS)
        if not 1 <= self.weight_bits <= 32:
            raise ValueError(f"weight_bits must be 1 to 32, got {self.weight_bits:g}")
        most = self.model.num_kv_heads if self.device.link else 1
        if not 1 <= self.gpus <= most:
            reason = f"{self.model_name} has {most} KV heads" if self.device.link else f"{self.device_name} has no link"
            raise ValueError(f"gpus must be 1 to {most}, got {self.gpus}: {reason}")
        if self.weight_bytes > self.room_bytes:
            weights, room = self.weight_bytes / GIB, self.room_bytes / GIB
            raise ValueError(
                f"{self.model_name} in {self.weight_bits:g} bits takes {weights:.1f} GiB, "
                f"but {self.gpus} x {self.device_name} has room for {room:.1f} GiB"
            )

    @property
    def device(self) -> DeviceSpec:
        return DEVICES[self.device_name]

    @property
    def model(self) -> ModelSpec:
        return MODELS[self.model_name]

    @property
    def name(self) -> str:
        """Name of the profile and, without suffix, of its file."""
        many = f"x{self.gpus}" if self.gpus > 1 else ""
        bits = "" if self.weight_bits == 16 else f"-{self.weight_bits:g}bit"
        return f"roofline-{self.device_name}{many}-{self.model_name}{bits}"

    @property
    def weight_bytes(self) -> float:
        return self.model.num_parameters * self.weight_bits / 8

    @property
    def room_bytes(self) -> float:
        return self.gpus * self.device.memory_gib * GIB * MEMORY_SHARE

    @property
    def kv_tokens(self) -> int:
        """KV cache that fits beside the weights, in tokens."""
        return int((self.room_bytes - self.weight_bytes) / self.model.kv_bytes)

    def read_ms(self, num_bytes: float) -> float:
        """Milliseconds to read bytes that are divided among the devices."""
        return num_bytes / (self.gpus * self.device.bandwidth * MEMORY_EFFICIENCY * 1e6)

    def compute_ms(self, num_tokens: int) -> float:
        """Milliseconds of one multiplication and one addition per parameter and token."""
        operations = 2 * self.model.num_parameters * num_tokens
        return operations / (self.gpus * self.device.tflops * COMPUTE_EFFICIENCY * 1e9)

    def exchange_ms(self, num_tokens: int) -> float:
        """Milliseconds of the ring all-reduces of the tokens' hidden states."""
        if self.gpus == 1:
            return 0.0
        num_bytes = 2 * (self.gpus - 1) / self.gpus * num_tokens * self.model.hidden_size * HALF_BYTES
        return EXCHANGES * self.model.num_layers * (EXCHANGE_MS + num_bytes / (self.device.link * 1e6))

    def pass_ms(self, num_tokens: int, num_cached: int = 0) -> float:
        """Milliseconds of a pass or draft step that feeds `num_tokens` and reads `num_cached` tokens of KV cache."""
        weights = max(self.read_ms(self.weight_bytes), self.compute_ms(num_tokens))
        caches = self.read_ms(num_cached * self.model.kv_bytes)
        return LAYER_MS * self.model.num_layers + weights + caches + self.exchange_ms(num_tokens)


def _check_known(kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}")


SHIPPED: tuple[Setup, ...] = (
    *(Setup(Role.VERIFIER, "a100", model, 2) for model in ("llama-2-70b", "qwen2-72b")),
    Setup(Role.VERIFIER, "a100", "qwen2-72b", 4),
    *(Setup(Role.VERIFIER, "h100", model, 2) for model in ("llama-2-70b", "qwen2-72b", "llama-3.1-70b")),
    Setup(Role.VERIFIER, "h100", "llama-3.1-70b", 4),
    *(Setup(Role.VERIFIER, "a6000", model, 4) for model in ("llama-2-70b", "qwen2-72b")),
    *(Setup(Role.DRAFTER, device, model) for device in ("a40", "v100") for model in ("llama-2-7b", "qwen2-7b")),
    Setup(Role.DRAFTER, "orin", "qwen2.5-0.5b"),
    Setup(Role.DRAFTER, "phone-npu", "llama-3.2-1b", weight_bits=4),
    Setup(Role.DRAFTER, "a100", "llama-2-7b", 2),
    Setup(Role.DRAFTER, "a100", "qwen2.5-0.5b", 2),
    Setup(Role.DRAFTER, "h100", "llama-3.2-1b", 4),
)


def profile_of(setup: Setup) -> Profile:
    passes = steps = None
    if setup.role == Role.VERIFIER:
        passes, error = _pass_times(setup)
        span = f"passes of 1 to {MOST_TOKENS} tokens"
    else:
        steps, error = _step_times(setup)
        span = f"steps of 1 to {LONGEST_STEP} tokens"
    origin = (
        f"dsd_sim roofline, computed and not measured: {setup.gpus} x {setup.device_name}, {setup.model_name} in "
        f"{setup.weight_bits:g} bits, {MEMORY_EFFICIENCY:.0%} of the published bandwidth, {COMPUTE_EFFICIENCY:.0%} of "
        f"the published arithmetic, {LAYER_MS:g} ms a layer; off by {error} over {span}"
    )
    return Profile(name=setup.name, origin=origin, verifier=passes, drafter=steps)


def encode(profile: Profile) -> str:
    """The content of a profile's file."""
    return profile.model_dump_json(indent=2, exclude_none=True) + "\n"


def write_shipped(folder: Path) -> list[Path]:
    """Writes the profiles of SHIPPED, each to a file with its name."""
    written = []
    for setup in SHIPPED:
        path = folder / f"{setup.name}.json"
        path.write_text(encode(profile_of(setup)), encoding="utf-8")
        written.append(path)
    return written


def _pass_times(setup: Setup) -> tuple[PassTimes, str]:
    """Pass times and their fit error. The cost model bends at its hinges, the roofline at its knee, so this is a least
    squares fit of relative errors. Token counts grow geometrically: short and long passes weigh the same."""
    counts = np.unique(np.rint(np.geomspace(1, MOST_TOKENS, 100)).astype(np.int64))
    times = np.array([setup.pass_ms(int(count)) for count in counts])
    fitted = not_negative_fit(_features(counts) / times[:, None], np.ones(len(counts)))
    base, token, *above = (round(float(weight), 6) for weight in fitted)
    cached = round(setup.read_ms(1000 * setup.model.kv_bytes), 6)
    passes = PassTimes(base_ms=base, token_ms=token, above_ms=(above[0], above[1], above[2]), cached_ms=cached)
    return passes, _error(setup, lambda count: passes.pass_ms(1, count, 0), MOST_TOKENS)


def _step_times(setup: Setup) -> tuple[StepTimes, str]:
    """Step times, a straight line through a step of one token and the longest one, and their fit error. In a roofline a
    token costs the same whether it is of the same session or of a further one."""
    one, longest = setup.pass_ms(1), setup.pass_ms(LONGEST_STEP)
    token_ms = round((longest - one) / (LONGEST_STEP - 1), 6)
    steps = StepTimes(
        step_ms=round(one, 6),
        step_ms_per_1000=round(setup.read_ms(1000 * setup.model.kv_bytes), 6),
        fed_ms=token_ms,
        session_ms=token_ms,
    )
    return steps, _error(setup, steps.feed_ms, LONGEST_STEP)


def _features(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """1, tokens, tokens above each hinge: [counts, 2 + hinges]. In a roofline a session by itself costs nothing."""
    excess = [np.maximum(counts - hinge, 0) for hinge in HINGES]
    return np.column_stack([np.ones(len(counts)), counts, *excess])


def _error(setup: Setup, fitted_ms: Callable[[int], float], most: int) -> str:
    errors = [abs(fitted_ms(count) / setup.pass_ms(count) - 1) for count in range(1, most + 1)]
    return f"{float(np.median(errors)):.1%} in the median, {max(errors):.1%} at worst"


def not_negative_fit(features: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with weights ≥ 0, [features]: the best unconstrained fit over all subsets of the columns."""
    num = features.shape[1]
    best, least = np.zeros(num), float(values @ values)
    for size in range(1, num + 1):
        for columns in combinations(range(num), size):
            chosen = list(columns)
            weights = np.linalg.lstsq(features[:, chosen], values, rcond=None)[0]
            rest = values - features[:, chosen] @ weights
            squares = float(rest @ rest)
            if weights.min() >= 0 and squares < least - 1e-12:
                best, least = np.zeros(num), squares
                best[chosen] = weights
    return best
