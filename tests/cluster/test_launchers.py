"""Ray's launcher accepts the files for `ray up`; they ask for authentication and open nothing but SSH."""

import copy
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.runtime.placement import fits, needs, places, selector
from pipeline.settings import ROOT, load

FILES = ("aws", "gcp", "on-premises")
CLOUDS = ("aws", "gcp")


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
    return config


def check(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("name", FILES)
def test_launcher_file_is_valid(name: str) -> None:
    check(read(name))


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_field_is_found(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        check(read(name) | {"min_worker": 1})


@pytest.mark.parametrize("name", CLOUDS)
def test_a_wrong_field_of_a_node_type_is_found(name: str) -> None:
    config = read(name)
    config["available_node_types"]["encode"]["label"] = {"stage": "encode"}
    with pytest.raises(jsonschema.ValidationError, match="label"):
        check(config)


@pytest.mark.parametrize("name", FILES)
def test_token_authentication_and_nothing_but_ssh_from_outside(name: str) -> None:
    config = read(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start.split("ray start")[0]
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_JOB_STOP_WAIT_TIME_S=120" in head.split("ray start")[0], "three seconds are no time to stop in"


@pytest.mark.parametrize("name", FILES)
def test_commands_are_shell(name: str) -> None:
    config = read(name)
    for key in config:
        if key.endswith("_commands"):
            for command in config[key]:
                done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{key}: {done.stderr}"


@pytest.mark.parametrize("name", CLOUDS)
def test_head_is_on_demand_and_workers_are_spot_from_zero(name: str) -> None:
    config = read(name)
    for kind, node in config["available_node_types"].items():
        spot = "spot" in yaml.safe_dump(node["node_config"]).lower()
        if kind == config["head_node_type"]:
            assert not spot and node["resources"] == {"CPU": 0}
        else:
            assert spot and node["min_workers"] == 0 and node["max_workers"] > 0


@pytest.mark.parametrize("name", [*CLOUDS, "kuberay"])
def test_every_stage_of_the_recipe_finds_nodes_for_all_that_it_asks(name: str) -> None:
    """The labels and resources in the settings match the nodes that each file can bring up."""
    if name == "kuberay":
        manifest = yaml.safe_load((ROOT / "cluster" / "kuberay" / "raycluster.yaml").read_text())
        manifest["metadata"]["namespace"] = "default"
        nodes = _derive_autoscaling_config_from_ray_cr(manifest)["available_node_types"]
    else:
        nodes = read(name)["available_node_types"]
    settings = load(["--recipe", "cluster"])[0]
    cluster = settings.cluster
    for stage, count in (
        (cluster.decode, 1),
        (cluster.encode, cluster.encode.actors),
        (cluster.train, cluster.train.workers_range[1]),
        (cluster.sample, cluster.sample.actors),
    ):
        labels = selector(stage)
        assert labels, f"the recipe gives no labels: {stage}"
        chosen = [node for node in nodes.values() if fits(node["labels"], labels)]
        room = sum((places(node["resources"], needs(stage)) or 0) * node["max_workers"] for node in chosen)
        assert room >= count, f"{stage}: room for {room} of {count}"
