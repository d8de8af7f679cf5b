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

    from pipeline.data.cache.info import CacheSpec
    from pipeline.data.cache.manifest import Cache
    from pipeline.settings import load
    from pipeline.data.load.reader import Clip, Source
    from pipeline.data.load.batches import training_batches
    from pipeline.train.deepspeed.engine import start_engine
    from pipeline.train.ranks import RankInfo
    from pipeline.train.loop import train_steps
    from pipeline.train.deepspeed.state import count_updates, gather, put_back, weights
    from pipeline.train.losses import finetune_task
    from pipeline.train.initial import untrained

    rank, workers = join()
    lines = {f"model.unet3d.{name}": value for name, value in UNET3D.items()} | {
        "model.unet3d.dropout": 0.5, "model.unet3d.image_encoder": "null", "bridge.saf": "false", "train.init": "null",
        "train.steps": 4, "train.global_batch": 4, "train.micro_batch": 2, "train.checkpoint_every": 2,
        "train.precision": "float32", "train.learning_rate": 0.001, "cluster.train.workers": workers,
    }
    settings, _ = load(["--recipe", "webvid-videocrafter", *(f"--{name}={value}" for name, value in lines.items())])
    shape, text, keys = (4, 4, 4, 4), (3, 16), ("exp_avg", "exp_avg_sq")
    def of(row, *shape):
        return torch.from_numpy(np.random.default_rng(row["stride"]).standard_normal(shape).astype(np.float16)).float()
    rows = pa.table({"key": list(map(str, range(8))), "label": [""] * 8, "stride": range(8)})
    cache = Cache("", CacheSpec("", {}, 1.0, shape, text, []), rows, rows)
    clip_of = lambda row: Clip(*of(row, 2, *shape), of(row, *text))
    source = Source(cache, cache.rows, [], 0.0, 0, text=True,
                    made=lambda positions: [(cache.rows[place], clip_of(cache.rows[place])) for place in positions])
    place = RankInfo(rank, workers, torch.device("cpu"))


    def train(start, saved, updates):
        model = untrained("finetune", settings, cache.spec)
        randomise(model)
        if saved:
            model.load_state_dict(dict(weights(saved)), strict=False)
        engine = start_engine(model, settings.train, workers, place.device)
        if saved:
            put_back(engine, saved, keys, updates)
        found = {}

        def save(step, row):
            found[step] = gather(engine, keys, rank, workers), count_updates(engine)

        batches = training_batches(source, 4, 2, rank, workers, range(start, 4))
        train_steps(engine, finetune_task(model, settings.bridge), settings.train, batches, [], None, save, place, start)
        return found


    whole = train(0, None, 0)
    resumed = train(2, *whole[2])
    assert all(torch.equal(value, resumed[4][0][name]) for name, value in whole[4][0].items())
"""


def test_a_restart_drops_the_same() -> None:
    run_ranks(
        PROGRAM, [(1, [])]
    )  # that neither seeds nor batches depend on workers is tests/data/load/test_batches.py's
