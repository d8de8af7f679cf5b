"""Name what this project uses of DeepSpeed besides its public interface, in one place.

tests/contracts/test_deepspeed_internals.py checks the installed DeepSpeed for each name and its effect.
"""

from typing import Any

import torch
from torch import Tensor, nn


def forbid_compiled_collectives() -> None:
    """Keep DeepSpeed from building its shared-memory all-reduce on a machine with a CPU alone."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def link_optimizer_state(engine: Any) -> None:
    """Under ZeRO 1 and 2: link each weight to its optimizer state as it is now, not as it was after the first step."""
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()


def rounded_and_masters(engine: Any) -> dict[nn.Parameter, Tensor] | None:
    """Without ZeRO, in bf16: the float32 master of each parameter; None where there are none."""
    if not hasattr(engine.optimizer, "fp32_groups"):
        return None
    rounded = [p for group in engine.optimizer.fp16_groups for p in group]
    return dict(zip(rounded, (p for group in engine.optimizer.fp32_groups for p in group), strict=True))


def partitioned_masters(engine: Any) -> list[Tensor]:
    """Under ZeRO 3: this rank's partitions of the float32 masters."""
    return list(engine.optimizer.fp32_partitioned_groups_flat)


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed was given."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)
