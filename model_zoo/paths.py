"""Where prepared models live: in DSD's home, shared by all checkouts."""

from __future__ import annotations

from pathlib import Path

from shared.runtime.home import home

DEFAULT_PAIR = "smollm2-135m"


def default_models_dir() -> Path:
    """Folder of the default pair: target/, draft-int8/, draft-int4/ and manifest.json."""
    return home() / "models" / DEFAULT_PAIR
