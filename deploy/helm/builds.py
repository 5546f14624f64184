"""What `kustomize build` makes of an overlay and its components.

Invariant: a component belongs to the overlays that the first line of its kustomization names. A ConfigMap that
kustomize names by its content has a marked name here, which is the same for every content.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPONENTS = ROOT / "k8s" / "components"
OVERLAYS = ("cloud", "edge")
MARKED = re.compile(r"\[config:([a-z0-9-]+)\]")  # in place of a name that ends in a hash

_LETTERS = str.maketrans("013ae", "ghkmt")  # kustomize writes hashes without vowels and what looks like them

Manifest = dict[str, Any]


@cache
def components_of(overlay: str) -> tuple[str, ...]:
    """The components that an overlay may have, in the order in which the chart applies them."""
    paths = sorted(COMPONENTS.glob("*/kustomization.yaml"))
    fits = re.compile(rf"# Component for (the {overlay}|every) overlay:")
    found = [path.parent.name for path in paths if fits.match(path.read_text(encoding="utf-8"))]
    return tuple(found)


def names_groups(component: str) -> bool:
    """Whether a component changes the groups of pods that another one adds."""
    texts = (path.read_text(encoding="utf-8") for path in (COMPONENTS / component).iterdir())
    return any("kind: LeaderWorkerSet, name" in text for text in texts)


@cache
def kustomized(overlay: str, components: tuple[str, ...]) -> list[Manifest]:
    """The manifests as kustomize prints them. Not to be changed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "build")
        folder.mkdir()
        (folder.parent / "k8s").symlink_to(ROOT / "k8s")
        kustomization = {
            "resources": [f"../k8s/overlays/{overlay}"],
            "components": [f"../k8s/components/{name}" for name in components],
        }
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
        done = subprocess.run(
            ["kustomize", "build", str(folder)], capture_output=True, text=True, check=False, timeout=60
        )
    if done.returncode:
        raise ValueError(
            f"kustomize can't build {overlay} with {', '.join(components) or 'no component'}: {done.stderr}"
        )
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def build(overlay: str, components: tuple[str, ...]) -> dict[str, Manifest]:
    """The manifests by kind and name, without the namespace: who installs a chart has one."""
    found = [manifest for manifest in kustomized(overlay, components) if manifest["kind"] != "Namespace"]
    names = {}
    for manifest in found:
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ConfigMap" and name.endswith(f"-{content_hash(manifest['data'])}"):
            names[name] = f"[config:{name.rpartition('-')[0]}]"
    marked: list[Manifest] = [_renamed(manifest, names) for manifest in found]
    return {f"{each['kind']} {each['metadata']['name']}": each for each in marked}


def content_hash(data: dict[str, str]) -> str:
    """The end of a ConfigMap's name, as kustomize computes it: Go's JSON escapes three characters of HTML."""
    content = {"data": data, "kind": "ConfigMap", "name": ""}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return hashlib.sha256(text.encode()).hexdigest()[:10].translate(_LETTERS)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value
