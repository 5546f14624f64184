"""Prefix caching: which sessions share a KV cache, and that the bits stay the same."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.cloud_verifier.loop import step_row
from services.cloud_verifier.sessions import SessionSlot, SessionTable
from services.cloud_verifier.torch_engine.kv import KvCache, Prefix
from services.cloud_verifier.torch_engine.model import Row, TargetModel, load_target
from services.cloud_verifier.torch_engine.prefixes import MIN_TOKENS, Key, PrefixCache
from shared.policies.kv_cache import KV_STEP
from shared.protocol.guesses import common_prefix
from shared.protocol.messages import NO_TOKENS, Open, Sampling, TokenIds
from shared.protocol.pass_row import PassInfo
from shared.protocol.subjects import new_instance_id
from tests.fakes import FakeTarget, answer, fake_engine
from tests.verifier.torch_engine.tiny_models import SERVED, save_model

GATEWAY = new_instance_id("gateway")
STEP = KV_STEP
PROMPT = tuple(range(5, 5 + 2 * MIN_TOKENS))


class Table(SessionTable):
    """A table for `num_caches` sessions of up to STEP tokens, and the passes of its sessions."""

    def __init__(self, num_caches: int) -> None:
        self.engine = fake_engine(FakeTarget(), num_caches * STEP)
        super().__init__(self.engine, 10, 1000.0, lambda slot, refusal: None)

    def opens(
        self, number: int, prompt: Sequence[int] = PROMPT, scope: str | None = "a", max_tokens: int = 4
    ) -> SessionSlot:
        ids = TokenIds(prompt)
        request = Open(f"{number:032x}", 1, None, ids, NO_TOKENS, Sampling(), NO_TOKENS, max_tokens, cache_scope=scope)
        return self.open(request, GATEWAY, 0.0)

    def run_pass(self, chunk: int = 8) -> list[str]:
        """Computes one pass and returns the ids of its sessions."""
        self.prepare_pass()
        slots = self.ready()
        rows = [slot.state.begin_pass(chunk, 0) for slot in slots]
        computed = self.engine.step([step_row(slot, row) for slot, row in zip(slots, rows, strict=True)])
        for slot, row, each in zip(slots, rows, computed, strict=True):
            verdict = slot.state.end_pass(row, each.drawn.token_ids, PassInfo(), 0.0)
            if verdict and verdict.finish:
                self.settle(slot)
        return [slot.state.session_id for slot in slots]

    def finish(self, slot: SessionSlot) -> int:
        """Number of passes until the session has its answer."""
        num_passes = 0
        while slot.state.finish is None:
            assert self.run_pass(), "no session is ready"
            num_passes += 1
        assert slot.state.tokens == [*slot.state.request.prompt_ids, *answer(slot.state.request.prompt_ids, 4)]
        return num_passes


def kept(*texts: Sequence[int], scope: str = "a", reserved: int = STEP) -> PrefixCache:
    cache = PrefixCache()
    for text in texts:
        cache.keep(Key.of(scope, text), object(), reserved)  # type: ignore[arg-type]
    return cache


def found(cache: PrefixCache, text: Sequence[int], scope: str = "a") -> int:
    prefix = cache.find(Key.of(scope, text))
    return prefix.length if prefix else 0


def test_the_longest_common_prefix_is_found() -> None:
    text = list(range(100))
    cache = kept([*text[:30], 7, 7], [*text[:60], 9], [1, *text[1:90]])
    assert found(cache, text) == 60
    assert found(cache, text[:20]) == 20
    assert found(cache, [3, *text]) == 0


def test_of_any_texts_the_one_with_most_in_common_is_found() -> None:
    rng = random.Random(4)
    for _ in range(200):
        cache, texts = PrefixCache(), []
        for _ in range(rng.randrange(1, 20)):
            cut, tail = rng.randrange(60), [rng.randrange(3) for _ in range(rng.randrange(1, 40))]
            texts.append([*(rng.choice(texts)[:cut] if texts else []), *tail])
            cache.keep(Key.of("a", texts[-1]), object(), STEP)  # type: ignore[arg-type]
        asked = [*rng.choice(texts)[: rng.randrange(60)], *(rng.randrange(3) for _ in range(20))]
        longest = max(common_prefix(text, asked) for text in texts)
        assert found(cache, asked) == (longest if longest >= MIN_TOKENS else 0)
        kept_texts = {tuple(text) for text in texts if len(text) >= MIN_TOKENS}
        covered = [text for text in kept_texts if any(other[: len(text)] == text for other in kept_texts - {text})]
        assert cache.reserved == (len(kept_texts) - len(covered)) * STEP


class CountedKey(Key):
    """A key that counts how often it is compared or looked at."""

    num_looks = 0

    def __lt__(self, other: tuple[object, ...]) -> bool:
        CountedKey.num_looks += 1
        return super().__lt__(other)

    @property
    def token_ids(self) -> NDArray[np.uint32]:
        CountedKey.num_looks += 1
        return super().token_ids


@pytest.mark.parametrize("num_texts", [10, 10_000])
def test_a_search_looks_at_few_of_the_kept_texts_however_many_there_are(num_texts: int) -> None:
    rng = np.random.default_rng(5)
    cache = PrefixCache()
    for _ in range(num_texts):
        cache.keep(CountedKey.of("a", rng.integers(0, 4, 64)), object(), STEP)  # type: ignore[arg-type]
    assert cache.reserved == num_texts * STEP
    for _ in range(20):
        CountedKey.num_looks = 0
        cache.find(CountedKey.of("a", rng.integers(0, 4, 64)))
        assert 0 < CountedKey.num_looks <= 8 + 2 * math.log2(num_texts)


def test_nothing_is_found_in_another_scope() -> None:
    assert found(kept(range(100)), range(100), scope="b") == 0


def test_a_text_that_another_goes_on_with_is_kept_once() -> None:
    assert kept(range(50), range(80)).reserved == STEP
    assert kept(range(80), range(50)).reserved == STEP
    assert kept(range(80), [*range(50), 1]).reserved == 2 * STEP


def test_the_cache_used_longest_ago_gives_way_first() -> None:
    texts = [[number] * 40 for number in range(3)]
    cache = kept(*texts)
    assert found(cache, texts[0]) == 40
    cache.shrink(2 * STEP)
    assert [found(cache, text) for text in texts] == [40, 0, 40]


def test_a_second_question_after_the_first_answer_is_computed_from_where_they_part() -> None:
    table = Table(4)
    first = table.opens(1)
    assert table.finish(first) > 4
    again = table.opens(2, [*first.state.tokens, *range(60, 64)])
    assert again.state.computed == len(PROMPT) + 3  # the newest token was never fed
    assert table.finish(again) == 4
    assert table.engine.num_shared_tokens == len(PROMPT) + 3


def test_sessions_of_another_scope_or_of_none_compute_everything_themselves() -> None:
    table = Table(4)
    table.finish(table.opens(1, scope="a"))
    table.finish(table.opens(2, scope=None))
    others = [table.opens(3, scope="b"), table.opens(4, scope=None)]
    assert [slot.state.computed for slot in others] == [0, 0]
    assert table.engine.num_shared_tokens == 0


def test_kept_caches_give_way_to_sessions() -> None:
    table = Table(2)
    for number in range(3):
        table.finish(table.opens(number, [number + 5] * 40))
    assert (table.engine.free_kv_tokens, table.engine.prefixes.reserved) == (2 * STEP, 2 * STEP)
    slots = [table.opens(number, [number + 5] * 40) for number in (10, 11)]
    assert all(slot.context is not None for slot in slots)
    assert (table.engine.free_kv_tokens, table.engine.prefixes.reserved) == (0, 0)
    table.finish(slots[0])
    assert table.opens(12, [10 + 5] * 40).state.computed > 0


def test_a_twin_waits_for_the_prefill_under_way_and_is_spared_its_own() -> None:
    table = Table(4)
    first, twin = table.opens(1), table.opens(2)
    while first.state.num_todo > 1:
        assert table.run_pass() == [first.state.session_id]
    assert table.run_pass() == [first.state.session_id, twin.state.session_id]
    assert table.engine.num_shared_tokens == len(PROMPT) - 1
    table.finish(first)
    table.finish(twin)


def test_a_twin_computes_for_itself_when_the_other_is_closed_mid_prefill() -> None:
    table = Table(4)
    first, twin = table.opens(1), table.opens(2)
    table.run_pass(MIN_TOKENS)
    table.close(first.state.session_id, 1, 0.0)
    table.finish(twin)
    assert table.engine.num_shared_tokens == MIN_TOKENS, "what the closed one had computed is used"


def test_twins_of_one_that_is_over_do_not_wait_for_each_other() -> None:
    table = Table(4)
    first = table.opens(1, [*PROMPT, 80])
    twins = [table.opens(number, [*PROMPT, 90, 91]) for number in (2, 3)]  # a longer common prefix
    table.run_pass(MIN_TOKENS)
    table.close(first.state.session_id, 1, 0.0)
    for twin in twins:
        assert table.finish(twin) < 20


def test_what_a_twin_has_yet_to_copy_is_copied_from_where_it_is() -> None:
    table = Table(4)
    table.finish(table.opens(1))
    first = table.opens(2, [*PROMPT, 90])
    assert first.context.prefix is not None
    source = first.context.prefix.cache
    table.engine.prefixes.shrink(0)  # its memory is needed
    second = table.opens(3, PROMPT)
    assert second.context.source is first.context
    assert second not in table.ready()
    table.prepare_pass()
    assert second in table.ready()
    assert second.context.prefix is not None
    assert second.context.prefix.cache is source


def test_a_closed_session_that_had_copied_nothing_yet_leaves_nothing() -> None:
    table = Table(2)
    table.finish(table.opens(1))
    inheriting = table.opens(2)
    assert inheriting.context.prefix is not None
    table.opens(3, scope="b")
    assert table.engine.prefixes.reserved == 0, "the first one's cache gave way"
    table.close(inheriting.state.session_id, 1, 0.0)
    assert table.engine.prefixes.reserved == 0


def test_what_little_a_session_shares_with_twins_is_not_awaited_from_the_one_that_waits_itself() -> None:
    table = Table(8)
    first = table.opens(1, [*PROMPT, *range(40, 90)])
    twin = table.opens(2, [*PROMPT, *range(40, 90)])
    third = table.opens(3, [*PROMPT, 40, 41, 95])
    assert (twin.context.source, third.context.source) == (first.context, first.context)
    while third.context.num_shared is None:
        table.run_pass()
    assert twin.context.num_shared is None
    assert third.context.num_shared == len(PROMPT) + 2


def test_a_session_of_another_scope_does_not_wait_for_a_prefill_under_way() -> None:
    table = Table(4)
    slots = [table.opens(number, scope=scope) for number, scope in enumerate(("a", "b", None, None))]
    assert table.run_pass() == [slot.state.session_id for slot in slots]
    assert table.engine.num_shared_tokens == 0


def test_logits_after_a_copied_prefix_have_the_same_bits(tmp_path) -> None:
    target = load_target(str(save_model(SERVED["qwen3"](), tmp_path)), "cpu", "auto")
    rng = np.random.default_rng(3)
    text = rng.integers(target.vocab_size, size=90).tolist()
    other = [*text[:70], *rng.integers(target.vocab_size, size=20).tolist()]
    source, whole = fed(target, text), target.new_cache(600)
    expected = target.forward([Row(whole, 0, other, 90, Sampling())])[0]
    for length in (1, 33, 70):
        cache = target.new_cache(90)
        cache.copy(Prefix(source, length))
        row = Row(cache, length, other[length:], 90 - length, Sampling())
        assert torch.equal(target.forward([row])[0], expected[length:])
    target.forward([Row(source, 89, text[89:], 1, Sampling())])  # the source is unchanged


def fed(target: TargetModel, text: list[int]) -> KvCache:
    """A cache that holds the text, fed in uneven chunks."""
    cache = target.new_cache(len(text))
    for start, end in ((0, 40), (40, 41), (41, len(text))):
        target.forward([Row(cache, start, text[start:end], 0, Sampling())])
    return cache


def test_a_session_that_waits_for_a_prefix_and_gets_another_text_shares_what_that_has_in_common() -> None:
    table = Table(4)
    first, waiting = table.opens(1), table.opens(2)
    assert waiting.context.num_shared is None
    other = [*PROMPT[:MIN_TOKENS], *range(60, 80)]
    request = Open(
        waiting.state.session_id, 2, None, TokenIds(other), NO_TOKENS, Sampling(), NO_TOKENS, 4, cache_scope="a"
    )
    assert table.open(request, GATEWAY, 0.0) is waiting
    table.finish(first)
    table.finish(waiting)
    assert table.engine.num_shared_tokens == MIN_TOKENS
