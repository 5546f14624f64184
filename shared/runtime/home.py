"""The folder of DSD's own files on a machine: prepared models, caches, logs of a local system."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DEFAULT_MODEL = "smollm2-135m"  # the name of the target of the default pair


def home() -> Path:
    """DSD_HOME, or the folder `dsd` in the user's cache directory of this platform."""
    if configured := os.environ.get("DSD_HOME"):
        return Path(configured).expanduser().absolute()
    return _user_cache_dir() / "dsd"


def default_models_dir() -> Path:
    """The folder of the default pair: target/, draft-int8/, draft-int4/ and manifest.json."""
    return home() / "models" / DEFAULT_MODEL


def _user_cache_dir() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
