"""Try cluster/README.md on three hosts, of which one is cut off and one is killed: `make test-cluster`.

Three hosts run on this machine (helpers/hosts.py), with S3 (moto) beside them. The commands are those of the page, in
its order, filled in as a reader would: `ray up` over SSH, then the whole road as a submitted job, looked at, stopped
and submitted again. Then one host is cut off while it caches and another is killed while it trains; the result must
equal, byte for byte, that of the undisturbed road. Needs two cores with little else to do; --until up|undisturbed ends
earlier. Exit status 0: all of that holds.
"""

import argparse
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from helpers import hosts  # noqa: E402 (as is the next: they lie beside this folder)
from helpers.hosts import HOME, HOSTS, OPERATOR, ROOT, USER, Host, wait_until  # noqa: E402

ADDRESSES = {"one": "10.77.0.1", "two": "10.77.0.2", "three": "10.77.0.3"}
ENDPOINT = f"http://{OPERATOR}:5000"
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "planted-secret-0815"}
DASHBOARD = "http://127.0.0.1:8265"
RUNS = "s3://my-bucket/runs"
JOB, RUN, REFERENCE = "ucf101", "demo", "undisturbed"  # the page's submission id, and names of runs
VIDEOS, CLIPS = 48, 8  # so many of each, and a shard a video: half a minute of caching, to cut a host off in
CLUSTER, SLOW = "cluster/README.md", "docs/slow.md"
TRAIN = {"steps": 10, "global_batch": 4, "micro_batch": 2, "warmup_steps": 2, "checkpoint_every": 5}
TRAIN |= {"log_every": 5, "validate_every": 20, "validate_clips": 4}
SMALL: dict[str, Any] = {f"{part}.{key}": value for part in ("train", "prior.train") for key, value in TRAIN.items()}
SMALL |= {"train.steps": 60, "data.clips_per_video": CLIPS, "cache.shard_clips": CLIPS}
SMALL |= {"sample.steps": 4, "sample.count": 4, "sample.batch": 4, "cluster.sample.actors": 1}
# one training worker fills a host, so that one that is killed takes a worker with it
SMALL |= {"cluster.train.num_cpus": 2, "cluster.encode.actors": 2, "cluster.encode.num_cpus": 1}
FILLED_IN = {
    "--recipe cluster": " ".join(["--recipe demo", *(f"--{key}={value}" for key, value in SMALL.items())]),
    "BUCKET": "my-bucket",
}
STARTED = time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", choices=("up", "undisturbed", "end"), default="end")
    until = parser.parse_args().until
    if lacking := hosts.missing():
        print(f"three_hosts.py: {lacking}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    hosts.enter()  # from here on nothing is this machine's, but what is printed
    try:
        scenario(until)
    except BaseException:
        keep_logs()
        raise
    say("all of it holds")
    return 0


def scenario(until: str) -> None:
    start_s3()
    machines = {name: hosts.start_host(name, address) for name, address in ADDRESSES.items()}
    furnish(machines)
    shell = Shell()
    say("from nothing to a cluster, by the page")
    shell.run(blocks(CLUSTER, "Your own machines")[1])
    wait_until(lambda: len(alive()) == 3, 300, "not three nodes")
    if until == "up":
        return take_down(shell, machines)

    say("the road undisturbed")
    submit, logs, stop, delete = blocks(CLUSTER, "Submit, watch, stop, go on")[0].splitlines()
    entrypoint = filled_in(submit).split(" -- ")[1]
    shell.run(f"ray job submit --working-dir . -- {entrypoint} --run.name {REFERENCE}", 600)
    if until == "undisturbed":
        return take_down(shell, machines)

    say("submitted, looked at, stopped, submitted again, by the page")
    shell.run(submit)
    following = logs.split("#")[0]
    shell.run(f"timeout --signal=INT 15 {following} || true")  # Ctrl-C
    assert status(JOB) == "RUNNING", "Ctrl-C leaves the job alone"
    shell.run(stop)
    wait_until(lambda: status(JOB) == "STOPPED", 120, "the job does not stop")
    shell.run(delete)
    shell.run(submit)

    shards, before = f"{RUNS}/{RUN}/cache/manifest", count(f"{RUNS}/{RUN}/cache/manifest")
    wait_until(lambda: count(shards) > before, 240, "nothing is cached")
    cut = one_with(machines, "MapBatches(")  # decoding, encoding or committing
    cut.cut_off()
    say(f"{cut.name} is cut off while it caches: {count(shards)} of {VIDEOS} shards are committed")
    assert count(shards) < VIDEOS - 1
    wait_until(lambda: cut.address not in alive(), 240, "the cluster has not noticed")
    say("it is reconnected")
    cut.reconnect()

    wait_until(lambda: count(f"{RUNS}/{RUN}/finetune/checkpoints"), 600, "no checkpoint of the fine-tuning")
    killed = one_with(machines, "RayTrainWorker")
    say(f"{killed.name} is killed while it trains")
    killed.kill()
    wait_until(lambda: finished(JOB), 600, "the job does not end")
    assert status(JOB) == "SUCCEEDED", status(JOB)
    shell.run(logs)
    say("is all of it right?")
    compare(RUN, REFERENCE)
    check_secrets(machines)
    print(f"alive: {', '.join(sorted(alive()))}", flush=True)
    wait_until(
        lambda: alive() == set(ADDRESSES.values()) - {killed.address}, 60, "other hosts are alive than should be"
    )
    say("looked at, by docs/slow.md")
    for heading in ("Is anything happening?", "Caching"):
        for block in blocks(SLOW, heading):
            shell.run(block)
    take_down(shell, machines)


class Shell:
    """The reader's shell, in the project's folder. A command that fails ends the test."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in ("PATH", "TERM") if name in os.environ}
        environment |= {"HOME": str(HOME), "USER": USER, "RAY_USAGE_STATS_ENABLED": "0"}
        command = ["bash", "--norc", "-em"]  # with jobs, as at a prompt: `kill %1`
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, text=True)
        self.done, self.script = HOSTS / "done", HOSTS / "script"

    def run(self, commands: str, seconds: float = 300) -> None:
        """Raises RuntimeError or TimeoutError."""
        commands = filled_in(commands)
        print("".join(f"$ {line}\n" for line in commands.splitlines()), end="", flush=True)
        self.script.write_text(commands)
        assert self.process.stdin is not None
        # not from standard input, which ssh would read to its end
        self.process.stdin.write(f". {self.script} < /dev/null && touch {self.done}\n")
        self.process.stdin.flush()
        wait_until(lambda: self.done.exists() or self.process.poll() is not None, seconds, f"not done: {commands}")
        if self.process.poll() is not None:
            raise RuntimeError(f"ended with status {self.process.returncode}: {commands}")
        self.done.unlink()


def blocks(page: str, heading: str) -> list[str]:
    """The commands under a heading of a page, block by block."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh[^\n]*\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def filled_in(commands: str) -> str:
    for placeholder, value in FILLED_IN.items():
        commands = commands.replace(placeholder, value)
    return commands


def furnish(machines: dict[str, Host]) -> None:
    """Prepare what the page requires: packages, SSH by key, keys of S3, and the launcher file with its CHANGE lines."""
    (HOME / ".ssh").mkdir()
    hosts.run(f"ssh-keygen -q -t ed25519 -N '' -f {HOME}/.ssh/id_ed25519")
    (HOME / "framebridge-venv").symlink_to(sys.prefix)
    secret = "".join(f"{name.lower()} = {value}\n" for name, value in KEYS.items())
    for host in machines.values():
        home = host.root / "home"
        for folder in (".ssh", ".aws"):
            (home / folder).mkdir()
        (home / "framebridge-venv").symlink_to(sys.prefix)
        (home / ".ssh" / "authorized_keys").write_bytes((HOME / ".ssh" / "id_ed25519.pub").read_bytes())
        (home / ".aws" / "credentials").write_text(f"[default]\n{secret}")
        (home / ".bashrc").touch()
        (home / ".profile").write_text(f"export AWS_ENDPOINT_URL={ENDPOINT}\n")
    head, *workers = ADDRESSES.values()
    values = {"head_ip": head, "worker_ips": f"[{', '.join(workers)}]", "ssh_user": USER}
    values |= {"ssh_private_key": "~/.ssh/id_ed25519"}
    text = (ROOT / "cluster" / "on-premises.yaml").read_text()
    marked = re.compile(r"^( *)(\w+): .*# CHANGE.*$", re.MULTILINE)
    (HOSTS / "on-premises.yaml").write_text(marked.sub(lambda line: f"{line[1]}{line[2]}: {values.pop(line[2])}", text))
    assert not values, f"not in the file: {values}"
    hosts.bind(HOSTS / "on-premises.yaml", ROOT / "cluster" / "on-premises.yaml")


def start_s3() -> None:
    """Start S3 with videos in a bucket, one of them unreadable."""
    from pipeline.shipped.synthetic import make_dataset
    from pipeline.storage import files as storage

    command = [sys.executable, "-m", "moto.server", "-H", OPERATOR, "-p", "5000"]
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: hosts.answers(OPERATOR, 5000), 60, "moto's server does not answer")
    os.environ |= {**KEYS, "AWS_ENDPOINT_URL": ENDPOINT}
    import boto3

    client: Any = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="my-bucket")
    videos = HOSTS / "videos"
    make_dataset(str(videos), videos=VIDEOS, seed=5, frames=64, test_share=0.25)
    min(videos.rglob("*.mp4")).write_bytes(b"not a video")
    for path in videos.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"s3://my-bucket/UCF-101/{path.relative_to(videos)}", path.read_bytes())


