"""Every file that an image's build installs is named by its hash, fits pyproject.toml, and is wanted."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from deploy.locks import FOLDER, LOCKS, ROOT, TARGET, TORCH, WEIGHTS, fitting_tags, hashes_of
from model_zoo.wheel import PACKAGE, VERSIONS
from tests.images.dockerfile import dockerfile

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES = [name for name in LOCKS if name != "build"]
OF_TORCH = [name for name in IMAGES if TORCH in LOCKS[name].more]

every_lock = pytest.mark.parametrize("name", LOCKS)


def pins(name: str) -> dict[str, Version]:
    """The packages of a lock; raises ValueError for a line without a hash."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    found = {}
    for entry in re.sub(r" \\\n\s*", " ", text.partition("\n")[2]).splitlines():
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)", entry)
        if not match:
            raise ValueError(f"not a package with its hashes: {entry}")
        found[match[1]] = Version(match[2])
    return found


def wanted(name: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for, for an image."""
    lock = LOCKS[name]
    extras = [text for extra in lock.extras for text in PROJECT["optional-dependencies"][extra]]
    texts = [*(PROJECT["dependencies"] if lock.extras else []), *extras, *(each for each in lock.more if each != TORCH)]
    yield from (each for each in map(Requirement, texts) if not each.marker or each.marker.evaluate(dict(TARGET)))


def test_each_lock_is_of_an_image() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(LOCKS)


@every_lock
def test_a_lock_holds_what_the_image_wants_within_its_ranges_and_nothing_that_it_never_imports(name: str) -> None:
    found = pins(name)
    for each in wanted(name):
        if each.name not in ("torch", *LOCKS[name].never_imported):
            assert found[each.name] in each.specifier, each
    assert found.keys().isdisjoint({*LOCKS[name].never_imported, "torch", "dsd-serving"})


@every_lock
def test_a_lock_names_no_index_and_no_place(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|--(?!hash)|/", text)


@pytest.mark.parametrize("name", IMAGES)
def test_a_build_installs_only_what_its_locks_name(name: str) -> None:
    """Each command has hashes, or is torch's or our own package's, and none follows dependencies."""
    file = dockerfile(ROOT / "images" / f"{name}.Dockerfile")
    [copying, *_] = file.stages[0].of("COPY")
    assert f"images/locks/{name}.txt" in copying.words
    commands = [part for step in file.of("RUN") for part in step.text.split(" && ") if re.match(r"pip\b", part)]
    assert commands
    for command in commands:
        assert "--no-deps" in command or "build.txt" in command, command
        assert re.search(r"--require-hashes|--no-index|torch\.txt|wheels \.$", command), command


@pytest.mark.parametrize("name", OF_TORCH)
def test_torch_can_only_be_the_build_for_cpus(name: str) -> None:
    """No version on PyPI has a label such as +cpu, and a build for CUDA has another."""
    [argument] = [
        step for step in dockerfile(ROOT / "images" / f"{name}.Dockerfile").of("ARG") if "TORCH" in step.pairs
    ]
    assert argument.pairs == {"TORCH": TORCH}
    torch = Requirement(TORCH)
    (asked,) = [each for each in wanted(name) if each.name == "torch"]
    version = TORCH.partition("==")[2]
    assert Version(version) in asked.specifier
    assert [build for build in (version, "2.13.0", "2.13.0+cu130") if Version(build) in torch.specifier] == [version]


def test_the_images_that_make_models_hold_the_source_of_the_default_pair() -> None:
    assert WEIGHTS == PACKAGE + VERSIONS
    assert pins("models")[PACKAGE] == pins("tokenizer")[PACKAGE]


def test_hashes_are_those_of_files_for_linux_on_both_machines_and_of_the_source_only_where_there_are_none() -> None:
    names = (
        "a-1-cp311-cp311-manylinux_2_28_x86_64",
        "a-1-cp311-abi3-manylinux2014_aarch64",
        "a-1-cp312-cp312-win_amd64",
    )
    wheels = [{"url": f"https://x/{each}.whl", "hashes": {"sha256": each}} for each in names]
    source = {"url": "https://x/a-1.tar.gz", "hashes": {"sha256": "source"}}
    assert list(hashes_of({"wheels": wheels, "sdist": source}, fitting_tags())) == list(names[:2])
    assert list(hashes_of({"sdist": source}, fitting_tags())) == ["source"]
