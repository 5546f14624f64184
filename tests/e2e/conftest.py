"""The default pair, loaded once for all end-to-end tests, and prompts in its tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.cloud_verifier.model import TargetModel, load_target
from services.edge_drafter.model import DraftModel, load_draft
from services.gateway.template import ChatMessage
from services.gateway.tokenizer import TargetTokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer(default_models: Path) -> TargetTokenizer:
    return load_tokenizer(default_models / "target")


@pytest.fixture(scope="session")
def prompts(tokenizer: TargetTokenizer) -> list[list[int]]:
    """The 40 prompts of tests/data, as token ids of a chat."""
    lines = (Path(__file__).parents[1] / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [ChatMessage(role="user", content=json.loads(line)["prompt"]) for line in lines]
    return [list(tokenizer.encode_chat([message])) for message in messages]


@pytest.fixture(scope="session")
def target(default_models: Path) -> TargetModel:
    """The default target in bfloat16 on the CPU."""
    return load_target(str(default_models / "target"), "cpu", "bfloat16", 1)


@pytest.fixture(scope="session")
def drafts(default_models: Path) -> dict[str, DraftModel]:
    return {kind: load_draft(str(default_models / f"draft-{kind}"), 1) for kind in ("int8", "int4")}
