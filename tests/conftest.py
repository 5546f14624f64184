"""Fixtures that tests of several folders share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.runtime.home import default_models_dir

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch starts: its threads must not spin on shared cores

pytest_plugins = ["tests.plugins.nats", "tests.plugins.networks", "tests.plugins.prometheus"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The end-to-end tests first: theirs are the long files, and none should begin when all others are done."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(scope="session")
def default_models() -> Path:
    """Folder of the default pair (target/, draft-int8/, draft-int4/), prepared if it isn't there yet."""
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-m", "model_zoo", "prepare"], check=True, cwd=root)
    return default_models_dir()
