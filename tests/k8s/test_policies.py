"""Every build keeps every rule of checks.py, and every rule is broken by a copy that breaks it."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.k8s.breaks import BREAKS, Break
from tests.k8s.checks import CHECKS, Check
from tests.k8s.machine import Built, nats_container
from tests.k8s.manifests import (
    GROUPS,
    OVERLAYS,
    Manifest,
    Secrets,
    containers_of,
    pod_of,
    secrets_for,
    settings_of,
    the,
    workloads,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", OVERLAYS)
def test_no_rule_is_broken(built: Built, documented: dict[str, Secrets], name: str, check: Check) -> None:
    assert list(check(built(name), secrets_for(name, documented))) == []


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.title)
def test_a_copy_that_breaks_a_rule_is_found(built: Built, documented: dict[str, Secrets], broken: Break) -> None:
    manifests = broken.applied_to(built(broken.build))
    complaints = list(broken.check(manifests, secrets_for(broken.build, documented)))
    assert any(broken.told in complaint for complaint in complaints), complaints


def test_every_rule_has_a_copy_that_breaks_it() -> None:
    assert {broken.check for broken in BREAKS} == set(CHECKS)


def container(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = pod_of(the(manifests, kind, name))["containers"]
    return dict(found)


def test_gpu_verifiers_ask_for_one_gpu_each(built: Built) -> None:
    verifier = container(built("cloud"), "StatefulSet", "verifier")
    assert (
        verifier["resources"]["limits"]["nvidia.com/gpu"] == verifier["resources"]["requests"]["nvidia.com/gpu"] == "1"
    )
    assert "dsd-verifier-vllm" in verifier["image"]
    assert settings_of(verifier, built("cloud"))["DSD_ENGINE"] == "vllm"
    assert "nvidia.com/gpu" not in str(built("dev"))


def flags_for_vllm(verifier: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """The flags in DSD_VLLM_ARGS, each of which has a value."""
    words = settings_of(verifier, manifests)["DSD_VLLM_ARGS"].split()
    return dict(zip(words[::2], words[1::2], strict=True))


def has_threads_for_its_workers(container: Manifest, num_workers: int) -> bool:
    (threads,) = (int(each["value"]) for each in container["env"] if each["name"] == "OMP_NUM_THREADS")
    return threads * num_workers <= int(container["resources"]["limits"]["cpu"])


def test_a_target_over_many_gpus_has_a_worker_for_each(built: Built) -> None:
    manifests = built("many GPUs")
    verifier = container(manifests, "StatefulSet", "verifier")
    num_gpus = int(verifier["resources"]["limits"]["nvidia.com/gpu"])
    assert flags_for_vllm(verifier, manifests) == {"--tensor-parallel-size": str(num_gpus)}
    assert has_threads_for_its_workers(verifier, num_gpus)


@pytest.mark.parametrize("name", ["cloud", "many GPUs", "many nodes"])
def test_what_runs_vllm_has_shared_memory_within_its_limit(built: Built, name: str) -> None:
    """A container has 64 MiB by default. What lies there counts as its memory."""
    found = [each for each in workloads(built(name)) if "dsd-verifier-vllm" in containers_of(each)[-1]["image"]]
    assert found
    for workload in found:
        (running,), volumes = pod_of(workload)["containers"], pod_of(workload)["volumes"]
        (mount,) = (mount for mount in running["volumeMounts"] if mount["mountPath"] == "/dev/shm")
        (volume,) = (volume["emptyDir"] for volume in volumes if volume["name"] == mount["name"])
        assert volume["medium"] == "Memory"
        assert gibibytes(volume["sizeLimit"]) < gibibytes(running["resources"]["limits"]["memory"])


def gibibytes(quantity: str) -> int:
    return int(quantity.removesuffix("Gi"))


def group_pods(manifests: list[Manifest]) -> list[Manifest]:
    """The leader and the worker of group 0."""
    return [each for each in workloads(manifests) if each["metadata"]["name"] in ("verifier-0", "verifier-0-1")]


def test_a_target_over_many_nodes_has_all_gpus_of_its_group(built: Built) -> None:
    manifests = built("many nodes")
    groups = the(manifests, "LeaderWorkerSet", "verifier")["spec"]
    leader, worker = group_pods(manifests)
    (verifier,), (helper,) = containers_of(leader), containers_of(worker)
    num_gpus = int(verifier["resources"]["limits"]["nvidia.com/gpu"])
    assert flags_for_vllm(verifier, manifests) == {
        "--distributed-executor-backend": "ray",
        "--tensor-parallel-size": str(num_gpus * groups["leaderWorkerTemplate"]["size"]),
    }
    assert helper["resources"] == verifier["resources"]
    assert helper["image"] == verifier["image"]
    for each in (verifier, helper):
        assert has_threads_for_its_workers(each, num_gpus)


def test_a_group_s_pods_see_the_target_at_the_same_place(built: Built) -> None:
    leader, worker = group_pods(built("many nodes"))
    (verifier,), (helper,) = containers_of(leader), containers_of(worker)
    models = {"name": "models", "mountPath": "/var/lib/dsd", "readOnly": True}
    assert models in verifier["volumeMounts"]
    assert models in helper["volumeMounts"]
    assert pod_of(leader)["volumes"][0] == pod_of(worker)["volumes"][0]


def test_leaders_end_in_the_verifier_and_workers_in_ray_so_that_signals_reach_them(built: Built) -> None:
    leader, worker = group_pods(built("many nodes"))
    for workload, last in ((leader, "exec python3 -m services.cloud_verifier"), (worker, "exec ray start ")):
        (running,) = containers_of(workload)
        (script,) = running["args"]
        assert running["command"] == ["sh", "-c"]
        assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
        assert last in re.split(r"&& |\n", script.strip())[-1]


def test_a_group_reaches_its_own_pods_at_any_port_and_no_other_group_s(built: Built) -> None:
    manifests = built("many nodes")
    groups = the(manifests, "LeaderWorkerSet", "verifier")
    for role in ("leader", "worker"):
        assert not any(key.startswith(GROUPS) for key in template_labels(groups, role)), "the controller adds these"
    for index in range(groups["spec"]["replicas"]):
        own = {"matchLabels": {f"{GROUPS}/name": "verifier", f"{GROUPS}/group-index": str(index)}}
        assert the(manifests, "NetworkPolicy", f"verifier-group-{index}")["spec"] == {
            "podSelector": own,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": own}]}],
            "egress": [{"to": [{"podSelector": own}]}],
        }


def template_labels(groups: Manifest, role: str) -> dict[str, str]:
    return dict(groups["spec"]["leaderWorkerTemplate"][f"{role}Template"]["metadata"]["labels"])


def test_the_service_of_the_verifiers_gives_leaders_their_names(built: Built) -> None:
    """The controller makes none where one of the set's name exists. Workers look for leaders that are not ready."""
    manifests = built("many nodes")
    groups, service = the(manifests, "LeaderWorkerSet", "verifier"), the(manifests, "Service", "verifier")
    assert service["spec"]["selector"].items() <= template_labels(groups, "leader").items()
    assert service["spec"]["publishNotReadyAddresses"]


