"""All steps run through Ray's job submission, though stopped once in each; strangers are refused."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import grpc
import psutil
import pytest
from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.data.cache.manifest import open_cache
from pipeline.runtime.local import local_cluster
from pipeline.settings import ROOT
from pipeline.shipped.synthetic import CLASSES, make_dataset
from pipeline.train.plan import CHECKPOINTS
from pipeline.train.report.history import HISTORY
from pipeline.train.report.rows import read_history

TOKEN = "the-token-of-this-test-0123456789abcdef"
STEPS = 40
PARTS = ("train", "prior.train")
SMALL = {"steps": STEPS, "global_batch": 4, "micro_batch": 2, "warmup_steps": 1, "log_every": 5}
SMALL |= {"checkpoint_every": 5, "validate_every": 40, "validate_clips": 4}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster as `make demo` starts it, and the environment of a shell that reaches it."""
    # the tests' interpreter first on the path, no cluster named, the package importable
    names = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{names.get('PATH', '')}"
    names |= {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    names |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_metrics_report_interval_ms": "1000"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)  # local_cluster calls `ray`
        with local_cluster(names, lambda title, text: None) as reached:
            yield reached


def request(address: str, path: str, token: str | None, content: bytes | None = None) -> int:
    """The HTTP status of the dashboard's answer."""
    asked = urllib.request.Request(f"{address}{path}", data=content, headers={"Content-Type": "application/json"})
    if token:
        asked.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_without_the_token_nothing_answers(environment: dict[str, str], tmp_path: Path) -> None:
    address = environment["RAY_ADDRESS"]
    job = json.dumps({"entrypoint": f"touch {tmp_path}/entered"}).encode()
    assert request(address, "/api/jobs/", TOKEN) == 200
    for path, content in (("/api/jobs/", None), ("/api/jobs/", job), ("/nodes?view=summary", None)):
        assert request(address, path, None, content) == 401
        assert request(address, path, "another-token", content) == 403
    strangers = ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another-token"})
    names = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    tries = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import ray; ray.init('{parameter('--gcs-address=')}'); open('{tmp_path}/entered', 'w')",
            ],
            env=names | stranger,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for stranger in strangers
    ]
    for one in tries:
        said, _ = one.communicate(timeout=120)
        assert one.returncode, "a driver without the token has connected"
        assert "uthenticat" in said and TOKEN not in said, said
    assert not (tmp_path / "entered").exists()


def test_ray_client_asks_for_the_token_too(environment: dict[str, str]) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{parameter('ray.util.client.server --port=')}") as channel:
        ping = ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo
        asked = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
        for metadata in ((), (("authorization", "Bearer another-token"),)):
            with pytest.raises(grpc.RpcError) as refused:
                ping(asked, metadata=metadata, timeout=60)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        ping(asked, metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=60)


def test_dashboard_listens_on_loopback_only_and_no_process_shows_the_token(environment: dict[str, str]) -> None:
    processes = psutil.Process().children(recursive=True)
    assert not [process.pid for process in processes if any(TOKEN in word for word in process.cmdline())]
    port = int(environment["RAY_ADDRESS"].rsplit(":", 1)[1])
    found = {each.laddr for process in processes for each in process.net_connections("tcp") if each.status == "LISTEN"}
    assert {place.ip for place in found if place.port == port} == {"127.0.0.1"}


