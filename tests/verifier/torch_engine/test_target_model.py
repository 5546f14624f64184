"""The target model gives transformers' logits, bit-identical for all passes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from services.cloud_verifier.engine import Drawn
from services.cloud_verifier.torch_engine import model as target_module
from services.cloud_verifier.torch_engine.architecture import UnsupportedModel
from services.cloud_verifier.torch_engine.kv import KV_STEP
from services.cloud_verifier.torch_engine.llama import LlamaNetwork
from services.cloud_verifier.torch_engine.model import NonFiniteLogits, Row, TargetModel, load_target, pick_dtype
from services.cloud_verifier.torch_engine.network import TransformersNetwork
from shared.protocol import sampling as reference
from shared.protocol.messages import Sampling
from tests.verifier.torch_engine.tiny_models import LLAMA_SHAPE, MAX_CONTEXT, REFUSED, SERVED, VOCAB_SIZE, save_model

GREEDY = Sampling()
SAMPLED = Sampling(0.8, top_p=0.95, seed=17)
HAS_BF16 = pick_dtype("auto", torch.device("cpu")) is torch.bfloat16
bf16 = pytest.param("bfloat16", marks=pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bfloat16"))
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PROMPTS = [
    "Write one sentence about the sea.",
    "What is 17 times 23? Think step by step.",
    "def fibonacci(n):",
]


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module", params=["float32", bf16])
def default_target(request: pytest.FixtureRequest, default_models: Path) -> TargetModel:
    return load_target(str(default_models / "target"), "cpu", request.param)


@pytest.fixture(
    scope="module", params=[(family, dtype) for family in SERVED for dtype in ("float32", "bfloat16")], ids=str
)
def tiny_target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TargetModel:
    family, dtype = request.param
    if dtype == "bfloat16" and not HAS_BF16:
        pytest.skip("this CPU has no bfloat16")
    return load_target(str(save_model(SERVED[family](), tmp_path_factory.mktemp("tiny"))), "cpu", dtype)


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(SERVED["qwen3"](), tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def qwen3(qwen3_folder: Path) -> TargetModel:
    return load_target(str(qwen3_folder), "cpu", "float32")


def all_of(cache, start: int, token_ids: list[int], sampling: Sampling = GREEDY) -> Row:
    """A row that yields a draw for each of its tokens."""
    return Row(cache, start, token_ids, len(token_ids), sampling)


class Texts:
    """Random texts, and the logits of one pass over each, which all other passes must repeat."""

    def __init__(self, target: TargetModel, num_texts: int, length: int, num_threads: int = 1) -> None:
        self.target = target
        self.rng = random.Random(0)
        self.ids = [[self.rng.randrange(target.vocab_size) for _ in range(length)] for _ in range(num_texts)]
        torch.set_num_threads(num_threads)
        self.logits = [target.forward([all_of(target.new_cache(length), 0, ids)])[0] for ids in self.ids]

    def feed(self, caches: list, spans: list[tuple[int, int, int]]) -> None:
        """Feeds (text, start, end) spans in one pass and compares the logits."""
        rows = [all_of(caches[text], start, self.ids[text][start:end]) for text, start, end in spans]
        for (text, start, end), logits in zip(spans, self.target.forward(rows), strict=True):
            assert torch.equal(logits, self.logits[text][start:end]), (text, start, end)


def check_bits(target: TargetModel, *, length: int, chunks: list[int], num_mixed: int, threads: list[int]) -> None:
    """Chunks of several sizes, then mixed passes of 1 to 8 sessions with rollbacks, give the same bits."""
    texts = Texts(target, 8, length, threads[0])
    for num_threads in threads:
        torch.set_num_threads(num_threads)
        for chunk in chunks:
            caches = [target.new_cache(length + 600 * (chunk % 2))]
            for start in range(0, length, chunk):
                texts.feed(caches, [(0, start, min(start + chunk, length))])
        caches = [target.new_cache(texts.rng.choice([length, KV_STEP + 1])) for _ in texts.ids]
        fed = [0] * len(caches)
        for _ in range(num_mixed):
            spans = []
            for text in texts.rng.sample(range(8), texts.rng.choice([1, 3, 8])):
                if texts.rng.random() < 0.3 or fed[text] == length:
                    fed[text] = texts.rng.randint(0, fed[text] - 1) if fed[text] else 0  # roll back, feed again
                end = min(fed[text] + texts.rng.choice([1, 1, 2, 3, 4, 5, 6, 9, 17]), length)
                spans.append((text, fed[text], end))
                fed[text] = end
            texts.feed(caches, spans)


def test_logits_of_the_default_target_have_the_same_bits_in_every_pass(default_target: TargetModel) -> None:
    check_bits(default_target, length=32, chunks=[1, 5, 31], num_mixed=6, threads=[1, 2])


def test_logits_of_other_families_have_the_same_bits_in_every_pass(tiny_target: TargetModel) -> None:
    check_bits(tiny_target, length=100, chunks=[1, 2, 5, 43, 64, 65], num_mixed=12, threads=[1, 2, 3])


def test_bits_do_not_change_where_a_text_crosses_a_kv_step(qwen3: TargetModel) -> None:
    texts = Texts(qwen3, 2, KV_STEP + 40)
    caches = [qwen3.new_cache(KV_STEP + 40) for _ in range(2)]
    for start in range(0, KV_STEP + 40, 23):
        end = min(start + 23, KV_STEP + 40)
        texts.feed(caches, [(1, start, end), (0, start, end)])


def test_a_wrong_guess_that_was_rolled_back_leaves_no_trace(tiny_target: TargetModel) -> None:
    texts = Texts(tiny_target, 1, 60)
    cache = tiny_target.new_cache(60)
    texts.feed([cache], [(0, 0, 20)])
    tiny_target.forward([all_of(cache, 20, [5] * 30)])
    texts.feed([cache], [(0, 20, 23)])
    texts.feed([cache], [(0, 23, 60)])


def test_a_reopened_session_goes_on_with_the_same_draws(tiny_target: TargetModel) -> None:
    prompt = Texts(tiny_target, 1, 30).ids[0]
    cache = tiny_target.new_cache(60)
    text = prompt + tiny_target.step([Row(cache, 0, prompt, 1, SAMPLED)])[0].token_ids
    while len(text) < 50:
        text += tiny_target.step([Row(cache, len(text) - 1, text[-1:], 1, SAMPLED)])[0].token_ids
    reopened = tiny_target.new_cache(60)
    drawn = tiny_target.step([Row(reopened, 0, text[:49], 20, SAMPLED)])[0].token_ids
    assert drawn == text[30:50]


def test_without_packed_operators_bits_are_equal_too(qwen3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "packing_works", lambda dtype: False)
    for num_threads in (1, 2):  # plain kernels may differ by it
        plain = load_target(str(qwen3_folder), "cpu", "float32", num_threads)
        check_bits(plain, length=60, chunks=[1, 7, 31], num_mixed=10, threads=[num_threads])


@pytest.mark.parametrize("dtype", ["float32", bf16])
def test_the_lean_network_of_llama_has_the_bits_of_transformers_code(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig(**LLAMA_SHAPE, rope_parameters=LLAMA_3_ROPE, attention_bias=True, mlp_bias=True)
    folder = str(save_model(config, tmp_path))
    lean = load_target(folder, "cpu", dtype)
    monkeypatch.setattr(target_module, "is_llama", lambda model: False)
    plain = load_target(folder, "cpu", dtype)
    assert type(lean._network) is LlamaNetwork
    assert type(plain._network) is TransformersNetwork
    texts = Texts(plain, 3, 90)
    caches = [lean.new_cache(90) for _ in texts.ids]
    texts.target = lean
    for start, end in ((0, 70), (70, 71), (71, 73), (73, 90)):
        texts.feed(caches, [(text, start, end) for text in range(3)])


def test_draws_equal_the_numpy_reference_on_the_same_logits(tiny_target: TargetModel) -> None:
    texts = Texts(tiny_target, 3, 25)
    samplings = [GREEDY, SAMPLED, Sampling(1.3, top_k=30, min_p=0.01, seed=-9)]
    caches = [tiny_target.new_cache(25) for _ in samplings]
    rows = [Row(cache, 0, ids, 10, sampling) for cache, ids, sampling in zip(caches, texts.ids, samplings, strict=True)]
    for drawn, logits, sampling in zip(tiny_target.step(rows), texts.logits, samplings, strict=True):
        assert drawn.token_ids == [reference.draw(logits[p].numpy(), sampling, p + 1) for p in range(15, 25)]


def test_logprobs_are_given_for_the_draws_up_to_the_first_wrong_guess(qwen3: TargetModel) -> None:
    texts = Texts(qwen3, 1, 12)
    text, cache = texts.ids[0], qwen3.new_cache(20)
    right = qwen3.step([Row(cache, 0, text, 1, GREEDY)])[0].token_ids
    guesses = [*right, (qwen3.step([Row(cache, 12, right, 1, GREEDY)])[0].token_ids[0] + 1) % qwen3.vocab_size, 5]
    drawn = qwen3.step([Row(cache, 11, [text[-1], *guesses], 4, GREEDY, num_top=3)])[0]
    assert len(drawn.token_ids) == 4
    assert [len(each.top_ids) for each in drawn.logprobs] == [3, 3]
    assert [each.top_ids[0] for each in drawn.logprobs] == drawn.token_ids[:2]
    assert drawn.token_ids[0] == guesses[0]
    assert drawn.token_ids[1] != guesses[1]


def test_only_the_last_num_draws_tokens_yield_logits(qwen3: TargetModel) -> None:
    texts = Texts(qwen3, 3, 20)
    caches = [qwen3.new_cache(20) for _ in range(3)]
    rows = [Row(cache, 0, ids, n, GREEDY) for cache, ids, n in zip(caches, texts.ids, (0, 3, 20), strict=True)]
    logits = qwen3.forward(rows)
    assert [tuple(part.shape) for part in logits] == [(0, VOCAB_SIZE), (3, VOCAB_SIZE), (20, VOCAB_SIZE)]
    assert torch.equal(logits[1], texts.logits[1][-3:])
    assert qwen3.step([Row(caches[0], 20, [1], 0, SAMPLED)]) == [Drawn([], [])]
    assert qwen3.step([]) == []


def greedy_text(target: TargetModel, prompt: list[int], num_tokens: int) -> list[int]:
    cache = target.new_cache(len(prompt) + num_tokens)
    text = prompt + target.step([Row(cache, 0, prompt, 1, GREEDY)])[0].token_ids
    while len(text) < len(prompt) + num_tokens:
        text += target.step([Row(cache, len(text) - 1, text[-1:], 1, GREEDY)])[0].token_ids
    return text


@pytest.fixture(scope="module")
def prompts(default_models: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(default_models / "target")
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] for chat in chats
    ]


@pytest.fixture(scope="module")
def plain_float32(default_models: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(default_models / "target", dtype=torch.float32)


def test_greedy_text_of_the_default_target_is_transformers_own(
    default_target: TargetModel, prompts: list[list[int]], plain_float32: torch.nn.Module
) -> None:
    """float32: equal except near ties. bfloat16: at least 9 of 10 tokens are the argmax of a float32 forward."""
    num_same = num_tokens = 0
    for prompt in prompts:
        text = greedy_text(default_target, prompt, 20)
        with torch.inference_mode():
            logits = plain_float32(torch.tensor([text[:-1]])).logits[0, len(prompt) - 1 :]
        best_two = logits.topk(2).values
        same = logits.argmax(-1) == torch.tensor(text[len(prompt) :])
        num_same, num_tokens = num_same + int(same.sum()), num_tokens + len(same)
        if default_target._layout.dtype is torch.float32:
            assert (same | (best_two[:, 0] - best_two[:, 1] < 1e-4)).all(), PROMPTS
    assert num_same >= 0.9 * num_tokens


@pytest.mark.parametrize("family", SERVED)
def test_greedy_text_of_other_families_is_transformers_own(family: str, tmp_path: Path) -> None:
    folder = save_model(SERVED[family](), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = [7, 99, 23, 4, 150]
    options = {"do_sample": False, "min_new_tokens": 30, "max_new_tokens": 30, "eos_token_id": None, "pad_token_id": 0}
    expected = plain.generate(torch.tensor([prompt]), **options)[0].tolist()
    assert greedy_text(load_target(str(folder), "cpu", "float32"), prompt, 30) == expected


@pytest.mark.parametrize("reason", REFUSED)
def test_an_architecture_that_cannot_be_served_is_refused_by_name(reason: str, tmp_path: Path) -> None:
    config, message = REFUSED[reason]
    folder = save_model(config(), tmp_path)
    with pytest.raises(UnsupportedModel, match=message):
        load_target(str(folder), "cpu", "float32")


def test_an_architecture_that_transformers_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "hal", "architectures": ["HalForCausalLM"]}')
    with pytest.raises(UnsupportedModel, match="HalForCausalLM"):
        load_target(str(tmp_path), "cpu", "float32")


def test_a_model_whose_mixed_passes_differ_from_its_plain_forward_is_refused(
    qwen3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates an architecture with state outside attention: a text leaks into the next one."""
    honest = TargetModel._compute

    def leaking(self: TargetModel, token_ids: list[int], positions: list[int], *rest) -> torch.Tensor:
        return honest(self, [token_ids[0], *token_ids[:-1]], positions, *rest)

    monkeypatch.setattr(TargetModel, "_compute", leaking)
    with pytest.raises(UnsupportedModel, match=r"Qwen3ForCausalLM.*off by"):
        load_target(str(qwen3_folder), "cpu", "float32")


