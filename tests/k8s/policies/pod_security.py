"""Kubernetes' Pod Security Standards, level `restricted`, which the namespace enforces, as a rule for manifests.

Invariant: every pod spec is looked at, whatever resource holds it, and so is every container in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.manifests import Manifest, Secrets, title, walk

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_wmem",
}  # fmt: skip
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
CONFINED = ("RuntimeDefault", "Localhost")
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"


def pods_are_restricted(manifests: list[Manifest], secrets: Secrets) -> Iterator[str]:
    for manifest in manifests:
        for found in walk(manifest):
            if _is_pod(found):
                yield from (f"{title(manifest)}: {told}" for told in _of_pod(found))
            for key, value in (found.get("annotations") or {}).items():
                if str(key).startswith(APPARMOR) and not str(value).startswith(("runtime/default", "localhost/")):
                    yield f"{title(manifest)}: AppArmor {value}"


def _is_pod(value: Manifest) -> bool:
    containers = value.get("containers")
    return isinstance(containers, list) and any("image" in each for each in containers if isinstance(each, dict))


def _of_pod(pod: Manifest) -> Iterator[str]:
    security = pod.get("securityContext") or {}
    yield from (f"{key} is on" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))
    for volume in pod.get("volumes", []):
        yield from (f"volume {volume['name']} is a {kind}" for kind in volume.keys() - {"name"} - VOLUMES)
    for sysctl in security.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from (f"the pod has {told}" for told in _of_any(security))
    for container in _containers(pod):
        own = container.get("securityContext") or {}
        yield from (f"{container['name']} has {told}" for told in _of_any(own))
        yield from (f"{container['name']} {told}" for told in _of_container(container, security | own))


def _containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"], *pod.get("ephemeralContainers", [])]


def _of_any(security: Manifest) -> Iterator[str]:
    """What neither a pod nor a container may say."""
    if (security.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"
    if security.get("runAsUser") == 0 or security.get("runAsNonRoot") is False:
        yield "root as its user"
    if (security.get("seccompProfile") or {"type": CONFINED[0]}).get("type") not in CONFINED:
        yield "a seccomp profile that allows all"
    if (security.get("appArmorProfile") or {"type": CONFINED[0]}).get("type") not in CONFINED:
        yield "an AppArmor profile that allows all"
    selinux = security.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield "SELinux options of its own"


def _of_container(container: Manifest, security: Manifest) -> Iterator[str]:
    """`security`: the container's, over the pod's."""
    if not security.get("runAsNonRoot"):
        yield "may run as root"
    if "seccompProfile" not in security:
        yield "has no seccomp profile"
    if security.get("privileged"):
        yield "is privileged"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if security.get("procMount", "Default") != "Default":
        yield "has another view of /proc"
    capabilities = security.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "keeps capabilities"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "takes a port of its node"
    for hook in walk({key: container.get(key) for key in (*PROBES, "lifecycle")}):
        if any((hook.get(kind) or {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield "asks another host"
