"""Which Python runs the verifiers of a local system, and what it must have."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import typer

from services.local import cli, engine, nats_server
from services.local.engine import EVERY_ROLE, EngineName, EngineRefused, VerifierEngine, verifier_engine
from services.local.nats_server import Access
from services.local.pair import ModelPair
from services.local.system import READY_S, SystemPlan, service_programs
from tests.test_roles import required

PAIR = ModelPair("pair", Path("target"), (Path("draft"),))
VLLM = EngineName.VLLM

MakePython = Callable[..., Path]


@pytest.fixture
def make_python(tmp_path: Path) -> MakePython:
    """make_python(folder, *missing) -> Path: a program where `make vllm` makes one, which lists what it lacks."""

    def make(folder: str = "other", *missing: str) -> Path:
        path = tmp_path / folder / ".venv-vllm" / "bin" / "python"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho {' '.join(missing)}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `make vllm` has run, neither beside the packages nor in the current folder."""
    for folder in ("root", "current"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(engine, "ROOT", tmp_path / "root")
    monkeypatch.chdir(tmp_path / "current")


# --- which Python -----------------------------------------------------------------------------------------------------


def test_the_built_in_engine_runs_with_this_python() -> None:
    assert verifier_engine(EngineName.TORCH, None) == VerifierEngine(EngineName.TORCH, Path(sys.executable))


def test_the_python_of_make_vllm_is_found_beside_the_packages_then_in_the_current_folder_and_then_it_is_this_one(
    make_python: MakePython, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(make_python("running")))
    assert verifier_engine(VLLM, None).python == Path(sys.executable)
    for folder in ("current", "root"):
        made = make_python(folder)
        assert verifier_engine(VLLM, None).python == made


def test_a_named_python_goes_before_all_others(make_python: MakePython) -> None:
    make_python("root")
    named = make_python("named")
    assert verifier_engine(VLLM, named).python == named


def test_a_named_python_stays_a_link_since_a_virtual_environment_is_one(
    tmp_path: Path, make_python: MakePython, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "current" / "python"
    link.symlink_to(make_python())
    assert verifier_engine(VLLM, Path("python")).python == link


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_without_vllm_the_error_says_how_to_get_it(make_python: MakePython, monkeypatch: pytest.MonkeyPatch) -> None:
    advice = "lacks: run `make vllm`, or name a Python that has it with --verifier-python"
    named = make_python("named", "vllm", "nats")
    monkeypatch.setattr(sys, "executable", str(make_python("running", "vllm")))
    for python in (None, named):
        with pytest.raises(EngineRefused) as refused:
            verifier_engine(VLLM, python)
        assert str(refused.value) == f"--engine vllm needs vLLM, which {python or sys.executable} {advice}"


def test_a_python_with_vllm_and_without_our_dependencies_is_refused(make_python: MakePython) -> None:
    named = make_python("named", "nats", "nkeys")
    with pytest.raises(EngineRefused, match=rf"needs nats, nkeys, which {named} lacks: .* {named} -m pip install '\.'"):
        verifier_engine(VLLM, named)


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineRefused, match=rf"{tmp_path}/none can't be run: No such file"):
        verifier_engine(VLLM, tmp_path / "none")
    with pytest.raises(EngineRefused, match=r"false is no Python of version 3\.11 or newer"):
        verifier_engine(VLLM, Path("/bin/false"))


def test_the_check_asks_a_real_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(sys.executable)
    assert verifier_engine(EngineName.TORCH, here) == VerifierEngine()
    (tmp_path / "current" / "missing").mkdir()  # a folder is no package
    monkeypatch.setitem(engine.NEEDS, VLLM, ("json", "missing"))
    with pytest.raises(EngineRefused, match=f"needs missing, which {here} lacks"):
        verifier_engine(VLLM, here)


def test_what_every_role_needs_is_what_pyproject_says() -> None:
    known = packages_distributions()
    assert {known[name][0].replace("_", "-") for name in EVERY_ROLE} == required("") - {"uvloop", "pydantic-core"}


# --- the system -------------------------------------------------------------------------------------------------------


def test_verifiers_alone_run_with_another_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "given")
    (tmp_path / "root" / "pyproject.toml").touch()
    plan = SystemPlan(PAIR, 2, engine=VerifierEngine(VLLM, Path("/there/python")))
    programs = service_programs(plan, Access("nats://there"))
    verifiers = [program for program in programs if program.name.startswith("verifier")]
    others = [program for program in programs if program not in verifiers]
    assert [program.argv for program in verifiers] == [("/there/python", "-m", "services.cloud_verifier")] * 2
    for program in verifiers:
        assert program.env["DSD_ENGINE"] == "vllm"
        assert program.env["PYTHONPATH"] == f"{tmp_path / 'root'}:given"
    assert len(others) == 3
    for program in others:
        assert program.argv[0] == sys.executable
        assert program.env.keys().isdisjoint({"DSD_ENGINE", "PYTHONPATH"})


def test_another_python_does_not_see_the_packages_of_this_environment() -> None:
    """Without pyproject.toml the folder is site-packages, with another torch."""
    assert "PYTHONPATH" not in VerifierEngine(VLLM, Path("/there/python")).env


def test_an_engine_that_compiles_has_more_time() -> None:
    assert VerifierEngine().ready_s == READY_S
    assert VerifierEngine(VLLM).ready_s > READY_S


def test_a_system_in_the_background_gets_the_engine_and_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = tmp_path / "recorder"
    recorder.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n')
    recorder.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(recorder))
    plan = SystemPlan(PAIR, port=nats_server.free_port(), engine=VerifierEngine(VLLM, Path("/there/python")))
    with pytest.raises(typer.Exit):
        cli._detach(plan, tmp_path)
    assert " --engine vllm --verifier-python /there/python " in (tmp_path / "arguments").read_text()
