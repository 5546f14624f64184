"""The pipeline window: what a drafter can have in flight."""

from __future__ import annotations

from msgspec.structs import replace as changed

from awc.policies.pipeline import PipelinePolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import MAX_WINDOW
from tests.awc.reports import SEEN

PIPELINE = PipelinePolicy(DEFAULT_CHOICE).for_pair()


def test_the_window_is_what_is_drafted_until_the_first_verdict_and_two_chunks() -> None:
    assert PIPELINE.decide(SEEN) == WindowChoice(15, 2, free_run=True)  # (30 + 2 * 40) ms / 10 ms + 4
    assert PIPELINE.decide(changed(SEEN, draft_ms=30.0)).window == 7
    assert PIPELINE.decide(changed(SEEN, rtt_ms=1e15)).window == MAX_WINDOW


def test_acceptance_does_not_matter() -> None:
    assert PIPELINE.decide(changed(SEEN, matched=0, mismatched=20)) == PIPELINE.decide(SEEN)


def test_before_the_first_tokens_the_start_holds() -> None:
    assert PIPELINE.decide(changed(SEEN, tpot_ms=0.0)) == DEFAULT_CHOICE
