"""A training survives everything and ends in the weights of an undisturbed run, with no step twice in its history.

A worker, a raylet and the driver are killed, a worker is stopped for good, there are more failures than allowed, the
latest checkpoint is damaged, a node is drained like a spot instance. Beside it: a full disk, and a loss that is not
finite.
"""

import contextlib
import json
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.tiny_cache import tiny_arguments
from helpers.training_job import TrainingJob, checkpoints, workers
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from pipeline.settings import ROOT
from pipeline.train.plan import CHECKPOINTS
from pipeline.train.report.history import HISTORY
from pipeline.train.report.rows import Row, read_history

# a dozen starts of a worker group; a busy machine is slow
pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1800)]

STEPS, EVERY, HANG_S = 200, 10, 40
SPOT = 2  # DRAIN_NODE_REASON_PREEMPTION


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and two nodes, each with room for one worker."""
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 6}
    head = {"num_cpus": 0, "_system_config": quick}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "default")  # for workers too, which know nothing of pytest's filters
        started = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            started.add_node(num_cpus=1)
        yield started
        started.shutdown()


@dataclass
class Disturbed:
    """What happened to the run, and when it went on each time."""

    folder: str
    went_on: dict[str, int] = field(default_factory=dict)  # after what: after which step
    kept: dict[str, int] = field(default_factory=dict)  # after what: the step last saved before
    log: Path = Path()


def arguments(storage: Path, *more: str, max_failures: int = 1) -> list[str]:
    changes = [f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", f"train.validate_every={EVERY}"]
    # some milliseconds a step, so that it is not over before anything can happen
    changes += [
        "train.global_batch=16",
        f"cluster.train.max_failures={max_failures}",
        f"cluster.train.hang_timeout_s={HANG_S}",
    ]
    return tiny_arguments(storage, *(f"--{change}" for change in changes), *more)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, storage: Path) -> str:
    """The folder of a run that nothing happens to."""
    given = arguments(storage, "--run.name=undisturbed", f"--cache.path={storage}/tiny/cache")
    job = TrainingJob(given, cluster.address, storage / "undisturbed.log")
    assert job.end() == 0, job.log.read_text()
    return f"{storage}/undisturbed/finetune"


@pytest.fixture(scope="module")
def disturbed(cluster: Cluster, undisturbed: str, storage: Path) -> Disturbed:
    """The same run with everything happening to it."""
    run = Disturbed(f"{storage}/tiny/finetune", log=storage / "disturbed.log")

    def start(max_failures: int) -> TrainingJob:
        return TrainingJob(arguments(storage, max_failures=max_failures), cluster.address, run.log)

    def saved(job: TrainingJob) -> list[psutil.Process]:
        """Some steps after a new checkpoint; the workers."""
        before = checkpoints(run.folder)
        job.until(lambda: checkpoints(run.folder) - before and len(workers()) == 2, "no checkpoint")
        time.sleep(0.1)
        return workers()

    def goes_on(job: TrainingJob, after: str) -> None:
        run.kept[after] = last_saved(run)
        run.went_on[after] = int(job.said(r"going on after step (\d+)")[1])

    job = start(1)  # with a checkpoint in between, one failure after another
    saved(job)[-1].send_signal(signal.SIGKILL)
    goes_on(job, "a worker was killed")

    victim = node_of(cluster, saved(job)[0])
    cluster.add_node(num_cpus=1)
    cluster.remove_node(victim, allow_graceful=False)  # kills its raylet, and with it its workers
    goes_on(job, "a raylet was killed")

    saved(job)[-1].send_signal(signal.SIGSTOP)
    goes_on(job, "a worker stood still")

    saved(job)
    job.process.kill()
    job.process.wait()
    psutil.wait_procs(workers(), timeout=60)
    job = start(0)
    goes_on(job, "the driver was killed")

    saved(job)[-1].send_signal(signal.SIGKILL)
    assert job.end() == 1

    damage(Path(run.folder, CHECKPOINTS, max(checkpoints(run.folder))))
    job = start(0)  # a node that is taken away is no failure
    goes_on(job, "the latest checkpoint was damaged")

    victim = node_of(cluster, saved(job)[0])
    cluster.add_node(num_cpus=1)
    drain(cluster, victim)
    step = job.said(r"step (\d+): a node of the workers is about to be taken away")[1]
    goes_on(job, "a node was drained")
    run.kept["a node was drained"] = int(step)
    job.until(lambda: len(workers()) == 2, "no two workers")
    assert victim not in [node_of(cluster, worker) for worker in workers()]
    cluster.remove_node(victim, allow_graceful=False)
    assert job.end() == 0, run.log.read_text()
    return run


def last_saved(run: Disturbed) -> int:
    """The step of the latest checkpoint that counts."""
    known = json.loads(Path(run.folder, CHECKPOINTS, "checkpoint_manager_snapshot.json").read_text())
    return int(known["latest_checkpoint_result"]["metrics"]["step"])


def node_of(cluster: Cluster, worker: psutil.Process) -> Any:
    raylet = worker.ppid()
    return next(node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == raylet)


def drain(cluster: Cluster, node: Any) -> None:
    """As an autoscaler does that was told of a spot instance's end; the node has a minute."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    accepted, why = GcsClient(address=cluster.address).drain_node(
        node.node_id, SPOT, "spot instance", int((time.time() + 60) * 1000)
    )
    assert accepted, why


