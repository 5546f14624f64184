"""Files for devices without a cluster: compose files and units that are valid, confined, and set what services know."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from services.local.nats_server import find_binary
from services.local.nats_users import new_seed, write_keys
from shared.runtime.config import read
from shared.service import END_S
from tests.k8s.manifests import DOCUMENT, ROOT
from tests.k8s.services import SETTINGS

DEVICES = ROOT / "deploy" / "devices"
COMPOSE = sorted(DEVICES.glob("*.compose.yaml"))
UNITS = sorted(DEVICES.glob("*.service"))
KINDS = {"controller": "window_controller", "verifier": "cloud_verifier", "drafter": "edge_drafter"}
MOST_EXPOSED = 2.0  # of 10, by systemd's own scale
VARIABLES = {"SITE": "site-a", "REGISTRY": "", "MODELS": "/var/lib/dsd"}


def services(path: Path) -> dict[str, dict[str, Any]]:
    """A compose file's services, with the defaults of its variables."""
    text = re.sub(r"\$\{(\w+):-[^}]*\}", lambda found: VARIABLES[found[1]], path.read_text())
    return dict(yaml.safe_load(text)["services"])


def every_service() -> list[Any]:
    found = [(path, name) for path in COMPOSE for name in services(path)]
    return [pytest.param(path, name, id=f"{path.name} {name}") for path, name in found]


def run(*command: str | Path, **variables: str) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=60, check=False, env=os.environ | variables
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def missing(program: str) -> None:
    reason = f"{program} is not installed (Debian: apt-get install docker-compose systemd)"
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_takes_the_file(path: Path) -> None:
    if shutil.which("docker-compose") is None:
        missing("docker-compose")
    assert run("docker-compose", "--file", path, "config", "--quiet") == ""


