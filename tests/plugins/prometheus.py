"""Fixture `promtool`: skips what needs Prometheus where Debian's package `prometheus` is missing."""

from __future__ import annotations

import os
import shutil

import pytest

PROGRAMS = ("prometheus", "promtool")


@pytest.fixture(scope="session")
def promtool() -> str:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        reason = f"no {' and no '.join(missing)}: install Debian's package prometheus"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return "promtool"
