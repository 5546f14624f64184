"""The built-in engine serves on a GPU too, and says which engine is made for it."""

from __future__ import annotations

import pytest
import torch
from structlog.testing import capture_logs

from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine import engine
from tests.fakes import FakeTarget


@pytest.mark.parametrize(("device", "num_warnings"), [("cpu", 0), ("cuda", 1)])
def test_on_a_gpu_a_warning_recommends_vllm(device: str, num_warnings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "pick_device", lambda _: torch.device(device))
    monkeypatch.setattr(engine, "load_model", lambda _: FakeTarget())
    with capture_logs() as lines:
        engine.load_engine(VerifierSettings(target="none"))
    assert ["--engine vllm" in line["event"] for line in lines] == [True] * num_warnings
    assert all(line["log_level"] == "warning" for line in lines)