def say(text: str) -> None:
    print(f"\n=== {time.monotonic() - STARTED:.0f} s: {text}", flush=True)


def ask(path: str) -> Any:
    """The dashboard's answer, through the reader's tunnel."""
    token = (HOME / ".ray" / "auth_token").read_text().strip()
    request = urllib.request.Request(DASHBOARD + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def alive() -> set[str]:
    """Addresses of the nodes that the cluster counts as alive."""
    nodes = [node["raylet"] for node in ask("/nodes?view=summary")["data"]["summary"]]
    return {node["nodeManagerAddress"] for node in nodes if node.get("state") == "ALIVE"}


def status(job: str) -> str:
    found: str = ask(f"/api/jobs/{job}")["status"]
    return found


def finished(job: str) -> bool:
    return status(job) in ("SUCCEEDED", "FAILED", "STOPPED")


def count(folder: str) -> int:
    from pipeline.storage.files import entries

    return sum(1 for _ in entries(folder))


def one_with(machines: dict[str, Host], word: str) -> Host:
    """A host, not the head, on which a process with that word in its title runs."""
    found: list[Host] = []

    def look() -> bool:
        found.extend(host for name, host in machines.items() if name != "one" and any(word in t for t in titles(host)))
        return bool(found)

    wait_until(look, 60, f"no host runs {word}")
    return found[0]


def titles(host: Host) -> list[str]:
    """The titles of all processes on a host."""
    network, result = os.readlink(f"/proc/{host.process.pid}/ns/net"), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns" / "net") == network:
                result.append((process / "cmdline").read_text().replace("\0", " ").strip())
        except OSError:  # it has ended
            continue
    return result


def compare(name: str, reference: str) -> None:
    """Raise AssertionError unless both runs are complete and have the same cache, training and samples."""
    from pipeline.data.cache.manifest import open_cache
    from pipeline.data.cache.shards import read_latent
    from pipeline.storage.files import list_files, read_bytes, read_json
    from pipeline.train.report.rows import read_history

    caches = [open_cache(f"{RUNS}/{run}/cache") for run in (name, reference)]
    for cache in caches:
        summary = read_json(f"{cache.path}/summary.json")
        assert (summary["planned"], summary["cached"], summary["rejected"]) == (
            VIDEOS * CLIPS,
            (VIDEOS - 1) * CLIPS,
            CLIPS,
        ), summary
        assert len({row["key"] for row in cache.rows}) == (VIDEOS - 1) * CLIPS
        for row in cache.rows:
            read_latent(cache.path, row)  # against its checksum
    same = [{row["key"]: row["checksum"] for row in cache.rows} for cache in caches]
    assert same[0] == same[1]
    for job in ("prior", "finetune"):
        histories = [read_history(f"{RUNS}/{run}/{job}/history.csv") for run in (name, reference)]
        steps = SMALL["prior.train.steps" if job == "prior" else "train.steps"]
        assert [row["step"] for row in histories[0]] == [0, *range(5, steps + 1, 5)]
        for column in ("loss", "validation_loss", "gradient_norm"):
            assert [row[column] for row in histories[0]] == [row[column] for row in histories[1]], (job, column)
        exports = [read_bytes(f"{RUNS}/{run}/{job}/export/model.safetensors") for run in (name, reference)]
        assert exports[0] == exports[1], f"{job}: other weights"
    files = [list_files(f"{RUNS}/{run}/samples", ".generated.mp4") for run in (name, reference)]
    assert len(files[0]) == SMALL["sample.count"]
    for one, other in zip(*files, strict=True):
        assert read_bytes(one) == read_bytes(other), f"{one}: another clip"


def check_secrets(machines: dict[str, Host]) -> None:
    """Raise AssertionError if a log, an export or a settings file holds the token or the key of S3."""
    from pipeline.storage.files import entries, read_bytes

    secrets = [KEYS["AWS_SECRET_ACCESS_KEY"].encode(), (HOME / ".ray" / "auth_token").read_bytes().strip()]
    written = {path: path.read_bytes() for host in machines.values() for path in logs_of(host)}
    made = [entry.address for entry in entries(RUNS, recursive=True)]
    made = [address for address in made if address.endswith((".json", ".yaml", ".csv", ".html"))]
    assert written and made
    shown = [path for path, text in written.items() if any(secret in text for secret in secrets)]
    leaked = [path for path in made if any(secret in read_bytes(path) for secret in secrets)]
    assert not shown and not leaked, (shown, leaked)
    for host in machines.values():
        words = " ".join(titles(host)) if host.process.poll() is None else ""
        assert not [secret for secret in secrets if secret.decode() in words]


def ended(host: Host) -> bool:
    """Whether Ray has ended on the host."""
    return not [title for title in titles(host) if "raylet" in title]


def take_down(shell: Shell, machines: dict[str, Host]) -> None:
    """Take the cluster down as the page says."""
    say("from a cluster to nothing, by the page")
    shell.run(blocks(CLUSTER, "Your own machines")[2])
    for host in machines.values():
        if host.process.poll() is None:
            wait_until(functools.partial(ended, host), 90, f"{host.name}: Ray runs on")


def logs_of(host: Host) -> list[Path]:
    return [path for path in (host.root / "tmp" / "ray").glob("session_2*/logs/**/*") if path.is_file()]


def keep_logs() -> None:
    """Copy the hosts' logs, to be read after a failure; all other files end with the hosts."""
    folder = ROOT / "runs" / "three-hosts"
    hosts.run(f"rm -rf {folder} && mkdir -p {folder} && cp {HOSTS}/*.log {folder} || true")
    for name in ADDRESSES:
        hosts.run(f"cp -r {HOSTS}/{name}/tmp/ray/session_2*/logs {folder}/{name} 2> /dev/null || true")
    print(f"three_hosts.py: the hosts' logs are in {folder}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