def test_a_missing_model_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.json"):
        load_target(str(tmp_path), "cpu", "float32")


@pytest.mark.parametrize(
    ("start", "token_ids", "num_draws", "message"),
    [
        (0, [], 0, "0 draws from 0 tokens"),
        (0, [1, 2], 3, "3 draws from 2 tokens"),
        (11, [1], 1, "starts at 11, its cache holds 10"),
        (-1, [1], 1, "starts at -1"),
        (10, [1] * 2 * KV_STEP, 1, f"ends at {2 * KV_STEP + 10}, beyond the {2 * KV_STEP} tokens"),
        (10, [VOCAB_SIZE], 1, f"outside the vocabulary of {VOCAB_SIZE}"),
        (10, [-1], 1, "outside the vocabulary"),
    ],
)
def test_a_row_that_cannot_be_computed_is_named(
    qwen3: TargetModel, start: int, token_ids: list[int], num_draws: int, message: str
) -> None:
    cache = qwen3.new_cache(100)
    qwen3.forward([all_of(cache, 0, [3] * 10)])
    with pytest.raises(ValueError, match=message):
        qwen3.forward([Row(cache, start, token_ids, num_draws, GREEDY)])
    assert cache.length == 10


def test_two_rows_of_one_cache_and_a_text_beyond_the_context_are_refused(qwen3: TargetModel) -> None:
    cache = qwen3.new_cache(2 * MAX_CONTEXT)
    with pytest.raises(ValueError, match="share a cache"):
        qwen3.forward([all_of(cache, 0, [1]), all_of(cache, 0, [1])])
    with pytest.raises(ValueError, match=f"beyond the {MAX_CONTEXT} tokens"):
        qwen3.forward([all_of(cache, 0, [1] * (MAX_CONTEXT + 1))])


