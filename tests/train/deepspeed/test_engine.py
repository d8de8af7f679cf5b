"""Every ZeRO stage does on two processes what a bare PyTorch loop does in one, and exports whole float32 weights."""

from pathlib import Path

import pytest
from helpers.process_group import run_ranks
from helpers.tiny_cache import tiny_settings

from pipeline.errors import UserError
from pipeline.train.deepspeed.engine import deepspeed_config

# Run as its own process, because a process group is a process's own
PROGRAM = """
    from itertools import product
    from pathlib import Path

    import torch
    import torch.distributed as dist
    from helpers.process_group import join
    from helpers.tiny_cache import tiny_settings

    from pipeline.models.build import build_image_to_video
    from pipeline.train.deepspeed.engine import start_engine
    from pipeline.train.optimisation import muon
    from pipeline.train.deepspeed.state import full_state

    # orthogonalising lifts the smallest directions of a gradient, where bf16's rounding is, to the size of the largest
    TOLERANCE = {("float32", "adamw"): 1e-3, ("float32", "muon"): 1e-3}
    TOLERANCE |= {("bfloat16", "adamw"): 0.2, ("bfloat16", "muon"): 0.4}
    rank, _ = join()
    train = tiny_settings(Path("/tmp"), "--train.clip_norm=0.01", "--train.weight_decay=0.1").train
    random = torch.Generator().manual_seed(0)
    z, noise = torch.randn((2, 6, 4, 4, 4, 4, 4), generator=random)  # 6 steps of 4 clips
    t, y = torch.tensor([0.0, 300.0, 600.0, 900.0]), torch.tensor([0, 1, 2, 0])


    def model():
        made = build_image_to_video(train_settings.model, [4, 4, 4, 4], 2)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        return made


    def loss(network, step, clips):
        out = network(z[step, clips], t[clips], y[clips], z[step, clips, 0])
        return (out.float() - noise[step, clips]).square().mean()


    train_settings = tiny_settings(Path("/tmp"))
    initial = {name: value.detach().clone() for name, value in model().named_parameters()}
    bare = model()
    matrices = [p for n, p in bare.named_parameters() if p.ndim > 1 and "embedding_table" not in n]
    others = [p for n, p in bare.named_parameters() if p.ndim <= 1 or "embedding_table" in n]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    orthogonalised = model()
    optimizers = {
        "adamw": (bare, torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.adam_betas)),
        "muon": (orthogonalised, muon(orthogonalised, train)),
    }
    norms = {}
    for name, (network, optimizer) in optimizers.items():
        for step in range(6):
            loss(network, step, torch.arange(4)).backward()
            norms[name] = torch.nn.utils.clip_grad_norm_(network.parameters(), train.clip_norm)
            optimizer.step()
            optimizer.zero_grad()

    combinations = [*product(["adamw"], range(4), ("float32", "bfloat16"))]
    combinations += [("muon", 0, "float32"), ("muon", 0, "bfloat16")]
    for name, stage, precision in combinations:
        expected, norm = dict(optimizers[name][0].named_parameters()), norms[name]
        chosen = train.model_copy(update={"optimizer": name, "zero_stage": stage, "precision": precision})
        network = model()
        buffers = {name: value.clone() for name, value in network.named_buffers()}
        engine = start_engine(network, chosen, 2, torch.device("cpu"))
        for step in range(6):
            for clip in (0, 1):
                engine.backward(loss(engine, step, torch.tensor([2 * rank + clip])))
                engine.step()
        state = full_state(engine, buffers)
        assert set(state) == set(bare.state_dict()), set(state) ^ set(bare.state_dict())
        assert all(value.dtype == torch.float32 for value in state.values())
        for name, value in expected.items():
            gone, off = (value - initial[name]).abs().mean(), (state[name] - value).abs().mean()
            assert off <= TOLERANCE[precision, chosen.optimizer] * gone + 1e-9, (chosen, name, off, gone)
        whole = torch.cat([value.flatten() for value in state.values()])
        assert not torch.equal(whole, whole.bfloat16().float())  # master weights, not what they are rounded to
        assert torch.equal(state["backbone.pos_embed"], bare.backbone.pos_embed)
        found = engine.get_global_grad_norm()
        assert stage == 0 or precision == "bfloat16" or abs(float(found) / float(norm) - 1) < 1e-4
        if rank == 0:
            print("fine", chosen.optimizer, stage, precision, flush=True)
    dist.barrier()
"""


