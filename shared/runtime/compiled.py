"""Where numba keeps what it compiled.

numba looks at the age of each compiled function's own file, not at the functions that it calls, which may lie in
others. So what is compiled is kept in a folder named after the content of all files that hold any.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba

from shared.runtime.home import home

FOLDERS = ("dsd_sim", "shared", "services/cloud_verifier")  # of a checkout; who installs a role has some of them


def keep_compiled() -> bool:
    """To be called before anything is compiled with `cache`; whether it may be, or there is no folder to write to."""
    try:
        folder = home() / "compiled" / _digest()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home, as in a container
        return False
    setattr(numba.config, "CACHE_DIR", str(folder))  # noqa: B010  typed as if it were fixed
    return os.access(folder, os.W_OK)


def _digest() -> str:
    root = Path(__file__).parents[2]
    files = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    content = (str(path.relative_to(root)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(b"".join(content)).hexdigest()[:16]