def damage(checkpoint: Path) -> None:
    share = next(checkpoint.glob("state-*.safetensors"))
    share.write_bytes(share.read_bytes()[:-4] + b"oops")


def weights(folder: str) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(f"{folder}/export/model.safetensors").items()}


@pytest.mark.parametrize(
    "what", ["a worker was killed", "a raylet was killed", "the driver was killed", "a worker stood still"]
)
def test_training_goes_on_from_the_last_checkpoint_after(disturbed: Disturbed, what: str) -> None:
    assert disturbed.went_on[what] % EVERY == 0 and disturbed.went_on[what] >= disturbed.kept[what]


def test_a_drained_node_costs_no_step(disturbed: Disturbed) -> None:
    """A pre-emption notice: saved at the step that it came in, gone on elsewhere from that step."""
    assert disturbed.went_on["a node was drained"] == disturbed.kept["a node was drained"]


def test_more_failures_than_allowed_are_one_line(disturbed: Disturbed) -> None:
    text = disturbed.log.read_text()
    assert (
        "finetune.py: training failed more than cluster.train.max_failures = 0 times with no checkpoint in between"
        in text
    )
    assert "the same command goes on from the last checkpoint" in text


def test_a_damaged_latest_checkpoint_falls_back_to_the_one_before(disturbed: Disturbed) -> None:
    assert "cannot be used (state-0000" in disturbed.log.read_text()
    what = "the latest checkpoint was damaged"
    assert 0 < disturbed.went_on[what] < disturbed.kept[what]


def test_the_weights_equal_those_of_an_undisturbed_run(disturbed: Disturbed, undisturbed: str) -> None:
    assert weights(disturbed.folder) == weights(undisturbed)


def test_every_step_is_once_in_the_history(disturbed: Disturbed, undisturbed: str) -> None:
    rows, reference = (columns(read_history(f"{folder}/{HISTORY}")) for folder in (disturbed.folder, undisturbed))
    assert rows["step"] == list(range(STEPS + 1))
    # a checkpoint that a notice asked for has a row like any other
    assert rows == reference


def columns(rows: list[Row]) -> dict[str, list[float | None]]:
    names = ("step", "loss", "validation_loss", "learning_rate", "gradient_norm")
    return {name: [row[name] for row in rows] for name in names}


def test_the_log_is_free_of_deprecation_warnings(disturbed: Disturbed) -> None:
    warned = re.findall(rf"{ROOT}/(?:pipeline|jobs)/.*(?:Deprecation|Future)Warning.*", disturbed.log.read_text())
    assert "Warning" in disturbed.log.read_text(), "not even of others: warnings are off"
    assert not warned


