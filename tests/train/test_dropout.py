"""Dropout's masks are of the step and its clips, so that a restart does not change what is learned."""

from helpers.process_group import run_ranks

# A tiny U-Net with dropout, trained by the loop: four steps at once, then the last two again from a checkpoint of two.
PROGRAM = """

    import numpy as np
    import pyarrow as pa
    import torch
    from helpers.process_group import join
    from helpers.tiny_networks import randomise
    from helpers.tiny_published import UNET3D

    from pipeline.train.spec import train_spec
    from pipeline.data.cache.info import CacheSpec
    from pipeline.data.cache.manifest import Cache
    from pipeline.settings import load
    from pipeline.data.load.reader import Clip, Source
    from pipeline.data.load.batches import training_batches
    from pipeline.train.engine import TrainingEngine
    from pipeline.train.report.meter import Meter
    from pipeline.train.ranks import RankInfo
    from pipeline.train.loop import RunControl, train_steps
    from pipeline.train.losses import finetune_loss
    from pipeline.train.initial import untrained

    rank, workers = join()
    lines = {f"model.unet3d.{name}": value for name, value in UNET3D.items()} | {
        "model.unet3d.dropout": 0.5, "model.unet3d.image_encoder": "null", "bridge.saf": "false", "train.init": "null",
        "train.steps": 4, "train.global_batch": 4, "train.micro_batch": 2, "train.checkpoint_every": 2,
        "train.precision": "float32", "train.learning_rate": 0.001, "cluster.train.workers": workers,
    }
    settings, _ = load(["--recipe", "webvid-videocrafter", *(f"--{name}={value}" for name, value in lines.items())])
    shape, text = (4, 4, 4, 4), (3, 16)
    def of(row, *shape):
        return torch.from_numpy(np.random.default_rng(row["stride"]).standard_normal(shape).astype(np.float16)).float()
    rows = pa.table({"key": list(map(str, range(8))), "label": [""] * 8, "stride": range(8)})
    cache = Cache("", CacheSpec("", {}, 1.0, shape, text, []), rows, rows)
    clip_of = lambda row: Clip(*of(row, 2, *shape), of(row, *text))
    source = Source(cache, cache.rows, [], 0.0, 0, text=True,
                    made=lambda positions: [(cache.rows[place], clip_of(cache.rows[place])) for place in positions])
    rank_info = RankInfo(rank, workers, torch.device("cpu"))


    class Kept(RunControl):
        def __init__(self):
            self.saved = {}

        def save(self, engine, row):
            self.saved[engine.steps] = engine.share()


    def train(saved):
        model = untrained(train_spec("finetune", settings, cache.spec))
        randomise(model)
        engine = TrainingEngine(model, settings.train, rank_info, saved)
        batches, control = training_batches(source, 4, 2, rank, workers, range(engine.steps, 4)), Kept()
        loss = finetune_loss(model.conditions, settings.bridge)
        train_steps(engine, loss, batches, [], Meter(settings.train, rank_info), control)
        return control.saved


    whole = train(None)
    resumed = train(whole[2])
    assert all(torch.equal(value, resumed[4].tensors[name]) for name, value in whole[4].tensors.items())
"""


def test_a_restart_draws_the_same_dropout_masks() -> None:
    # tests/data/load/test_batches.py holds that neither seeds nor batches depend on workers
    run_ranks(PROGRAM, [(1, [])])
