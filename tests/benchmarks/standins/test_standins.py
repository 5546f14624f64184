"""Stand-ins replay recordings, keep the times of a profile, log overruns, and are named stand-ins."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from structlog.testing import capture_logs

from benchmarks.harness.standin import OVERRUN
from benchmarks.standins import __main__ as command
from benchmarks.standins import loading
from benchmarks.standins.paced import PacedDraft, PacedTarget
from benchmarks.standins.pacer import Pacer
from benchmarks.standins.replayed import NotRecorded, ReplayedDraft, ReplayedTarget
from benchmarks.standins.settings import StandinDrafterSettings, StandinVerifierSettings
from services.cloud_verifier.torch_engine.model import Row, TargetModel
from services.edge_drafter.model import DraftModel, DraftRow
from shared.bus.memory_bus import MemoryNetwork
from shared.data.profiles import PassTimes, Profile, StepTimes, read_profile
from shared.data.recording import Recorded, Recording
from shared.protocol.messages import Sampling, Speculation
from shared.protocol.sampling import confidence_of
from shared.runtime.config import load
from tests.benchmarks.sample_recordings import NUM_TOKENS, QUICK, profile_json, recording
from tests.e2e.harness import Cell, Generated, running
from tests.fakes import FakeDraft, FakeTarget

SLOW = Profile(
    name="slow",
    origin="made up",
    verifier=PassTimes(base_ms=3.0, session_ms=1.0, token_ms=0.5, cached_ms=1000.0),
    drafter=StepTimes(step_ms=2.0, fed_ms=1.0),
)
IMPOSSIBLE = Profile(
    name="impossible", origin="made up", verifier=PassTimes(base_ms=0.0), drafter=StepTimes(step_ms=0.0)
)


# --- replayed ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def replaying(recorded: Recording) -> AsyncIterator[Cell]:
    target, draft = ReplayedTarget(recorded, QUICK), ReplayedDraft(recorded, QUICK)
    async with running(MemoryNetwork().connect, [cast(TargetModel, target)], [cast(DraftModel, draft)]) as cell:
        await cell.verifiers[0].loop.warm_up()  # as a process does, so that the cost curve learns that rows are free
        yield cell


async def ask(
    cell: Cell, prompt: Recorded, window: int, stop_and_wait: bool, max_tokens: int = NUM_TOKENS
) -> Generated:
    chunk = window if stop_and_wait else min(2, window)
    await cell.client.decide(cell.drafter_id(), cell.verifier_id(), window, chunk, free_run=not stop_and_wait)
    return await cell.client.generate(
        prompt.prompt_ids,
        verifier_id=cell.verifier_id(),
        drafter_id=cell.drafter_id(),
        max_tokens=max_tokens,
        speculation=Speculation("static", window),
        free_run=not stop_and_wait,
    )


def stop_and_wait_counts(prompt: Recorded, window: int) -> set[tuple[int, int, int, int]]:
    """Possible counts of an answer: passes, accepted, rejected and late guesses.

    The pass over the prompt yields a token. The guesses for it arrive in time, are not sent yet, or are late. After a
    late right guess there is room for one more guess, which joins those that are there or is late itself.
    """
    right = prompt.draft_right
    in_time, unsent = rounds(prompt, (), 0, window), rounds(prompt, (), 1, window)
    counts = {(*in_time, 0), (1 + unsent[0], *unsent[1:], 0)}
    if not right[0]:
        return counts | {(1 + unsent[0], unsent[1], unsent[2] + 1, 0)}
    for last in (window, window + 1):
        passes, accepted, rejected = rounds(prompt, right[1:last], 1, window)
        counts.add((1 + passes, accepted, rejected, 1))
    if window > 1 and all(right[1:window]):
        passes, accepted, rejected = rounds(prompt, right[1:window], 1, window)
        counts.add((1 + passes, accepted, rejected + 1 - right[window], 1 + right[window]))
    return counts


def rounds(prompt: Recorded, pending: Sequence[bool], position: int, window: int) -> tuple[int, int, int]:
    """Passes, accepted and rejected from `position` on. `pending`: guesses for it that have arrived."""
    num_passes = accepted = rejected = 0
    while position < NUM_TOKENS:
        guesses, pending = pending or prompt.draft_right[position : position + window], ()
        matched = guesses.index(False) if False in guesses else len(guesses)
        num_passes, accepted = num_passes + 1, accepted + matched
        rejected += matched < len(guesses)
        position += matched + 1
    return num_passes, accepted, rejected


@pytest.mark.parametrize("acceptance", [0.0, 0.7, 1.0])
async def test_a_replayed_pair_serves_the_recorded_texts_with_the_recorded_acceptance(acceptance: float) -> None:
    recorded = recording(acceptance)
    async with replaying(recorded) as cell:
        for prompt in recorded.prompts:
            for window in (1, 4):
                answer = await ask(cell, prompt, window, stop_and_wait=True)
                tally = answer.tally
                assert answer.token_ids == list(prompt.target_ids)
                found = tally.num_passes, tally.accepted, tally.rejected, tally.late
                assert found in stop_and_wait_counts(prompt, window)


async def test_a_replayed_pair_serves_the_recorded_texts_with_a_sliding_window() -> None:
    recorded = recording(0.8)
    async with replaying(recorded) as cell:
        for prompt in recorded.prompts:
            answer = await ask(cell, prompt, 8, stop_and_wait=False)
            assert answer.token_ids == list(prompt.target_ids)
            assert answer.tally.accepted > NUM_TOKENS / 8  # on a busy machine the rest is late
            assert answer.fingerprint == "stand-in-replayed-quick-t"


async def test_a_shorter_answer_is_the_beginning_of_the_recorded_one() -> None:
    recorded = recording(0.8)
    async with replaying(recorded) as cell:
        answer = await ask(cell, recorded.prompts[0], 4, stop_and_wait=False, max_tokens=9)
    assert answer.token_ids == list(recorded.prompts[0].target_ids[:9])


async def test_a_text_that_is_not_recorded_fails_its_session() -> None:
    recorded = recording(0.8)
    unknown = Recorded((5, 6, 7), (1,), (True,), (1.0,))
    async with replaying(recorded) as cell:
        with pytest.raises(RuntimeError, match="internal"):
            await ask(cell, unknown, 4, stop_and_wait=False)
        with pytest.raises(RuntimeError, match="internal"):
            await ask(cell, recorded.prompts[0], 4, stop_and_wait=False, max_tokens=NUM_TOKENS + 3)
        answer = await ask(cell, recorded.prompts[0], 4, stop_and_wait=False)
    assert answer.token_ids == list(recorded.prompts[0].target_ids)


def test_a_replayed_guess_is_right_and_as_confident_as_recorded() -> None:
    recorded = recording(0.5)
    draft = ReplayedDraft(recorded, QUICK)
    for prompt in recorded.prompts:
        text = (*prompt.prompt_ids, *prompt.target_ids)
        cache = draft.new_cache(len(text))
        cut = len(prompt.prompt_ids) - 3  # past the end of the shorter prompt with which it begins
        fed(draft, cache, prompt.prompt_ids[:cut], 0)
        logits = fed(draft, cache, prompt.prompt_ids[cut:], cut)
        for index in range(NUM_TOKENS):
            guess = int(logits.argmax())
            assert (guess == prompt.target_ids[index]) == prompt.draft_right[index]
            assert confidence_of(guess, logits) == pytest.approx(prompt.confidence[index], rel=1e-4)
            logits = fed(draft, cache, (prompt.target_ids[index],), cache.length)


def fed(draft: Any, cache: Any, token_ids: Sequence[int], start: int) -> np.ndarray:
    """The logits of a step with one row."""
    (logits,) = draft.step([DraftRow(cache, start, token_ids)])
    return logits


def test_logprobs_are_refused() -> None:
    recorded = recording(1.0)
    target = ReplayedTarget(recorded, QUICK)
    prompt = recorded.prompts[0].prompt_ids
    with pytest.raises(NotRecorded, match="logprobs"):
        target.step([Row(target.new_cache(64), 0, prompt, 1, Sampling(), num_top=0)])


# --- time -------------------------------------------------------------------------------------------------------------


def paced_pass_ms(target: PacedTarget, num_sessions: int, num_tokens: int) -> float:
    rows = [Row(target.new_cache(64), 0, [1] * num_tokens, 1, Sampling()) for _ in range(num_sessions)]
    started = time.perf_counter()
    drawn = target.step(rows)
    elapsed_ms = (time.perf_counter() - started) * 1e3
    assert drawn == FakeTarget().step(
        [Row(FakeTarget().new_cache(64), 0, [1] * num_tokens, 1, Sampling()) for _ in range(num_sessions)]
    )
    return elapsed_ms


def test_a_paced_pass_is_never_faster_than_its_profile_and_draws_what_its_model_draws() -> None:
    target = PacedTarget(cast(TargetModel, FakeTarget()), SLOW)
    for num_sessions, num_tokens in ((1, 1), (1, 5), (3, 2)):
        allowed_ms = 3 + num_sessions + 0.5 * num_sessions * num_tokens
        assert min(paced_pass_ms(target, num_sessions, num_tokens) for _ in range(5)) >= allowed_ms


def test_a_paced_pass_takes_longer_with_more_in_its_caches() -> None:
    assert SLOW.verifier.pass_ms(2, 3, 500) == pytest.approx(3 + 2 + 1.5 + 500)


def test_a_paced_draft_step_is_never_faster_than_its_profile_and_guesses_what_its_model_guesses() -> None:
    draft, bare = PacedDraft(cast(DraftModel, FakeDraft()), SLOW), FakeDraft()
    for num_tokens in (1, 4):
        cache, bare_cache = draft.new_cache(64), bare.new_cache(64)
        for start in range(0, 5 * num_tokens, num_tokens):
            started = time.perf_counter()
            logits = fed(draft, cache, [1] * num_tokens, start)
            assert (time.perf_counter() - started) * 1e3 >= 2 + (num_tokens - 1)
            assert np.array_equal(logits, fed(bare, bare_cache, [1] * num_tokens, start))


def test_a_paced_step_of_several_sessions_takes_the_time_of_its_profile() -> None:
    times = StepTimes(step_ms=2.0, fed_ms=1.0, session_ms=3.0)
    draft = PacedDraft(cast(DraftModel, FakeDraft()), SLOW.model_copy(update={"drafter": times}))
    caches = [draft.new_cache(64) for _ in range(3)]
    started = time.perf_counter()
    draft.step([DraftRow(cache, 0, [1]) for cache in caches])
    assert (time.perf_counter() - started) * 1e3 >= 2 + 2 * 3


def test_a_profile_without_the_time_of_a_further_session_steps_one_at_a_time() -> None:
    assert PacedDraft(cast(DraftModel, FakeDraft()), SLOW).max_rows == 1
    assert ReplayedDraft(recording(0.5), QUICK).max_rows == 1


def test_a_pass_that_takes_too_long_is_counted_and_logged_as_an_overrun() -> None:
    target = PacedTarget(cast(TargetModel, FakeTarget(pass_s=0.001)), IMPOSSIBLE)
    with capture_logs() as lines:
        paced_pass_ms(target, 1, 1)
        paced_pass_ms(target, 1, 1)
    assert target.pace.num_overruns == 2
    assert [line["event"] for line in lines] == [OVERRUN, OVERRUN]
    assert lines[-1]["num_overruns"] == 2
    assert lines[-1]["took_ms"] >= 1 > lines[-1]["allowed_ms"]


def test_a_wait_ends_on_time() -> None:
    pace, late_ms = Pacer(), []
    for needed_ms in (0.1, 0.5, 1.0, 2.0) * 10:
        started = time.perf_counter()
        assert pace.wait(started, needed_ms)
        late_ms.append((time.perf_counter() - started) * 1e3 - needed_ms)
    assert min(late_ms) >= 0
    assert np.quantile(late_ms, 0.25) < 0.1  # a busy machine delays many, but not most by so much


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options of a replayed stand-in."""
    (tmp_path / "profile.json").write_bytes(profile_json(QUICK))
    recording(0.8).write(tmp_path / "recording.jsonl")
    return [
        "--standin-kind=replayed",
        f"--standin-profile={tmp_path / 'profile.json'}",
        f"--standin-recording={tmp_path / 'recording.jsonl'}",
    ]


