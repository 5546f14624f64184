"""Changes to a build's manifests, each of which breaks one rule of checks.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.k8s import checks
from tests.k8s.checks import Check
from tests.k8s.manifests import Manifest, the

GONE = object()  # in place of a new value: the field is taken away

POD = "spec/template/spec"
VERIFIER = f"{POD}/containers/0"
SECURITY = f"{VERIFIER}/securityContext"
TRIGGER = "spec/triggers/0/metadata"
DOWN = "spec/advanced/horizontalPodAutoscalerConfig/behavior/scaleDown/policies/0"
GROUP = "spec/leaderWorkerTemplate"
LEADER, WORKER = (f"{GROUP}/{role}Template/spec" for role in ("leader", "worker"))


@dataclass(frozen=True)
class Break:
    """A field of one manifest with another value, and what the rule says then."""

    check: Check
    manifest: str  # kind and name
    path: str
    value: object
    told: str
    build: str = "own pair"

    @property
    def title(self) -> str:
        return f"{self.manifest} {self.path} {'gone' if self.value is GONE else self.value}"

    def applied_to(self, manifests: list[Manifest]) -> list[Manifest]:
        """A copy with the change."""
        broken = copy.deepcopy(manifests)
        place: Any = the(broken, *self.manifest.split())
        *steps, last = [int(step) if step.isdigit() else step for step in self.path.split("/")]
        for step in steps:
            place = place[step]
        if self.value is GONE:
            del place[last]
        else:
            place[last] = self.value
        return broken


def _of(check: Check, *breaks: Callable[[Check], Break]) -> list[Break]:
    return [make(check) for make in breaks]


def _in(manifest: str, path: str, value: object, told: str, build: str = "own pair") -> Callable[[Check], Break]:
    return lambda check: Break(check, manifest, path, value, told, build)


BREAKS = [
    *_of(
        checks.images_have_a_version,
        _in("StatefulSet verifier", f"{VERIFIER}/image", "dsd-verifier:latest", "dsd-verifier:latest has no version"),
        _in("StatefulSet verifier", f"{VERIFIER}/image", "host:5000/dsd-verifier", "host:5000/dsd-verifier has no"),
    ),
    *_of(
        checks.containers_have_requests_and_limits,
        _in("StatefulSet verifier", f"{VERIFIER}/resources/limits", GONE, "verifier has no limits"),
        _in("StatefulSet drafter", f"{POD}/initContainers/0/resources", GONE, "models has no requests", "dev"),
        _in("LeaderWorkerSet verifier", f"{WORKER}/containers/0/resources", GONE, "worker has no limits", "many nodes"),
    ),
    *_of(
        checks.pods_are_restricted,
        _in("StatefulSet nats", f"{POD}/securityContext/runAsNonRoot", GONE, "nats may run as root"),
        _in("StatefulSet nats", f"{POD}/securityContext/runAsUser", 0, "the pod has root as its user"),
        _in("StatefulSet nats", f"{POD}/securityContext/seccompProfile", GONE, "nats has no seccomp profile"),
        _in("StatefulSet nats", f"{POD}/securityContext/sysctls", [{"name": "kernel.msgmax"}], "sysctl kernel.msgmax"),
        _in("StatefulSet nats", f"{POD}/hostPID", True, "hostPID is on"),
        _in("StatefulSet nats", f"{POD}/volumes/1", {"name": "run", "hostPath": {"path": "/"}}, "run is a hostPath"),
        _in("StatefulSet verifier", f"{VERIFIER}/securityContext", GONE, "verifier keeps capabilities"),
        _in("StatefulSet verifier", f"{SECURITY}/runAsNonRoot", False, "verifier has root as its user"),
        _in("StatefulSet verifier", f"{SECURITY}/seccompProfile", {"type": "Unconfined"}, "profile that allows all"),
        _in("StatefulSet verifier", f"{SECURITY}/appArmorProfile", {"type": "Unconfined"}, "AppArmor profile that"),
        _in("StatefulSet verifier", f"{SECURITY}/seLinuxOptions", {"type": "spc_t"}, "SELinux options of its own"),
        _in("StatefulSet verifier", f"{SECURITY}/windowsOptions", {"hostProcess": True}, "verifier has hostProcess"),
        _in("StatefulSet verifier", f"{SECURITY}/capabilities/add", ["NET_RAW"], "verifier keeps capabilities"),
        _in("StatefulSet verifier", f"{SECURITY}/privileged", True, "verifier is privileged"),
        _in("StatefulSet verifier", f"{SECURITY}/procMount", "Unmasked", "another view of /proc"),
        _in("StatefulSet verifier", f"{SECURITY}/allowPrivilegeEscalation", True, "verifier may gain privileges"),
        _in("StatefulSet verifier", f"{VERIFIER}/ports/0/hostPort", 8080, "verifier takes a port of its node"),
        _in("StatefulSet verifier", f"{VERIFIER}/livenessProbe/httpGet/host", "10.0.0.1", "asks another host"),
        _in("StatefulSet drafter", f"{POD}/initContainers/0/securityContext", GONE, "models may gain", "dev"),
        _in("LeaderWorkerSet verifier", f"{WORKER}/securityContext", GONE, "worker may run as root", "many nodes"),
    ),
    *_of(
        checks.pods_get_no_more_than_they_need,
        _in("StatefulSet nats", f"{POD}/securityContext/runAsUser", GONE, "leaves its user to the image"),
        _in("StatefulSet nats", f"{POD}/automountServiceAccountToken", GONE, "service account's token"),
        _in("StatefulSet verifier", f"{VERIFIER}/securityContext", GONE, "verifier may do more than it needs"),
        _in("StatefulSet verifier", f"{SECURITY}/readOnlyRootFilesystem", False, "verifier may do more than it needs"),
    ),
    *_of(
        checks.probes_ask_what_is_served,
        _in("StatefulSet verifier", f"{VERIFIER}/livenessProbe", GONE, "livenessProbe asks None"),
        _in("StatefulSet verifier", f"{VERIFIER}/startupProbe/httpGet/path", "/ready", "startupProbe asks /ready"),
    ),
    *_of(
        checks.pods_have_time_to_end,
        _in("StatefulSet nats", f"{POD}/terminationGracePeriodSeconds", GONE, "nats is killed before its 40.0 s"),
        _in("Deployment gateway", f"{POD}/terminationGracePeriodSeconds", 614, "gateway is killed before its 615.0 s"),
        _in(
            "Deployment gateway",
            f"{POD}/containers/0/env/0",
            {"name": "DSD_DRAIN_S", "value": "599"},
            "gateway drains for less time than an answer may take",
        ),
    ),
    *_of(
        checks.what_is_referred_to_exists,
        _in("StatefulSet verifier", f"{VERIFIER}/envFrom/0/configMapRef/name", "x", "no configMapRef x"),
        _in("StatefulSet nats", f"{POD}/volumes/0/projected/sources/1/secret/name", "x", "no secret x", "dev"),
        _in("StatefulSet verifier", f"{POD}/volumes/3/secret/secretName", "x", "no secret x", "cloud"),
        _in("ScaledObject verifier", "spec/maxReplicaCount", 5, "nkeys has no key verifier-4"),
        _in("LeaderWorkerSet verifier", "spec/replicas", 5, "nkeys has no key verifier-4", "many nodes"),
        _in(
            "LeaderWorkerSet verifier",
            f"{LEADER}/containers/0/envFrom/1/configMapRef/name",
            "verifier-settings",
            "no configMapRef verifier-settings",
            "many nodes",
        ),
    ),
    *_of(
        checks.volumes_that_are_mounted_exist,
        _in("StatefulSet verifier", f"{POD}/volumes/2/name", "temp", "volume tmp is not there"),
        _in("StatefulSet verifier", f"{POD}/volumes/2/name", "temp", "volume temp is not mounted"),
    ),
    *_of(
        checks.ports_that_are_named_exist,
        _in("StatefulSet verifier", f"{VERIFIER}/startupProbe/httpGet/port", "web", "startupProbe has no port"),
        _in("Service gateway", "spec/ports/0/targetPort", "web", "Deployment gateway has no port web"),
        _in("Service gateway", "spec/selector", {"x": "y"}, "Service gateway selects no pods"),
        _in("NetworkPolicy services-to-nats", "spec/egress/0/ports/0/port", "web", "StatefulSet nats has no port web"),
        _in("NetworkPolicy metrics", "spec/ingress/0/ports/0/port", 9090, "StatefulSet verifier has no port 9090"),
        _in("ServiceMonitor dsd", "spec/endpoints/0/port", "web", "Service verifier lacks a port"),
        _in("ServiceMonitor dsd", "spec/selector/matchLabels", {"x": "y"}, "selects no Service"),
    ),
    *_of(
        checks.autoscaled_workloads_name_no_number,
        _in("Deployment gateway", "spec/replicas", 2, "Deployment gateway has a number"),
        _in("ScaledObject verifier", "spec/scaleTargetRef/name", "x", "ScaledObject verifier scales nothing"),
    ),
    *_of(
        checks.metrics_that_are_named_exist,
        _in("ScaledObject verifier", f"{TRIGGER}/query", "dsd_verifier_queue", "no metric dsd_verifier_queue"),
        _in(
            "ScaledObject verifier",
            f"{TRIGGER}/query",
            "sum(dsd_gateway_queue)",
            "no metric dsd_gateway_queue",
        ),
        _in(
            "HorizontalPodAutoscaler gateway",
            "spec/metrics/0",
            {"type": "Pods", "pods": {"metric": {"name": "dsd_gateway_session"}}},
            "no metric dsd_gateway_session",
            "cloud",
        ),
        _in("ServiceMonitor dsd", "spec/endpoints/0/path", "/metric", "scrapes /metric"),
    ),
    *_of(
        checks.scalers_keep_what_runs_without_metrics,
        _in("ScaledObject gateway", "spec/fallback", GONE, "gateway has no fallback"),
        _in("ScaledObject verifier", f"{TRIGGER}/ignoreNullValues", GONE, "verifier takes missing metrics for 0"),
        _in("ScaledObject verifier", f"{TRIGGER}/threshold", "0.8", "threshold 0.8 is no integer"),
        _in("ScaledObject site-a-drafter", f"{TRIGGER}/ignoreNullValues", GONE, "metrics for 0", "monitored edge"),
    ),
    *_of(
        checks.one_pod_of_a_set_drains_at_a_time,
        _in("ScaledObject verifier", f"{DOWN}/periodSeconds", 60, "before the last one's 75 s are over"),
        _in("ScaledObject site-a-drafter", f"{DOWN}/value", 2, "before the last one's 30 s are over", "monitored edge"),
    ),
]
