"""The Helm chart gives what kustomize gives, object for object, and its values change what they say."""

from __future__ import annotations

import itertools
import re
import shutil
from typing import Any

import pytest
import yaml

from deploy.helm.builds import OVERLAYS, components_of, kustomized
from deploy.helm.chart import CHART, generated
from deploy.helm.values import VERSION
from tests.helm.rendering import by_name, chart, rendered
from tests.k8s.manifests import DOCUMENT
from tests.k8s.schemas.validation import VERSIONS, complaints
from tests.k8s.test_builds import holds_a_seed

pytestmark = pytest.mark.skipif(shutil.which("kustomize") is None, reason="kustomize is not installed")

ALONE = [(overlay, (name,)) for overlay in OVERLAYS for name in components_of(overlay)]
TOGETHER = [  # as much as goes together
    (
        "cloud",
        tuple(
            name
            for name in components_of("cloud")
            if name not in ("many-nodes", "models-from-claim", "models-from-hub")
        ),
    ),
    ("cloud", ("many-nodes", "models-from-claim", "nats-tls", "priorities")),
    (
        "edge",
        tuple(name for name in components_of("edge") if name not in ("models-from-claim", "models-from-hub-edge")),
    ),
]

RESOURCES = {"requests": {"cpu": "3", "memory": "3Gi"}, "limits": {"cpu": "3", "memory": "3Gi"}}
POD = {
    "resources": RESOURCES,
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "rented", "operator": "Exists"}],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
}
VALUES: dict[str, Any] = {
    "images": {"registry": "our.example", "tag": "9.9.9", "verifier": "dsd-verifier", "nats": "mirror.example/nats:2"},
    "models": {"claim": "ours", "image": "our.example/models:2.0.0"},
    "host": "api.our.example",
    "site": "hall-7",
    "nats": POD,
    **dict.fromkeys(("gateway", "controller", "verifier", "drafter"), POD | {"replicas": 7}),
}


def test_the_generated_files_are_what_the_generator_makes() -> None:
    """Else run `python -m deploy.helm`."""
    made = generated()
    there = {str(path.relative_to(CHART)) for path in CHART.glob("templates/*/*")}
    assert there == {name for name in made if name.startswith("templates/")}
    for name, text in made.items():
        assert (CHART / name).read_text() == text, name


@pytest.mark.parametrize(("overlay", "components"), [*((each, ()) for each in OVERLAYS), *ALONE, *TOGETHER])
def test_helm_gives_what_kustomize_gives(overlay: str, components: tuple[str, ...]) -> None:
    built = [each for each in kustomized(overlay, components) if each["kind"] != "Namespace"]
    assert by_name(rendered({"overlay": overlay, "components": list(components)})) == by_name(built)


@pytest.mark.parametrize(("overlay", "components"), [TOGETHER[0], TOGETHER[-1]])
def test_objects_with_every_value_set_keep_to_the_schemas(overlay: str, components: tuple[str, ...]) -> None:
    for manifest in rendered(VALUES | {"overlay": overlay, "components": list(components)}, "other"):
        assert complaints(manifest, VERSIONS[-1]) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_values_reach_the_pods(overlay: str) -> None:
    for name, manifest in by_name(rendered(VALUES | {"overlay": overlay}, "other")).items():
        assert manifest["metadata"]["namespace"] == "other"
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            role, spec = manifest["metadata"]["labels"]["app.kubernetes.io/name"], manifest["spec"]
            pod = spec["template"]["spec"]
            (container,) = [each for each in pod["containers"] if each["name"] == role]
            assert container["resources"] == RESOURCES, name
            assert {key: pod[key] for key in POD if key in pod} == {key: POD[key] for key in POD if key in pod}
            assert set(pod) >= {"nodeSelector", "tolerations", "priorityClassName", "runtimeClassName"}
            assert spec.get("replicas", 7) == (7 if role != "nats" else 3 if overlay == "cloud" else 1)
            image = "mirror.example/nats:2" if role == "nats" else f"our.example/dsd-{role}:9.9.9"
            assert container["image"] == image


