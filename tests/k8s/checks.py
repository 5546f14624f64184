"""The rules that manifests must keep. A check yields a sentence for each thing that breaks its rule, and none else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from shared.service import END_S
from tests.k8s.manifests import (
    Manifest,
    Secrets,
    containers_of,
    is_helper,
    labels_of,
    of_kind,
    pod_names,
    pod_of,
    selects,
    service_of,
    settings_of,
    target_of,
    title,
    walk,
    workloads,
)
from tests.k8s.policies.pod_security import pods_are_restricted
from tests.k8s.services import SETTINGS, metrics_of, served_paths

CERTIFICATE = {"ca.crt", "tls.crt", "tls.key"}  # what cert-manager writes into a Secret

Check = Callable[[list[Manifest], Secrets], Iterator[str]]


def images_have_a_version(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    for workload in workloads(manifests):
        for container in containers_of(workload):
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            if not re.match(r"\d+\.\d+\.\d+", tag):
                yield f"{title(workload)}: image {container['image']} has no version"


def containers_have_requests_and_limits(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    for workload in workloads(manifests):
        for container in containers_of(workload):
            for part in ("requests", "limits"):
                if missing := {"cpu", "memory"} - set(container.get("resources", {}).get(part, {})):
                    yield f"{title(workload)}: {container['name']} has no {part} of {missing}"


def pods_get_no_more_than_they_need(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    """Beyond Pod Security: a read-only root, a user that the manifest names, and no service account."""
    for workload in workloads(manifests):
        pod = pod_of(workload)
        if not pod.get("securityContext", {}).get("runAsUser"):
            yield f"{title(workload)} leaves its user to the image"
        if pod.get("automountServiceAccountToken", True):
            yield f"{title(workload)} has a service account's token"
        for container in containers_of(workload):
            if container.get("securityContext") != {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }:
                yield f"{title(workload)}: {container['name']} may do more than it needs"


def probes_ask_what_is_served(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    for workload in workloads(manifests):
        served = served_paths() if service_of(workload) else {"/healthz"}
        for container in pod_of(workload)["containers"]:
            if "ports" not in container:
                continue  # it serves nothing
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {}).get("httpGet", {})
                if asked.get("path") not in served:
                    yield f"{title(workload)}: {probe} asks {asked.get('path')}"


def pods_have_time_to_end(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    """What runs before SIGTERM, draining and closing must fit in."""
    for workload in workloads(manifests):
        if is_helper(workload):
            continue  # it ends with its leader
        needed = _drain_s(workload, manifests) if service_of(workload) else _lame_duck_s(manifests)
        if pod_of(workload).get("terminationGracePeriodSeconds", 30) < needed:
            yield f"{title(workload)} is killed before its {needed} s are over"
        if service_of(workload) == "gateway" and _setting_s(workload, manifests, "drain_s") < _setting_s(
            workload, manifests, "request_timeout_s"
        ):
            yield f"{title(workload)} drains for less time than an answer may take"


def _drain_s(workload: Manifest, manifests: list[Manifest]) -> float:
    (container,) = pod_of(workload)["containers"]
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    return float(pause + _setting_s(workload, manifests, "drain_s") + END_S)


def _setting_s(workload: Manifest, manifests: list[Manifest], name: str) -> float:
    (container,) = pod_of(workload)["containers"]
    default = SETTINGS[service_of(workload)].model_fields[name].default
    return float(settings_of(container, manifests).get(f"DSD_{name.upper()}", default))


def _lame_duck_s(manifests: list[Manifest]) -> float:
    (limits,) = [
        each["data"]["limits.conf"] for each in of_kind(manifests, "ConfigMap") if "limits.conf" in each["data"]
    ]
    return sum(float(seconds) for seconds in re.findall(r'^lame_duck_\w+: "(\d+)s"', limits, re.MULTILINE))


def what_is_referred_to_exists(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    """Secrets are those of the build, and those that the document's commands or cert-manager make."""
    maps = {each["metadata"]["name"]: set(each["data"]) for each in of_kind(manifests, "ConfigMap")}
    known = {name: set(data) for name, data in secrets.items()}
    known |= {each["metadata"]["name"]: set(each["data"]) for each in of_kind(manifests, "Secret")}
    known |= {each["spec"]["secretName"]: CERTIFICATE for each in of_kind(manifests, "Certificate")}
    for workload in workloads(manifests):
        for found in walk(workload["spec"]["template"]["spec"]):
            for kind, have in (("configMap", maps), ("configMapRef", maps), ("secret", known), ("secretRef", known)):
                reference = found.get(kind)
                name = reference and reference.get("name", reference.get("secretName"))
                if name and name not in have:
                    yield f"{title(workload)}: there is no {kind} {name}"
        for mount, keys in _subpaths(workload, known):
            for name in pod_names(workload, manifests):
                if name not in keys:
                    yield f"{title(workload)}: {mount} has no key {name}"


def _subpaths(workload: Manifest, secrets: dict[str, set[str]]) -> Iterator[tuple[str, set[str]]]:
    """Each volume of which a container sees the key of its own name, and its keys."""
    volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
    for container in containers_of(workload):
        for mount in container.get("volumeMounts", []):
            if mount.get("subPathExpr") == "$(DSD_NAME)":
                yield mount["name"], secrets.get(volumes[mount["name"]]["secret"]["secretName"], set())