def test_every_name_of_a_stand_in_contains_the_word(files: list[str]) -> None:
    verifier = load(StandinVerifierSettings, files, "test")
    drafter = load(StandinDrafterSettings, files, "test")
    target, draft = loading.load_target(verifier), loading.load_draft(drafter)
    paced = PacedTarget(cast(TargetModel, FakeTarget()), QUICK), PacedDraft(cast(DraftModel, FakeDraft()), QUICK)
    names = [verifier.name, verifier.model_name, drafter.name, drafter.model_name, target.name, target.fingerprint]
    names += [draft.name, paced[0].name, paced[0].fingerprint, paced[1].name]
    assert [name for name in names if "stand-in" not in name] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda flags: [*flags, "--name=verifier"], "name must contain stand-in, got 'verifier'"),
        (lambda flags: [*flags, "--model-name=smollm2"], "model_name must contain stand-in, got 'smollm2'"),
        (lambda flags: flags[:2], "standin_recording is required"),
        (lambda flags: [*flags, "--target=models/target"], "target is required for paced"),
        (lambda flags: [flags[0], "--standin-profile=/no/such/file", flags[2]], "/no/such/file: No such file"),
        (lambda flags: [flags[0], flags[2].replace("recording=", "profile="), flags[2]], "is no profile"),
    ],
)
def test_settings_that_do_not_fit_a_stand_in_are_refused_in_one_line(
    files: list[str], change: Callable[[list[str]], list[str]], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(StandinVerifierSettings, change(files), "test")
    line = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in line
    assert line.count("\n") == 1


def test_a_service_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["gateway"])
    told = capsys.readouterr().err
    assert "choose from" in told
    assert "'gateway'" in told


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(profile_json(SLOW))
    assert read_profile(path) == SLOW
    path.write_text('{"name": "x", "origin": "", "verifier": {"base_ms": -1}, "drafter": {"step_ms": 1}}')
    with pytest.raises(ValueError, match=r"is no profile: verifier\.base_ms: Input should be greater than"):
        read_profile(path)
