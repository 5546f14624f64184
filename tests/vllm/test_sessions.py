"""Sessions on vLLM, pass by pass: guesses, rebinding, resuming, shortage of KV cache, failing steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm.forward_context import get_forward_context
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from services.cloud_verifier import sampler
from services.cloud_verifier.loop import step_row
from services.cloud_verifier.vllm_engine.core import LEAST_ROWS
from services.cloud_verifier.vllm_engine.engine import VllmEngine
from services.cloud_verifier.vllm_engine.worker import MANY_TOKENS, StockWorker, Worker
from shared.protocol.messages import Sampling, TokenIds
from tests.vllm import tiny
from tests.vllm.conftest import loaded
from tests.vllm.driver import Driver, answer_of, opening

SAMPLED = Sampling(0.8, top_p=0.95, seed=20)
NUM_TOKENS = 24

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """A tiny model in float32 with a KV cache of 7 blocks of 128 tokens."""
    folder = tiny.save(tiny.llama(), tmp_path_factory.mktemp("llama"))
    with loaded(folder, vllm_args=f"{tiny.FLAGS} --num-gpu-blocks-override 8") as engine:
        yield engine


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Texts of 30 to 45 tokens."""
    random = np.random.default_rng(5)
    return [random.integers(3, tiny.VOCABULARY, 30 + number).tolist() for number in range(16)]


@pytest.fixture
def driver(engine: VllmEngine) -> Iterator[Driver]:
    driver = Driver(engine)
    yield driver
    for slot in list(driver):
        driver.close(slot.state.session_id, slot.state.term, 0.0)
    assert engine.free_kv_tokens == engine.info.kv_tokens, "blocks are leaked"


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_right_guesses_save_passes_and_wrong_ones_change_nothing(
    driver: Driver, prompts: list[list[int]], sampling: Sampling
) -> None:
    requests = [opening(number, prompt, sampling=sampling) for number, prompt in enumerate(prompts[:3])]
    alone = driver.answers(*requests)
    slots = [driver.opens(request) for request in requests]
    num_passes = driver.finish(*slots, right=alone)
    assert [answer_of(slot) for slot in slots] == alone
    assert num_passes < NUM_TOKENS / 2
    assert all(slot.state.tally.accepted > NUM_TOKENS / 2 for slot in slots)

    wrong = [
        [(token + 1) % 512 if number % 3 == 2 else token for number, token in enumerate(answer)] for answer in alone
    ]
    slots = [driver.opens(opening(9 + number, r.prompt_ids, sampling=sampling)) for number, r in enumerate(requests)]
    driver.finish(*slots, right=wrong)
    assert [answer_of(slot) for slot in slots] == alone
    assert all(slot.state.tally.rejected > 3 for slot in slots)


def test_a_session_that_is_not_ready_keeps_its_cache_while_others_go_on(
    driver: Driver, prompts: list[list[int]]
) -> None:
    waiting, other = opening(1, prompts[0], free_run=False), opening(2, prompts[1])
    alone, _ = driver.answers(opening(1, prompts[0]), other)
    slot, busy = driver.opens(waiting), driver.opens(opening(3, prompts[1]))
    driver.finish(busy)
    assert slot.state.length == len(prompts[0]) + 1, "the first pass draws, then it waits for guesses"
    driver.guess(slot, alone[1:5])
    assert driver.run_pass() == 1
    assert slot.state.tally.accepted == 4
    slot.state.expire_drafter(1e9, 0.0)
    driver.finish(slot)
    assert answer_of(slot) == alone


def test_a_prompt_longer_than_a_pass_is_computed_in_chunks(driver: Driver, prompts: list[list[int]]) -> None:
    long = (prompts[0] * 20)[:500]
    (whole,) = driver.answers(opening(1, long))
    driver = Driver(driver.engine, token_budget=48, prefill_chunk=32)
    slot = driver.opens(opening(2, long))
    short = driver.opens(opening(3, prompts[1]))
    num_passes = 0
    while slot.state.length == len(long):
        driver.run_pass()
        num_passes += 1
    assert num_passes >= 500 / 32
    assert short.state.length - len(prompts[1]) >= num_passes - 3, "it gets a token in nearly every pass"
    driver.finish(slot, short)
    assert answer_of(slot) == whole