def volumes_that_are_mounted_exist(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    for workload in workloads(manifests):
        have = {volume["name"] for volume in pod_of(workload)["volumes"]}
        used = {mount["name"] for container in containers_of(workload) for mount in container.get("volumeMounts", [])}
        for name in have ^ used:
            yield f"{title(workload)}: volume {name} is {'not there' if name in used else 'not mounted'}"


def ports_that_are_named_exist(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    """Of probes in their container, of Services and policies in every pod that they select."""
    for workload in workloads(manifests):
        for container in containers_of(workload):
            have = _ports(container)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe in container and container[probe]["httpGet"]["port"] not in have:
                    yield f"{title(workload)}: {probe} has no port"
    for manifest, selector, ports in [*_service_ports(manifests), *_policy_ports(manifests)]:
        chosen = [workload for workload in workloads(manifests) if selects(selector, labels_of(workload))]
        if not chosen:
            yield f"{title(manifest)} selects no pods"
        for workload in chosen:
            have = {port for container in containers_of(workload) for port in _ports(container)}
            for port in ports - have:
                yield f"{title(manifest)}: {title(workload)} has no port {port}"
    yield from _monitor_ports(manifests)


def _monitor_ports(manifests: list[Manifest]) -> Iterator[str]:
    for monitor in of_kind(manifests, "ServiceMonitor"):
        spec = monitor["spec"]
        chosen = [
            each for each in of_kind(manifests, "Service") if selects(spec["selector"], each["metadata"]["labels"])
        ]
        if not chosen:
            yield f"{title(monitor)} selects no Service"
        for service in chosen:
            have = {port["name"] for port in service["spec"]["ports"]}
            if not {endpoint["port"] for endpoint in spec["endpoints"]} <= have:
                yield f"{title(monitor)}: {title(service)} lacks a port"


def _ports(container: Manifest) -> set[str | int]:
    return {value for port in container.get("ports", []) for value in (port["name"], port["containerPort"])}


def _service_ports(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest, set[str | int]]]:
    for service in of_kind(manifests, "Service"):
        yield (
            service,
            {"matchLabels": service["spec"]["selector"]},
            {port["targetPort"] for port in service["spec"]["ports"]},
        )


def _policy_ports(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest, set[str | int]]]:
    """What a policy lets in belongs to the pods it is for, what it lets out within the namespace to those it names."""
    for policy in of_kind(manifests, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            yield policy, policy["spec"]["podSelector"], {port["port"] for port in rule.get("ports", [])}
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                if set(peer) == {"podSelector"}:
                    yield policy, peer["podSelector"], {port["port"] for port in rule.get("ports", [])}


def autoscaled_workloads_name_no_number(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    """Else every `kubectl apply` would undo what the autoscaler has done."""
    known = _by_kind_and_name(manifests)
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        workload = known.get(target_of(scaler))
        if workload is None:
            yield f"{title(scaler)} scales nothing"
        elif "replicas" in workload["spec"]:
            yield f"{title(workload)} has a number of replicas of its own"


def _by_kind_and_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    return {(each["kind"], each["metadata"]["name"]): each for each in workloads(manifests)}


def metrics_that_are_named_exist(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    """In what the services expose."""
    have = set().union(*(metrics_of(service) for service in SETTINGS))
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        for name in _metric_names(scaler):
            if name not in have:
                yield f"{title(scaler)}: there is no metric {name}"
    for monitor in of_kind(manifests, "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint.get("path", "/metrics") not in served_paths():
                yield f"{title(monitor)} scrapes {endpoint['path']}"


def _metric_names(scaler: Manifest) -> Iterator[str]:
    for found in walk(scaler["spec"]):
        if isinstance(found.get("query"), str):
            yield from re.findall(r"\b(?:dsd|process)_\w+", found["query"])
        if isinstance(found.get("metric"), dict):
            yield found["metric"]["name"]


def scalers_keep_what_runs_without_metrics(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    """A missing value must be an error, else it counts as 0. KEDA falls back only with AverageValue, and only to whole
    thresholds; without a fallback Kubernetes keeps what runs."""
    for scaler in of_kind(manifests, "ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            metadata = trigger["metadata"]
            if trigger["type"] != "prometheus":
                continue
            if metadata.get("ignoreNullValues") != "false":
                yield f"{title(scaler)} takes missing metrics for 0"
            if trigger["metricType"] == "Value":
                continue
            if scaler["spec"].get("fallback", {}).get("behavior") != "currentReplicasIfHigher":
                yield f"{title(scaler)} has no fallback that keeps what runs"
            if not metadata["threshold"].isdecimal():
                yield f"{title(scaler)}: threshold {metadata['threshold']} is no integer"


def one_pod_of_a_set_drains_at_a_time(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    """A StatefulSet that scales down waits for no pod: the next one may begin only when the last is gone."""
    known = _by_kind_and_name(manifests)
    for scaler in of_kind(manifests, "ScaledObject"):
        workload = known.get(target_of(scaler))
        if workload is None or workload["kind"] != "StatefulSet":
            continue
        down = scaler["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        grace_s = pod_of(workload)["terminationGracePeriodSeconds"]
        for policy in down["policies"]:
            if policy["type"] != "Pods" or policy["value"] != 1 or policy["periodSeconds"] < grace_s:
                yield f"{title(scaler)} stops a pod before the last one's {grace_s} s are over"


CHECKS: tuple[Check, ...] = (
    images_have_a_version,
    containers_have_requests_and_limits,
    pods_are_restricted,
    pods_get_no_more_than_they_need,
    probes_ask_what_is_served,
    pods_have_time_to_end,
    what_is_referred_to_exists,
    volumes_that_are_mounted_exist,
    ports_that_are_named_exist,
    autoscaled_workloads_name_no_number,
    metrics_that_are_named_exist,
    scalers_keep_what_runs_without_metrics,
    one_pod_of_a_set_drains_at_a_time,
)
