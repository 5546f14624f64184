"""DSD-Sim: fleets of drafters and verifiers in virtual time (docs/simulator.md).

numba keeps compiled functions on disk and looks at the age of each one's own file, not at the functions that it calls,
which may lie in others. So what is compiled is kept in a folder named after the content of all of them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numba

from shared.home import home


def _digest() -> str:
    """Of the code of simulator and shared policies."""
    root = Path(__file__).parents[1]
    files = sorted(path for folder in ("dsd_sim", "shared") for path in (root / folder).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


setattr(numba.config, "CACHE_DIR", str(home() / "compiled" / _digest()))  # noqa: B010  typed as if it were fixed
