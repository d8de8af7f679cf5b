"""The recipes of the backbones with text, shrunk, start from published layouts, plan, train, export and sample."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_cache import write_cache
from helpers.tiny_models import load_run
from helpers.tiny_networks import randomise
from helpers.tiny_published import COGVIDEOX, RESAMPLER, TEXT_TOKENS, UNET3D, save_cogvideox, save_text_to_video
from PIL import Image

from pipeline.data.cache.manifest import open_cache
from pipeline.data.load.batches import training_batches
from pipeline.data.load.reader import Source
from pipeline.errors import UserError
from pipeline.models.checkpoints.exports import save_checkpoint, save_export
from pipeline.models.checkpoints.published import load_published
from pipeline.models.checkpoints.weights import WeightsMismatch
from pipeline.models.image_to_video import VideoNetwork
from pipeline.sampling.exports import check_sampler, find_exports
from pipeline.sampling.generate import decode_latents, encode_images, generate
from pipeline.sampling.run import plan_sampling
from pipeline.settings import Settings, load
from pipeline.train.export.write import export_config
from pipeline.train.initial import build_loss, initial_model, untrained
from pipeline.train.plan import plan_training, prepare
from pipeline.train.spec import TrainSpec, train_spec

RECIPES = ("videocrafter", "videocrafter-100k", "dynamicrafter", "dynamicrafter-cil", "cogvideox")  # webvid-NAME


def shrunken(name: str, folder: Path, *more: str) -> Settings:
    """The recipe with small clips, models and batches; what it says about the process stays."""
    cogvideox = name == "cogvideox"
    paths = folder / ("cogvideox" if cogvideox else "videocrafter")
    lines: dict[str, object] = {
        "run.storage": folder,
        "cache.path": folder / ("cache-of-cogvideox" if cogvideox else "cache"),
        "data.frames": 9 if cogvideox else 4,
        "data.height": 32,
        "data.width": 32,
        "vae.path": paths / "vae" if cogvideox else "shipped:vae",
        "vae.dtype": "float32",
        "text.path": paths if cogvideox else paths / "text",
        "text.tokenizer": "null",
        "text.max_length": TEXT_TOKENS,
        "text.dtype": "float32",
        "train.init": paths if cogvideox else paths / "model.ckpt",
        "train.precision": "float32",
        "train.steps": 2,
        "train.global_batch": 4,
        "train.warmup_steps": 0,
        "cluster.train.workers": 1,
        "sample.steps": 2,
    }
    if cogvideox:
        lines |= {f"model.cogvideox.{key}": value for key, value in COGVIDEOX.items()}
    else:
        lines |= {f"model.unet3d.{key}": value for key, value in {**UNET3D, **RESAMPLER}.items()}
        lines["model.unet3d.image_encoder"] = paths / "image"
    return load(["--recipe", f"webvid-{name}", *(f"--{key}={value}" for key, value in lines.items()), *more])[0]


def published(folder: Path, clips: int, held_out: int) -> Path:
    """The folder with published weights in their layouts, and caches with text."""
    (folder / "videocrafter").mkdir()
    save_text_to_video(folder / "videocrafter")
    save_cogvideox(folder / "cogvideox")
    for name in ("videocrafter", "cogvideox"):
        write_cache(shrunken(name, folder), clips, held_out)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("backbones"), clips=6, held_out=0)


def spec_of(settings: Settings) -> TrainSpec:
    return train_spec("finetune", settings, open_cache(settings.cache_path).spec)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_plans_and_trains_two_steps(name: str, folder: Path) -> None:
    settings = shrunken(name, folder)
    plan = plan_training(prepare("finetune", settings))
    assert "steps         2 of 4 clips" in plan and "tokens a clip" not in plan
    model = initial_model(spec_of(settings))[0].train()
    loss_of = build_loss(spec_of(settings), model, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {key: value.clone() for key, value in model.named_parameters()}
    cache = open_cache(settings.cache_path)
    source = Source(cache, cache.select("train"), [], settings.train.label_dropout, 0, text=True)
    for micro_batches in training_batches(source, 4, 4, 0, 1, range(2)):
        loss = loss_of(model, micro_batches[0])
        assert loss.shape == (4,) and bool(loss.isfinite().all())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    still = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    # what stands before a zero projection learns from the second step on; what is after it, from the first
    assert len(still) < 0.1 * len(before), sorted(still)[:5]


def trained(name: str, folder: Path) -> tuple[VideoNetwork, Settings]:
    """A model of the recipe with random weights everywhere, and the settings that sample from its export."""
    settings = shrunken(name, folder)
    model = initial_model(spec_of(settings))[0].eval()
    assert isinstance(model, VideoNetwork)
    randomise(model, seed=5)
    config = export_config(spec_of(settings))
    path = save_export(folder / f"export-{name}", model.backbone.state_dict(), config)
    return model, shrunken(name, folder, f"--sample.model_path={path}", "--sample.guidance=2.0")


@pytest.mark.parametrize("name", ["videocrafter", "dynamicrafter", "cogvideox"])
def test_export_samples_what_the_model_samples(name: str, folder: Path) -> None:
    model, settings = trained(name, folder)
    loaded = load_run(settings)
    images = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image_latent = encode_images(loaded, images.numpy())

    def sample(of: VideoNetwork, captions: list[str], strides: list[float]) -> torch.Tensor:
        return generate(replace(loaded, model=of), image_latent, ["", ""], ["a", "b"], 0, captions, strides).clip

    found = sample(loaded.model, ["a dog", "dog"], [3.0, 3.0])
    assert torch.equal(found, sample(model, ["a dog", "dog"], [3.0, 3.0]))
    assert not torch.equal(found, sample(model, ["", "dog"], [3.0, 3.0]))
    if name != "cogvideox":
        assert not torch.equal(found, sample(model, ["a dog", "dog"], [6.0, 3.0]))
        how = loaded.how
        loaded = replace(loaded, how=how.model_copy(update={"image_guidance": 2.0}))
        torch.testing.assert_close(found, sample(model, ["a dog", "dog"], [3.0, 3.0]), msg="one scale of both")
        loaded = replace(loaded, how=how.model_copy(update={"image_guidance": 4.0}))
        assert not torch.allclose(found, sample(model, ["a dog", "dog"], [3.0, 3.0]))
    assert decode_latents(loaded, found).shape == (2, settings.data.frames, 32, 32, 3)


def test_image_guidance_without_image_tokens_is_refused(folder: Path) -> None:
    _, settings = trained("cogvideox", folder)
    exports = find_exports(settings.model_export, settings.bridge, settings.run.folder)
    how = settings.sample.model_copy(update={"image_guidance": 2.0})
    with pytest.raises(UserError, match=r"sample.image_guidance = 2.0: guides image tokens, .*set null"):
        check_sampler(exports, how)


def test_plan_says_how_often_guidance_evaluates_the_network(folder: Path, tmp_path: Path) -> None:
    _, settings = trained("videocrafter", folder)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for guidance, of_image, said in ((1.0, None, 1), (2.0, None, 2), (2.0, 2.0, 2), (2.0, 4.0, 3), (1.0, 3.0, 3)):
        change = {"guidance": guidance, "image_guidance": of_image, "images": str(tmp_path)}
        how = settings.sample.model_copy(update=change)
        plan = plan_sampling(settings.model_copy(update={"sample": how}))
        assert (f"{said} evaluations a step for guidance" in plan) == (said > 1)


def test_sampling_with_another_text_encoder_is_refused(folder: Path) -> None:
    _, settings = trained("videocrafter", folder)
    with pytest.raises(UserError, match=r"was trained with text.max_length = 12, not 11"):
        load_run(settings.model_copy(update={"text": settings.text.model_copy(update={"max_length": 11})}))


def test_checkpoint_in_the_authors_layout_starts_the_same_model(folder: Path, tmp_path: Path) -> None:
    model, settings = trained("videocrafter", folder)
    file = tmp_path / "model.ckpt"
    file.write_bytes(save_checkpoint(settings.model_export))
    state = load_published(file)
    assert "model.diffusion_model.input_blocks.0.0.weight" in state and "image_proj_model.latents" in state
    again, _ = initial_model(spec_of(shrunken("videocrafter", folder, f"--train.init={file}")))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "change", "report"),
    [
        ("videocrafter", "--model.unet3d.model_channels=64", r"train.init = .*mis-shaped \(model.diffusion_model"),
        ("cogvideox", "--model.cogvideox.num_layers=2", r"train.init = .*missing \(transformer_blocks.1"),
    ],
)
def test_weights_of_another_size_are_refused(name: str, change: str, report: str, folder: Path) -> None:
    with pytest.raises(WeightsMismatch, match=report):
        prepare("finetune", shrunken(name, folder, change))


def test_latents_that_do_not_halve_are_refused(folder: Path) -> None:
    spec = open_cache(shrunken("videocrafter", folder).cache_path).spec
    with pytest.raises(
        UserError, match=r"latents of 5 x 4, which the U-Net's 2 levels halve 1 times; .* multiples of 16"
    ):
        untrained(train_spec("finetune", shrunken("videocrafter", folder), replace(spec, latent_shape=[4, 4, 5, 4])))


def test_cache_without_the_empty_caption_is_refused_where_dropout_needs_it(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(folder / "cache", copy)
    (copy / "null_text.npy").unlink()
    with pytest.raises(UserError, match=r"null_text.npy: missing"):
        prepare("finetune", shrunken("videocrafter", folder, f"--cache.path={copy}"))
    prepare("finetune", shrunken("videocrafter", folder, f"--cache.path={copy}", "--train.label_dropout=0"))


def test_weights_of_another_backbone_are_refused(folder: Path) -> None:
    with pytest.raises(WeightsMismatch, match="not a checkpoint of VideoCrafter"):
        latte = folder / "latte.pt"
        torch.save({"ema": {"x_embedder.proj.weight": torch.ones(1)}}, latte)
        prepare("finetune", shrunken("videocrafter", folder, f"--train.init={latte}"))
    with pytest.raises(UserError, match="expected a CogVideoXTransformer3DModel"):
        prepare("finetune", shrunken("cogvideox", folder, f"--train.init={folder / 'cogvideox' / 'vae'}"))


def test_text_and_image_are_each_left_out_of_their_share(folder: Path) -> None:
    cache = open_cache(shrunken("videocrafter", folder).cache_path)
    source = Source(cache, cache.select("train"), [], 0.5, 0, text=True)
    batches = [micro_batches[0].latents for micro_batches in training_batches(source, 4, 4, 0, 1, range(40))]
    empty = torch.cat([(batch.text == 0).flatten(1).all(1) for batch in batches if batch.text is not None])
    hidden = torch.cat([~batch.image_shown for batch in batches])
    assert 0.4 < empty.double().mean() < 0.6 and 0.4 < hidden.double().mean() < 0.6
    assert 0.15 < (empty & hidden).double().mean() < 0.35
