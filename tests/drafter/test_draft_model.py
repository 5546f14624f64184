"""The draft model in both of its forms, against transformers' own forward and against itself: chunks, rollback, several
caches, misuse."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, PretrainedConfig, PreTrainedModel, Qwen3Config
from transformers.models.auto import AutoModelForCausalLM

from model_zoo.exporting.onnx_export import export_draft, run_exporter
from services.edge_drafter.graphs import kv_arena
from services.edge_drafter.graphs.graph import Prefix
from services.edge_drafter.model import DraftModel, DraftRow, load_draft

VOCAB = 512
MAX_CONTEXT = 256


SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_CONTEXT,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # large enough for attention to matter and for keys mistaken for values to show
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "genai_config.json": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=64),
    "draft_config.json": GPTNeoXConfig(**SHAPE),
}


@dataclass(frozen=True)
class TinyPair:
    """A randomly initialised model and its float32 export: no quantisation, so the two must agree closely."""

    reference: PreTrainedModel
    folder: Path
    config_file: str
    draft: DraftModel

    def reference_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """[tokens, vocab]: transformers' logits after each token."""
        with torch.no_grad():
            logits: np.ndarray = self.reference(torch.tensor([list(token_ids)])).logits[0].numpy()
        return logits


@pytest.fixture(scope="module", params=CONFIGS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """In the model builder's form and in that of torch's exporter, told by their configuration files."""
    torch.manual_seed(1)
    reference = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    source = tmp_path_factory.mktemp("tiny")
    reference.save_pretrained(source)
    if request.param == "genai_config.json":
        export_draft(source, source / "fp32", "fp32")
    else:
        done = run_exporter("model_zoo.exporting.torch_export", [str(source), str(source), "fp32"])
        assert done.returncode == 0, done.stdout
    return TinyPair(reference, source / "fp32", request.param, load_draft(str(source / "fp32"), num_threads=1))


def random_ids(seed: int, count: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, VOCAB, count).tolist()
    return ids


def feed_in_chunks(draft: DraftModel, token_ids: Sequence[int], sizes: Sequence[int]) -> dict[int, np.ndarray]:
    """Logits by the number of tokens before them, with a fresh cache fed in chunks of these sizes."""
    cache = draft.new_cache(len(token_ids))
    after = {}
    for size in sizes:
        logits = draft.feed(cache, token_ids[cache.length : cache.length + size], cache.length)
        after[cache.length] = logits
    return after


def test_it_knows_its_vocabulary_and_context_from_its_folder(tiny: TinyPair) -> None:
    assert (tiny.draft.name, tiny.draft.vocab_size, tiny.draft.max_context) == ("fp32", VOCAB, MAX_CONTEXT)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([100], id="at once"),
        pytest.param([1] * 100, id="one by one"),
        pytest.param([40, 1, 1, 2, 5, 1, 50], id="mixed"),
        pytest.param([3, 97], id="long tail"),
        pytest.param([99, 1], id="long head"),
    ],
)
def test_logits_equal_those_of_transformers_however_the_tokens_are_fed(tiny: TinyPair, sizes: list[int]) -> None:
    token_ids = random_ids(seed=2, count=100)
    expected = tiny.reference_logits(token_ids)
    after = feed_in_chunks(tiny.draft, token_ids, sizes)
    assert 100 in after
    for count, logits in after.items():
        assert logits.shape == (VOCAB,)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[count - 1], atol=1e-3)
        assert logits.argmax() == expected[count - 1].argmax()


def test_after_a_rollback_logits_are_those_of_a_cache_that_never_saw_the_tail(tiny: TinyPair) -> None:
    kept, wrong, right = random_ids(3, 60), random_ids(4, 30), random_ids(5, 6)
    rolled_back, fresh = tiny.draft.new_cache(128), tiny.draft.new_cache(128)
    for cache in (rolled_back, fresh):
        tiny.draft.feed(cache, kept, 0)
    tiny.draft.feed(rolled_back, wrong, 60)
    for start, chunk in ((57, right), (63, right[:1]), (64, right)):
        expected = tiny.draft.feed(fresh, chunk, start)
        np.testing.assert_array_equal(tiny.draft.feed(rolled_back, chunk, start), expected)
    assert rolled_back.length == fresh.length == 70
    text = [*kept[:57], *right, *right[:1], *right]
    np.testing.assert_allclose(expected, tiny.reference_logits(text)[-1], atol=1e-3)


def test_caches_fed_in_turn_do_not_disturb_each_other(tiny: TinyPair) -> None:
    texts = [random_ids(seed, 40) for seed in (6, 7, 8)]
    alone = [feed_in_chunks(tiny.draft, text, [8] * 5)[40] for text in texts]
    caches = [tiny.draft.new_cache(40 + 9 * index) for index in range(3)]
    for start in range(0, 40, 8):
        together = [tiny.draft.feed(cache, t[start : start + 8], start) for cache, t in zip(caches, texts, strict=True)]
    np.testing.assert_array_equal(together, alone)