def test_an_answer_is_resumed_from_its_committed_tokens(driver: Driver, prompts: list[list[int]]) -> None:
    for number, sampling in enumerate((Sampling(), SAMPLED, Sampling(0.9, seed=3, presence_penalty=1.5))):
        (whole,) = driver.answers(opening(number, prompts[number], sampling=sampling))
        for known in (1, 7, NUM_TOKENS - 1):
            request = opening(10 + known, prompts[number], sampling=sampling, committed_ids=TokenIds(whole[:known]))
            assert driver.answers(request) == [whole], known


def test_a_rebinding_goes_on_with_the_same_text_and_takes_over_another(
    driver: Driver, prompts: list[list[int]]
) -> None:
    (whole,) = driver.answers(opening(1, prompts[0]))
    slot = driver.opens(opening(2, prompts[0]))
    for _ in range(5):
        driver.run_pass()
    driver.opens(opening(2, prompts[0], term=2, committed_ids=TokenIds(whole[:2])))
    assert slot.state.length > len(prompts[0]) + 2, "its own text goes on"
    driver.run_pass()
    driver.opens(opening(2, prompts[0], term=3, sampling=SAMPLED, committed_ids=TokenIds(answer_of(slot))))
    driver.run_pass()
    other = [*whole[:3], 28]
    driver.opens(opening(2, prompts[0], term=4, committed_ids=TokenIds(other)))
    driver.finish(slot)
    assert answer_of(slot)[:4] == other
    assert driver.answers(opening(3, prompts[0], committed_ids=TokenIds(other))) == [answer_of(slot)]


def test_a_pass_that_the_session_did_not_commit_is_forgotten(driver: Driver, prompts: list[list[int]]) -> None:
    """A rebinding during a pass voids its draws, which vLLM has already taken as text."""
    (whole,) = driver.answers(opening(1, prompts[0]))
    slot = driver.opens(opening(2, prompts[0]))
    driver.run_pass()
    row = slot.state.begin_pass(64, 0)
    driver.engine.step([step_row(slot, row)])
    assert slot.state.abandon_pass(row)
    driver.finish(slot)
    assert answer_of(slot) == whole


def test_a_session_closed_before_its_pass_begins_leaves_nothing_behind(
    driver: Driver, prompts: list[list[int]]
) -> None:
    slot = driver.opens(opening(1, prompts[0]))
    row = step_row(slot, slot.state.begin_pass(64, 0))
    driver.close(slot.state.session_id, 1, 0.0)
    driver.engine.step([row])
    assert driver.engine.free_kv_tokens == driver.engine.info.kv_tokens


def test_short_of_kv_cache_sessions_are_preempted_and_lose_nothing(driver: Driver, prompts: list[list[int]]) -> None:
    """Four answers of 300 tokens need twice the KV cache that there is."""
    requests = [opening(number, prompts[number], 300, sampling=SAMPLED) for number in range(4)]
    alone = [driver.answers(request)[0] for request in requests]
    before = driver.engine.num_preemptions
    slots = [driver.opens(request) for request in requests]
    driver.finish(*slots, right=alone)
    assert [answer_of(slot) for slot in slots] == alone
    assert driver.engine.num_preemptions > before


def test_a_waiting_session_gives_its_kv_cache_to_one_that_can_go_on(driver: Driver, prompts: list[list[int]]) -> None:
    """The older session waits for guesses and holds most of the KV cache; the younger one needs all but a block."""
    long = (prompts[0] * 40)[:500]
    old = driver.opens(opening(1, long, 200, free_run=False))
    while old.state.length == len(long):
        driver.run_pass()
    young = driver.opens(opening(2, prompts[1], 600, sampling=SAMPLED))
    driver.finish(young)
    driver.guess(old, [5])
    assert old.state.ready
    old.state.expire_drafter(1e9, 0.0)
    driver.finish(old)
    driver.close(old.state.session_id, 1, 0.0)
    driver.close(young.state.session_id, 1, 0.0)
    assert driver.answers(opening(3, long, 200)) == [answer_of(old)]


def test_a_session_opens_when_its_text_fits_or_nobody_else_holds_kv_cache(
    driver: Driver, prompts: list[list[int]]
) -> None:
    long = (prompts[0] * 60)[:700]
    first = driver.opens(opening(1, long, 20))
    driver.run_pass()
    for _ in range(12):
        driver.run_pass()
    second = driver.opens(opening(2, long[5:], 20))
    assert second.context is None, "its prompt does not fit beside the first"
    driver.finish(first)
    assert second.context is not None
    driver.finish(second)