@pytest.mark.parametrize(("path", "name"), every_service())
def test_a_container_is_confined_as_a_pod_is(path: Path, name: str) -> None:
    service = services(path)[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == ("0:0" if name == "models" else "65532:65532")
    assert {"mem_limit", "cpus"} <= set(service)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not {"privileged", "network_mode", "pid", "devices", "cap_add"} & set(service)


@pytest.mark.parametrize(("path", "name"), every_service())
def test_an_image_has_the_version_of_the_manifests_and_a_dockerfile(path: Path, name: str) -> None:
    image, _, tag = services(path)[name]["image"].partition(":")
    base = (ROOT / "k8s" / "base" / name / "stateful-set.yaml").read_text() if name == "nats" else ""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"image: {image}:{tag}" in base or (version and tag == version[1])
    build = services(path)[name].get("build")
    assert build is None or (ROOT / build["dockerfile"]).is_file()
    assert build is None or build["dockerfile"] == f"images/{image.removeprefix('dsd-')}.Dockerfile"


@pytest.mark.parametrize(("path", "name"), every_service())
def test_the_service_takes_its_settings(path: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = services(path)[name]
    if name in ("nats", "models"):
        return  # they are not services of DSD
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value)
    if "DSD_NATS_NKEY_SEED" in service["environment"]:
        (tmp_path / "seed").write_text(new_seed())
        monkeypatch.setenv("DSD_NATS_NKEY_SEED", str(tmp_path / "seed"))
    if name == "gateway":
        (tmp_path / "tokenizer.json").touch()
        monkeypatch.setenv("DSD_TARGET", str(tmp_path))
    settings = read(SETTINGS[KINDS.get(name, name)], [], name)
    known = {f"DSD_{field.upper()}" for field in type(settings).model_fields}
    assert set(service["environment"]) <= known
    assert settings.drain_s + END_S < int(service["stop_grace_period"].removesuffix("s"))


def site_folder(folder: Path) -> Path:
    """What the document's commands put into /etc/nats of a device, with keys as in a site of a cluster."""
    (block,) = re.findall(r"^```\n(mkdir [^`]*?leaf-key\.conf[^`]*?)^```", DOCUMENT.read_text(), re.MULTILINE)
    cloud, site = (folder / "home" / "dsd-keys" / name for name in ("cloud", "site-a"))
    for each in (cloud, site):
        each.mkdir(parents=True)
    write_keys([ROOT / "k8s/overlays/edge/drafters.conf"], site, also=None)
    (site / "leaf-key.conf").write_text(f"nkey: {new_seed()}")
    trustme.CA().cert_pem.write_to_path(str(cloud / "ca.crt"))
    (folder / "k8s").symlink_to(ROOT / "k8s")
    commands = "\n".join(line for line in block.splitlines() if "chown" not in line)
    environment = os.environ | {"HOME": str(folder / "home")}
    subprocess.run(["bash", "-euc", commands], cwd=folder, env=environment, check=True, timeout=20)
    return folder / "site"


def test_the_site_s_folder_is_a_configuration_that_nats_takes(tmp_path: Path) -> None:
    folder = site_folder(tmp_path)
    drafter = services(DEVICES / "drafter.compose.yaml")["drafter"]["environment"]["DSD_NAME"]
    assert (folder / drafter).is_file()
    for file in folder.glob("*.conf"):
        file.write_text(file.read_text().replace("/etc/nats", str(folder)))
    for file, pattern in (("drafter.compose.yaml", r"SERVER_NAME: (.+?) #"), ("dsd-nats.service", r"SERVER_NAME=(.+)")):
        (name,) = re.findall(pattern, (DEVICES / file).read_text())
        run(find_binary(), "-t", "-c", folder / "nats.conf", SERVER_NAME=name.replace("${SITE:-site-a}", "site-a"))


def test_after_new_keys_nats_reads_its_files_again_and_the_drafter_restarts() -> None:
    text = DOCUMENT.read_text()
    compose = set(re.findall(r"docker compose -f drafter\.compose\.yaml ([\w -]+)", text))
    assert compose == {"kill -s HUP nats", "restart drafter"}
    assert {command.split()[-1] for command in compose} == set(services(DEVICES / "drafter.compose.yaml"))
    units = dict(re.findall(r"systemctl (reload|restart) ([\w-]+)", text))
    assert units == {"reload": "dsd-nats", "restart": "dsd-drafter"}
    assert "ExecReload=/bin/kill -HUP $MAINPID\n" in (DEVICES / f"{units['reload']}.service").read_text()


def test_commands_for_the_whole_name_the_index_with_which_its_images_are_built() -> None:
    path = DEVICES / "whole.compose.yaml"
    builds = [each["build"] for each in services(path).values() if "build" in each]
    assert any("PIP_EXTRA_INDEX_URL" in build.get("args", []) for build in builds)
    for text in (path.read_text(), DOCUMENT.read_text()):
        (before,) = re.findall(r"(.*?)docker compose -f deploy/devices/whole\.compose\.yaml up --build", text)
        assert before.endswith("PIP_EXTRA_INDEX_URL=$TORCH_INDEX ")


def test_the_folder_of_models_belongs_to_the_user_of_the_image_before_that_writes() -> None:
    ((owner, group),) = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "images/models.Dockerfile").read_text(), re.MULTILINE)
    before, made, _ = DOCUMENT.read_text().partition("\ndocker run --rm -v /var/lib/dsd:/var/lib/dsd dsd-models:")
    assert made
    assert before.endswith(f"install -d -o {owner} -g {group} /var/lib/dsd")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_the_unit_and_finds_it_confined(path: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze")
    for unit in UNITS:
        here = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(here)
    assert run("systemd-analyze", "verify", "--man=no", tmp_path / path.name) == ""
    told = run("systemd-analyze", "security", "--offline=yes", "--no-pager", tmp_path / path.name)
    (exposure,) = re.findall(r"exposure level for \S+: ([\d.]+)", told)
    assert float(exposure) < MOST_EXPOSED


def test_the_unit_s_settings_are_those_of_a_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (DEVICES / "drafter.env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    settings = read(SETTINGS["edge_drafter"], [], "drafter")
    assert set(given) <= {f"DSD_{field.upper()}" for field in type(settings).model_fields}
    assert settings.http_host == "127.0.0.1"
    unit = (DEVICES / "dsd-drafter.service").read_text()
    stop = re.search(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)
    assert stop
    assert int(stop[1]) > settings.drain_s + END_S


@pytest.mark.parametrize("path", [*COMPOSE, *UNITS, DEVICES / "drafter.env"], ids=lambda path: path.name)
def test_a_file_says_in_its_first_line_what_it_is(path: Path) -> None:
    assert re.match(r"# \S.{20,}", path.read_text().splitlines()[0])
