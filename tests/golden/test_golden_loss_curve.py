"""The loss curve of a fixed tiny run equals the recorded one: a change that should change nothing must keep it.

To record it anew, after a change that is meant to alter training: python tests/golden/test_golden_loss_curve.py
"""

import json
from pathlib import Path

import pytest
from helpers.process_group import run_ranks

CURVE = Path(__file__).with_name("loss_curve.json")

# A process of its own, for a process group and a DeepSpeed engine are a process's own; one worker, the loop itself.
PROGRAM = """
    import json
    import sys
    from pathlib import Path

    import torch
    from helpers.process_group import join
    from helpers.tiny_cache import tiny_settings, write_cache

    from pipeline.train.spec import train_spec
    from pipeline.data.load.batches import training_batches, validation_batches
    from pipeline.data.load.reader import Source
    from pipeline.train.engine import TrainingEngine
    from pipeline.train.report.meter import Meter
    from pipeline.train.report.history import History
    from pipeline.train.ranks import RankInfo
    from pipeline.train.loop import RunControl, train_steps
    from pipeline.train.losses import finetune_loss
    from pipeline.train.initial import untrained

    storage = Path(sys.argv[1])
    changes = {"steps": 50, "log_every": 5, "validate_every": 25, "learning_rate": 0.003, "checkpoint_every": 50}
    settings = tiny_settings(storage, *(f"--train.{name}={value}" for name, value in changes.items()))
    train = settings.train
    cache = write_cache(settings)
    join()
    model = untrained(train_spec("finetune", settings, cache.spec))
    model.backbone.initialise(0)
    classes = cache.spec.classes
    rank = RankInfo(0, 1, torch.device("cpu"))
    engine = TrainingEngine(model, train, rank)
    source = Source(cache, cache.select("train"), classes, 0.1, 0)
    batches = training_batches(source, train.global_batch, 1, 0, 1, range(train.steps))
    held_out = validation_batches(Source(cache, cache.select("test").spread(3), classes, 0.0, 0), 1, 0, 1)
    history = History(str(storage), 0, train.steps)
    loss = finetune_loss(model.conditions, settings.bridge)
    train_steps(engine, loss, batches, held_out, Meter(train, rank, history), RunControl())
    columns = ("step", "loss", "validation_loss", "gradient_norm")
    curve = [{name: row.get(name) for name in columns} for row in history.rows]
    (storage / "curve.json").write_text(json.dumps(curve))
"""


def run(folder: Path) -> list[dict[str, float | None]]:
    """The rows of the run's history."""
    run_ranks(PROGRAM, [(1, [str(folder)])])
    rows: list[dict[str, float | None]] = json.loads((folder / "curve.json").read_text())
    return rows


def test_loss_curve_equals_the_recorded_one(tmp_path: Path) -> None:
    recorded, found = json.loads(CURVE.read_text()), run(tmp_path)
    assert [row["step"] for row in found] == [row["step"] for row in recorded]
    for one, other in zip(found, recorded, strict=True):
        for name, value in other.items():
            # processors add in other orders, which 50 steps of a tiny model hardly amplify
            assert one[name] == (None if value is None else pytest.approx(value, rel=2e-3)), (name, one, other)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder))
    CURVE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} rows recorded in {CURVE}")
