"""The tokens that a drafter's penalties count: those of the text at the start of a step, however it came about."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import partial

import numpy as np
from prometheus_client import CollectorRegistry

from awc.policy import WindowChoice
from services.edge_drafter.loop import DraftLoop
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.model import DraftRow
from services.edge_drafter.sessions import DraftSessions
from shared.protocol.drafter_session import DrafterSession
from shared.protocol.messages import NO_TOKENS, Sampling, Speculate, Speculation, Tally, TokenIds, Verdict
from tests.fakes import FakeDraft
from tests.memory import peak_bytes

GATEWAY, VERIFIER = "gateway.0123456789ab", "cloud.0123456789ab"
CHOICE = WindowChoice(8, 2, True)
PENALISED = Sampling(presence_penalty=0.5, repetition_penalty=1.2)


def request(prompt: Sequence[int], max_tokens: int = 500, term: int = 1, committed: Sequence[int] = ()) -> Speculate:
    return Speculate(
        "1" * 32, term, VERIFIER, TokenIds(prompt), TokenIds(committed), PENALISED, NO_TOKENS, max_tokens, Speculation()
    )


def verdict(state: DrafterSession, token_ids: Sequence[int]) -> Verdict:
    ids = TokenIds(token_ids)
    return Verdict("1" * 32, state.term, state.epoch, state.committed, ids, 0, None, None, 20.0, 1, 0.0, Tally())


def test_a_step_counts_its_text_after_any_verdicts_and_rebindings() -> None:
    rng = random.Random(7)
    table = DraftSessions(FakeDraft(), 10)
    slot = table.speculate(request([5, 6, 7]), GATEWAY, CHOICE, 0.0)
    state, num_draws = slot.state, 0
    for turn in range(600):
        if rng.random() < 0.02:
            prompt = [5, 6, rng.choice([7, 8])]
            committed = [rng.randrange(9) for _ in range(rng.randrange(40))]
            table.speculate(request(prompt, term=turn + 2, committed=committed), GATEWAY, CHOICE, 0.0)
        if rng.random() < 0.5:
            guesses = state.tokens[state.committed :]
            told = [token if rng.random() < 0.8 else rng.randrange(9) for token in guesses] or [rng.randrange(9)]
            state.on_verdict(verdict(state, told), 0.0)
        if not state.wants_step:
            continue
        share = slot.begin_step(rng.choice([1, 3, 16]))
        step, inputs = share.step, share.inputs
        assert (inputs is not None) == step.draws
        if inputs is not None:
            num_draws += 1
            assert inputs.running is not None
            assert list(inputs.running.output_ids) == state.tokens[3:]
            assert inputs.position == len(state.tokens)
        if rng.random() < 0.2:  # meanwhile the text changes
            state.on_verdict(verdict(state, [rng.randrange(9)]), 0.0)
        state.end_step(step, rng.randrange(9))
    assert num_draws > 200


class BlankDraft(FakeDraft):
    """Knows nothing of the text."""

    def step(self, rows: Sequence[DraftRow]) -> list[np.ndarray]:
        return [np.zeros(self.vocab_size, dtype=np.float32) for _ in rows]


def draft_once(loop: DraftLoop) -> None:
    asyncio.run(loop.draft())


def test_a_draft_step_takes_no_more_memory_after_a_long_text_than_after_a_short_one() -> None:
    peaks = []
    for num_tokens in (200, 100_000):
        table = DraftSessions(BlankDraft(max_context=1 << 20), 10)  # type: ignore[arg-type]
        metrics = DrafterMetrics(CollectorRegistry())
        loop = DraftLoop(table._model, table, 1 << 20, metrics, lambda slot: None, lambda slot: None)
        text = [token_id % 50 for token_id in range(num_tokens)]
        slot = table.speculate(request(text[:100], 1 << 19, committed=text[100:]), GATEWAY, CHOICE, 0.0)
        draft_once(loop)
        peaks.append(min(peak_bytes(partial(draft_once, loop)) for _ in range(3)))
        assert slot.state.drafted == 4
        loop._executor.shutdown()
    assert peaks[1] < 2 * peaks[0]
