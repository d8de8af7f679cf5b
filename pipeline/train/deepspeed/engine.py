"""The DeepSpeed engine, from typed settings: ZeRO 0-3, bf16 over fp32 master weights or float32, on CPU or GPU."""

import os
import warnings
from typing import Any

import torch
from torch import nn

from ...data.load.order import micro_batching
from ...settings import TrainSettings
from ..optimisation import make_optimizer
from .internals import forbid_compiled_collectives

SCALAR = "framebridge_scalar"  # marks parameters that had no dimension before DeepSpeed took them
BUCKET = 50_000_000  # elements gathered or reduced at once; small models then need one call a step


def deepspeed_config(train: TrainSettings, workers: int) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` takes."""
    micro_batch, micro_batches = micro_batching(train.global_batch, train.micro_batch, workers)
    config: dict[str, Any] = {
        "train_batch_size": micro_batch * micro_batches * workers,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": train.clip_norm or 0.0,
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": train.zero_stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            # the backward pass runs collectives while it goes on computing, which a CPU cannot
            "overlap_comm": torch.cuda.is_available(),
        },
    }
    if train.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        config["zero_force_ds_cpu_optimizer"] = False  # PyTorch's fused AdamW; DeepSpeed's is compiled on the machine
    if train.precision == "bfloat16":
        config["bf16"] = {"enabled": True}
        if train.zero_stage:  # without ZeRO, DeepSpeed accumulates in the model's precision only
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def start_engine(model: nn.Module, train: TrainSettings, workers: int, device: torch.device) -> Any:
    """`model` under a DeepSpeed engine; torch.distributed must be up. Every rank calls it."""
    deepspeed = import_deepspeed(device)
    for parameter in model.parameters():
        if (
            not parameter.dim()
        ):  # DeepSpeed sends weights as bytes, and of a bfloat16 without dimensions there is no such view
            parameter.data = parameter.data.view(1)
            setattr(parameter, SCALAR, True)
    optimizer = make_optimizer(model.to(device), train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed's own use of older torch calls
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(train, workers))
    return engine


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, set up for the device, without what it would compile with g++ and ninja at first use."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    # A shared-memory all-reduce that DeepSpeed builds on every new machine with a CPU. Over gloo nothing needs a
    # compiler, and a worker that is killed ends its peers' waiting, which shared memory does not.
    forbid_compiled_collectives()
    return deepspeed