def test_sessions_of_any_lengths_that_step_together_get_the_logits_of_transformers(
    tiny: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows join and leave, texts are rolled back, and the memory grows meanwhile."""
    monkeypatch.setattr(kv_arena, "FIRST_CAPACITY", 16)
    draft, rng = load_draft(str(tiny.folder), num_threads=1), random.Random(12)
    texts = [random_ids(seed, length) for seed, length in ((20, 5), (21, 90), (22, 31), (23, 1), (24, 60))]
    caches = [draft.new_cache(200) for _ in texts]
    for cache, text in zip(caches, texts, strict=True):
        draft.feed(cache, text, 0)
    for _ in range(40):
        chosen = rng.sample(range(5), rng.randint(1, min(5, draft.max_rows)))
        for number in chosen:
            del texts[number][rng.choice([len(texts[number]), rng.randint(1, len(texts[number]))]) :]
            texts[number].append(rng.randrange(VOCAB))
        rows = [DraftRow(caches[number], len(texts[number]) - 1, texts[number][-1:]) for number in chosen]
        for number, logits in zip(chosen, draft.step(rows), strict=True):
            assert caches[number].length == len(texts[number])
            np.testing.assert_allclose(logits, tiny.reference_logits(texts[number])[-1], atol=1e-3)


@pytest.mark.parametrize(("num_own", "is_moved"), [(0, False), (30, False), (0, True)])
def test_logits_after_a_prefix_of_another_cache_are_those_of_a_text_that_was_fed(
    tiny: TinyPair, num_own: int, is_moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_arena, "FIRST_CAPACITY", 16)
    draft = load_draft(str(tiny.folder), num_threads=1)
    common, tail, other = random_ids(30, 50), random_ids(31, 20), random_ids(32, 9)
    source, target = draft.new_cache(70), draft.new_cache(200)
    draft.feed(source, [*common, *tail], 0)
    if num_own:
        draft.feed(target, common[:num_own], 0)
    (after_other,) = draft.step([DraftRow(target, 50, other, Prefix(source, num_own, 50, is_moved))])
    np.testing.assert_allclose(after_other, tiny.reference_logits([*common, *other])[-1], atol=1e-3)
    assert target.length == 59
    if not is_moved:
        after_tail = draft.feed(source, tail[-1:], 69)
        np.testing.assert_allclose(after_tail, tiny.reference_logits([*common, *tail])[-1], atol=1e-3)


def test_the_memory_of_caches_is_that_of_their_keys_and_values(tiny: TinyPair) -> None:
    caches = [tiny.draft.new_cache(256) for _ in range(4)]
    for cache in caches:
        tiny.draft.feed(cache, random_ids(3, 5), 0)
    entry = 3 * 2 * 128 * 4  # bytes of a token: layers, keys and values, kv_heads x head_dim, float32
    assert tiny.draft.kv_bytes >= len(caches) * 256 * entry
    assert tiny.draft.kv_bytes % (256 * entry) == 0


def test_a_step_that_the_graph_can_not_take_is_refused_and_changes_nothing(tiny: TinyPair) -> None:
    caches = [tiny.draft.new_cache(8) for _ in range(17)]
    for refused, complaint in (
        ([], "a step must have one row"),
        ([DraftRow(cache, 0, [1]) for cache in caches], "a step must have one row"),
        ([DraftRow(cache, 0, [1, 2]) for cache in caches[:2]], "a step must have one row"),
        ([DraftRow(caches[0], 0, [1]), DraftRow(caches[0], 0, [2])], "a step must have one row|the same cache"),
        ([DraftRow(caches[0], 0, [1]), DraftRow(caches[1], 0, [VOCAB])], "a step must have one row|token ids must be"),
    ):
        with pytest.raises(ValueError, match=complaint):
            tiny.draft.step(refused)
    assert [cache.length for cache in caches] == [0] * 17


def test_the_logits_of_one_step_survive_the_next(tiny: TinyPair) -> None:
    cache = tiny.draft.new_cache(8)
    first = tiny.draft.feed(cache, [5], 0)
    kept = first.copy()
    tiny.draft.feed(cache, [6], 1)
    np.testing.assert_array_equal(first, kept)


def test_a_cache_takes_tokens_up_to_the_models_whole_context(tiny: TinyPair) -> None:
    token_ids = random_ids(9, MAX_CONTEXT)
    logits = feed_in_chunks(tiny.draft, token_ids, [MAX_CONTEXT - 1, 1])[MAX_CONTEXT]
    np.testing.assert_allclose(logits, tiny.reference_logits(token_ids)[-1], atol=1e-3)


@pytest.mark.parametrize(
    ("token_ids", "start", "complaint"),
    [
        ([], 4, "no token ids"),
        ([VOCAB], 4, "token ids must be 0…511, got 512…512"),
        ([3, -1], 4, "token ids must be 0…511, got -1…3"),
        ([3], 5, "start must be 0…4, .+ got 5"),
        ([3], -1, "start must be 0…4, .+ got -1"),
        ([3] * 5, 4, r"4 \+ 5 tokens exceed the cache's capacity of 8"),
    ],
)
def test_a_refused_feed_names_the_reason_and_leaves_the_cache_as_it_was(
    tiny: TinyPair, token_ids: list[int], start: int, complaint: str
) -> None:
    cache, untouched = tiny.draft.new_cache(8), tiny.draft.new_cache(8)
    for each in (cache, untouched):
        tiny.draft.feed(each, [1, 2, 3, 4], 0)
    with pytest.raises(ValueError, match=complaint):
        tiny.draft.feed(cache, token_ids, start)
    assert cache.length == 4
    np.testing.assert_array_equal(tiny.draft.feed(cache, [7], 4), tiny.draft.feed(untouched, [7], 4))


@pytest.mark.parametrize("capacity", [0, MAX_CONTEXT + 1])
def test_a_cache_beyond_the_models_context_is_refused(tiny: TinyPair, capacity: int) -> None:
    with pytest.raises(ValueError, match=rf"capacity must be 1…{MAX_CONTEXT}, .+, got {capacity}"):
        tiny.draft.new_cache(capacity)


def test_a_missing_configuration_is_named_in_both_forms(tiny: TinyPair, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny.folder, tmp_path / "draft")
    (folder / tiny.config_file).unlink()
    with pytest.raises(FileNotFoundError, match=r"draft: genai_config\.json and draft_config\.json are missing"):
        load_draft(str(folder), num_threads=1)


def test_a_missing_graph_is_named(tiny: TinyPair, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny.folder, tmp_path / "draft")
    (folder / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no draft model in .*draft: model\.onnx is missing"):
        load_draft(str(folder), num_threads=1)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"decoder": {}}}', '{"file": "model.onnx", "kv": [["a"]]}'])
def test_a_broken_configuration_is_named(tiny: TinyPair, tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(tiny.folder, tmp_path / "draft")
    (folder / tiny.config_file).write_text(content)
    with pytest.raises(ValueError, match=rf"{tiny.config_file} is not the configuration of an? (decoder|exported)"):
        load_draft(str(folder), num_threads=1)


def test_a_broken_graph_is_named(tiny: TinyPair, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny.folder, tmp_path / "draft")
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"model\.onnx does not load"):
        load_draft(str(folder), num_threads=1)


def test_a_graph_with_other_tensors_than_configured_is_refused(tiny: TinyPair, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny.folder, tmp_path / "draft")
    config = json.loads((folder / tiny.config_file).read_text())
    if "model" in config:
        config["model"]["decoder"]["num_hidden_layers"] = 2
        odd = r"past_key_values\.2\.key, .*, present\.2\.value"
    else:
        config["kv"] = config["kv"][:4]
        odd = "new_key_2, new_value_2, past_key_2, past_value_2"
    (folder / tiny.config_file).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{tiny.config_file} disagree about {odd}"):
        load_draft(str(folder), num_threads=1)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_default_drafts_agree_with_themselves_in_chunks_and_one_by_one(
    default_models: Path, precision: str
) -> None:
    """Activations are quantised on the fly: another kernel's last bit may move one by a step, near-ties may flip."""
    draft = load_draft(str(default_models / f"draft-{precision}"), num_threads=1)
    token_ids = np.random.default_rng(10).integers(100, 2000, 64).tolist()
    one_by_one = feed_in_chunks(draft, token_ids, [1] * 64)
    for count, logits in feed_in_chunks(draft, token_ids, [20, 1, 3, 8, 32]).items():
        single = one_by_one[count]
        assert (logits - single).std() < 0.15 * single.std()
        best, second = np.sort(single)[-1], np.sort(single)[-2]
        assert logits.argmax() == single.argmax() or best - second < 1


def test_the_default_drafts_guess_together_what_they_guess_alone(default_models: Path) -> None:
    draft = load_draft(str(default_models / "draft-int8"), num_threads=1)
    texts = [np.random.default_rng(seed).integers(100, 2000, 20 + 7 * seed).tolist() for seed in range(6)]
    together, alone = [[draft.new_cache(80) for _ in texts] for _ in range(2)]
    for text, *caches in zip(texts, together, alone, strict=True):
        for cache in caches:
            draft.feed(cache, text, 0)
    for _ in range(8):
        rows = [DraftRow(cache, cache.length, text[-1:]) for cache, text in zip(together, texts, strict=True)]
        for text, cache, logits in zip(texts, alone, draft.step(rows), strict=True):
            single = draft.feed(cache, text[-1:], cache.length)
            assert (logits - single).std() < 0.15 * single.std()
            best, second = np.sort(single)[-1], np.sort(single)[-2]
            assert logits.argmax() == single.argmax() or best - second < 1
            text.append(int(single.argmax()))
