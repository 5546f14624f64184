"""An accelerator against the CPU, with drafts whose guesses are known."""

from __future__ import annotations

from typing import cast

from benchmarks.experiments.providers import ProviderCosts, compare, read, table
from services.edge_drafter.model import DraftModel
from shared.data.recording import Recorded
from tests.fakes import FakeDraft, answer

PROMPT = tuple(range(1, 71))
ANSWER = tuple(answer(PROMPT, 10))
TEXT = Recorded(PROMPT, ANSWER, (True,) * 10, (0.5,) * 10)


def test_a_draft_reads_the_prompt_in_chunks_and_guesses_at_each_position_of_the_answer() -> None:
    draft = FakeDraft()
    reading = read(cast(DraftModel, draft), TEXT)
    assert tuple(reading.guesses) == ANSWER
    assert [fed for ((_, fed),) in draft.steps] == [64, 6, *[1] * 9]
    assert len(reading.step_ms) == 9


def test_guesses_are_compared_position_by_position() -> None:
    wrong_twice = FakeDraft(is_right=lambda position: position not in (72, 75))
    costs = compare(cast(DraftModel, wrong_twice), cast(DraftModel, FakeDraft()), [TEXT, TEXT])
    assert (costs.num_positions, costs.num_same, costs.share_of_same) == (20, 16, 0.8)
    assert costs.share_of_nodes == 0.9


def test_the_table_tells_who_computes_the_graph() -> None:
    costs = ProviderCosts({"OpenVINO": 311, "CPU": 30}, 200, 199, 5.0, 10.0, 1.0, 2.0)
    cells = [list(column.cells) for column in table(costs, "draft").columns]
    assert cells[1][:2] == ["91.2%: OpenVINO 311, CPU 30", "99.5%: 199 of 200"]
    assert cells[2] == ["≥ 90%", "≥ 99%", "", ""]


def test_a_graph_that_the_cpu_computes_alone_is_told_as_such() -> None:
    assert ProviderCosts({"CPU": 341}, 1, 1, 1.0, 1.0, 1.0, 1.0).share_of_nodes == 0
