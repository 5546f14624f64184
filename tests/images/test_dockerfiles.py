"""What can be seen of the images without building them: their Dockerfiles are right in form, complete and small."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from services.cloud_verifier.settings import VerifierSettings
from services.edge_drafter.settings import DrafterSettings
from services.gateway.settings import GatewaySettings
from services.window_controller.settings import ControllerSettings
from shared.runtime.config import ENV_PREFIX, ServiceSettings
from tests.images import context
from tests.images.dockerfile import Stage, dockerfile, read
from tests.images.replay import IGNORED, ROOT
from tests.test_imports import MODULES, all_imports, in_package

IMAGES = ROOT / "images"
SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "drafter": DrafterSettings,
    "verifier": VerifierSettings,
    "verifier-vllm": VerifierSettings,
    "controller": ControllerSettings,
}
COPIED = "tokenizer"  # the one image that runs no Python
NAMES = [*SETTINGS, "models", COPIED]
ON_VLLM = "verifier-vllm"  # the one image on another base
READ_BY_OTHERS = {
    "PATH": "the entrypoint",
    "PYTHONDONTWRITEBYTECODE": "Python",
    "OMP_WAIT_POLICY": "torch's threads",
    "TORCHINDUCTOR_CACHE_DIR": "torch",
    "ORT_DISABLE_TELEMETRY": "onnxruntime",
    "HOME": "whatever keeps a cache: vLLM, triton, flashinfer, CUDA",
    "USER": "torch, which asks for the user's name",
    "PYTHONPATH": "Ray's workers",
    "VLLM_NO_USAGE_STATS": "vLLM",
    "RAY_USAGE_STATS_ENABLED": "Ray",
    "DSD_HOME": "shared/runtime/home.py",
    "HF_HOME": "huggingface-hub",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

every_image = pytest.mark.parametrize("name", NAMES)
every_program = pytest.mark.parametrize("name", [*SETTINGS, "models"])
every_service = pytest.mark.parametrize("name", SETTINGS)


def path_of(name: str) -> Path:
    return IMAGES / f"{name}.Dockerfile"


def image_of(name: str) -> Stage:
    return dockerfile(path_of(name)).image


def command_of(name: str) -> str:
    """The module that the image runs."""
    [entrypoint] = image_of(name).of("ENTRYPOINT")
    python, flag, module = entrypoint.argv
    assert (python, flag) == ("python3" if name == ON_VLLM else "python", "-m")
    return module


def test_each_dockerfile_is_of_an_image_that_is_tested() -> None:
    assert {path.name.removesuffix(".Dockerfile") for path in IMAGES.iterdir() if path.is_file()} == set(NAMES)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [str(hadolint), "--no-color", *(str(path_of(name)) for name in NAMES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", [name for name in NAMES if name != ON_VLLM])
def test_bases_are_a_version_of_python_small_and_the_same_in_all_stages(name: str) -> None:
    bases = {stage.base for stage in dockerfile(path_of(name)).stages}
    assert len(bases) == 1
    found = re.fullmatch(r"python:(3\.\d+)-slim-[a-z]+", bases.pop())
    assert found
    assert f"Programming Language :: Python :: {found[1]}" in PROJECT["classifiers"]


@every_image
def test_it_runs_as_a_numbered_user_that_is_not_root(name: str) -> None:
    assert [step.text for step in image_of(name).of("USER")] == ["65532:65532"]


@every_program
def test_its_command_is_in_exec_form_so_that_signals_reach_it(name: str) -> None:
    assert command_of(name) in MODULES
    commands = [step.argv for step in image_of(name).of("CMD")]
    assert commands == ([["prepare"]] if name == "models" else []), "a service takes flags behind its entrypoint"


@every_image
def test_what_it_copies_exists_and_is_not_ignored(name: str) -> None:
    sources = [source for step in dockerfile(path_of(name)).of("COPY") if not step.origin for source in step.words[:-1]]
    assert sources
    for source in sources:
        assert context.files(ROOT, source, IGNORED), f"COPY {source} brings nothing"


@every_program
def test_it_holds_every_module_that_its_command_imports_and_no_package_beyond_them(name: str) -> None:
    own = in_package(command_of(name))
    needed = {module for each in own for module in {each, *all_imports(each)} if module in MODULES}
    copied = {source for step in image_of(name).of("COPY") if not step.origin for source in step.words[:-1]}
    brought = {file for source in copied for file in context.files(ROOT, source, IGNORED)}
    assert {module for module in needed if PurePosixPath(MODULES[module].relative_to(ROOT)) not in brought} == set()
    packages = {source for source in copied if (ROOT / source).is_dir()}
    assert packages == {package_of(module) for module in needed} - {"services"}


def package_of(module: str) -> str:
    """The folder that is copied for a module: a package, or a service."""
    top, *rest = module.split(".")
    return f"services/{rest[0]}" if top == "services" and rest else top


@every_image
def test_what_it_sets_in_the_environment_is_read_by_somebody(name: str) -> None:
    fields = SETTINGS[name].model_fields if name in SETTINGS else {}
    settings = {f"{ENV_PREFIX}{field.upper()}" for field in fields}
    assert set(image_of(name).env) <= settings | READ_BY_OTHERS.keys()


@every_service
def test_its_endpoints_can_be_reached_at_the_port_that_it_exposes(name: str) -> None:
    env = image_of(name).env
    assert [step.text for step in image_of(name).of("EXPOSE")] == [env["DSD_HTTP_PORT"]]
    assert env["DSD_HTTP_HOST"] == "0.0.0.0"


@every_image
def test_its_labels_say_what_it_is_under_which_licence_and_from_where(name: str) -> None:
    assert [step.pairs for step in image_of(name).of("LABEL")] == [
        {
            "org.opencontainers.image.title": f"dsd-{name}",
            "org.opencontainers.image.licenses": PROJECT["license"],
            "org.opencontainers.image.source": "${SOURCE}",
            "org.opencontainers.image.revision": "${REVISION}",
        }
    ]


@every_service
def test_the_models_that_it_serves_are_where_the_models_image_prepares_them(name: str) -> None:
    pair = f"{image_of('models').env['DSD_HOME']}/models/smollm2-135m"
    expected = {"drafter": f"{pair}/draft-int8", "controller": None}.get(name, f"{pair}/target")
    env = image_of(name).env
    assert env.get("DSD_TARGET", env.get("DSD_DRAFT")) == expected


def test_the_tokenizer_image_copies_what_its_first_stage_makes_to_where_the_gateway_reads_it() -> None:
    first, image = dockerfile(path_of(COPIED)).stages
    [entrypoint], making = image.of("ENTRYPOINT"), first.of("RUN")[-1].words
    assert making[:3] == ["python", "-m", "model_zoo.tokenizer"]
    assert entrypoint.argv == ["cp", "--recursive", "/opt/dsd/models", "/var/lib/dsd"]
    assert making[3].replace("/opt/dsd", "/var/lib/dsd") == image_of("gateway").env["DSD_TARGET"]


def test_the_vllm_verifier_is_on_the_version_of_vllm_that_it_checks_and_the_document_names() -> None:
    found = re.fullmatch(r"vllm/vllm-openai:v(\d+\.\d+\.\d+)", image_of(ON_VLLM).base)
    assert found
    *_, checking = image_of(ON_VLLM).of("RUN")
    assert f"== '{found[1]}'" in checking.text
    for document in ("images", "large-models"):
        named = re.findall(r"version (\d+\.\d+\.\d+)", (ROOT / f"docs/{document}.md").read_text(encoding="utf-8"))
        assert set(named) == {found[1]}, document


def test_the_vllm_verifier_installs_no_extra_of_an_engine_and_keeps_what_vllm_computes_with() -> None:
    installing, _ = image_of(ON_VLLM).of("RUN")
    _, _, requirements = installing.text.partition("--constraint /tmp/kept.txt ")
    assert requirements.startswith("'.[otel]' 'ray>="), "the extra of an engine would bring another transformers"
    for package in ("torch", "transformers", "numba", "numpy"):
        assert re.search(rf"[(|]{package}[|)]", installing.text)


def test_the_vllm_verifier_is_the_other_one_with_another_engine_and_base() -> None:
    cpu, vllm = image_of("verifier"), image_of(ON_VLLM)
    ours = {name: value for name, value in vllm.env.items() if name.startswith(ENV_PREFIX)}
    assert ours == {"DSD_ENGINE": "vllm"} | {
        name: value for name, value in cpu.env.items() if name.startswith(ENV_PREFIX)
    }
    same = {"EXPOSE", "USER"}
    assert [step for step in vllm.steps if step.verb in same] == [step for step in cpu.steps if step.verb in same]


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\nRUN <<EOF\ntrue\nEOF",
        "# escape=`\nFROM a",
        "FROM a\nADD b c",
        "FROM a\nCOPY --chown=1 b c",
        "FROM a\nENTRYPOINT python -m b",
    ],
)
def test_what_the_parser_does_not_understand_it_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"not understood|not the exec form"):
        understood(text)


def understood(text: str) -> list[object]:
    return [step.argv if step.verb == "ENTRYPOINT" else step.origin for step in read(text).image.steps]


def test_continued_lines_are_one_step_and_arguments_fill_in_the_base() -> None:
    parsed = read('ARG A=x:1\nFROM ${A} AS one\n# RUN no\nRUN a \\\n  # why\n  && b\nENV C=1 D="2 3"\nFROM $A')
    assert [(stage.base, stage.name) for stage in parsed.stages] == [("x:1", "one"), ("x:1", "")]
    assert [step.text for step in parsed.of("RUN")] == ["a && b"]
    assert parsed.stages[0].env == {"C": "1", "D": "2 3"}


@pytest.mark.parametrize(
    ("path", "ignored"),
    [("a.py", True), ("shared/a.py", False), ("shared/b/c.pyc", True), ("x/shared/a.py", True), ("shared/t/u/v", True)],
)
def test_the_last_pattern_that_matches_a_path_or_its_folder_decides(path: str, ignored: bool) -> None:
    assert context.is_ignored(path, ["*", "!shared", "**/*.pyc", "shared/t"]) == ignored


def test_the_context_holds_no_history_environments_or_results() -> None:
    assert all(
        context.is_ignored(path, IGNORED) for path in (".git/config", ".venv/bin/python", "results/a", "tests/a")
    )