def test_settings_reach_the_service_and_change_the_name_of_what_holds_them() -> None:
    before, after = (
        by_name(rendered(values)) for values in ({}, {"config": {"verifier-settings": {"DSD_DTYPE": "float32"}}})
    )
    (old,), (new,) = ([name for name in each if "verifier-settings" in name] for each in (before, after))
    assert old != new
    assert after[new]["data"] == before[old]["data"] | {"DSD_DTYPE": "float32"}
    assert new.removeprefix("ConfigMap ") in str(after["StatefulSet verifier"])


def test_a_site_has_its_own_name_everywhere() -> None:
    objects = rendered(
        {"overlay": "edge", "site": "hall-7", "natsHost": "nats.our.example", "natsAddress": "192.0.2.1/32"}
    )
    text = str(objects)
    assert "site-a" not in text
    assert "StatefulSet hall-7-drafter" in by_name(objects)
    assert "tls://nats.our.example:7422" in text
    assert "203.0.113.10" not in text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_value_s_comment_names_the_overlay_or_the_components_that_read_it(overlay: str) -> None:
    """Only of addresses and names: each stands alone on its line."""
    lines = re.findall(r"^(\w+): (\S+) # (.+)$", (CHART / "values.yaml").read_text(), re.MULTILINE)
    marked = {name: "192.0.2.7/32" if "/32" in value else f"marked-{name}".lower() for name, value, _ in lines}
    told = {name: set(re.findall(r"[a-z-]+", comment)) for name, _, comment in lines}
    assert len(lines) > 8
    everywhere = str(rendered(marked | {"overlay": overlay}))
    for component in components_of(overlay):
        objects = str(rendered(marked | {"overlay": overlay, "components": [component]}))
        for name, mark in marked.items():
            if mark in everywhere:
                assert {"overlay", overlay} <= told[name], name
            elif mark in objects:
                assert component in told[name], f"{component} reads {name}"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"components": ["keda", "kedda"]}, "/components/1"),
        ({"overlay": "edge", "components": ["keda"]}, "/components/0"),
        ({"verifer": {}}, "verifer"),
        ({"config": {"verifier-setting": {}}}, "verifier-setting"),
        ({"config": {"verifier-settings": {"DSD_KV_TOKENS": 32768}}}, "got number, want string"),
        ({"gateway": {"replica": 3}}, "replica"),
    ],
)
def test_a_misspelt_value_is_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(Exception, match=re.escape(told)):
        chart().validate_schema(values)


@pytest.mark.parametrize(
    ("overlay", "components"),
    [
        ("cloud", ("many-gpus", "many-nodes")),
        *(
            (overlay, pair)
            for overlay in OVERLAYS
            for pair in itertools.combinations((each for each in components_of(overlay) if "models-" in each), 2)
        ),
    ],
)
def test_components_that_want_different_things_are_refused_together(overlay: str, components: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match="exclude each other"):
        rendered({"overlay": overlay, "components": list(components)})


def test_the_values_that_the_document_shows_are_taken() -> None:
    (text,) = re.findall(r"^```\n(overlay: .+?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    values = yaml.safe_load(text)
    chart().validate_schema(values)
    shown = str(rendered(values))
    for part in ("api.our.example", "registry.our.example/dsd-gateway:", "/var/lib/dsd/our-model", "H100"):
        assert part in shown


def test_alerts_keep_their_own_braces() -> None:
    rules = by_name(rendered({"components": ["service-monitor"]}))["PrometheusRule dsd"]
    assert "{{ $labels." in str(rules)


def test_the_chart_has_the_package_s_version_and_no_keys() -> None:
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert metadata["version"] == metadata["appVersion"] == VERSION
    assert metadata["kubeVersion"] == f">={VERSIONS[0]}-0"
    assert not any(holds_a_seed(path) for path in CHART.rglob("*") if path.is_file())
    assert not any(each["kind"] == "Secret" for overlay in OVERLAYS for each in rendered({"overlay": overlay}))


def test_helm_s_own_linter_has_nothing_to_say() -> None:
    assert chart().name == "dsd"
    import helm_python  # is there

    for overlay, components in TOGETHER:
        report = helm_python.lint(CHART, {"overlay": overlay, "components": list(components)}, strict=True)
        assert [each for each in report["messages"] if "icon is recommended" not in each["error"]] == []
