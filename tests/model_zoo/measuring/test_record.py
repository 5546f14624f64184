"""Recordings of a real pair: the texts are what the services serve, and the judgements are the draft's own guesses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model_zoo.measuring.record import prompt_ids, record, stop_ids
from services.cloud_verifier.torch_engine.model import TargetModel, load_target
from services.edge_drafter.graphs.graph import DraftCache
from services.edge_drafter.model import DraftModel, load_draft
from shared.bus.memory_bus import MemoryNetwork
from shared.data.recording import Recorded, read_recording
from shared.policies.reading import FIRST_READ
from shared.protocol.messages import Sampling
from shared.protocol.sampling import confidence_of, draw
from tests.e2e.harness import running
from tests.model_zoo.command import model_zoo

ROOT = Path(__file__).parents[3]
PROMPTS = ["Name three colours of the sea.", "Count from one to twelve in words, please."]
MAX_TOKENS = 20


@pytest.fixture(scope="module")
def pair(default_models: Path) -> tuple[TargetModel, DraftModel]:
    return load_target(str(default_models / "target")), load_draft(str(default_models / "draft-int4"), 1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=7)], ids=["T0", "T0.8"])
async def test_a_recording_holds_the_served_texts_and_the_drafts_guesses(
    pair: tuple[TargetModel, DraftModel], default_models: Path, sampling: Sampling
) -> None:
    target, draft = pair
    folder = default_models / "target"
    prompts, stops = prompt_ids(folder, PROMPTS), stop_ids(folder)
    assert len(stops) > 0
    found = list(record(target, draft, prompts, stops, sampling, MAX_TOKENS))
    async with running(MemoryNetwork().connect, [target], [draft]) as cell:
        for prompt, recorded in zip(prompts, found, strict=True):
            options = {"sampling": sampling, "max_tokens": MAX_TOKENS, "stop_ids": tuple(stops)}
            served = await cell.client.generate(prompt, verifier_id=cell.verifier_id(), drafter_id=None, **options)
            assert recorded.prompt_ids == tuple(prompt)
            assert list(recorded.target_ids) == served.token_ids
    num_tokens = sum(len(recorded.target_ids) for recorded in found)
    assert 0 < sum(sum(recorded.draft_right) for recorded in found) < num_tokens
    # The draft rounds a whole text fed at once otherwise than one fed token by token: near ties may flip.
    assert sum(num_alike(draft, recorded, sampling) for recorded in found) >= 0.9 * num_tokens


def test_a_draft_that_reads_a_part_of_a_prompt_has_its_start_and_its_end(
    pair: tuple[TargetModel, DraftModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = pair
    prompt, feed, fed = list(range(100, 260)), DraftModel.feed, []

    def seen(self: DraftModel, cache: DraftCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        fed.append((list(token_ids), start))
        return feed(self, cache, token_ids, start)

    monkeypatch.setattr(DraftModel, "feed", seen)
    (found,) = record(target, draft, [prompt], frozenset(), Sampling(), 3, most_read=FIRST_READ + 20)
    assert fed[0] == ([*prompt[:FIRST_READ], *prompt[-20:]], 0)
    assert fed[1:] == [([found.target_ids[number]], FIRST_READ + 20 + number) for number in range(2)]
    assert found.prompt_ids == tuple(prompt)


def num_alike(draft: DraftModel, recorded: Recorded, sampling: Sampling) -> int:
    """Positions judged alike when the draft reads the whole text before each anew."""
    text, num = [*recorded.prompt_ids, *recorded.target_ids], 0
    for index, token_id in enumerate(recorded.target_ids):
        position = len(recorded.prompt_ids) + index
        logits = draft.feed(draft.new_cache(position), text[:position], 0)
        guess = draw(logits, sampling, position)
        is_sure = abs(recorded.confidence[index] - confidence_of(guess, logits)) < 0.2
        num += is_sure and recorded.draft_right[index] == (guess == token_id)
    return num


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "model_zoo", "record", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))


def test_the_command_writes_a_recording_that_says_where_it_comes_from(default_models: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "some.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"question": prompt}) + "\n" for prompt in PROMPTS))
    done = command("--prompts", str(prompts), "--out", str(out), "--max-tokens", "6")
    assert done.returncode == 0, done.stderr
    recording = read_recording(out)
    assert [len(each.target_ids) for each in recording.prompts] == [6, 6]
    assert (recording.header.target, recording.header.draft) == ("smollm2-135m", "draft-int8")
    assert recording.header.origin.startswith("model_zoo record, some.jsonl, 6 tokens, temperature 0")
    assert "2 answers, 12 tokens" in done.stderr


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ('{"prompt": 3}', [], "one of the fields prompt"),
        ('{"prompt": "hi"}', ["--field", "text"], "the field text must hold text"),
        ('{"prompt": "hi"}', ["--draft", "nowhere"], "no draft model in nowhere"),
        ('{"prompt": "hi"}', ["--max-tokens", "9000"], "prompt 1: "),
    ],
)
def test_what_cannot_be_recorded_is_told_in_one_line(
    default_models: Path, tmp_path: Path, line: str, arguments: list[str], message: str
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(line + "\n")
    done = model_zoo("record", "--prompts", str(prompts), "--out", str(out), *arguments)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("record failed: ")
    assert message in done.stderr
    assert not out.exists()


def test_a_recording_without_a_folder_to_write_to_is_refused_before_the_work(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "no-folder" / "out.jsonl"
    prompts.write_text("no prompts: they are not read")
    done = model_zoo("record", "--prompts", str(prompts), "--out", str(out))
    assert done.returncode == 2
    assert "the folder of --out" in done.stderr
