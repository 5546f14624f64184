"""Runs the commands of docs/deploy.md and docs/drafters.md that make keys and Secrets, with a `kubectl` that only keeps
what it is given.

Invariant: the commands are the documents' own, unchanged but for the cloud's name, which must be one of this machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.k8s.manifests import DOCUMENT, ROOT, Secrets

CLOUD_NAME = "nats.dsd.example"
DRAFTERS = ROOT / "docs" / "drafters.md"
BLOCK = r"^```bash\n(.+?)^```"
CLOUDS = (
    "cloud",
    "joined",
    "edge",
    "nats-tls",
    "rotating",
    "site rotating",
    "rotated",
    "shut-out",
)  # what each block of commands is for, in the document's order
OWN_DRAFTER = "own drafter"  # of the block in docs/drafters.md

# Keeps `create secret` as JSON in $KUBECTL_KEEPS, a file for each Secret; a pipe into `apply` has kept it already.
KUBECTL = """\
import json, os, pathlib, sys
arguments = [argument for argument in sys.argv[1:] if argument not in ("-n", "dsd")]
if arguments[:2] == ["create", "secret"]:
    kind, name, *flags = arguments[2:]
    data = {}
    for flag in flags:
        option, _, value = flag.partition("=")
        key, _, path = value.rpartition("=")
        if option in ("--cert", "--key"):
            key, path = {"--cert": "tls.crt", "--key": "tls.key"}[option], value
        elif option != "--from-file":
            continue
        path = pathlib.Path(path)
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            data[key or file.name] = file.read_text()
    pathlib.Path(os.environ["KUBECTL_KEEPS"], name).write_text(json.dumps(data))
elif arguments[0] == "get":
    print("pod/nats-0")
elif arguments[0] not in ("annotate", "apply", "delete", "exec", "label", "rollout"):
    sys.exit(f"unexpected: {arguments}")
"""


def run_commands(folder: Path, clouds: Sequence[str] = CLOUDS) -> dict[str, Secrets]:
    """The Secrets of each cluster after the document's commands have run in an operator's home. `clouds`: which blocks,
    in which order."""
    folder.mkdir(exist_ok=True)
    if not (folder / "k8s").exists():
        (folder / "k8s").symlink_to(ROOT / "k8s")
        (folder / "bin").mkdir()
    kubectl = folder / "bin" / "kubectl"
    kubectl.write_text(f"#!{sys.executable}\n{KUBECTL}")
    kubectl.chmod(0o755)
    found = [
        text for page in (DOCUMENT, DRAFTERS) for text in re.findall(BLOCK, page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    blocks = dict(zip((*CLOUDS, OWN_DRAFTER), found, strict=True))
    return {cloud: _run(blocks[cloud], folder) for cloud in clouds}


def _run(block: str, folder: Path) -> Secrets:
    keeps = Path(tempfile.mkdtemp(dir=folder))
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"HOME": str(folder), "PATH": path, "PYTHONPATH": str(ROOT), "KUBECTL_KEEPS": str(keeps)}
    command = ["bash", "-euo", "pipefail", "-c", block.replace(CLOUD_NAME, "localhost")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {file.name: json.loads(file.read_text()) for file in keeps.iterdir()}