def test_what_runs_more_than_once_in_the_cloud_survives_a_node_that_is_drained(built: Built) -> None:
    manifests = built("cloud")
    found = {workload["metadata"]["name"]: workload for workload in workloads(manifests)}
    for name in ("gateway", "verifier", "nats"):
        budget = the(manifests, "PodDisruptionBudget", name)["spec"]
        assert budget == {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
        }
        keys = {spread["topologyKey"] for spread in pod_of(found[name])["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


def test_nats_is_a_cluster_of_three_in_the_cloud_and_alone_elsewhere(built: Built) -> None:
    replicas = {name: the(built(name), "StatefulSet", "nats")["spec"]["replicas"] for name in ("cloud", "dev", "edge")}
    assert replicas == {"cloud": 3, "dev": 1, "edge": 1}


def test_nats_sends_its_clients_away_before_it_ends(built: Built) -> None:
    nats = nats_container(built("cloud"), "nats")
    assert nats["lifecycle"]["preStop"]["exec"]["command"] == ["nats-server", "--signal", "ldm=/run/nats/nats.pid"]
    assert "--pid=/run/nats/nats.pid" in nats["args"]


@pytest.mark.parametrize("name", ["dev", "edge"])
def test_a_nats_server_without_others_ends_at_once(built: Built, name: str) -> None:
    """Lame duck would only make the pause longer until the next one runs."""
    assert "lifecycle" not in nats_container(built(name), "nats")


def test_edge_drafters_run_on_labelled_nodes_alone(built: Built) -> None:
    assert pod_of(the(built("edge"), "StatefulSet", "site-a-drafter"))["nodeSelector"] == {"dsd/drafter": "true"}
