"""Images built by their own steps in clean environments: their commands run as nobody, where nothing can be written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endpoints import END_S, get, http_url, logged
from tests.images.confined import IS_ROOT, NOBODY, can_seal, confined, start
from tests.images.dockerfile import dockerfile
from tests.images.replay import ROOT, Image, build
from tests.plugins.nats import NatsServer

HOME = "/var/lib/dsd"
PREPARED_S = 600
READY = (200, "ready\n")

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def workshop() -> Iterator[Path]:
    """A folder that nobody can look into, unlike pytest's own, with an environment that stands for the base image."""
    with tempfile.TemporaryDirectory(prefix="dsd-images-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        subprocess.run([sys.executable, "-m", "venv", folder / "python"], check=True)
        yield folder


def built(name: str, workshop: Path) -> Image:
    return build(dockerfile(ROOT / "images" / f"{name}.Dockerfile"), workshop / "python", workshop / name)


def mount_models(image: Image, models: Path) -> None:
    """The folder of the pair that the image's environment names, at its place on the volume."""
    for setting in ("DSD_TARGET", "DSD_DRAFT"):
        if place := image.env.get(setting):
            shutil.copytree(models / Path(place).name, place)


@pytest.mark.parametrize(
    ("name", "readiness"),
    [
        ("gateway", (503, "not ready: no verifier serves smollm2-135m\n")),
        ("drafter", READY),
        ("verifier", READY),
        ("controller", READY),
    ],
)
def test_a_service_starts_and_ends(
    name: str, readiness: tuple[int, str], workshop: Path, default_models: Path, nats_server: NatsServer
) -> None:
    image = built(name, workshop)
    mount_models(image, default_models)
    with start(image, "--nats-url", nats_server.url, "--http-port", "0") as process:
        url = http_url(process)
        assert url.startswith("http://0.0.0.0:")
        assert get(url, "/healthz") == (200, "ok\n")
        logged(process, "ready")
        assert get(url, "/readyz") == readiness
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=END_S)
        assert process.returncode == 0


def test_the_models_image_prepares_the_pair_on_its_volume(workshop: Path) -> None:
    image = built("models", workshop)
    volume = image.path(HOME)
    volume.mkdir(parents=True)
    if IS_ROOT:
        os.chown(volume, NOBODY, NOBODY)
    with start(image, writable=volume) as process:
        _, told = process.communicate(timeout=PREPARED_S)
        assert process.returncode == 0, told
    pair = volume / "models" / "smollm2-135m"
    assert {path.name for path in pair.iterdir() if path.is_dir()} == {"target", "draft-int8", "draft-int4"}
    assert {path.name for path in volume.iterdir()} == {"models"}


def test_the_confinement_lets_nothing_be_written_but_one_folder(tmp_path: Path) -> None:
    if not can_seal():
        pytest.skip("this system does not allow mount namespaces")
    with tempfile.TemporaryDirectory() as name:
        volume = Path(name, "volume")
        volume.mkdir()
        volume.chmod(0o777)
        Path(name).chmod(0o777)
        statuses = {
            place: subprocess.run(confined(["touch", str(place)], volume), capture_output=True).returncode
            for place in (volume / "a", Path(name, "b"), Path("/tmp/dsd-images-c"))
        }
    assert [status == 0 for status in statuses.values()] == [True, False, False]
