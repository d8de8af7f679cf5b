"""Ranks of a torch.distributed group as real processes of their own, without Ray."""

import os
import subprocess
import sys
import tempfile
import textwrap

from pipeline.settings import ROOT

# What takes longest is to import torch and DeepSpeed: that is done once, and the ranks are forks of what did it.
FORKS = """
    import os
    import signal
    import sys

    import pipeline.train.deepspeed.engine

    folder, program, *groups = sys.argv[1:]
    for number, group in enumerate(groups):
        workers, *arguments = group.split("\\n")
        ranks = []
        for rank in range(int(workers)):
            if pid := os.fork():
                ranks.append(pid)
                continue
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": workers}
            os.environ["GROUP"] = f"file://{folder}/{number}"
            sys.argv = [program, *arguments]
            exec(compile(program, "PROGRAM", "exec"), {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)  # at the interpreter's own end gloo's threads now and then abort the process
        while ranks:
            pid, status = os.wait()
            ranks.remove(pid)
            if status:  # the others would wait for it
                for other in ranks:
                    os.kill(other, signal.SIGKILL)
                sys.exit(1)
"""


def run_ranks(program: str, groups: list[tuple[int, list[str]]], **environment: str) -> str:
    """Run the source text `program` in one group of processes after the other, and return what they print.

    A group is its number of ranks and their arguments; the program joins its group by `join()`. Raises AssertionError
    with the output if a rank fails.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | environment
    kept |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    kept |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # DeepSpeed wants to see them; the group meets in a file
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKS), folder, textwrap.dedent(program)]
        lines = ["\n".join([str(workers), *arguments]) for workers, arguments in groups]
        done = subprocess.run([*command, *lines], env=kept, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def join() -> tuple[int, int]:
    """This process's rank and how many there are, in the group of run_ranks."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=os.environ["GROUP"], rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    return dist.get_rank(), dist.get_world_size()
