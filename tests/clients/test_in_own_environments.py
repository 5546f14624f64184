"""Clients that people have, unchanged, each with nothing but itself and what it asks for: they serve a live gateway.

A program (`programs`) exits with 1 on any surprise; here stands what must come of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from services.local.nats_server import free_port
from shared.runtime.home import DEFAULT_MODEL
from tests.clients.environments import INSTALL_S, RUN_S, made, run, with_vllm

pytestmark = [pytest.mark.long, pytest.mark.timeout(INSTALL_S + RUN_S)]

TASKS = Path(__file__).parent / "tasks"
LEAST_KNOWN = 0.6  # share of capitals; by chance it is 1/4
Play: TypeAlias = Callable[..., Any]


@pytest.fixture
def play(gateway: str, tmp_path: Path) -> Play:
    """Runs a program in the environment of a client and returns what it told."""

    def told(python: Path, program: str, *arguments: str) -> Any:
        return run(python, program, tmp_path, gateway, DEFAULT_MODEL, *arguments)

    return told


@pytest.fixture
def tokenizer(default_models: Path) -> str:
    return str(default_models / "target")


def test_an_agent_of_langchain_calls_its_tool_turn_by_turn_and_answers(play: Play) -> None:
    told = play(made("langchain"), "agent")
    assert told["whole"] == told["streamed"], "the same seed, whole and streamed"


def test_instructor_makes_the_same_kind_of_object_in_each_of_its_ways(play: Play) -> None:
    told = play(made("instructor"), "models_by_instructor")
    assert set(told) == {"TOOLS", "JSON_SCHEMA"}
    assert all(city["rivers"] for cities in told.values() for city in cities), "whole and piece by piece"


def test_litellm_s_proxy_tells_what_the_gateway_tells(play: Play) -> None:
    told = play(made("litellm"), "through_litellm", str(free_port()))
    assert told["text"], "the program compares it with the gateway's own"
    assert told["call"][0] == "weather"


def test_guidellm_puts_both_endpoints_under_load(play: Play, tokenizer: str) -> None:
    assert len(play(made("guidellm"), "load_by_guidellm", tokenizer)) == 2


def test_aiperf_reads_speculation_s_figures_from_both_endpoints(play: Play, tokenizer: str) -> None:
    told = play(made("aiperf"), "load_by_aiperf", tokenizer)
    assert all(figures["acceptance_length"] > 1 for figures in told.values()), told


def test_vllm_bench_serve_puts_both_endpoints_under_load(play: Play, tokenizer: str) -> None:
    assert set(play(with_vllm(), "load_by_vllm", tokenizer)) == {"openai", "openai-chat"}


def test_lm_evaluation_harness_scores_choices_texts_and_what_is_generated(play: Play, tokenizer: str) -> None:
    told = play(made("lm-eval"), "tasks_by_lm_eval", tokenizer, str(TASKS))
    assert all(logprob < 0 for choices in told["logprobs"] for logprob in choices)
    assert told["figures"]["capitals"]["acc"] >= LEAST_KNOWN
    assert 0 < told["figures"]["prose"]["bits_per_byte"] < 2
    assert told["figures"]["counting"]["exact_match"] >= 1 / 3
