"""Where a rank stands, and what all ranks decide together."""

from enum import IntEnum
from typing import NamedTuple

import torch
import torch.distributed


class RunStopped(RuntimeError):
    """All ranks end here, together: going on is of no use, and neither is starting again. The message says why."""


class StopAsked(RunStopped):
    """The job was told to stop: all ranks have saved a checkpoint of this step."""


class MoveAsked(StopAsked):
    """A node of the workers is about to be taken away: the same, and others may go on."""


class StopRequest(IntEnum):
    """What a rank is told from outside. Of several ranks' the greatest counts."""

    GO_ON = 0
    MOVE = 1
    STOP = 2


class RankInfo(NamedTuple):
    """Where this worker stands."""

    rank: int
    workers: int
    device: torch.device


def agree(request: StopRequest, place: RankInfo) -> StopRequest:
    """What all ranks are told together. Every rank calls it."""
    answer = torch.tensor(int(request), device=place.device)
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX)
    return StopRequest(int(answer))
