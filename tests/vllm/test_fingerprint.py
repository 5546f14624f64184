"""The fingerprint of an engine on vLLM changes with each fact that its logits may depend on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from vllm import __version__ as vllm_version

from services.cloud_verifier.vllm_engine import core
from services.cloud_verifier.vllm_engine.fingerprint import fingerprint_of
from tests.vllm import tiny
from tests.vllm.conftest import loaded

FACTS = {
    "vllm": "0.32.0",
    "torch": "2.13.0",
    "device": "NVIDIA H100",
    "attention": "FLASH_ATTN",
    "dtype": "torch.bfloat16",
    "quantization": "None",
    "kv_cache_dtype": "auto",
    "tensor_parallel_size": "1",
    "compilation": "3",
    "numpy": "2.4.1",
    "llguidance": "1.9.1",
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with the files that count."""
    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    (tmp_path / "model.safetensors").write_bytes(bytes(5000))
    return str(tmp_path)


@pytest.mark.timeout(600)
def test_an_engine_tells_all_of_these_facts(tmp_path: Path) -> None:
    with loaded(tiny.save(tiny.llama(), tmp_path), vllm_args=tiny.FLAGS) as engine:
        numerics = engine._core.numerics()
    assert numerics.keys() == FACTS.keys()
    assert all(numerics.values())
    assert (numerics["vllm"], numerics["torch"], numerics["dtype"]) == (
        vllm_version,
        torch.__version__,
        "torch.float32",
    )
    assert numerics["device"] == core.device_name()


@pytest.mark.parametrize("name", FACTS)
def test_another_value_of_this_fact_is_another_fingerprint(name: str, model: str) -> None:
    assert fingerprint_of(model, "m", FACTS | {name: "other"}) != fingerprint_of(model, "m", FACTS)


def test_equal_facts_and_files_are_one_fingerprint(model: str) -> None:
    assert fingerprint_of(model, "m", FACTS) == fingerprint_of(model, "m", dict(reversed(FACTS.items())))


def test_batch_invariance_is_another_fingerprint(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = fingerprint_of(model, "m", FACTS)
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert fingerprint_of(model, "m", FACTS) != variant


@pytest.mark.parametrize("change", ["name", "config.json", "model.safetensors"])
def test_another_model_is_another_fingerprint(change: str, model: str) -> None:
    before = fingerprint_of(model, "m", FACTS)
    if change != "name":
        (Path(model) / change).write_bytes(b"{}" + bytes(4998))
    assert fingerprint_of(model, "other" if change == "name" else "m", FACTS) != before


def test_the_device_is_the_platforms_gpu_or_the_instruction_sets_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    names = []
    for has_amx in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has_amx=has_amx: {"amx_tile": has_amx, "avx2": True})
        names.append(core.device_name())
    assert names[1] == f"{names[0]} amx_tile"
    assert names[0].endswith(" AVX512")
    monkeypatch.setattr(core, "is_on_cpu", lambda: False)
    monkeypatch.setattr(type(core.current_platform), "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    assert core.device_name() == "NVIDIA H100 80GB HBM3"
