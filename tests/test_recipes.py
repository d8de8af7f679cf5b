"""Every recipe of the UCF-101 experiments plans, and trains two steps, at a shrunken size through the real code."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_cache import MODEL, write_cache

from pipeline.data.cache.manifest import open_cache
from pipeline.data.load.batches import training_batches
from pipeline.data.load.reader import Source
from pipeline.models.build import build_prior
from pipeline.models.checkpoints.exports import save_export
from pipeline.models.latte import Latte
from pipeline.settings import Settings, load, recipes
from pipeline.train.export.write import export_config
from pipeline.train.initial import build_loss, initial_model
from pipeline.train.plan import plan_training, prepare
from pipeline.train.spec import Job, train_spec

NAMES = [name for name in recipes() if name.startswith(("ucf101-", "latte-"))]
# Table 5: the process, where it starts, and whether the network is conditioned on F_eta
TABLE_5 = {
    ("diffusion", "replicated", True),
    ("bridge", "replicated", False),
    ("bridge", "replicated", True),
    ("bridge", "neural", False),
    ("bridge", "neural", True),
}


def shrunken(name: str, folder: Path) -> Settings:
    """The recipe with small clips, models and batches; what it says about the process stays."""
    lines = {
        "run.storage": folder,
        "cache.path": folder / "cache",
        "data.frames": 4,
        "data.height": 32,
        "data.width": 32,
    }
    lines |= {"vae.path": "shipped:vae", "vae.dtype": "float32", "cluster.train.workers": 1}
    for section in ("", "prior."):
        lines |= {f"{section}model.{key}": value for key, value in MODEL.items()}
        lines |= {f"{section}train.global_batch": 4, f"{section}train.steps": 2, f"{section}train.warmup_steps": 0}
    if name.startswith("latte-"):
        lines["train.init"] = folder / "latte.pt"
    return load(["--recipe", name, *(f"--{key}={value}" for key, value in lines.items())])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, a neural prior, and a published diffusion Latte with learned sigma."""
    folder = tmp_path_factory.mktemp("recipes")
    settings = shrunken("ucf101-bridge", folder)
    cache = write_cache(settings, clips=8, held_out=0)
    prior = build_prior(settings.prior.model, cache.spec.latent_shape, len(cache.spec.classes))
    save_export(folder / "prior", prior.backbone.state_dict(), export_config(train_spec("prior", settings, cache.spec)))
    diffusion = Latte(
        input_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_frames=4,
        num_classes=2,
        depth=2,
        hidden_size=16,
        num_heads=2,
    )
    torch.save({"ema": diffusion.state_dict()}, folder / "latte.pt")
    return folder


def test_recipes_cover_table_5() -> None:
    found = set()
    for name in NAMES:
        settings = load(["--recipe", name])[0]
        found.add((settings.bridge.process, settings.bridge.prior, settings.model.prior_condition))
    assert found == TABLE_5 | {("diffusion", "replicated", False)}  # and VDT-I2V itself


@pytest.mark.parametrize(("name", "job"), [*((name, "finetune") for name in NAMES), ("ucf101-bridge-np", "prior")])
def test_recipe_plans_and_trains_two_steps(name: str, job: Job, folder: Path) -> None:
    settings = shrunken(name, folder)
    settings = settings.model_copy(
        update={"bridge": settings.bridge.model_copy(update={"prior_path": f"{folder}/prior"})}
    )
    plan = plan_training(prepare(job, settings))
    assert "steps         2 of 4 clips" in plan
    cache = open_cache(settings.cache_path)
    spec = train_spec(job, settings, cache.spec)
    model, initialised_from = initial_model(spec)
    loss_of = build_loss(spec, model, torch.device("cpu"))
    assert initialised_from.startswith("from scratch") == (not name.startswith("latte-"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = [parameter.clone() for parameter in model.parameters()]
    source = Source(cache, cache.select("train"), cache.spec.classes, spec.train.label_dropout, spec.run.seed)
    for micro_batches in training_batches(source, 4, 4, 0, 1, range(2)):
        loss = loss_of(model, micro_batches[0]).mean()
        assert bool(loss.isfinite())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
