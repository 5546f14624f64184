"""Every container of a service sets what its service knows, to values that the service takes."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from shared.runtime.config import read
from shared.runtime.home import home
from tests.k8s.containers import inside, mount, value_of
from tests.k8s.machine import Built
from tests.k8s.manifests import (
    OVERLAYS,
    ROOT,
    Manifest,
    Secrets,
    containers_of,
    pod_names,
    pod_of,
    secrets_for,
    service_of,
    settings_of,
    title,
    workloads,
)
from tests.k8s.services import SETTINGS


def service_containers(manifests: list[Manifest]) -> list[tuple[Manifest, Manifest]]:
    """Each workload of a service with its container."""
    return [(each, pod_of(each)["containers"][0]) for each in workloads(manifests) if service_of(each)]


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_variable_is_a_setting_of_the_service(built: Built, name: str) -> None:
    for workload, container in service_containers(built(name)):
        fields = {f"DSD_{field.upper()}" for field in SETTINGS[service_of(workload)].model_fields}
        others = {"OMP_NUM_THREADS"}  # of torch
        assert set(settings_of(container, built(name))) <= fields | others, title(workload)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_service_takes_its_settings(
    built: Built, documented: dict[str, Secrets], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in [variable for variable in os.environ if variable.startswith("DSD_")]:
        monkeypatch.delenv(variable)
    for workload, container in service_containers(built(name)):
        pod_name = pod_names(workload, built(name))[0]
        root = tmp_path / workload["metadata"]["name"]
        mount(workload, container, pod_name, built(name), secrets_for(name, documented), root)
        if folder := settings_of(container, built(name)).get("DSD_TARGET"):
            Path(inside(root, folder)).mkdir(parents=True)
            Path(inside(root, folder), "tokenizer.json").touch()
        with monkeypatch.context() as process:
            for variable, value in settings_of(container, built(name)).items():
                process.setenv(variable, inside(root, value_of(value, container, pod_name)))
            settings = read(SETTINGS[service_of(workload)], [], title(workload))
        assert settings.name == pod_name
        assert settings.http_host == "0.0.0.0"
        assert settings.http_port == next(
            port["containerPort"] for port in container["ports"] if port["name"] == "http"
        )
        assert Path(settings.nats_nkey_seed).is_file()


@pytest.mark.parametrize("name", ["dev", "cloud", "edge"])
def test_models_lie_where_the_init_container_makes_them(
    built: Built, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workload in workloads(built(name)):
        for making in pod_of(workload).get("initContainers", []):
            if "dsd-tokenizer" in making["image"]:
                continue  # tests/images/test_dockerfiles.py
            command, flag, part = making["args"]
            assert (command, flag) == ("prepare", "--only")
            monkeypatch.setenv("DSD_HOME", settings_of(making, built(name))["DSD_HOME"])
            folder = home() / "models" / "smollm2-135m" / {"target": "target", "int8": "draft-int8"}[part]
            (container,) = pod_of(workload)["containers"]
            assert str(folder) in settings_of(container, built(name)).values(), title(workload)


@pytest.mark.parametrize("name", OVERLAYS)
def test_our_images_have_the_version_of_the_package_and_a_dockerfile(built: Built, name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for workload in workloads(built(name)):
        for container in containers_of(workload):
            image, _, tag = container["image"].rpartition("/")[2].partition(":")
            if image not in ("nats", "our-models"):
                assert tag == version, container["image"]
                assert (ROOT / "images" / f"{image.removeprefix('dsd-')}.Dockerfile").is_file(), image
