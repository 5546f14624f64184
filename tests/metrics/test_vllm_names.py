"""The table of docs/metrics.md with vLLM's names names our metrics. That vLLM has its own, tests/vllm checks."""

from __future__ import annotations

import re

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
