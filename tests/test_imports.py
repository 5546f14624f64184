"""The layers of docs/architecture.md hold in every import, direct or not, and folders and files stay small."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW: dict[str, set[str]] = {  # the packages that each may import, besides itself; transitive imports count too
    "shared": set(),
    "client": set(),
    "awc": {"shared"},
    "dsd_sim": {"awc", "shared"},
    "services": {"awc", "shared"},
    "awc_training": {"dsd_sim", "awc", "shared"},
    "model_zoo": {"services", "awc", "shared"},
    "benchmarks": {"model_zoo", "services", "awc_training", "dsd_sim", "awc", "shared", "client"},
    "deploy": set(),
}
SHARED_BELOW: dict[str, set[str]] = {  # the same for the parts of `shared`
    "timing": set(),
    "protocol": {"timing"},
    "policies": {"protocol", "timing"},
    "data": {"policies", "protocol"},
    "runtime": {"protocol", "timing"},
    "bus": {"protocol", "runtime", "timing"},
    "grammar": {"protocol", "timing"},
    "service": {"bus", "protocol", "runtime", "timing"},
}
BENCHMARKS_BELOW: dict[str, set[str]] = {  # and for those of `benchmarks`
    "harness": set(),
    "standins": {"harness"},
    "load": {"harness"},
    "chaos": {"harness"},
    "policies": {"harness"},
    "validation": {"harness", "standins", "load"},
    "peers": {"harness", "load"},
    "experiments": {"harness", "load", "peers", "policies", "standins"},
    "hostile": {"harness"},
    "formats": {"harness"},
    "paper": {"harness"},
    "tracing": {"harness", "load", "policies", "experiments"},
    "profiling": {"harness", "experiments", "policies"},
    "scale": {"harness", "load", "peers", "standins", "validation"},
}
OURS = tuple(BELOW)
MAX_FILES, MAX_TEST_FILES = 16, 20  # of Python in one folder
MAX_LINES, MAX_TEST_LINES, MAX_FUNCTION_LINES = 400, 600, 60
SERVICES = ("gateway", "edge_drafter", "cloud_verifier", "window_controller", "local")


def modules() -> dict[str, Path]:
    """All modules of ours by their dotted names."""
    found = {}
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


@cache
def direct_imports(name: str) -> frozenset[str]:
    """Dotted names that a module imports, also inside functions and under TYPE_CHECKING."""
    return frozenset(_imported(name))


def _imported(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def all_imports(name: str) -> frozenset[str]:
    """What a module imports, and what our modules among it import in turn."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        for imported in direct_imports(current):
            if imported not in seen:
                seen.add(imported)
                if imported in MODULES:
                    waiting.append(imported)
    return frozenset(seen)


