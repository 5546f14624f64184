"""NetworkPolicies allow exactly the connections that parts need; who reaches whom is worked out from them."""

from __future__ import annotations

import pytest

from tests.k8s.machine import Built
from tests.k8s.manifests import Manifest, containers_of, labels_of, of_kind, selects, workloads

Connection = tuple[str, str, str]  # who, to whom, at which port (its name, number outside, or any)

ANYBODY, MONITORING, DNS, CLOUD, INTERNET = "anybody", "monitoring", "dns", "cloud", "internet"
OUTSIDE = {  # peers outside the namespace, as policies name them
    "{'namespaceSelector': {'matchLabels': {'kubernetes.io/metadata.name': 'monitoring'}}}": MONITORING,
    "{'namespaceSelector': {'matchLabels': {'kubernetes.io/metadata.name': 'kube-system'}}, "
    "'podSelector': {'matchLabels': {'k8s-app': 'kube-dns'}}}": DNS,
    "{'namespaceSelector': {'matchLabels': {'kubernetes.io/metadata.name': 'kube-system'}}, "
    "'podSelector': {'matchLabels': {'k8s-app': 'node-local-dns'}}}": DNS,
    "{'ipBlock': {'cidr': '169.254.20.10/32'}}": DNS,
    "{'ipBlock': {'cidr': '203.0.113.10/32'}}": CLOUD,
    "{'ipBlock': {'cidr': '0.0.0.0/0', "
    "'except': ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '169.254.0.0/16']}}": INTERNET,
}


ANY_PORT: list[Manifest] = [{"port": "any"}]  # of a rule that names none


def named_port(port: Manifest, workload: Manifest | None) -> str:
    """A port by its name where it is one of a pod's, else its number."""
    for container in containers_of(workload) if workload else []:
        for known in container.get("ports", []):
            if port["port"] in (known["name"], known["containerPort"]):
                return str(known["name"])
    return str(port["port"])


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {labels_of(each)["app.kubernetes.io/name"]: each for each in workloads(manifests)}


def names_of(selector: Manifest, manifests: list[Manifest]) -> list[str]:
    return [name for name, workload in pods(manifests).items() if selects(selector, labels_of(workload))]


def peers(rule: Manifest, way: str, manifests: list[Manifest]) -> list[str]:
    """Who a rule is about: pods of the namespace by name, and those outside."""
    found = []
    for peer in rule.get(way, [{}]):
        if not peer:
            found.append(ANYBODY)
        elif set(peer) == {"podSelector"}:
            found += names_of(peer["podSelector"], manifests)
        else:
            found.append(OUTSIDE[str(peer)])
    return found


def allowed(manifests: list[Manifest], direction: str) -> set[Connection]:
    """All connections that some policy lets in ("ingress") or out ("egress")."""
    found = set()
    for policy in of_kind(manifests, "NetworkPolicy"):
        chosen = names_of(policy["spec"]["podSelector"], manifests)
        for rule in policy["spec"].get(direction, []):
            for one in chosen:
                for other in peers(rule, "from" if direction == "ingress" else "to", manifests):
                    receiver = one if direction == "ingress" else other
                    for port in rule.get("ports", ANY_PORT):
                        end = named_port(port, pods(manifests).get(receiver))
                        found.add((other, one, end) if direction == "ingress" else (one, other, end))
    return found


def connections(manifests: list[Manifest]) -> set[Connection]:
    """What can happen: both ends must allow it, as far as they are pods of the namespace."""
    coming, going, inside = allowed(manifests, "ingress"), allowed(manifests, "egress"), set(pods(manifests))
    return {
        (who, whom, port)
        for who, whom, port in coming | going
        if (who not in inside or (who, whom, port) in going)
        and (whom not in inside or {(who, whom, port), (ANYBODY, whom, port)} & coming)
    }


def expected(services: set[str], routes: bool, leaf: set[Connection]) -> set[Connection]:
    found = {(service, "nats", "client") for service in services}
    found |= {(MONITORING, service, "http") for service in services}
    found |= {(pod, DNS, "53") for pod in services | {"nats"}}
    found |= {(ANYBODY, "gateway", "http")} if "gateway" in services else set()
    found |= {("nats", "nats", "cluster")} if routes else set()
    return found | leaf


ALL = {"gateway", "controller", "verifier", "drafter"}
GROUP = ("verifier", "verifier-worker")
WITHIN_A_GROUP = {(one, other, "any") for one in GROUP for other in GROUP} | {("verifier-worker", DNS, "53")}
OF_CLOUD = expected(ALL - {"drafter"}, True, {(ANYBODY, "nats", "leaf")})
OF_EDGE = expected({"drafter"}, False, {("nats", CLOUD, "7422")})
NEEDED = {
    "base": expected(ALL, True, set()),
    "dev": expected(ALL, False, set()),
    "cloud": OF_CLOUD,
    "edge": OF_EDGE,
    "many nodes": OF_CLOUD | WITHIN_A_GROUP,
    "own drafters": OF_CLOUD | {(ANYBODY, "nats", "web")},
    "guarded cloud": OF_CLOUD,
    "guarded edge": OF_EDGE,
    "target from the hub": OF_CLOUD | {(role, INTERNET, "443") for role in ("gateway", "verifier")},
    "draft from the hub": OF_EDGE | {("drafter", INTERNET, "443")},
}


@pytest.mark.parametrize("name", NEEDED)
def test_exactly_the_connections_that_are_needed_are_allowed(built: Built, name: str) -> None:
    assert connections(built(name)) == NEEDED[name]


@pytest.mark.parametrize("name", NEEDED)
def test_what_no_policy_allows_is_denied(built: Built, name: str) -> None:
    denials = [
        policy
        for policy in of_kind(built(name), "NetworkPolicy")
        if policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ]
    assert len(denials) == 1


@pytest.mark.parametrize("name", NEEDED)
def test_a_policy_says_which_ways_it_is_about(built: Built, name: str) -> None:
    """Without policyTypes a policy for outgoing connections would deny incoming ones too."""
    for policy in of_kind(built(name), "NetworkPolicy"):
        ways = {way.capitalize() for way in ("ingress", "egress") if way in policy["spec"]}
        if policy["metadata"]["name"] != "default-deny":
            assert set(policy["spec"]["policyTypes"]) == ways
