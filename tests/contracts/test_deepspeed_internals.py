"""The private names of DeepSpeed that this project uses exist and do what it relies on."""

import pytest
from helpers.process_group import run_ranks

PROGRAM = """
    import sys
    from pathlib import Path

    import torch
    from helpers.process_group import join
    from helpers.tiny_cache import tiny_settings

    from pipeline.train.deepspeed import internals
    from pipeline.train.deepspeed.engine import start_engine

    stage, precision = int(sys.argv[1]), sys.argv[2]
    rank, workers = join()
    train = tiny_settings(Path("/tmp")).train
    train = train.model_copy(update={"zero_stage": stage, "precision": precision, "global_batch": 1, "micro_batch": 1})
    model = torch.nn.Linear(4, 3)
    engine = start_engine(model, train, workers, torch.device("cpu"))

    import deepspeed

    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False, "a compiled all-reduce may be built again"
    base = internals.base_optimizer(engine)
    assert type(base) is torch.optim.AdamW, base
    assert [g["params"] for g in base.param_groups], base

    def step():
        engine.backward(engine(torch.ones(1, 4, dtype=next(model.parameters()).dtype)).float().square().sum())
        engine.step()

    step()
    pairs = internals.rounded_and_masters(engine)
    if stage == 0 and precision == "bfloat16":
        assert set(pairs) == set(model.parameters()), "not every parameter has a master"
        for rounded, master in pairs.items():
            assert rounded.dtype == torch.bfloat16 and master.dtype == torch.float32 and rounded.shape == master.shape
            assert torch.equal(rounded, master.bfloat16())
            assert "exp_avg" in base.state[master]
    elif stage == 0:
        assert pairs is None
    if stage in (1, 2):
        linked = engine.optimizer._hp_optimizer_states_linked
        assert linked is True, f"_hp_optimizer_states_linked is {linked} after a step"
        internals.link_optimizer_state(engine)
        assert engine.optimizer._hp_optimizer_states_linked is True
        state = deepspeed.utils.safe_get_full_optimizer_state(model.weight, "exp_avg")
        assert state is not None and state.shape == model.weight.shape, state
    if stage == 3:
        parts = internals.partitioned_masters(engine)
        assert parts and all(part.dtype == torch.float32 and part.dim() == 1 for part in parts), parts
        assert sum(part.numel() for part in parts) >= 15
        assert all("exp_avg" in base.state[part] for part in parts)
"""


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_names_relied_on_are_there(stage: int, precision: str) -> None:
    run_ranks(PROGRAM, [(1, [str(stage), precision])])
