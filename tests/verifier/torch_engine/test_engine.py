"""The built-in engine: what it knows of a context's text, and a warning on GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from structlog.testing import capture_logs

from services.cloud_verifier.engine import Drawn, StepRow
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine import engine
from services.cloud_verifier.torch_engine.model import Row
from services.cloud_verifier.torch_engine.prefixes import MIN_TOKENS
from shared.protocol.messages import NO_TOKENS, Open, Sampling, TokenIds
from shared.protocol.subjects import new_session_id
from tests.fakes import FakeTarget, answer, fake_engine

PROMPT = list(range(5, 5 + 2 * MIN_TOKENS))
ANSWER = answer(PROMPT, 8)


def a_request(prompt: Sequence[int] = PROMPT) -> Open:
    penalised = Sampling(presence_penalty=1.0)
    return Open(new_session_id(), 1, None, TokenIds(prompt), NO_TOKENS, penalised, NO_TOKENS, 16, cache_scope="a")


def decode(guessing: engine.TorchEngine) -> engine.TorchContext:
    """Computes the prompt and six tokens of the answer: by two right guesses, by a right and a wrong one, by none."""
    context = guessing.open(a_request(), PROMPT)
    assert context is not None
    end = len(PROMPT)
    guessing.step([StepRow(context, 0, PROMPT, 1)])
    guessing.step([StepRow(context, end, ANSWER[:3], 3)])
    guessing.step([StepRow(context, end + 3, [ANSWER[3], ANSWER[4], ANSWER[5] + 1], 3)])
    guessing.step([StepRow(context, end + 5, [ANSWER[5]], 1)])
    return context


class CountingTarget(FakeTarget):
    """Takes note of the tokens that penalties count when a pass begins."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[list[int]] = []

    def step(self, rows: Sequence[Row]) -> list[Drawn]:
        self.counted += [list(row.running.output_ids) for row in rows if row.running]
        return super().step(rows)


def test_penalties_count_accepted_guesses_and_no_others() -> None:
    target = CountingTarget()
    decode(fake_engine(target))
    assert target.counted == [[], ANSWER[:1], ANSWER[:4], ANSWER[:6]]


def test_penalties_count_the_text_that_a_row_goes_on_with_after_a_rollback() -> None:
    target = CountingTarget()
    engine = fake_engine(target)
    context = decode(engine)
    end, other = len(PROMPT), [90, 91, 92]
    engine.step([StepRow(context, end + 2, other, 0)])
    engine.step([StepRow(context, end + 4, [80, 81], 2)])
    assert target.counted[-1] == [*ANSWER[:2], *other[:2], 80]


def test_a_text_is_shared_up_to_where_it_parts_whoever_guessed_it() -> None:
    shared = fake_engine(FakeTarget())
    decode(shared)
    others = [[*PROMPT, *ANSWER[:5], 0], [*PROMPT, *ANSWER[:4], ANSWER[5] + 1, 0], [*PROMPT, ANSWER[0], ANSWER[3], 0]]
    contexts = [shared.open(a_request(other), other) for other in others]
    for context in contexts:
        assert context is not None
        shared.share(context)
    assert [context and context.num_shared for context in contexts] == [len(PROMPT) + n for n in (5, 4, 1)]


@pytest.mark.parametrize(("device", "num_warnings"), [("cpu", 0), ("cuda", 1)])
def test_on_a_gpu_a_warning_recommends_vllm(device: str, num_warnings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "pick_device", lambda _: torch.device(device))
    monkeypatch.setattr(engine, "load_model", lambda _: FakeTarget())
    with capture_logs() as lines:
        engine.load_engine(VerifierSettings(target="none"))
    assert ["--engine vllm" in line["event"] for line in lines] == [True] * num_warnings
    assert all(line["log_level"] == "warning" for line in lines)
