"""A draft with a reduced vocabulary: the tokens that stay have the same logits, the others are never guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model_zoo.errors import ExportError
from model_zoo.exporting.draft_vocabulary import reduce_vocabulary
from model_zoo.exporting.export import export_model
from model_zoo.exporting.onnx_export import Exporter, Precision
from services.edge_drafter.draft_config import VOCABULARY, read_config
from services.edge_drafter.model import DraftRow, load_draft
from tests.model_zoo.distilling.tiny import VOCAB_SIZE, make_target

KEPT = list(range(1, VOCAB_SIZE, 3))
TEXT = [5, 9, 200, 31, 7]
CASES: list[tuple[str, Precision]] = [("gpt_neox", "fp32"), ("llama", "int8"), ("qwen3", "int4")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def draft(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both exporters; the 4-bit one shares the weights of head and embedding."""
    family, precision = request.param
    root = tmp_path_factory.mktemp("models")
    export_model(str(make_target(root / "model", family)), root / "draft", precision, Exporter.AUTO, lambda line: None)
    return root / "draft"


def test_the_tokens_that_stay_keep_their_logits(draft: Path, tmp_path: Path) -> None:
    reduced = shutil.copytree(draft, tmp_path / "reduced")
    reduce_vocabulary(reduced, KEPT)
    whole, part = load_draft(str(draft), num_threads=1), load_draft(str(reduced), num_threads=1)
    assert part.vocab_size == whole.vocab_size == VOCAB_SIZE
    caches = whole.new_cache(16), part.new_cache(16)
    for start, fed in ((0, TEXT), (5, [8]), (3, [1, 2])):  # the last one after a rollback
        expected, got = whole.feed(caches[0], fed, start), part.feed(caches[1], fed, start)
        tolerance = 1e-5 if whole.max_rows == 1 else 0.0  # products of floats are rounded by their shape
        np.testing.assert_allclose(got[KEPT], expected[KEPT], atol=tolerance, rtol=0)
        assert np.isneginf(np.delete(got, KEPT)).all()
    rows = [DraftRow(part.new_cache(16), 0, [token_id]) for token_id in TEXT[: part.max_rows]]
    assert all(np.isneginf(np.delete(logits, KEPT)).all() for logits in part.step(rows))
    size = sum(path.stat().st_size for path in reduced.glob("model.onnx*"))
    assert size < sum(path.stat().st_size for path in draft.glob("model.onnx*"))


def test_an_export_takes_the_vocabulary_that_lies_beside_the_model(tmp_path: Path) -> None:
    model = make_target(tmp_path / "model", "gpt_neox")
    (model / VOCABULARY).write_text(json.dumps(KEPT))
    record = export_model(str(model), tmp_path / "draft", "fp32", Exporter.AUTO, lambda line: None)
    assert read_config(tmp_path / "draft").token_ids == tuple(KEPT)
    assert VOCABULARY in record.files


def test_a_graph_whose_head_is_not_known_is_refused(draft: Path, tmp_path: Path) -> None:
    reduced = shutil.copytree(draft, tmp_path / "reduced")
    reduce_vocabulary(reduced, KEPT)
    (reduced / VOCABULARY).unlink()
    with pytest.raises(ExportError, match=f"0 products with {VOCAB_SIZE} outputs"):
        reduce_vocabulary(reduced, KEPT)
    with pytest.raises(ValueError, match=f"{len(KEPT)} logits, its configuration {VOCAB_SIZE}"):
        load_draft(str(reduced), num_threads=1)


@pytest.mark.parametrize("listed", ["{}", "[]", "[3, 2]", "[2, 2]", "[-1]", f"[{VOCAB_SIZE}]", "[1.5]"])
def test_a_vocabulary_that_is_no_ascending_list_of_token_ids_is_refused(
    draft: Path, tmp_path: Path, listed: str
) -> None:
    reduced = shutil.copytree(draft, tmp_path / "reduced")
    (reduced / VOCABULARY).write_text(listed)
    with pytest.raises(ValueError, match=VOCABULARY.replace(".", r"\.")):
        load_draft(str(reduced), num_threads=1)
