"""What tests of the manifests share: builds, and Secrets as the commands of docs/deploy.md make them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.commands import run_commands
from tests.k8s.machine import Built, Machine
from tests.k8s.manifests import Manifest, Secrets, build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """built(name) -> the manifests of a build, made once."""
    made: dict[str, list[Manifest]] = {}

    def get(name: str) -> list[Manifest]:
        if name not in made:
            made[name] = build(name, tmp_path_factory.mktemp("build"))
        return made[name]

    return get


@pytest.fixture(scope="session")
def documented(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Secrets]:
    """The Secrets that the commands of docs/deploy.md make in each cluster, by name and key."""
    return run_commands(tmp_path_factory.mktemp("operator"))


@pytest.fixture
def machine(tmp_path: Path, built: Built, documented: dict[str, Secrets]) -> Iterator[Machine]:
    found = Machine(tmp_path, built, documented)
    yield found
    found.stop()
