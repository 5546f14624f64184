"""Where prepared models live: one cache folder for each user, shared by all checkouts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DEFAULT_PAIR = "smollm2-135m"


def home() -> Path:
    """DSD_HOME, or the folder `dsd` in the user's cache directory of this platform."""
    if configured := os.environ.get("DSD_HOME"):
        return Path(configured).expanduser().absolute()
    return _user_cache_dir() / "dsd"


def models_dir() -> Path:
    return home() / "models"


def default_models_dir() -> Path:
    """Folder of the default pair: target/, draft-int8/, draft-int4/ and manifest.json."""
    return models_dir() / DEFAULT_PAIR


def _user_cache_dir() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