def test_a_row_whose_logits_are_not_finite_is_named_and_the_others_can_go_on(qwen3_folder: Path) -> None:
    target = load_target(str(qwen3_folder), "cpu", "float32")
    embedding = target._network._model.get_input_embeddings()
    rows = [all_of(target.new_cache(9), 0, ids) for ids in ([1, 2], [1, 2, 77])]
    expected = target.step(rows[:1])
    with torch.inference_mode():
        embedding.weight[77] = torch.nan
    with pytest.raises(NonFiniteLogits, match="row 1 is not finite"):
        target.step(rows)
    assert target.step(rows[:1]) == expected


def test_a_target_has_a_name_and_sizes_and_its_caches_whole_steps(qwen3: TargetModel, qwen3_folder: Path) -> None:
    assert qwen3.name == qwen3_folder.name
    assert (qwen3.vocab_size, qwen3.max_context) == (VOCAB_SIZE, MAX_CONTEXT)
    cache = qwen3.new_cache(KV_STEP + 1)
    stored = sum(tensor.nbytes for tensor in cache.buffers)
    assert stored == 2 * KV_STEP * 2 * 2 * 2 * 32 * 4


def test_the_fingerprint_is_stable_and_tells_dtype_kernels_and_weights_apart(
    qwen3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(qwen3_folder)
    first = load_target(folder, "cpu", "float32").fingerprint
    assert first == load_target(folder, "cpu", "float32", num_threads=1).fingerprint
    other_weights = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        other_weights.model.norm.weight += 0.01
    other_folder = tmp_path / qwen3_folder.name
    other_weights.save_pretrained(other_folder)
    others = [load_target(str(other_folder), "cpu", "float32").fingerprint]
    others.append(load_target(folder, "cpu", "bfloat16").fingerprint)
    monkeypatch.setattr(target_module, "packing_works", lambda dtype: False)
    others.append(load_target(folder, "cpu", "float32").fingerprint)
    assert len({first, *others}) == 4


def test_the_number_of_threads_is_set_on_loading(qwen3_folder: Path) -> None:
    load_target(str(qwen3_folder), "cpu", "float32", num_threads=1)
    assert torch.get_num_threads() == 1
