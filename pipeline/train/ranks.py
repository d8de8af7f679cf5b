"""A rank's place among the workers, and decisions that all ranks take together."""

from enum import IntEnum
from typing import NamedTuple

import torch
import torch.distributed


class RunStopped(RuntimeError):
    """All ranks stop together; a retry would fail the same way. The message says why."""


class StopAsked(RunStopped):
    """The job was told to stop: all ranks have saved a checkpoint of this step."""


class MoveAsked(StopAsked):
    """A node of the workers is about to be taken away: all ranks have saved a checkpoint, and others may go on."""


class StopRequest(IntEnum):
    """A request from outside; the greatest of all ranks' counts."""

    GO_ON = 0
    MOVE = 1
    STOP = 2


class RankInfo(NamedTuple):
    """This worker's rank, the number of workers, and its device."""

    rank: int
    workers: int
    device: torch.device


def agree(request: StopRequest, rank: RankInfo) -> StopRequest:
    """The greatest request of all ranks. Every rank calls it."""
    answer = torch.tensor(int(request), device=rank.device)
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX)
    return StopRequest(int(answer))
