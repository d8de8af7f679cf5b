"""Ranks of a torch.distributed group as real processes of their own, without Ray."""

import os
import socket
import subprocess
import sys
import textwrap

from pipeline.config import ROOT


def run_ranks(program: str, workers: int, arguments: list[str]) -> None:
    """Run the source text `program` once a rank, with RANK WORKERS PORT *arguments; what they print if any fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(workers), str(port), *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(workers)
    ]
    outputs = [process.communicate(timeout=250)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * workers, "\n".join(outputs)
