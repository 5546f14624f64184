"""The cache folder of numba.

numba checks the age of a compiled function's own file, not of the functions that it calls in other files. So the cache
folder is named after a hash of all folders with lines and constants that are compiled.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba

from shared.runtime.home import home

FOLDERS = (
    "dsd_sim/engine",
    "dsd_sim/steering",
    "awc",
    "shared",
    "services/cloud_verifier",
)  # a role's installation has some of them


def keep_compiled() -> bool:
    """Sets the cache folder; returns False if there is none to write to. Call it before compiling with `cache`."""
    try:
        folder = home() / "compiled" / _digest()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home, as in a container
        return False
    setattr(numba.config, "CACHE_DIR", str(folder))  # noqa: B010  typed as if it were fixed
    return os.access(folder, os.W_OK)


def _digest() -> str:
    root = Path(__file__).parents[2]
    files = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    content = (str(path.relative_to(root)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(b"".join(content)).hexdigest()[:16]