def parameter(name: str) -> str:
    """VALUE of the first process of this test's cluster that has `name`VALUE ("WORD --name=": and that has WORD)."""
    word, _, name = name.rpartition(" ")
    for process in psutil.Process().children(recursive=True):
        words = process.cmdline()
        if not word or word in words:
            for one in words:
                if one.startswith(name):
                    return one.removeprefix(name)
    raise AssertionError(f"no process has {word} {name}")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_chain_stopped_in_every_step_ends_after_resubmission(
    environment: dict[str, str], exported: set[str], tmp_path: Path
) -> None:
    make_dataset(str(tmp_path / "videos"), videos=32, seed=7, frames=48, test_share=0.5)
    sorted((tmp_path / "videos").rglob("*.mp4"))[16].write_bytes(b"not a video")
    line = ["--recipe", "demo", "--run.storage", str(tmp_path), "--run.name", "road"]
    line += ["--data.path", str(tmp_path / "videos"), "--cache.shard_clips", "4", "--cluster.encode.actors", "1"]
    line += [f"--{part}.{key}={value}" for part in PARTS for key, value in SMALL.items()]
    line += ["--sample.steps", "4", "--sample.count", "6", "--sample.batch", "1"]
    line += ["--cluster.sample.actors", "1", "--cluster.train.workers", "1"]
    run = tmp_path / "road"
    chain = Chain(environment, line)

    chain.stop_when(lambda: any((run / "cache" / "manifest").glob("*.parquet")))
    cached = {row["key"] for row in open_cache(str(run / "cache")).rows}
    assert 0 < len(cached) < 31, "not stopped in the middle"
    assert not (run / "cache" / "lock.json").exists(), "the next job would wait for the lock"

    for name in ("prior", "finetune"):
        chain.stop_when((run / name / CHECKPOINTS / "checkpoint_manager_snapshot.json").exists)
        assert not (run / name / "export").exists(), "not stopped in the middle"
    rows = open_cache(str(run / "cache")).rows
    assert cached < {row["key"] for row in rows} and len(rows) == 31

    chain.stop_when(lambda: any((run / "samples").glob("*.generated.mp4")))
    assert len(list((run / "samples").glob("*.generated.mp4"))) < 6, "not stopped in the middle"

    text = chain.finish()
    missing = asked_by_the_dashboard() - exported
    assert missing <= {"ray_node_gpus_utilization"}, "of the metrics in cluster/grafana.json; GPUs are not here"
    assert text.count("nothing to do") == 3, text
    for name in ("prior", "finetune"):
        steps = [row["step"] or 0 for row in read_history(f"{run / name}/{HISTORY}")]
        assert steps == sorted(set(steps)) and {*range(0, STEPS + 1, 5)} <= set(steps)
        assert len(steps) <= 2 + STEPS // 5, (
            "more rows than log_every asks for and the one of the step it was stopped at"
        )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["held_out_inputs"] == 6
    assert summary["prior_latent_error"] > 0
    assert {"cache", "prior", "finetune", "samples"} <= set(summary["timings"])
    assert json.loads((run / "cache" / "cache.json").read_text())["classes"] == sorted(CLASSES)
    assert (run / "report.html").read_text().count("<video") >= 6


def asked_by_the_dashboard() -> set[str]:
    panels = json.loads((ROOT / "cluster" / "grafana.json").read_text())["panels"]
    return {
        name for panel in panels for target in panel["targets"] for name in re.findall(r"\bray_\w+", target["expr"])
    }


@pytest.fixture
def exported(environment: dict[str, str]) -> Iterator[set[str]]:
    with scraping() as names:
        yield names


@contextlib.contextmanager
def scraping() -> Iterator[set[str]]:
    """Names of the metrics that Prometheus would get from this test's cluster, gathered every second.

    Ray exports a gauge once for each time that it is set.
    """
    names: set[str] = set()
    ended = threading.Event()

    def gather() -> None:
        while not ended.wait(1):
            names.update(re.findall(r"^(ray_\w+){.*} ", scraped(), re.MULTILINE))

    thread = threading.Thread(target=gather)
    thread.start()
    try:
        yield names
    finally:
        ended.set()
        thread.join()


def scraped() -> str:
    """/metrics of the cluster's agent, "" if it does not answer."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] != ["ray::DashboardAgent"]:
                continue
            for port in {each.laddr.port for each in process.net_connections("tcp") if each.status == "LISTEN"}:
                # the agent's other ports speak another language
                with contextlib.suppress(OSError, HTTPException):
                    text: str = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
                    if text.startswith("# HELP"):
                        return text
    return ""


class Chain:
    """Submissions of jobs/chain.py with one line of settings."""

    def __init__(self, environment: dict[str, str], line: list[str]) -> None:
        # this process imported Ray without the variables of the token
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.client = JobSubmissionClient(environment["RAY_ADDRESS"], headers=headers)
        self.line = " ".join(["python", "jobs/chain.py", *line])

    def submit(self) -> str:
        return self.client.submit_job(entrypoint=self.line, runtime_env={"working_dir": str(ROOT)})

    def stop_when(self, there: Callable[[], bool]) -> None:
        """Submit, stop as `ray job stop` does when `there` says so, and wait for the clean end."""
        job = self.submit()
        deadline = time.monotonic() + 300
        while not there():
            assert self.client.get_job_status(job) in (JobStatus.PENDING, JobStatus.RUNNING), self.client.get_job_logs(
                job
            )
            assert time.monotonic() < deadline, self.client.get_job_logs(job)
            time.sleep(0.05)
        started = time.monotonic()
        self.client.stop_job(job)
        self.wait(job)
        text = self.client.get_job_logs(job)
        assert self.client.get_job_status(job) == JobStatus.STOPPED, text
        assert "stopped as asked; what is committed stays" in text and "Traceback" not in text
        assert time.monotonic() - started < 60, "killed, not stopped"

    def finish(self) -> str:
        """Submit, wait for success, and return the output."""
        job = self.submit()
        self.wait(job)
        text = self.client.get_job_logs(job)
        assert self.client.get_job_status(job) == JobStatus.SUCCEEDED, text
        return text

    def wait(self, job: str) -> None:
        deadline = time.monotonic() + 300
        while not self.client.get_job_status(job).is_terminal():
            assert time.monotonic() < deadline, self.client.get_job_logs(job)
            time.sleep(0.2)
