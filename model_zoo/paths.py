"""The folders of prepared models, in DSD's home, which all checkouts share."""

from __future__ import annotations

from pathlib import Path

from shared.runtime.home import home

DEFAULT_PAIR = "smollm2-135m"


def default_models_dir() -> Path:
    """The folder of the default pair: target/, draft-int8/, draft-int4/ and manifest.json."""
    return home() / "models" / DEFAULT_PAIR
