"""The comparison with real systems, and prompts of the real tokenizer."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.harness.prompts import encode_prompts
from benchmarks.peers import llama_cpp, serving
from benchmarks.peers.cells import LONG, MIDDLE, SHORT, Cell
from benchmarks.peers.findings import CellFigures
from benchmarks.peers.measuring import BUSY, Run, measure_all
from benchmarks.peers.prompts import prompts_of
from benchmarks.peers.results import read_cell
from benchmarks.peers.server import Server
from benchmarks.peers.serving import Starting, dsd_plan
from benchmarks.peers.systems import ALL_GIB, LLAMA, TORCH_INT8, TORCH_PLAIN, TRANSFORMERS, Choice, System, systems
from services.gateway.text.tokenizer import load_tokenizer
from services.local.engine import VerifierEngine
from tests.benchmarks.peers.sample_cells import ORIGIN, named


def starting(models: Path, folder: Path) -> Starting:
    return Starting(models, VerifierEngine(), Choice(), folder, print)


@pytest.mark.parametrize("length", [MIDDLE, LONG])
def test_a_prompt_has_its_length_and_the_same_seed_gives_it_again(default_models: Path, length: int) -> None:
    tokenizer = load_tokenizer(default_models / "target")
    prompts = prompts_of(length, tokenizer, seed=1)
    assert all(length - 16 <= len(ids) <= length for ids in encode_prompts(tokenizer, prompts))
    assert prompts == prompts_of(length, tokenizer, seed=1)
    assert len(set(prompts)) == len(prompts)


def test_short_prompts_have_about_their_length(default_models: Path) -> None:
    tokenizer = load_tokenizer(default_models / "target")
    lengths = [len(ids) for ids in encode_prompts(tokenizer, prompts_of(SHORT, tokenizer, seed=1))]
    assert 0.7 * SHORT < sum(lengths) / len(lengths) < 1.3 * SHORT


def test_passes_on_vllm_have_both_cores_unless_the_drafter_is_far_away(tmp_path: Path) -> None:
    start = starting(tmp_path, tmp_path)
    near, far = (dsd_plan(start, "vllm", ["int8"], rtt_ms) for rtt_ms in (0, 30))
    assert (near.is_pinned, near.verifier_threads, near.has_relay) == (False, 2, False)
    assert (far.is_pinned, far.verifier_threads, far.prefill_threads, far.link.delay_ms) == (True, 1, 2, 15)
    assert dsd_plan(start, "torch", ["int8"], rtt_ms=0).is_pinned


@pytest.mark.parametrize("is_enough", [True, False])
def test_a_system_that_is_not_counted_runs_only_where_all_fit_into_the_memory(
    monkeypatch: pytest.MonkeyPatch, is_enough: bool
) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": int(ALL_GIB * 2**18) - (not is_enough)}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert serving.has_room() == is_enough
    assert all(each.is_counted for each in systems(Choice(has_room=serving.has_room()))) == (not is_enough)


def test_a_system_that_starts_again_gets_another_folder(tmp_path: Path) -> None:
    start = starting(tmp_path, tmp_path)
    assert start.fresh("DSD-torch-0") != start.fresh("DSD-torch-0")


async def test_a_peer_that_does_not_start_is_told_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def peer(start: Starting, system: System) -> AsyncIterator[Server]:
        if system.name == LLAMA:
            raise RuntimeError("it ended")
        yield Server("http://127.0.0.1:1", list)

    monkeypatch.setattr(serving, "_peer", peer)
    async with serving.peers(starting(tmp_path, tmp_path), named(LLAMA, TRANSFORMERS)) as (found, failed):
        assert list(found) == [TRANSFORMERS]
        assert failed == {LLAMA: "llama.cpp: did not start: it ended"}


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_real_systems_answer_the_same_prompts_in_turn(default_models: Path, tmp_path: Path) -> None:
    names = [TRANSFORMERS, TORCH_PLAIN, TORCH_INT8, *([LLAMA] if llama_cpp.is_built() else [])]
    cell, systems = Cell(4, SHORT, 2), named(*names)
    prompts = {SHORT: prompts_of(SHORT, load_tokenizer(default_models / "target"), seed=1)}
    run = Run(systems, prompts, {}, "digest", ORIGIN, tmp_path / "cells", seed=1, may_be_busy=True)
    (tmp_path / "logs").mkdir()
    affinity = os.sched_getaffinity(0)
    await measure_all(run, starting(default_models, tmp_path / "logs"), [cell], budget_s=600)
    result = read_cell(cell, run.folder)
    assert result is not None
    assert result.complaints == [BUSY]
    assert len(result.rounds) == 2
    figures = CellFigures.of(result)
    assert len(set(figures.prompt_tokens().values())) == 1
    (int8,) = named(TORCH_INT8)
    assert figures.same_texts(int8) == 1
    assert (figures.acceptance(int8) or 0) > 0.5
    assert os.sched_getaffinity(0) == affinity
