"""The base of our images where no registry answers: Debian by mmdebstrap, with the Python that runs the tests.

Invariant: it is as the official image is where that matters to us: the same Debian and Python, pip, no compiler.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.containers.podman import Podman
from tests.images.dockerfile import dockerfile
from tests.images.replay import ROOT

OFFICIAL = dockerfile(ROOT / "images" / "gateway.Dockerfile").image.base  # python:3.11-slim-trixie
OWN, DEBIAN = f"localhost/dsd-{OFFICIAL}", "localhost/dsd-debian"
LIBRARIES = "ca-certificates,libbz2-1.0,libffi8,liblzma5,libreadline8t64,libsqlite3-0,libssl3t64,libuuid1,zlib1g"
UNUSED = ("site-packages", "test", "__pycache__", "idlelib", "tkinter", "turtledemo", "config-*")
STEPS = f"""\
FROM {DEBIAN}
COPY usr /usr
COPY pip /usr/local/bin/
RUN ldconfig && python -m ensurepip
ENV LANG=C.UTF-8
"""


def base_image(podman: Podman, folder: Path) -> str:
    """The name of the official image if a registry gives it, else of our own."""
    if podman.run("pull", "--quiet", f"docker.io/library/{OFFICIAL}").returncode == 0:
        return f"docker.io/library/{OFFICIAL}"
    if not podman.has_image(OWN):
        make_base_image(podman, folder)
    return OWN


def make_base_image(podman: Podman, folder: Path) -> None:
    found = re.fullmatch(r"python:(3\.\d+)-slim-(\w+)", OFFICIAL)
    assert found
    version, suite = found.groups()
    if not shutil.which("mmdebstrap") or version != f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(
            f"no registry gives {OFFICIAL}; to make one, tests need mmdebstrap and must run on Python {version}"
        )
    root = folder / "root.tar"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={LIBRARIES}", suite, str(root)]
    subprocess.run(command, check=True)
    podman("import", "--quiet", str(root), DEBIAN)
    copy_python(version, folder / "usr" / "local")
    (folder / "Containerfile").write_text(STEPS)
    (folder / "pip").write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    (folder / "pip").chmod(0o755)
    podman.build(OWN, folder / "Containerfile", folder, {}, [])


def copy_python(version: str, place: Path) -> None:
    """This process's Python, without what was installed into it."""
    prefix, name = Path(sys.base_prefix), f"python{version}"
    if prefix == Path("/usr"):
        pytest.skip(f"no registry gives {OFFICIAL}; Debian's own Python cannot be copied into one")
    (place / "bin").mkdir(parents=True)
    shutil.copy(prefix / "bin" / name, place / "bin")
    for link in ("python3", "python"):
        (place / "bin" / link).symlink_to(name)
    shutil.copytree(prefix / "lib" / name, place / "lib" / name, symlinks=True, ignore=shutil.ignore_patterns(*UNUSED))
    (place / "lib" / name / "site-packages").mkdir()
    for library in prefix.glob(f"lib/lib{name}.so.*"):
        shutil.copy(library, place / "lib")
