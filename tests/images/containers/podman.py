"""podman, as the tests of the images run it: with a runtime and limits that this machine allows, without pulling.

Invariant: every image made here is named localhost/dsd-…, so none stands for another's on this machine.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.images.replay import ROOT

SECONDS = 3000
LIMITS = {
    name: resource.getrlimit(limit)[1]
    for name, limit in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
}
ULIMITS = [f"{name}={most}:{most}" for name, most in LIMITS.items() if most != resource.RLIM_INFINITY]


class Podman:
    """Its commands."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for its configuration. crun fails where control groups are hybrid, so runc runs containers."""
        configuration = folder / "containers.conf"
        runtime = '[engine]\nruntime = "runc"\n' if shutil.which("runc") else ""
        configuration.write_text(f"[containers]\ndefault_ulimits = {ULIMITS}\n{runtime}".replace("'", '"'))
        self.environment = os.environ | {"CONTAINERS_CONF": str(configuration), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}

    def __call__(self, *argv: str, given: str | None = None) -> str:
        """What a command prints; it must succeed."""
        done = self.run(*argv, given=given)
        assert done.returncode == 0, f"podman {' '.join(argv)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    def run(self, *argv: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        command = ["podman", *argv]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, input=given, capture_output=True, text=True, timeout=SECONDS
        )

    def has_image(self, name: str) -> bool:
        return self.run("image", "exists", name).returncode == 0

    def build(self, tag: str, file: Path, context: Path, arguments: Mapping[str, str], mounts: Sequence[str]) -> None:
        ulimits = [word for limit in ULIMITS for word in ("--ulimit", limit)]
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        volumes = [word for mount in mounts for word in ("--volume", mount)]
        flags = ["--network=host", "--pull=never", *ulimits, *given, *volumes]
        self("build", *flags, "--file", str(file), "--tag", tag, str(context))

    def size(self, image: str) -> int:
        """Bytes of all layers."""
        return int(self("image", "inspect", "--format", "{{.Size}}", image))

    def status(self, container: str) -> int:
        """With which a container has ended."""
        return int(self("inspect", "--format", "{{.State.ExitCode}}", container))
