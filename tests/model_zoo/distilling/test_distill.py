"""`python -m model_zoo distill`: from a target to a draft, through a kill -9, and what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_zoo.distilling import training
from model_zoo.distilling.answers import answer, read_answers
from model_zoo.distilling.card import PLOT, half_hours, judge
from model_zoo.distilling.corpus import OWN_TURNS
from model_zoo.distilling.distill import ANSWERS_SHARE, SETTINGS, Settings
from model_zoo.distilling.training import Lesson, Time, acceptance, last_checkpoint, read_progress, step_of, train
from model_zoo.exporting.export import export_model
from model_zoo.exporting.onnx_export import Exporter
from services.edge_drafter.draft_config import read_config
from services.edge_drafter.model import load_draft
from shared.data.draft_card import CARD, Card, Progress, read_card
from tests.model_zoo.command import model_zoo
from tests.model_zoo.distilling.tiny import DEPTH, VOCAB_SIZE, load, make_target

ROOT = Path(__file__).parents[3]
OPTIONS = ("--layers", "2", "--vocabulary", "256", "--hours", "0.008")


@dataclass(frozen=True)
class Made:
    """A draft that was made in two runs, the first of which was killed."""

    target: Path
    draft: Path
    checkpoint: int  # step of the last checkpoint before the kill


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("models") / "target", "gpt_neox")


@pytest.fixture(scope="module")
def made(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("distilled") / "draft"
    command = [sys.executable, "-m", "model_zoo", "distill", "--target", str(target), "--out", str(out), *OPTIONS]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with out.with_name("log").open("w") as log:
        running = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    training = out.with_name("draft-work") / "trial-evenly"
    deadline = time.monotonic() + 240
    while running.poll() is None and last_checkpoint(training) is None:
        assert time.monotonic() < deadline, out.with_name("log").read_text()
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    checkpoint = last_checkpoint(training)
    assert checkpoint is not None, out.with_name("log").read_text()
    step = read_progress(training)[-1].step
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return Made(target, out, step)


def card_of(draft: Path) -> Card:
    return read_card(draft / CARD)


def test_a_killed_distillation_goes_on_where_it_was(made: Made) -> None:
    card, work = card_of(made.draft), made.draft.with_name("draft-work")
    assert [each.step for each in read_progress(work / "trial-evenly")] == [made.checkpoint]
    batches = [read_answers(path) for path in sorted((work / "answers").glob("*.safetensors"))]
    assert card.prompts == {OWN_TURNS: sum(map(len, batches))}
    judged = [each for batch in batches for each in batch[::20]]
    assert all(each.token_ids == each.likeliest[:, 0].tolist() for each in judged), "they are greedy"
    assert card.acceptance.num_answers == len(judged[:64])
    assert card.training_s >= (1 - ANSWERS_SHARE) * 0.008 * 3600, "however long the answers took"


def test_the_draft_fits_its_target_and_guesses_its_tokens(made: Made) -> None:
    checked = model_zoo("check", "--draft", str(made.draft), "--target", str(made.target))
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.splitlines()[-1] == "  the draft was made for these weights"
    card, config = card_of(made.draft), read_config(made.draft)
    assert card.vocab_size == len(config.token_ids or ()) == 256
    assert 2 in (config.token_ids or ()), "it must be able to guess the end"
    assert len(card.layers) == 2
    assert card.choice in card.trials
    assert card.trials[card.choice] == max(card.trials.values())
    assert card.acceptance.greedy == pytest.approx(card.half_hours[-1].acceptance, abs=0.1), "the trained weights"
    assert (made.draft / PLOT).read_text().startswith("<?xml")


def test_a_draft_of_weights_that_have_changed_since_is_told(made: Made, tmp_path: Path) -> None:
    trained = shutil.copytree(made.target, tmp_path / "target")
    (weights,) = trained.glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, weights)
    checked = model_zoo("check", "--draft", str(made.draft), "--target", str(trained))
    assert checked.returncode == 0, "the tokens are the same"
    assert checked.stdout.splitlines()[-1] == "  the draft was made for other weights, so its card does not hold here"


def test_a_work_folder_serves_the_settings_that_began_it(target: Path, tmp_path: Path) -> None:
    work = tmp_path / "draft-work"
    work.mkdir()
    other = Settings("", {}, 2, 256, 0.008, 0)
    (work / SETTINGS).write_bytes(msgspec.json.encode(other))
    refused = model_zoo("distill", "--target", str(target), "--out", str(tmp_path / "draft"), *OPTIONS)
    assert refused.returncode == 1
    assert "with other target_sha256" in refused.stderr
    (work / SETTINGS).write_text("{")
    refused = model_zoo("distill", "--target", str(target), "--out", str(tmp_path / "draft"), *OPTIONS)
    assert refused.returncode == 1
    assert "does not hold the settings of a distillation" in refused.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--layers", str(DEPTH), "--vocabulary", "256"), f"has 1…{DEPTH - 1} layers, got {DEPTH}"),
        (("--layers", "2", "--prompts", "bad.jsonl"), "bad.jsonl:1"),
    ],
)
def test_what_can_not_be_distilled_is_refused(
    options: tuple[str, ...], reason: str, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("no JSON\n")
    refused = model_zoo(
        "distill", "--target", str(target), "--out", str(tmp_path / "draft"), "--hours", "0.01", *options
    )
    assert refused.returncode == 1
    assert reason in refused.stderr


def test_a_finished_distillation_is_told_and_left_as_it_is(made: Made) -> None:
    command = ("distill", "--target", str(made.target), "--out", str(made.draft))
    before = (made.draft / CARD).read_bytes()
    again = model_zoo(*command, *OPTIONS)
    assert again.returncode == 0, again.stderr
    assert "was made before" in again.stderr
    assert (made.draft / CARD).read_bytes() == before
    for other in (("--seed", "1"), ("--quantize", "int4")):
        refused = model_zoo(*command, *OPTIONS, *other)
        assert refused.returncode == 1, other
        assert "exists already" in refused.stderr


def test_a_draft_that_is_there_is_not_replaced(target: Path, tmp_path: Path) -> None:
    refused = model_zoo("distill", "--target", str(target), "--out", str(tmp_path), "--layers", "2")
    assert refused.returncode == 1
    assert "exists already" in refused.stderr


def test_a_student_learns_its_lesson(target: Path, tmp_path: Path) -> None:
    model = load(target)
    prompts = [[5 + number, 6, 7] for number in range(32)]
    answers = answer(model, prompts, [2], 32, seed=0)
    lesson = Lesson(answers[1:], answers[:1], range(VOCAB_SIZE), VOCAB_SIZE)
    student = load(target)
    torch.manual_seed(0)
    for weight in student.gpt_neox.layers.parameters():
        weight.data.normal_(std=0.02)
    before = acceptance(student, answers[::2], lesson.token_ids)
    looks: list[Progress] = []
    progress = train(student, lesson, tmp_path / "training", Time(100.0, 110.0), 0, looks.append)
    assert progress == looks == read_progress(tmp_path / "training")
    assert acceptance(student.eval(), answers[::2], lesson.token_ids) > before + 0.1
    again = train(load(target), lesson, tmp_path / "training", Time(100.0, 110.0), 0, looks.append)
    assert again == progress, "a training that is over is not repeated"


def test_a_training_that_was_cut_off_goes_on_from_its_last_checkpoint(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "EVERY_S", 0.3)
    answers = answer(load(target), [[5 + number, 6, 7] for number in range(32)], [2], 32, seed=0)
    lesson, span = Lesson(answers[1:], answers[:1], range(VOCAB_SIZE), VOCAB_SIZE), Time(0.0, 8.0)
    looks: list[Progress] = []

    def cut_off(progress: Progress) -> None:
        looks.append(progress)
        if len(looks) == 3:  # its checkpoint is not written any more
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load(target), lesson, tmp_path, span, 0, cut_off)
    first, second, _ = looks
    progress = train(load(target), lesson, tmp_path, span, 0, looks.append)
    assert progress[:2] == [first, second]
    assert progress[2:] == looks[3:]
    steps, seconds = ([getattr(each, name) for each in progress] for name in ("step", "seconds"))
    assert steps == sorted(steps)
    assert seconds == sorted(seconds)
    assert seconds[2] < second.seconds + 4, "time is counted from the checkpoint on"
    assert seconds[-1] >= span.end_s
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint is not None
    (checkpoint / "trainer_state.json").write_text("{")
    earlier = last_checkpoint(tmp_path)
    assert earlier is not None
    assert step_of(earlier) < step_of(checkpoint), "one that was cut off in writing does not count"


def test_a_draft_that_is_its_target_guesses_everything(target: Path, tmp_path: Path) -> None:
    shutil.copytree(target, tmp_path / "sharp")
    model = load(target)
    model.lm_head.weight.data *= 8  # else the likeliest tokens have a small part of the probability
    model.save_pretrained(tmp_path / "sharp")
    export_model(str(tmp_path / "sharp"), tmp_path / "draft", "fp32", Exporter.AUTO, lambda line: None)
    answers = answer(model, [[5, 6, 7], [8, 9]], [2], 32, seed=0)
    found, step_ms = judge(load_draft(str(tmp_path / "draft"), num_threads=1), answers, seed=0)
    assert found.greedy == pytest.approx(1.0, abs=0.05)
    assert found.sampled > 0.9  # the target's distribution is known for its likeliest tokens only
    assert (found.num_answers, found.num_tokens) == (2, sum(len(each.token_ids) for each in answers))
    assert 0 < step_ms < 1000
    assert np.isfinite(step_ms)


def test_the_card_shows_the_last_look_of_each_half_hour() -> None:
    looks = [Progress(seconds, 0, 0, 0.0, 0.0) for seconds in (10, 1700, 1900, 5000)]
    assert [each.seconds for each in half_hours(looks)] == [1700, 1900, 5000]
