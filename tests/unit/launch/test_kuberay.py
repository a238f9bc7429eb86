"""`launch/kuberay.yaml` parses, has only fields that exist, and starts a run that can be started again.

Sources of the fields: RayJobSpec, RayClusterSpec, HeadGroupSpec, WorkerGroupSpec and AuthOptions in KubeRay's API
reference of ray.io/v1 (1.6); the fields of pods in the API of Kubernetes (core/v1).
"""

from __future__ import annotations

import os
import shlex
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from ray.scripts.scripts import start

from rlkl.recipe.io import load_recipe

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "launch" / "kuberay.yaml"

RESOURCES = {"requests": dict, "limits": dict}
POD: dict[str, Any] = {
    "metadata": {"labels": dict, "annotations": dict},
    "spec": {
        "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int},
        "containers": [
            {
                "name": str,
                "image": str,
                "imagePullPolicy": str,
                "env": [{"name": str, "value": str, "valueFrom": dict}],
                "envFrom": [{"secretRef": {"name": str, "optional": bool}}],
                "resources": RESOURCES,
                "volumeMounts": [{"name": str, "mountPath": str, "subPath": str, "readOnly": bool}],
            }
        ],
        "volumes": [
            {
                "name": str,
                "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
                "emptyDir": {"medium": str, "sizeLimit": str},
            }
        ],
        "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
        "nodeSelector": dict,
        "imagePullSecrets": [{"name": str}],
    },
}
HEAD: dict[str, Any] = {
    "serviceType": str,
    "enableIngress": bool,
    "headService": dict,
    "rayStartParams": dict,
    "template": POD,
}
WORKERS: dict[str, Any] = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "numOfHosts": int,
    "rayStartParams": dict,
    "template": POD,
}
RAY_JOB: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": dict, "annotations": dict},
    "spec": {
        "entrypoint": str,
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "submissionMode": str,
        "submitterConfig": {"backoffLimit": int},
        "runtimeEnvYAML": str,
        "suspend": bool,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": str, "secretName": str},
            "headGroupSpec": HEAD,
            "workerGroupSpecs": [WORKERS],
            "enableInTreeAutoscaling": bool,
        },
    },
}


def unknown(value: Any, fields: Any, where: str = "") -> list[str]:
    """The places of fields that do not exist, or have another type."""
    if isinstance(fields, type):
        return [] if isinstance(value, fields) else [f"{where} is not a {fields.__name__}"]
    if isinstance(fields, list):
        return [found for one in value for found in unknown(one, fields[0], where)]
    return [
        found
        for key, one in value.items()
        for found in (
            unknown(one, fields[key], f"{where}.{key}".lstrip(".")) if key in fields else [f"{where}.{key} is unknown"]
        )
    ]


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    (one,) = yaml.safe_load_all(FILE.read_text())
    return one


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_it_is_a_ray_job_with_known_fields_only(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert unknown(job, RAY_JOB) == []
    assert unknown({"spec": {"rayCluster": {}, "suspend": "no"}}, RAY_JOB) == [
        "spec.rayCluster is unknown",
        "spec.suspend is not a bool",
    ]


def test_kubernetes_reads_only_text_in_the_environment_and_in_rays_options(job: dict[str, Any]) -> None:
    for group in groups(job):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert all(isinstance(one["value"], str) for one in container["env"])
        assert all(isinstance(value, str) for value in container["resources"]["limits"].values())


def test_ray_start_has_the_options(job: dict[str, Any]) -> None:
    options = CliRunner().invoke(start, ["--help"]).output
    assert "--head" in options
    for group in groups(job):
        assert [name for name in group["rayStartParams"] if f"--{name}" not in options] == []


def test_the_version_of_ray_is_the_installed_one(job: dict[str, Any]) -> None:
    named = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert named.split(".")[:2] == version("ray").split(".")[:2]
    (ray,) = [one for one in map(Requirement, requires("rlkl") or []) if one.name == "ray"]
    assert ray.specifier.contains(named)


def test_each_node_has_shared_memory_and_the_folder_for_runs(job: dict[str, Any]) -> None:
    for group in groups(job):
        pod = group["template"]["spec"]
        volumes = {one["name"]: one for one in pod["volumes"]}
        places = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
        memory = places["/dev/shm"]["emptyDir"]
        assert memory == {"medium": "Memory", "sizeLimit": "16Gi"}
        assert "persistentVolumeClaim" in places["/shared"]
        assert pod["securityContext"]["runAsUser"] == 1000  # the user of launch/Dockerfile
    assert " --uid 1000 " in (ROOT / "launch" / "Dockerfile").read_text()


def test_nobody_gets_in_without_the_token_or_from_outside(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert (cluster["headGroupSpec"]["serviceType"], cluster["headGroupSpec"]["enableIngress"]) == ("ClusterIP", False)
    assert "auth_token" not in FILE.read_text()


def test_the_entrypoint_trains_a_recipe_that_uses_all_gpus(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, run_dir, recipe, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert os.access(ROOT / script.removeprefix("/opt/rlkl/"), os.X_OK)
    assert run_dir.startswith("/shared/")
    monkeypatch.chdir(ROOT)
    planned = load_recipe(recipe, *overrides)
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    each = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    engines = planned.rollout.workers * planned.rollout.tensor_parallel
    assert planned.learner.ranks + engines == workers["replicas"] * each
