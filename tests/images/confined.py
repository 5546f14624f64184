"""Runs a command of an image as a cluster would: as user 65532, on a root file system that is read-only.

Where the system does not let this process do so (another user needs root; the file system needs mount namespaces), the
command runs without that part.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from tests.images.replay import SYSTEM_PATH, Image

NOBODY = 65532
IS_ROOT = os.geteuid() == 0
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
OWN_MOUNTS = ["unshare", "--mount", *([] if IS_ROOT else ["--map-root-user"]), "sh", "-c"]
SEAL = "for place in / /tmp /var/tmp; do ! mountpoint -q $place || mount -o remount,bind,ro $place || exit; done"

PYTHON = Path(sys.base_prefix)
IS_HIDDEN = not all(folder.stat().st_mode & 0o001 for folder in PYTHON.parents)  # from any user but its owner


@functools.cache
def can_seal() -> bool:
    """Whether this process may make the file system read-only for a child."""
    done = subprocess.run([*OWN_MOUNTS, SEAL], env={"PATH": SYSTEM_PATH}, capture_output=True)
    return done.returncode == 0


def confined(argv: list[str], writable: Path | None = None) -> list[str]:
    """The command that runs another one confined; `writable` is the one folder that stays so."""
    if IS_ROOT and (can_seal() or not IS_HIDDEN):
        argv = [*AS_NOBODY, *argv]
    if not can_seal():
        return argv
    mounts = [f"mount --bind {quote(str(writable))} {quote(str(writable))}"] if writable else []
    mounts += _showing_python() if IS_ROOT and IS_HIDDEN else []
    return [*OWN_MOUNTS, " && ".join([*mounts, SEAL, 'exec "$@"']), "sh", *argv]


@contextmanager
def start(image: Image, *flags: str, writable: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """The image's container: its command with flags behind it, its environment and no other, its working directory."""
    argv = [*image.entrypoint, *(flags or image.command)]
    env = image.env | {"HOME": "/"}  # as engines set it for a user without an entry
    with subprocess.Popen(
        confined(argv, writable), cwd=image.path("."), env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _showing_python() -> list[str]:
    """Puts Python, and nothing beside it, in place of the folder (of a user, say) that hides it."""
    python, top = quote(str(PYTHON)), quote(f"/{PYTHON.parts[1]}")
    return [
        f"mount --bind {python} /mnt",
        f"mount -t tmpfs -o mode=755 tmpfs {top}",
        f"mkdir -p {python}",
        f"mount --bind /mnt {python}",
    ]
