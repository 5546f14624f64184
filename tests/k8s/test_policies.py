"""Every build keeps every rule of checks.py, and every rule is broken by a copy that breaks it."""

from __future__ import annotations

import pytest

from shared.service import END_S
from tests.k8s.breaks import BREAKS, Break
from tests.k8s.checks import CHECKS, Check
from tests.k8s.machine import Built
from tests.k8s.manifests import OVERLAYS, WORKLOADS, Manifest, Secrets, of_kind, pod_of, secrets_for, the


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
    assert "dsd-verifier-cuda" in verifier["image"]
    assert "nvidia.com/gpu" not in str(built("dev"))


def test_a_target_over_many_gpus_has_a_rank_for_each_and_time_to_drain(built: Built) -> None:
    manifests = built("many GPUs")
    verifier = container(manifests, "StatefulSet", "verifier")
    assert verifier["command"][0] == "torchrun"
    assert verifier["command"][-2:] == ["-m", "services.cloud_verifier"]
    flags = dict(flag[2:].split("=") for flag in verifier["command"] if "=" in flag)
    assert verifier["resources"]["limits"]["nvidia.com/gpu"] == flags["nproc-per-node"]
    maps = {each["metadata"]["name"].rpartition("-")[0]: each["data"] for each in of_kind(manifests, "ConfigMap")}
    grace_s = pod_of(the(manifests, "StatefulSet", "verifier"))["terminationGracePeriodSeconds"]
    variables = {each["name"]: each.get("value") for each in verifier["env"]}
    patience_s = int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert int(maps["verifier-settings"]["DSD_DRAIN_S"]) + END_S <= patience_s < grace_s
    assert int(variables["DSD_NUM_THREADS"]) * int(flags["nproc-per-node"]) <= int(
        verifier["resources"]["limits"]["cpu"]
    )
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in verifier["volumeMounts"]


def test_what_runs_more_than_once_in_the_cloud_survives_a_node_that_is_drained(built: Built) -> None:
    manifests = built("cloud")
    workloads = {workload["metadata"]["name"]: workload for workload in of_kind(manifests, *WORKLOADS)}
    for name in ("gateway", "verifier", "nats"):
        budget = the(manifests, "PodDisruptionBudget", name)["spec"]
        assert budget == {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
        }
        keys = {spread["topologyKey"] for spread in pod_of(workloads[name])["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


def test_nats_is_a_cluster_of_three_in_the_cloud_and_alone_elsewhere(built: Built) -> None:
    replicas = {name: the(built(name), "StatefulSet", "nats")["spec"]["replicas"] for name in ("cloud", "dev", "edge")}
    assert replicas == {"cloud": 3, "dev": 1, "edge": 1}


def test_nats_sends_its_clients_away_before_it_ends(built: Built) -> None:
    nats = container(built("cloud"), "StatefulSet", "nats")
    assert nats["lifecycle"]["preStop"]["exec"]["command"] == ["nats-server", "--signal", "ldm=/run/nats/nats.pid"]
    assert "--pid=/run/nats/nats.pid" in nats["args"]


@pytest.mark.parametrize("name", ["dev", "edge"])
def test_a_nats_server_without_others_ends_at_once(built: Built, name: str) -> None:
    """Lame duck would only make the pause longer until the next one runs."""
    assert "lifecycle" not in container(built(name), "StatefulSet", "nats")


def test_edge_drafters_run_on_labelled_nodes_alone(built: Built) -> None:
    assert pod_of(the(built("edge"), "StatefulSet", "site-a-drafter"))["nodeSelector"] == {"dsd/drafter": "true"}