def test_unfinished_checkpoints_are_removed(disturbed: Disturbed) -> None:
    there = {path.name for path in Path(disturbed.folder, CHECKPOINTS).glob("checkpoint_*") if path.is_dir()}
    assert there == checkpoints(disturbed.folder) and len(there) == 2  # keep_checkpoints


def test_a_full_disk_ends_the_run_with_one_line_and_it_goes_on_when_there_is_room(
    cluster: Cluster, storage: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        given = arguments(disk.folder, f"--cache.path={storage}/tiny/cache")
        folder = f"{disk.folder}/tiny/finetune"
        job = TrainingJob(given, cluster.address, tmp_path / "log")
        job.until(lambda: checkpoints(folder), "no checkpoint")
        disk.fill()
        assert job.end() == 1
        kept = checkpoints(folder)
        said = one_line(job)
        assert "no room left to write" in said and "make room" in said
        assert job.log.read_text().count("M parameters,") == 1, "started again, to the same end"
        disk.make_room()
        job = TrainingJob(given, cluster.address, tmp_path / "log")
        assert int(job.said(r"going on after step (\d+)")[1]) >= EVERY and kept
        assert job.end() == 0, job.log.read_text()


def one_line(job: TrainingJob) -> str:
    """What the job itself says at its end; Ray's own lines may come later."""
    (line,) = (line for line in job.log.read_text().splitlines() if line.startswith("finetune.py: "))
    return line


@dataclass
class SmallDisk:
    """24 MiB of memory as a disk, filled by a file; where mounting is not allowed, workers that may write no file."""

    folder: Path
    mounted: bool

    def fill(self) -> None:
        if not self.mounted:
            for worker in workers():
                worker.rlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            return
        with contextlib.suppress(OSError), open(self.folder / "ballast", "wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))

    def make_room(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield SmallDisk(folder, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(cluster: Cluster, storage: Path, tmp_path: Path) -> None:
    given = [f"--cache.path={storage}/tiny/cache", "--run.name=nan", "--train.learning_rate=1e30"]
    job = TrainingJob(arguments(storage, *given), cluster.address, tmp_path / "log")
    assert job.end() == 1
    said = one_line(job)
    assert re.search("the loss is (nan|inf); lower the learning rate", said) and "the last checkpoint is in" in said
    assert job.log.read_text().count("M parameters,") == 1, "started again, to the same end"


def test_a_range_of_workers_goes_on_with_fewer_on_the_same_batches(
    cluster: Cluster, undisturbed: str, storage: Path, tmp_path: Path
) -> None:
    """One of two nodes is lost for good: the worker that is left takes the whole of every global batch."""
    given = ["--run.name=range", "--cluster.train.workers=[1,2]", f"--cache.path={storage}/tiny/cache"]
    folder = f"{storage}/range/finetune"
    job = TrainingJob(arguments(storage, *given), cluster.address, tmp_path / "log")
    job.until(lambda: checkpoints(folder) and len(workers()) == 2, "no checkpoint")
    cluster.remove_node(node_of(cluster, workers()[0]), allow_graceful=False)
    assert int(job.said(r"going on after step (\d+)")[1]) >= EVERY
    assert len(workers()) == 1
    assert job.end() == 0, job.log.read_text()
    cluster.add_node(num_cpus=1)
    rows, reference = (columns(read_history(f"{one}/{HISTORY}")) for one in (folder, undisturbed))
    assert rows["step"] == reference["step"]
    assert rows["loss"][1:] == pytest.approx(reference["loss"][1:], rel=1e-3)


STUCK = """
    import os, sys
    from pipeline.train.failures import heartbeat
    heartbeat(1)
    os.mkfifo(sys.argv[1])
    open(sys.argv[1])  # nobody ever writes
"""


def test_a_step_that_never_ends_ends_its_worker_and_shows_where_it_stood(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(STUCK), str(tmp_path / "pipe")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "Timeout (0:00:01)!" in done.stderr and "line 6 in <module>" in done.stderr
