"""The table of docs/metrics.md names metrics that vLLM has, read from its sources in `.venv-vllm` (`make vllm`)."""

from __future__ import annotations

import re

import pytest

from tests.metrics.reading import ROOT
from tests.test_docs import registered_metrics, section

ROWS = re.findall(r"^\| `vllm:(\w+)` \| (.+?) \|", section("docs/metrics.md", "vLLM's names"), re.MULTILINE)


def test_our_names_in_the_table_exist() -> None:
    ours = {name for _, names in ROWS for name in re.findall(r"`(dsd_\w+)`", names)}
    assert len(ROWS) > 10
    assert ours <= set(registered_metrics())


def test_a_name_that_differs_from_vllm_s_behind_the_prefix_says_why() -> None:
    table = section("docs/metrics.md", "vLLM's names")
    for theirs, names in ROWS:
        behind = {re.sub(r"^dsd_[a-z]+_", "", name) for name in re.findall(r"`(dsd_\w+)`", names)}
        assert behind == {theirs} or re.search(rf"`vllm:{theirs}`.*\| [^|]+ \|$", table, re.MULTILINE), theirs


def test_vllm_has_the_names() -> None:
    sources = [*ROOT.glob(".venv-vllm/lib/python*/site-packages/vllm/v1/*/*.py")]
    if not sources:
        pytest.skip("no vLLM: make vllm")
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert {name for name, _ in ROWS if f'"vllm:{name.removesuffix("_total")}"' not in text} == set()
