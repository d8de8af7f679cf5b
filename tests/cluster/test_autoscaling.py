"""Real autoscaling without a cloud: Ray's fake_multinode provider adds and removes raylets on this machine as its
autoscaler asks for nodes. The head gives no CPUs; stages go to their nodes by the recipe `cluster`."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.tiny_cache import write_cache
from helpers.tiny_vae import save_tiny_vae

from pipeline.data.cache.manifest import open_cache
from pipeline.runtime.local import free_ports
from pipeline.settings import ROOT, load
from pipeline.shipped.synthetic import make_dataset

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
TOKEN = "the-token-of-this-test-0123456789abcdef"
SMALL = {"data.frames": 4, "data.height": 32, "data.width": 32}


def node(stage: str, most: int) -> dict[str, Any]:
    resources, labels = {"CPU": 1}, {"stage": stage}
    return {"resources": resources, "labels": labels, "node_config": {}, "min_workers": 0, "max_workers": most}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that reaches a cluster of a head alone, to which nodes for each stage may be added."""
    gcs, dashboard, client, agent = free_ports(4)
    types = {"decoder": node("decode", 2), "encoder": node("encode", 1), "trainer": node("train", 2)}
    head = {"resources": {"CPU": 0}, "labels": {"stage": "head"}, "node_config": {}, "max_workers": 0}
    # by module: under its own name Ray looks for defaults of it that are not in the wheel
    provider = {"type": "external", "module": PROVIDER, "gcs_address": f"127.0.0.1:{gcs}", "head_node_id": HEAD}
    config = {"cluster_name": "fake", "max_workers": 5, "idle_timeout_minutes": 0.2, "upscaling_speed": 10}
    config |= {"provider": provider | {"launch_multiple": True}, "head_node_type": "ray.head.default"}
    config |= {"available_node_types": types | {"ray.head.default": head}, "auth": {}}
    config |= {f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")}
    config |= {f"{kind}_start_ray_commands": [] for kind in ("head", "worker")} | {"initialization_commands": []}
    config |= {"file_mounts": {}, "cluster_synced_files": []}
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "autoscaling.yaml").write_text(json.dumps(config))
    names = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    names |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{names.get('PATH', '')}", "PYTHONPATH": str(ROOT)}
    names |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    fake = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    fake |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    fake |= {"RAY_NODE_TYPE_NAME": "ray.head.default"}  # as `ray up` and KubeRay set it
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=0"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--labels=stage=head"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--autoscaling-config={folder / 'autoscaling.yaml'}"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, env=names | fake, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(lambda: "Ray runtime started" in (folder / "log").read_text(), 120, folder / "log")
        yield names | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    finally:
        head = psutil.Process(process.pid)  # the nodes' raylets are below it
        for one in [*head.children(recursive=True), head]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def wait_for(there: Callable[[], bool], seconds: float, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, log.read_text() if log else "not in time"
        time.sleep(0.2)


def run_job(environment: dict[str, str], job: str, arguments: list[str], status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def stages(environment: dict[str, str]) -> set[str]:
    """The stages of the nodes that are alive."""
    code = "import ray, json; ray.init('auto', log_to_driver=False); "
    code += "print('NODES' + json.dumps([n['Labels'].get('stage') for n in ray.nodes() if n['Alive']]))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.split("NODES")[1].splitlines()[0]))


def arguments(folder: Path, *more: str) -> list[str]:
    given = {"run.storage": folder, "run.name": "grown", "data.path": folder / "videos"} | SMALL
    return ["--recipe", "demo", "--recipe", "cluster", *(f"--{key}={value}" for key, value in given.items()), *more]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_caching_brings_decode_and_encode_nodes_up_from_zero_and_lets_them_go(
    environment: dict[str, str], tmp_path: Path
) -> None:
    assert stages(environment) == {"head"}
    make_dataset(str(tmp_path / "videos"), videos=16, seed=3, frames=20, test_share=0.25)
    line = arguments(tmp_path, f"--vae.path={save_tiny_vae(tmp_path / 'vae')}", "--cache.shard_clips=8")
    said = run_job(environment, "cache_latents", line)
    assert "waiting for the autoscaler" in said
    for name in ("decoder", "encoder"):
        assert f"node(s) of type {name}" in said
    assert "trainer" not in said
    cache = open_cache(load(line)[0].cache_path)
    assert len(cache.rows) == 16 and not cache.rejected.num_rows
    wait_for(lambda: stages(environment) == {"head"}, 120)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_training_waits_for_its_workers_nodes(environment: dict[str, str], tmp_path: Path) -> None:
    line = arguments(tmp_path, "--train.init=null", "--bridge.saf=false", "--bridge.prior=replicated")
    line += ["--train.steps=4", "--train.warmup_steps=1", "--train.validate_clips=3", "--train.global_batch=4"]
    write_cache(load(line)[0])
    said = run_job(environment, "finetune", line)
    assert "train: room for 0 of 2 now; waiting for the autoscaler" in said
    assert "node(s) of type trainer" in said
    summary = json.loads((tmp_path / "grown" / "finetune" / "summary.json").read_text())
    assert summary["steps"] == 4


@pytest.mark.long
@pytest.mark.timeout(600)
def test_training_that_no_cluster_can_hold_ends_with_an_explanation(
    environment: dict[str, str], tmp_path: Path
) -> None:
    line = arguments(tmp_path, "--train.init=null", "--bridge.saf=false", "--bridge.prior=replicated")
    line += ["--cluster.train.workers=3", "--cluster.train.start_timeout_s=3", "--cluster.train.max_failures=0"]
    write_cache(load(line)[0])
    said = run_job(environment, "finetune", line, status=1)
    assert "train: room for" in said and "of 3 now; waiting for the autoscaler" in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("finetune.py: no room for cluster.train.workers = 3") and "`ray status`" in last
