"""The KubeRay manifests have the structure of the custom resources, say what Ray needs, and hold no secret."""

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from helpers.kuberay_schema import SCHEMAS
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.settings import ROOT

FOLDER = ROOT / "cluster" / "kuberay"
MANIFESTS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("raycluster", "rayjob")
}


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def check(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_has_the_structure_of_its_kind(name: str) -> None:
    check(MANIFESTS[name])


@pytest.mark.parametrize(
    "path",
    [
        ("autoscalerOptions", "idleTimeout"),
        ("headGroupSpec", "minReplicas"),
        ("workerGroupSpecs", 0, "label"),
        ("workerGroupSpecs", 1, "template", "spec", "containers", 0, "volumeMount"),
        ("authOptions", "token"),
    ],
)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_wrong_field_is_found(name: str, path: tuple[str | int, ...]) -> None:
    manifest = copy.deepcopy(MANIFESTS[name])
    place: Any = cluster_spec(manifest)
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = 1
    with pytest.raises(jsonschema.ValidationError, match=str(path[-1])):
        check(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_wrong_value_is_found(name: str) -> None:
    manifest = copy.deepcopy(MANIFESTS[name])
    cluster_spec(manifest)["authOptions"]["mode"] = "none"
    with pytest.raises(jsonschema.ValidationError, match="'none' is not one of"):
        check(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_autoscaler_of_ray_takes_the_groups(name: str) -> None:
    spec = copy.deepcopy(cluster_spec(MANIFESTS[name]))
    manifest = {"kind": "RayCluster", "metadata": {"name": "test", "namespace": "default"}, "spec": spec}
    config = _derive_autoscaling_config_from_ray_cr(manifest)
    validate_config(prepare_config(config))
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0
    workers = {label["labels"]["stage"]: label for kind, label in kinds.items() if kind != config["head_node_type"]}
    assert set(workers) == {"decode", "encode", "train"}
    assert all(kind["min_workers"] == 0 for kind in workers.values())
    assert "GPU" not in workers["decode"]["resources"] and workers["train"]["resources"]["GPU"] == 8


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_has_token_authentication_and_memory_backed_shm(name: str) -> None:
    spec = cluster_spec(MANIFESTS[name])
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2" and spec["enableInTreeAutoscaling"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (volume,) = [volume for volume in pod["volumes"] if volume["emptyDir"].get("medium") == "Memory"]
        (container,) = pod["containers"]
        assert {"name": volume["name"], "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_version_is_that_of_the_installed_ray() -> None:
    locked = next(line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("ray=="))
    for manifest in MANIFESTS.values():
        assert cluster_spec(manifest)["rayVersion"] == locked.removeprefix("ray==")


def test_a_standing_cluster_survives_its_head() -> None:
    options = MANIFESTS["raycluster"]["spec"]["gcsFaultToleranceOptions"]
    redis = {found["kind"]: found for found in yaml.safe_load_all((FOLDER / "redis.yaml").read_text())}
    service, port = redis["Service"], redis["Service"]["spec"]["ports"][0]["port"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port}"
    (container,) = redis["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]
    assert redis["StatefulSet"]["spec"]["volumeClaimTemplates"]
