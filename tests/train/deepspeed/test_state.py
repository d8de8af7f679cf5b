"""What one ZeRO stage and number of workers saved, another goes on from: the same tensors, the same steps after."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.process_group import run_ranks

from pipeline.train.checkpoint import CheckpointDamaged, Saved, read_shares, write_share

# A group of processes of its own: `workers` ranks take steps from `start` on, and write their state to a folder after
# each of the steps in `targets` ("3:FOLDER 6:FOLDER").
PROGRAM = """
    import sys
    from pathlib import Path

    import torch
    import torch.distributed as dist
    from helpers.process_group import join
    from helpers.tiny_cache import tiny_settings

    from pipeline.models.build import build_image_to_video
    from pipeline.train.checkpoint import Saved, read_shares, write_share
    from pipeline.train.deepspeed.engine import start_engine
    from pipeline.train.deepspeed.state import Ema, count_updates, full_state, gather, optimizer_keys, put_back, weights

    rank, workers = join()
    settings = tiny_settings(Path("/tmp"))
    random = torch.Generator().manual_seed(0)
    z, noise = torch.randn((2, 6, 4, 4, 4, 4, 4), generator=random)  # 6 steps of 4 clips
    t, y = torch.tensor([0.0, 300.0, 600.0, 900.0]), torch.tensor([0, 1, 2, 0])


    def loss(network, step, clip):
        out = network(z[step, [clip]], t[[clip]], y[[clip]], z[step, [clip], 0])
        return (out.float() - noise[step, [clip]]).square().mean()


    for line in sys.argv[1:]:
        stage, precision, optimizer, source, start, targets = line.split(",")
        targets = {int(step): Path(folder) for step, _, folder in (one.partition(":") for one in targets.split())}
        changes = {"zero_stage": int(stage), "precision": precision, "optimizer": optimizer}
        train = settings.train.model_copy(update=changes)
        model = build_image_to_video(settings.model, [4, 4, 4, 4], 2)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        saved = read_shares(Path(source)) if source else None
        if saved:
            assert saved.step == int(start)
            assert saved.made_by(optimizer) and not saved.made_by("adamw" if optimizer == "muon" else "muon")
            model.load_state_dict(weights(saved.tensors), strict=False)
        engine = start_engine(model, train, workers, torch.device("cpu"))
        keys = optimizer_keys(optimizer)
        if saved:
            put_back(engine, saved.tensors, keys, saved.updates)
        ema = Ema(engine, 0.9)
        if saved:
            ema.put_back(engine, saved.tensors)
            again = gather(engine, keys, rank, workers) | ema.gather(engine, rank, workers)
            assert all(torch.equal(value, saved.tensors[name]) for name, value in again.items())
        else:
            average = full_state(engine, {})
        for step in range(int(start), max(targets)):
            for micro_batch in range(4 // workers):
                engine.backward(loss(engine, step, rank * (4 // workers) + micro_batch))
                engine.step()
            ema.update(step + 1)
            if not saved:
                decay = min(0.9, (2 + step) / (11 + step))
                state = full_state(engine, {})
                average = {name: decay * average[name] + (1 - decay) * value for name, value in state.items()}
            if step + 1 in targets:
                share = gather(engine, keys, rank, workers) | ema.gather(engine, rank, workers)
                targets[step + 1].mkdir(exist_ok=True)
                write_share(targets[step + 1], Saved(step + 1, count_updates(engine), share), rank, workers)
        if not saved:
            with ema.in_place():
                exported = full_state(engine, {})
            for name, value in average.items():
                torch.testing.assert_close(exported[name], value, rtol=1e-4, atol=1e-6)
        state = full_state(engine, {})
        assert all(torch.equal(value, state[name.removesuffix("/weight")])
                   for name, value in share.items() if name.endswith("/weight"))
        dist.barrier()
"""


KINDS = [(stage, precision, "adamw") for stage in range(4) for precision in ("float32", "bfloat16")]
KINDS += [(0, "float32", "muon"), (0, "bfloat16", "muon")]


def test_resumed_is_bit_equal_and_moves_between_workers_and_stages(tmp_path: Path) -> None:
    def line(kind: tuple[int, str, str], source: str, start: int, **targets: int) -> str:
        """A line of the program; `targets` are names of folders and the steps after which they are written."""
        written = " ".join(f"{step}:{tmp_path / name}" for name, step in targets.items())
        return ",".join([*map(str, kind), str(tmp_path / source) if source else "", str(start), written])

    names = {kind: "-".join(map(str, kind)) for kind in KINDS}
    lines = []
    for kind, name in names.items():
        lines.append(line(kind, "", 0, **{f"{name}-half": 3, f"{name}-whole": 6}))
        lines.append(line(kind, f"{name}-half", 3, **{f"{name}-resumed": 6}))
    # what stage 2 of two workers saved goes on under stages 3, 1 and 0
    lines += [line((s, "float32", "adamw"), "2-float32-adamw-half", 3, **{f"to-{s}": 6}) for s in (3, 1, 0)]
    # and under every stage two workers become one, and in float32 four after another step
    four = [kind for kind in KINDS if kind[1:] == ("float32", "adamw")]
    by_one = [line(kind, f"{name}-half", 3, **{f"{name}-1": 4 if kind in four else 6}) for kind, name in names.items()]
    by_four = [line(kind, f"{names[kind]}-1", 4, **{f"{names[kind]}-4": 6}) for kind in four]
    run_ranks(PROGRAM, [(2, lines), (1, by_one), (4, by_four)])

    for kind, name in names.items():
        whole, resumed = (read_shares(tmp_path / f"{name}-{end}") for end in ("whole", "resumed"))
        assert whole.step == resumed.step == 6
        assert whole.tensors.keys() == resumed.tensors.keys()
        assert all(torch.equal(value, resumed.tensors[key]) for key, value in whole.tensors.items()), kind
        last = 4 if kind in four else 1
        moved = read_shares(tmp_path / f"{name}-{last}")
        assert moved.step == 6
        close(whole.tensors, moved.tensors, kind[1], f"{kind} moved from 2 workers to 1{' and 4' * (last == 4)}")
    for stage in (3, 1, 0):
        close(read_shares(tmp_path / "2-float32-adamw-whole").tensors, read_shares(tmp_path / f"to-{stage}").tensors,
              "float32", f"stage {stage}")  # fmt: skip


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], precision: str, what: str) -> None:
    """Weights equal to accumulation-order error."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if key.endswith("/weight"):
            atol = 2e-5 if precision == "float32" else 2e-2
            torch.testing.assert_close(value, other[key], rtol=0, atol=atol, msg=partial("{} {}: {}".format, what, key))


@pytest.fixture
def shares(tmp_path: Path) -> Path:
    for rank in range(2):
        write_share(tmp_path, Saved(7, 8, {f"p{rank}/weight": torch.arange(4.0) + rank}), rank, 2)
    return tmp_path


def test_shares_are_read_together(shares: Path) -> None:
    saved = read_shares(shares)
    assert (saved.step, saved.updates) == (7, 8) and sorted(saved.tensors) == ["p0/weight", "p1/weight"]
    assert torch.equal(saved.tensors["p1/weight"], torch.arange(4.0) + 1)


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "mark", "half", "steps"])
def test_a_damaged_checkpoint_is_detected(shares: Path, damage: str) -> None:
    tensors, mark = shares / "state-00001-of-00002.safetensors", shares / "state-00001-of-00002.json"
    content = bytearray(tensors.read_bytes())
    if damage == "bit":
        content[-3] ^= 4
        tensors.write_bytes(content)
    elif damage == "cut":
        tensors.write_bytes(content[:-8])
    elif damage == "gone":
        tensors.unlink()
    elif damage == "mark":
        mark.write_text("{")
    elif damage == "half":
        mark.unlink()
    else:
        mark.write_text(json.dumps(json.loads(mark.read_text()) | {"step": 8}))
    with pytest.raises(CheckpointDamaged):
        read_shares(shares)
