"""How pip finds packages on this machine, told to the pip of a build: its settings and what they name, mounted."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

KEPT = {"cert", "default-timeout", "extra-index-url", "find-links", "index-url", "proxy", "trusted-host"}


def mounts(folder: Path) -> list[str]:
    """Volumes for a build, none of which comes into the image; `folder` is for the settings."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    settings = {}
    for line in sorted(listed, key=lambda line: line.startswith(":env:")):  # the environment overrides files
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = str(ast.literal_eval(value))
    kept = {name: value.split() for name, value in settings.items() if name in KEPT}
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {' '.join(words)}\n" for name, words in kept.items()))
    places = {word for words in kept.values() for word in words if Path(word).is_absolute() and Path(word).exists()}
    return [f"{file}:/etc/pip.conf:ro", *(f"{place}:{place}:ro" for place in sorted(places))]
