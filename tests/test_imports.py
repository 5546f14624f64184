"""Who may import whom (docs/architecture.md), kept over the syntax trees of all files, transitively."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("shared", "services", "awc", "dsd_sim", "model_zoo", "client")
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


def direct_imports(name: str) -> Iterator[str]:
    """Dotted names that a module imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports(name: str) -> set[str]:
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
    return seen


def tops(names: set[str]) -> set[str]:
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


def test_shared_imports_nothing_of_ours_and_no_model_runtime() -> None:
    for name in in_package("shared"):
        reached = tops(all_imports(name))
        assert not reached & {"services", "awc", "model_zoo", "client", "torch", "onnxruntime", "transformers"}, name
    assert MODULES["shared"].read_text(encoding="utf-8") == ""


def test_awc_policies_import_only_pure_parts_of_shared_and_numpy() -> None:
    allowed = {
        "shared.protocol.messages",
        "shared.policies.batching",
        "shared.policies.routing",
        "shared.protocol.sampling",
    }
    for name in in_package("awc"):
        if name in in_package("awc_training"):
            continue
        assert not {i for i in all_imports(name) if i.startswith(("awc_training", "dsd_sim"))}, name
        ours = {i for i in direct_imports(name) if i.startswith("shared.") and i in MODULES}
        assert ours <= allowed, f"{name} imports {ours - allowed}"
        assert not tops(all_imports(name)) & {"torch", "nats", "aiohttp", "asyncio", "services"}, name


def test_the_simulator_imports_policies_and_the_pure_parts_of_shared_and_no_service_nor_runtime() -> None:
    assert in_package("dsd_sim")
    allowed = {
        f"shared.{part}"
        for part in ("drafter_session", "verifier_session", "messages", "batching", "routing", "recording", "profiles")
    } | {"shared.runtime.compiled"}
    for name in in_package("dsd_sim"):
        ours = {i for i in direct_imports(name) if i.startswith("shared.") and i in MODULES}
        assert ours <= allowed, f"{name} imports {ours - allowed}"
        reached = tops(all_imports(name))
        assert not reached & {"torch", "transformers", "onnxruntime", "nats", "aiohttp", "asyncio"}, name
        assert not reached & {"services", "model_zoo", "client", "benchmarks"}, name


def test_the_client_imports_nothing_of_ours_and_speaks_to_a_gateway_over_http_alone() -> None:
    assert in_package("client")
    for name in in_package("client"):
        assert not tops(all_imports(name)) & {"shared", "services", "awc", "model_zoo", "benchmarks", "nats"}, name


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("torch", ("services.cloud_verifier", "model_zoo", "awc_training")),
        ("transformers", ("services.cloud_verifier", "model_zoo")),
        ("onnxruntime", ("services.edge_drafter", "model_zoo")),
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
