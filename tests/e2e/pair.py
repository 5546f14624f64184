"""Fixtures of the default pair that need no built-in engine: tokenizer, prompts, drafts."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.edge_drafter.model import DraftModel, load_draft
from services.gateway.text.tokenizer import TargetTokenizer, load_tokenizer
from tests.e2e.prompts import read_prompts


@pytest.fixture(scope="session")
def tokenizer(default_models: Path) -> TargetTokenizer:
    return load_tokenizer(default_models / "target")


@pytest.fixture(scope="session")
def prompts(tokenizer: TargetTokenizer) -> list[list[int]]:
    return read_prompts(tokenizer)


@pytest.fixture(scope="session")
def drafts(default_models: Path) -> dict[str, DraftModel]:
    return {kind: load_draft(str(default_models / f"draft-{kind}"), 1) for kind in ("int8", "int4")}
