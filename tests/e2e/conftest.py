"""The default pair, loaded once for all end-to-end tests, and prompts in its tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cloud_verifier.torch_engine.model import TargetModel, load_target
from tests.e2e.pair import drafts, prompts, tokenizer

__all__ = ["drafts", "prompts", "tokenizer"]


@pytest.fixture(scope="session")
def target(default_models: Path) -> TargetModel:
    """The default target in bfloat16 on the CPU."""
    return load_target(str(default_models / "target"), "cpu", "bfloat16", 1)
