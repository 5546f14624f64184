"""The engine on vLLM, real and on CPUs. `make test-vllm` runs these tests in the environment that `make vllm` makes.

Engines are loaded one after the other: vLLM allows one in a process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services.cloud_verifier.settings import VerifierSettings
from tests.e2e.pair import drafts, prompts, tokenizer
from tests.e2e.yardstick import PlainModel

if TYPE_CHECKING:
    from services.cloud_verifier.vllm_engine.engine import VllmEngine

__all__ = ["drafts", "prompts", "tokenizer"]

HAS_VLLM = importlib.util.find_spec("vllm") is not None
collect_ignore_glob = [] if HAS_VLLM else ["test_*.py"]
EAGER = "--enforce-eager --max-model-len 2048"  # compiling takes a minute and changes nothing that is tested here

if HAS_VLLM:
    from services.cloud_verifier.vllm_engine import environment

    environment.prepare(VerifierSettings(target="any", engine="vllm", num_threads=1))


def pytest_configure(config: pytest.Config) -> None:
    """Warnings of vLLM and its dependencies are no errors of ours."""
    if HAS_VLLM:
        config.addinivalue_line("filterwarnings", "default")


@contextmanager
def loaded(target: Path, *, dtype: str = "float32", vllm_args: str = EAGER, **settings: Any) -> Iterator[VllmEngine]:
    """An engine, until the end of the block."""
    from services.cloud_verifier.vllm_engine.engine import load_engine
    from services.cloud_verifier.vllm_engine.flags import engine_args

    chosen = VerifierSettings(target=str(target), engine="vllm", dtype=dtype, vllm_args=vllm_args, **settings)
    engine = load_engine(chosen, engine_args(chosen))
    try:
        yield engine
    finally:
        engine.shutdown()


@pytest.fixture(scope="module")
def engine(default_models: Path) -> Iterator[VllmEngine]:
    """The default target in float32."""
    with loaded(default_models / "target") as engine:
        yield engine


@pytest.fixture(scope="session")
def plain(default_models: Path) -> PlainModel:
    return PlainModel(default_models / "target")


Report = Callable[[str], None]


@pytest.fixture
def report(capfd: pytest.CaptureFixture[str]) -> Report:
    """Prints a line although the test passes. Not with capsys: vLLM 0.31 wants the file descriptor of stdout."""

    def say(line: str) -> None:
        with capfd.disabled():
            print(f"\n  {line}", end="")

    return say