def test_every_stage_agrees_with_a_bare_loop_and_needs_no_compiler(tmp_path: Path) -> None:
    """No compiler can be found: PATH, CC and CXX are empty, and nothing has been compiled before."""
    lost = {"PATH": str(tmp_path), "CC": "", "CXX": "", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    assert run_ranks(PROGRAM, [(2, [])], **lost).count("fine") == 10
    assert not list(tmp_path.iterdir())


SCALAR_PROGRAM = """
    from pathlib import Path

    import torch
    from helpers.process_group import join
    from helpers.tiny_cache import tiny_settings

    from pipeline.train.deepspeed.engine import start_engine
    from pipeline.train.deepspeed.state import full_state, gather


    class Gated(torch.nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.alpha = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return super().forward(x.to(self.weight.dtype)) * (1 + self.alpha.tanh())


    join()
    alone = {}
    for stage, offload in ((0, False), (2, False), (3, False), (2, True), (3, True)):
        changes = ("precision=bfloat16", f"zero_stage={stage}", "weight_decay=0.1")
        train = tiny_settings(Path("/tmp"), *(f"--train.{change}" for change in changes)).train
        train = train.model_copy(update={"global_batch": 1, "offload_optimizer": offload})
        torch.manual_seed(0)
        engine = start_engine(Gated(), train, 1, torch.device("cpu"))
        for _ in range(3):
            engine.backward((engine(torch.ones(1, 4)).float() - 9).square().mean())
            engine.step()
        kept = gather(engine, ("exp_avg", "exp_avg_sq"), 0, 1)
        # of decayed weights and others
        assert len(kept) == 9 and all(value.any() for value in kept.values()), kept.keys()
        alpha = full_state(engine, {})["alpha"]
        assert alpha.shape == () and alpha != 0, alpha
        if offload:  # learns the same, and its state is found by the same keys
            assert kept.keys() == alone[stage].keys()
            for name, value in kept.items():
                torch.testing.assert_close(value, alone[stage][name], rtol=1e-3, atol=1e-5)
        alone[stage] = kept
    print("fine", flush=True)
"""


def test_an_engine_keeps_a_weight_without_dimensions() -> None:
    """The U-Net's `alpha` is one; DeepSpeed by itself cannot send it as bfloat16."""
    assert "fine" in run_ranks(SCALAR_PROGRAM, [(1, [])])


def test_offload_is_asked_of_deepspeed_where_it_can_work_and_refused_elsewhere() -> None:
    with pytest.raises(
        UserError, match=r"train.offload_optimizer = true with cluster.train.num_gpus = 0: .*set .* false"
    ):
        tiny_settings(Path("/tmp"), "--train.offload_optimizer=true")
    with pytest.raises(
        UserError, match=r"train.offload_optimizer = true needs ZeRO, but train.zero_stage is 0; set it 1, 2 or 3"
    ):
        tiny_settings(
            Path("/tmp"), "--train.offload_optimizer=true", "--cluster.train.num_gpus=1", "--train.zero_stage=0"
        )
    chosen = tiny_settings(Path("/tmp"), "--train.offload_optimizer=true", "--cluster.train.num_gpus=1")
    config = deepspeed_config(chosen.train, 2)
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert config["zero_force_ds_cpu_optimizer"] is False  # DeepSpeed's own would be compiled at first use
    assert "offload_optimizer" not in deepspeed_config(tiny_settings(Path("/tmp")).train, 2)["zero_optimization"]


@pytest.mark.parametrize(
    ("workers", "micro", "micro_batch", "micro_batches"),
    [(1, 4, 4, 1), (2, 1, 1, 2), (2, 8, 2, 1), (3, 4, 2, 1), (4, 1, 1, 1)],
)
def test_accumulation_keeps_the_global_batch(workers: int, micro: int, micro_batch: int, micro_batches: int) -> None:
    train = tiny_settings(Path("/tmp")).train.model_copy(update={"micro_batch": micro, "clip_norm": None})
    config = deepspeed_config(train, workers)
    assert (
        config["train_micro_batch_size_per_gpu"] == micro_batch
        and config["gradient_accumulation_steps"] == micro_batches
    )
    assert config["train_batch_size"] == micro_batch * micro_batches * workers >= 4
    assert config["gradient_clipping"] == 0.0
