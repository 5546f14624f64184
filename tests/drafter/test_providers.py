"""Execution providers: settings, what is not installed, who computes a graph. OpenVINO for real where it is installed.

`pip install onnxruntime-openvino` into an environment without onnxruntime; then
`pytest --noconftest tests/drafter/test_providers.py` needs the default drafts in DSD's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from services.edge_drafter.graphs import graph
from services.edge_drafter.graphs.providers import KNOWN, Providers, full_name, short_name
from services.edge_drafter.model import DraftModel, DraftRow, load_draft
from services.edge_drafter.settings import DrafterSettings
from shared.runtime.config import BadSettings, read
from shared.runtime.home import default_models_dir

DRAFT = default_models_dir() / "draft-int8"
ON_OPENVINO = Providers(("OpenVINO", "CPU"), {"OpenVINO": {"device_type": "CPU"}})
with_openvino = pytest.mark.skipif(
    full_name("OpenVINO") not in ort.get_available_providers() or not DRAFT.is_dir(),
    reason="needs onnxruntime-openvino and the default drafts",
)


def settings(*flags: str) -> DrafterSettings:
    return read(DrafterSettings, ["--draft", "folder", *flags], "drafter")


def test_the_cpu_is_the_default_and_others_are_named_in_order_with_their_options() -> None:
    assert settings().providers == Providers(("CPU",), {})
    chosen = settings(
        "--draft-providers", "TensorRT, CUDA,CPU", "--draft-provider-options", '{"CUDA": {"device_id": "1"}}'
    )
    assert chosen.providers == Providers(("TensorRT", "CUDA", "CPU"), {"CUDA": {"device_id": "1"}})


def test_options_may_be_a_variable_that_holds_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_DRAFT_PROVIDERS", "OpenVINO,CPU")
    monkeypatch.setenv("DSD_DRAFT_PROVIDER_OPTIONS", '{"OpenVINO": {"device_type": "CPU"}}')
    assert settings().providers == ON_OPENVINO


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--draft-providers", "Cuda"], "DSD_DRAFT_PROVIDERS: unknown provider 'Cuda'; known: CPU, OpenVINO, CUDA, "),
        (["--draft-providers", "CUDA,"], "DSD_DRAFT_PROVIDERS: unknown provider ''"),
        (["--draft-providers", "CPU,CPU"], "DSD_DRAFT_PROVIDERS: each provider must be named once"),
        (
            ["--draft-provider-options", '{"CUDA": {}}'],
            "DSD_DRAFT_PROVIDER_OPTIONS: options for CUDA, which is not among the providers",
        ),
        (["--draft-provider-options", '{"GPU": {}}'], "DSD_DRAFT_PROVIDER_OPTIONS: unknown provider 'GPU'; known: CPU"),
    ],
)
def test_a_bad_choice_is_told_in_one_line_that_names_its_setting(flags: list[str], complaint: str) -> None:
    with pytest.raises(BadSettings) as refused:
        settings(*flags)
    assert complaint in str(refused.value)


def test_every_known_provider_has_a_name_of_onnx_runtime() -> None:
    assert {full_name(name) for name in KNOWN} <= set(ort.get_all_providers())
    assert [short_name(full_name(name)) for name in KNOWN] == list(KNOWN)
    assert short_name("SomeNewExecutionProvider") == "SomeNew"


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "CPU"])
def test_what_is_not_installed_is_an_error_that_names_its_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=f"has no provider {name}; it comes with {KNOWN[name].package}"):
        graph.open_session(Path("model.onnx"), 1, Providers((name, "CPU")))


def test_a_provider_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would compute the graph on the CPU and only log it."""

    class Without:
        def __init__(self, *given: object, **options: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", lambda: [full_name(name) for name in KNOWN])
    monkeypatch.setattr(ort, "InferenceSession", Without)
    with pytest.raises(ValueError, match="the provider CUDA did not start"):
        graph.open_session(Path("model.onnx"), 1, Providers(("CUDA", "CPU")))


# --- on OpenVINO ------------------------------------------------------------------------------------------------------


@with_openvino
def test_openvino_takes_nine_tenths_of_the_nodes_and_the_cpu_the_attention() -> None:
    draft = load_draft(str(DRAFT), 1, providers=ON_OPENVINO)
    assert list(draft.num_nodes) == ["OpenVINO", "CPU"]
    assert draft.num_nodes["CPU"] == 30, "one node of attention in each layer"
    assert draft.num_nodes["OpenVINO"] >= 0.9 * sum(draft.num_nodes.values())


@with_openvino
def test_without_the_cpu_a_graph_that_openvino_takes_in_part_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"does not load on OpenVINO: .*fallback to CPU EP has been explicitly disabled"
    ):
        load_draft(str(DRAFT), 1, providers=Providers(("OpenVINO",)))


@with_openvino
@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"nonsense": "1"}, "Invalid OpenVINO EP option: nonsense"), ({"device_type": "NPU"}, "OpenVINO did not start")],
)
def test_what_openvino_can_not_do_is_an_error(options: Mapping[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_draft(str(DRAFT), 1, providers=Providers(("OpenVINO", "CPU"), {"OpenVINO": options}))


@with_openvino
def test_openvino_s_logits_are_those_of_the_cpu_but_for_its_rounding() -> None:
    """The CPU provider rounds activations to 8 bits, OpenVINO does not. Texts are rolled back and share steps."""
    drafts = [load_draft(str(DRAFT), 1, providers=providers) for providers in (ON_OPENVINO, Providers())]
    texts = [np.random.default_rng(seed).integers(100, 2000, 20 + 7 * seed).tolist() for seed in range(3)]
    ours, theirs = [stepped_together(draft, texts) for draft in drafts]
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).std() < 0.15 * other.std()
        best, second = np.sort(other)[-1], np.sort(other)[-2]
        assert one.argmax() == other.argmax() or best - second < 1


def stepped_together(draft: DraftModel, texts: list[list[int]]) -> list[np.ndarray]:
    """Logits of shared steps: texts are fed too far, taken back by 5 tokens, and go on together."""
    caches = [draft.new_cache(80) for _ in texts]
    for cache, text in zip(caches, texts, strict=True):
        draft.feed(cache, text, 0)
    found = []
    for step in range(5, 0, -1):
        rows = [DraftRow(cache, len(text) - step, [text[-step]]) for cache, text in zip(caches, texts, strict=True)]
        found += draft.step(rows)
    return found