def test_a_failed_step_costs_only_the_session_at_fault_and_leaves_no_wrong_cache(
    driver: Driver, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = opening(1, prompts[0]), opening(2, prompts[1], sampling=Sampling(0.5, seed=666))
    (whole,) = driver.answers(good)
    real = sampler.draw

    def fails(logits, sampling, position):
        if sampling.seed == 666:
            raise RuntimeError("poisoned")
        return real(logits, sampling, position)

    monkeypatch.setattr(sampler, "draw", fails)
    slots = [driver.opens(opening(3, prompts[0])), driver.opens(bad)]
    with pytest.raises(RuntimeError, match="poisoned"):
        driver.finish(*slots)
    for slot in slots:
        slot.state.abandon_pass(slot.state._row)
    driver.close(slots[1].state.session_id, 1, 0.0)
    driver.finish(slots[0])
    assert answer_of(slots[0]) == whole
    driver.close(slots[0].state.session_id, 1, 0.0)
    assert driver.answers(opening(4, prompts[0])) == [whole]


def test_prefixes_are_shared_within_a_scope_alone(driver: Driver, prompts: list[list[int]]) -> None:
    long = (prompts[0] * 20)[:300]
    plain = driver.answers(opening(1, long))
    before = driver.engine.num_shared_tokens
    for number, (scope, num_shared) in enumerate([("ours", 0), ("ours", 256), ("theirs", 0), (None, 0), (None, 0)]):
        assert driver.answers(opening(2 + number, long, cache_scope=scope)) == plain
        assert driver.engine.num_shared_tokens - before == num_shared, scope
        before = driver.engine.num_shared_tokens


def test_the_longest_text_that_the_model_takes_is_answered_to_its_end(engine: VllmEngine) -> None:
    prompt = [3 + number % 500 for number in range(600)]
    assert engine.info.largest_context == min(engine.info.max_context, engine.info.kv_tokens)
    driver = Driver(engine)
    slot = driver.opens(opening(1, prompt, engine.info.largest_context - len(prompt)))
    driver.finish(slot, right=[[0] * 4000], num_guesses=16)
    assert slot.state.finish == "length"
    assert slot.state.length == engine.info.largest_context
    driver.close(slot.state.session_id, 1, 0.0)


def test_passes_of_many_tokens_have_threads_of_their_own_number(
    tmp_path: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = torch.get_num_threads(), torch.get_num_threads() + 1
    used: list[tuple[bool, int]] = []  # of each pass, whether it has many tokens, and its threads
    stock = StockWorker.execute_model

    def noted(self: StockWorker, scheduled: Any) -> Any:
        used.append((scheduled.total_num_scheduled_tokens >= MANY_TOKENS, torch.get_num_threads()))
        return stock(self, scheduled)

    with loaded(tiny.save(tiny.llama(), tmp_path), vllm_args=tiny.FLAGS, prefill_threads=many) as engine:
        monkeypatch.setattr(StockWorker, "execute_model", noted)
        driver = Driver(engine)
        slots = [driver.opens(opening(number, prompt, max_tokens=3)) for number, prompt in enumerate(prompts[:3])]
        driver.finish(*slots)
    assert set(used) == {(True, many), (False, few)}


@pytest.mark.parametrize("is_faster", [True, False])
def test_short_passes_are_padded_where_that_is_faster(
    tmp_path: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, *, is_faster: bool
) -> None:
    rows: set[tuple[int, int]] = set()  # of each pass of few tokens: tokens, and rows that the model had
    stock = CPUModelRunner._model_forward

    def noted(self: CPUModelRunner, **inputs: Any) -> Any:
        attention = next(iter(get_forward_context().attn_metadata.values()))
        rows.add((attention.num_actual_tokens, len(inputs["input_ids"])))
        return stock(self, **inputs)

    seconds = [1.0, 0.9 if is_faster else 0.97]
    monkeypatch.setattr(Worker, "pass_seconds", lambda self, numbers: seconds)
    with loaded(tiny.save(tiny.llama(), tmp_path), vllm_args=tiny.FLAGS) as engine:
        monkeypatch.setattr(CPUModelRunner, "_model_forward", noted)
        driver = Driver(engine)
        alone = driver.answers(*(opening(number, prompt) for number, prompt in enumerate(prompts[:3])))
        slots = [driver.opens(opening(10 + number, prompt)) for number, prompt in enumerate(prompts[:3])]
        driver.finish(*slots, right=alone, num_guesses=2)
    assert [answer_of(slot) for slot in slots] == alone
    few = {(tokens, padded) for tokens, padded in rows if tokens < 12}
    assert {tokens for tokens, _ in few} >= {3, 9}
    assert few == {(tokens, max(tokens, LEAST_ROWS) if is_faster else tokens) for tokens, _ in few}
