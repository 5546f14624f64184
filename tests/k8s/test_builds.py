"""`kustomize build` of everything in k8s/ works, and the result is what Kubernetes' own schemas describe."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import jsonschema_rs
import kubernetes_validate
import pytest

from tests.k8s.machine import Built
from tests.k8s.manifests import BUILDS, DOCUMENT, K8S, OVERLAYS, ROOT, Manifest, of_kind, the, title

OLDEST = re.search(r"Kubernetes (1\.\d+) or newer", DOCUMENT.read_text())
assert OLDEST
VERSIONS = (OLDEST[1], kubernetes_validate.latest_version())

KUSTOMIZATIONS = sorted(K8S.rglob("kustomization.yaml"))
TEXT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}


def fields(*required: str, **known: object) -> dict[str, object]:
    """The schema of an object with these fields and no others."""
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


def listed(items: object) -> dict[str, object]:
    return {"type": "array", "items": items}


POLICIES = listed(fields("type", "value", "periodSeconds", type=TEXT, value=NUMBER, periodSeconds=NUMBER))
SCALE_DOWN = fields(stabilizationWindowSeconds=NUMBER, policies=POLICIES)
QUERY = fields("serverAddress", "query", "threshold", serverAddress=TEXT, query=TEXT, threshold=TEXT)
RELABELING = fields("targetLabel", sourceLabels=listed(TEXT), targetLabel=TEXT)
LABELS = {"type": "object", "additionalProperties": TEXT}
ALERT = fields("alert", "expr", **{"for": TEXT}, alert=TEXT, expr=TEXT, labels=LABELS, annotations=LABELS)
RECORD = fields("record", "expr", record=TEXT, expr=TEXT)
ISSUER = fields(
    "name", "kind", name=TEXT, kind={"enum": ["Issuer", "ClusterIssuer"]}, group={"const": "cert-manager.io"}
)
DURATION = {"type": "string", "pattern": r"^\d+h$"}
TIMEOUT = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
BACKEND = fields("name", "port", name=TEXT, port=NUMBER)
PATH = fields("type", "value", type={"enum": ["PathPrefix", "Exact"]}, value=TEXT)
CUSTOM = {  # what is used here of these custom resources' definitions
    "monitoring.coreos.com/v1 ServiceMonitor": fields(
        "selector",
        "endpoints",
        selector=fields(matchLabels={"type": "object", "additionalProperties": TEXT}),
        endpoints=listed(fields(port=TEXT, path=TEXT, interval=TEXT, relabelings=listed(RELABELING))),
    ),
    "monitoring.coreos.com/v1 PrometheusRule": fields(
        "groups", groups=listed(fields("name", "rules", name=TEXT, rules=listed({"anyOf": [ALERT, RECORD]})))
    ),
    "leaderworkerset.x-k8s.io/v1 LeaderWorkerSet": fields(
        "leaderWorkerTemplate",
        replicas=NUMBER,
        leaderWorkerTemplate=fields(
            "leaderTemplate",
            "workerTemplate",
            size=NUMBER,
            restartPolicy={"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
            leaderTemplate={"type": "object"},
            workerTemplate={"type": "object"},
        ),
    ),
    "cert-manager.io/v1 Issuer": fields(selfSigned=fields(), ca=fields("secretName", secretName=TEXT)),
    "cert-manager.io/v1 Certificate": fields(
        "secretName",
        "issuerRef",
        secretName=TEXT,
        issuerRef=ISSUER,
        isCA={"type": "boolean"},
        commonName=TEXT,
        dnsNames=listed(TEXT),
        usages=listed({"enum": ["digital signature", "server auth", "client auth"]}),
        duration=DURATION,
        renewBefore=DURATION,
        privateKey=fields(
            algorithm={"const": "ECDSA"}, size={"const": 256}, rotationPolicy={"enum": ["Always", "Never"]}
        ),
    ),
    "external-secrets.io/v1 ExternalSecret": fields(
        "secretStoreRef",
        refreshInterval=DURATION,
        secretStoreRef=fields("name", name=TEXT, kind={"enum": ["SecretStore", "ClusterSecretStore"]}),
        target=fields(name=TEXT),
        dataFrom=listed(fields("extract", extract=fields("key", key=TEXT))),
    ),
    "gateway.networking.k8s.io/v1 HTTPRoute": fields(
        parentRefs=listed(fields("name", name=TEXT, namespace=TEXT)),
        hostnames=listed(TEXT),
        rules=listed(
            fields(
                matches=listed(fields(path=PATH)),
                timeouts=fields(request=TIMEOUT, backendRequest=TIMEOUT),
                backendRefs=listed(BACKEND),
            )
        ),
    ),
    "keda.sh/v1alpha1 ScaledObject": fields(
        "scaleTargetRef",
        "triggers",
        scaleTargetRef=fields("name", name=TEXT, kind=TEXT),
        minReplicaCount=NUMBER,
        maxReplicaCount=NUMBER,
        pollingInterval=NUMBER,
        advanced=fields(horizontalPodAutoscalerConfig=fields(behavior=fields(scaleDown=SCALE_DOWN))),
        triggers=listed(fields("type", "metadata", type={"const": "prometheus"}, metadata=QUERY)),
    ),
}


def complain_about(manifest: Manifest, version: str) -> None:
    """Raises where a manifest has a field that is unknown, missing or of another type."""
    custom = CUSTOM.get(f"{manifest['apiVersion']} {manifest['kind']}")
    if custom is None:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    jsonschema_rs.validate(custom, manifest["spec"])
    for template in pod_templates(manifest):
        kubernetes_validate.validate(template, version, strict=True)


def pod_templates(manifest: Manifest) -> list[Manifest]:
    """Those inside a LeaderWorkerSet, which Kubernetes' schemas describe."""
    if manifest["kind"] != "LeaderWorkerSet":
        return []
    group = manifest["spec"]["leaderWorkerTemplate"]
    return [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": role}, "template": group[f"{role}Template"]}
        for role in ("leader", "worker")
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", BUILDS)
def test_every_build_keeps_to_the_schemas_of_kubernetes(built: Built, name: str, version: str) -> None:
    for manifest in built(name):
        complain_about(manifest, version)


@pytest.mark.parametrize("name", ["many nodes", "own pair"])
def test_a_field_that_kubernetes_does_not_know_is_found(built: Built, name: str) -> None:
    for manifest in built(name):
        place = "spec" if "spec" in manifest else "metadata"
        misspelt = manifest | {place: manifest[place] | {"sepc": 1}}
        with pytest.raises((kubernetes_validate.ValidationError, jsonschema_rs.ValidationError)):
            complain_about(misspelt, VERSIONS[0])


@pytest.mark.parametrize("role", ["leader", "worker"])
def test_a_field_that_a_group_s_pods_do_not_have_is_found(built: Built, role: str) -> None:
    misspelt = copy.deepcopy(the(built("many nodes"), "LeaderWorkerSet", "verifier"))
    misspelt["spec"]["leaderWorkerTemplate"][f"{role}Template"]["spec"]["toleration"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        complain_about(misspelt, VERSIONS[0])


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: str(path.parent.relative_to(K8S)))
def test_a_kustomization_says_in_its_first_line_what_it_is(path: Path) -> None:
    assert re.match(r"# [A-Z].{20,}\.$", path.read_text().splitlines()[0])


def test_every_file_is_part_of_a_kustomization() -> None:
    for folder in (path.parent for path in KUSTOMIZATIONS):
        text = (folder / "kustomization.yaml").read_text()
        for file in folder.iterdir():
            is_for_a_secret = file.suffix == ".conf" and "nats_users rights" in file.read_text()
            assert file.is_dir() or is_for_a_secret or file.name in (text + "kustomization.yaml"), file.relative_to(ROOT)


@pytest.mark.parametrize("name", OVERLAYS)
def test_everything_is_in_the_namespace_dsd(built: Built, name: str) -> None:
    for manifest in built(name):
        if manifest["kind"] != "PriorityClass":  # of the whole cluster
            place = manifest["metadata"].get("namespace", manifest["metadata"]["name"])
            assert place == "dsd", title(manifest)


@pytest.mark.parametrize("name", [name for name in BUILDS if name != "dev"])
def test_only_the_overlay_for_trying_out_holds_keys(built: Built, name: str) -> None:
    assert of_kind(built(name), "Secret") == []


def test_seeds_are_in_the_repository_as_examples_only() -> None:
    """Wherever a file of k8s/ or docs/ has a seed in it, it lies in the folder that says so."""
    files = [path for folder in (K8S, ROOT / "docs") for path in folder.rglob("*") if path.is_file()]
    seeds = [path for path in files if holds_a_seed(path)]
    examples = K8S / "overlays" / "dev" / "example-keys"
    assert seeds
    assert all(examples in path.parents for path in seeds)
    text = "".join(path.read_text() for path in KUSTOMIZATIONS if path.parent.name != "dev")
    assert "example-keys" not in text
    assert "secretGenerator" not in text


def holds_a_seed(path: Path) -> bool:
    return re.search(rb"\bS[UAONC][A-Z2-7]{56}\b", path.read_bytes()) is not None