def tops(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def in_package(package: str) -> list[str]:
    return [name for name in MODULES if name == package or name.startswith(package + ".")]


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30
    assert "torch" in tops(all_imports("services.cloud_verifier.torch_engine.model"))


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_imports_another_nor_the_model_zoo(service: str) -> None:
    own = f"services.{service}"
    for name in in_package(own):
        foreign = {i for i in all_imports(name) if i in MODULES and i.startswith("services.") and not i.startswith(own)}
        assert not foreign, f"{name} imports {foreign}"
        forbidden = {"model_zoo", "dsd_sim", "benchmarks", "tests"} | ({"client"} if service != "local" else set())
        assert not tops(all_imports(name)) & forbidden, name


@pytest.mark.parametrize("package", OURS)
def test_a_package_imports_only_packages_of_lower_layers(package: str) -> None:
    assert in_package(package)
    for name in in_package(package):
        foreign = {i for i in all_imports(name) if i in MODULES} & {i for i in MODULES if i.split(".")[0] != package}
        allowed = BELOW[package] | console(name)
        assert tops(foreign) <= allowed, (
            f"{name} imports {sorted(i for i in foreign if i.split('.')[0] not in allowed)}"
        )


def console(name: str) -> set[str]:
    """`python -m services` asks as `dsd ask` does, so it imports the client."""
    return {"client"} if name.startswith(("services.local", "services.__main__")) else set()


@pytest.mark.parametrize(("package", "below"), [("shared", SHARED_BELOW), ("benchmarks", BENCHMARKS_BELOW)])
def test_the_folders_of_a_package_import_only_those_of_lower_layers(package: str, below: dict[str, set[str]]) -> None:
    for name in in_package(package):
        folder = folder_of(name)
        others = {folder_of(i) for i in all_imports(name) if i in MODULES and i.startswith(f"{package}.")} - {folder}
        assert others - {""} <= below.get(folder, set()), f"{name} imports {others}"


def test_the_init_of_shared_is_empty() -> None:
    assert MODULES["shared"].read_text(encoding="utf-8") == ""


def test_nothing_imports_a_command_line() -> None:
    for name in MODULES:
        assert not any(i.endswith(".__main__") for i in direct_imports(name)), name


def folder_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_shared_reaches_no_model_runtime() -> None:
    for name in in_package("shared"):
        assert not tops(all_imports(name)) & {"torch", "onnxruntime", "transformers"}, name


PURE = ("shared.protocol", "shared.policies", "shared.timing")


def test_awc_imports_only_pure_parts_of_shared_and_numpy() -> None:
    for name in in_package("awc"):
        ours = {i for i in all_imports(name) if i.startswith("shared.") and i in MODULES}
        assert all(i.startswith(PURE) for i in ours), f"{name} imports {ours}"
        assert not tops(all_imports(name)) & {"torch", "nats", "aiohttp", "asyncio"}, name


def test_the_simulator_imports_policies_and_the_pure_parts_of_shared_and_no_runtime() -> None:
    allowed = (*PURE, "shared.data", "shared.runtime.compiled")
    for name in in_package("dsd_sim"):
        ours = {i for i in direct_imports(name) if i.startswith("shared.") and i in MODULES}
        assert all(i.startswith(allowed) for i in ours), f"{name} imports {ours}"
        assert not tops(all_imports(name)) & {"torch", "transformers", "onnxruntime", "nats", "aiohttp", "asyncio"}, (
            name
        )


def test_the_client_speaks_to_a_gateway_over_http_alone() -> None:
    for name in in_package("client"):
        assert "nats" not in tops(all_imports(name)), name


def test_the_verifier_reaches_torch_through_an_engine_or_their_sampler_and_vllm_through_its_engine() -> None:
    for name in in_package("services.cloud_verifier"):
        part = [*name.split("."), ""][2]
        if part in ("__main__", "loading"):  # loading chooses the engine
            continue
        reached = tops(all_imports(name))
        assert "torch" not in reached or part in ("torch_engine", "vllm_engine", "sampler"), name
        assert "vllm" not in reached or part == "vllm_engine", name


@pytest.mark.parametrize(("engine", "other"), [("torch_engine", "vllm_engine"), ("vllm_engine", "torch_engine")])
def test_no_engine_imports_another(engine: str, other: str) -> None:
    for name in in_package(f"services.cloud_verifier.{engine}"):
        reached = [i for i in all_imports(name) if i.startswith(f"services.cloud_verifier.{other}")]
        assert not reached, f"{name} imports {reached}"


VERIFIERS = (  # whatever their engine
    "services.cloud_verifier.__main__",
    "services.cloud_verifier.loading",
    "services.cloud_verifier.vllm_engine",
    "benchmarks.standins.timed",
)


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("torch", ("services.cloud_verifier", "model_zoo", "awc_training", "benchmarks")),
        ("transformers", ("services.cloud_verifier", "model_zoo", "benchmarks")),
        ("vllm", VERIFIERS),
        ("onnxruntime", ("services.edge_drafter", "model_zoo", "benchmarks")),
    ],
)
def test_model_runtimes_stay_in_their_homes(library: str, homes: tuple[str, ...]) -> None:
    for name in MODULES:
        if not name.startswith(homes):
            assert library not in tops(all_imports(name)), f"{name} reaches {library}"


def test_model_zoo_imports_of_services_only_the_two_model_modules_and_the_drafts_configuration() -> None:
    for name in in_package("model_zoo"):
        reached = {i for i in direct_imports(name) if i.startswith("services.") and i in MODULES}
        allowed = {
            "services.edge_drafter.model",
            "services.edge_drafter.draft_config",
            "services.cloud_verifier.torch_engine.model",
        }
        assert reached <= allowed, name


def test_the_gateway_s_metrics_know_no_session() -> None:
    assert not {i for i in all_imports("services.gateway.metrics") if i.startswith("services.gateway.session")}


# --- sizes ------------------------------------------------------------------------------------------------------------


def python_files() -> list[Path]:
    return sorted(path for package in (*OURS, "tests") for path in (ROOT / package).rglob("*.py"))


def test_no_folder_has_too_many_files() -> None:
    numbers = Counter(path.parent.relative_to(ROOT) for path in python_files())
    assert len(numbers) > 40
    for folder, num_files in numbers.items():
        assert num_files <= (MAX_TEST_FILES if folder.parts[0] == "tests" else MAX_FILES), folder


def test_files_and_functions_are_short() -> None:
    too_long = []
    for path in python_files():
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        if len(text.splitlines()) > (MAX_TEST_LINES if name.startswith("tests/") else MAX_LINES):
            too_long.append(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES:
                    too_long.append(f"{name}: {node.name}")
    assert not too_long
