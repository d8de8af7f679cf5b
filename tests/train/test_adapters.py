"""LoRA and trained parts: what is trained, what stays as it came, and an export that knows nothing of adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.process_group import run_ranks
from helpers.tiny_cache import tiny_settings, write_cache
from helpers.tiny_networks import randomise
from test_backbone_recipes import published, shrunken

from pipeline.data.cache.manifest import open_cache
from pipeline.errors import UserError
from pipeline.models.build import build_image_to_video
from pipeline.models.checkpoints.exports import save_export
from pipeline.settings import Settings
from pipeline.train.adapters import merged
from pipeline.train.export.write import export_config
from pipeline.train.initial import untrained
from pipeline.train.plan import plan_training, prepare, run_fingerprint
from pipeline.train.spec import train_spec

LORA = ("--train.lora.rank=2", "--train.lora.alpha=4")


def settings_of(backbone: str, folder: Path, *more: str, lora: tuple[str, ...] = LORA) -> Settings:
    """A tiny `backbone` with pre-trained weights and adapters."""
    if backbone == "latte":
        return tiny_settings(folder, f"--train.init={folder}/latte", *lora, *more)
    return shrunken({"unet3d": "videocrafter"}.get(backbone, backbone), folder, *lora, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = published(tmp_path_factory.mktemp("adapters"), clips=4, held_out=1)
    scratch = tiny_settings(folder)
    cache = write_cache(scratch)
    module = untrained(train_spec("finetune", scratch, cache.spec))
    randomise(module)
    backbone: Any = module.backbone
    save_export(folder / "latte", backbone.state_dict(), export_config(train_spec("finetune", scratch, cache.spec)))
    return folder


# Steps of one worker: two at once, and one, what a checkpoint holds, and one of an engine that starts anew with it.
PROGRAM = """
    import sys
    from pathlib import Path

    import torch
    import yaml
    from helpers.process_group import join

    from pipeline.train.spec import train_spec
    from pipeline.data.cache.info import resolve_spec
    from pipeline.settings import build
    from pipeline.data.load.batches import training_batches
    from pipeline.data.load.reader import Source
    from pipeline.data.load.mix import open_training_cache
    from pipeline.train.engine import TrainingEngine
    from pipeline.train.initial import build_loss, initial_model
    from pipeline.train.ranks import RankInfo
    from pipeline.train.export.write import whole_state

    join()
    rank = RankInfo(0, 1, torch.device("cpu"))
    for path in sys.argv[1:]:
        settings = build([yaml.safe_load(Path(path).read_text())])
        spec = resolve_spec(settings.data, settings.vae, settings.text)
        cache = open_training_cache(settings.cache_path, settings.cache.mix, spec)
        source = Source(cache, cache.select("train"), cache.spec.classes, 0.0, 0, bool(cache.spec.text_shape))

        spec = train_spec("finetune", settings, cache.spec)

        def go(stop, saved=None):
            model, _ = initial_model(spec)
            loss, before = build_loss(spec, model, rank.device), {k: v.clone() for k, v in model.state_dict().items()}
            engine = TrainingEngine(model, settings.train, rank, saved)
            engine.network.eval()  # no dropout
            for micro_batches in training_batches(source, 2, 2, 0, 1, range(engine.steps, stop)):
                engine.network.backward(loss(engine.network, micro_batches[0]).mean())
                engine.network.step()
                engine.end_step()
            return engine, before

        engine, before = go(2)
        whole = engine.share()
        if settings.train.zero_stage == 2:  # ZeRO-3 takes as long again, and test_state has it resume
            resumed = go(2, go(1)[0].share())[0].share()
            assert whole.tensors.keys() == resumed.tensors.keys() and whole.updates == resumed.updates
            assert all(torch.equal(value, resumed.tensors[name]) for name, value in whole.tensors.items())
        trained = {name.rsplit("/", 1)[0] for name in whole.tensors}
        assert any("lora_A" in name for name in trained), trained
        state = {name: value for name, value in engine.export_state().items() if name in trained}
        assert set(state) == trained
        assert all(not torch.equal(state[name], before[name]) for name in trained)
        merged = whole_state(spec, state)
        torch.save((merged, sorted(trained)), path + ".pt")
"""


@pytest.fixture(scope="module")
def exports(folder: Path) -> dict[str, tuple[dict[str, torch.Tensor], list[str]]]:
    """{backbone: (the exported state, names of what was trained)} after two steps with adapters."""
    paths = {}
    for backbone, more in (
        ("latte", ("--train.zero_stage=3", "--train.precision=bfloat16")),
        ("unet3d", ("--train.zero_stage=2",)),
        ("cogvideox", ("--train.zero_stage=2",)),
    ):
        paths[backbone] = folder / f"{backbone}.yaml"
        small = (
            "--train.global_batch=2",
            "--train.micro_batch=2",
            "--cluster.train.workers=1",
            "--train.learning_rate=0.01",
        )
        paths[backbone].write_text(settings_of(backbone, folder, *more, *small).to_yaml())
    run_ranks(PROGRAM, [(1, list(map(str, paths.values())))])
    return {name: torch.load(f"{path}.pt", weights_only=True) for name, path in paths.items()}


@pytest.mark.parametrize("backbone", ["latte", "unet3d", "cogvideox"])
def test_resumed_is_bit_equal_and_the_export_holds_the_sum(
    folder: Path, exports: dict[str, tuple[dict[str, torch.Tensor], list[str]]], backbone: str
) -> None:
    """The program above checks the first; frozen weights are exported as they came, not as bf16 rounded them."""
    state, trained = exports[backbone]
    settings = settings_of(backbone, folder, lora=())
    spec = open_cache(settings.cache_path).spec
    from pipeline.train.initial import initial_model

    model = initial_model(train_spec("finetune", settings, spec))[0]
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.backbone.load_state_dict(state)  # strict: the names of a network without adapters
    changed = {name for name, value in state.items() if not torch.equal(value, before[name])}
    adapted = {name.split(".lora_")[0].removeprefix("backbone.") + ".weight" for name in trained if ".lora_" in name}
    besides = {name.removeprefix("backbone.") for name in trained if ".lora_" not in name}
    assert changed == adapted | besides
    reads_image = {"latte": 0, "unet3d": 2, "cogvideox": 2}[backbone]  # weight and bias
    assert len(besides) == reads_image


def test_an_adapted_network_and_its_merged_state_give_the_same(folder: Path) -> None:
    settings = settings_of("latte", folder)
    spec = open_cache(settings.cache_path).spec
    from pipeline.train.initial import initial_model

    adapted = initial_model(train_spec("finetune", settings, spec))[0]
    randomise(adapted, seed=3)
    plain = build_image_to_video(settings.model, spec.latent_shape, len(spec.classes))
    plain.load_state_dict(merged(adapted.state_dict(), settings.train.lora))
    z, t, y = torch.randn(1, 4, 4, 4, 4), torch.tensor([5.0]), torch.tensor([0])
    torch.testing.assert_close(plain(z, t, y, z[:, 0]), adapted(z, t, y, z[:, 0]))


def test_parts_of_the_network_are_trained_by_name(folder: Path) -> None:
    settings = tiny_settings(folder, r"--train.trainable=['^blocks\.1\.', final_layer]")
    run = prepare("finetune", settings)
    names = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert names and all(name.startswith(("backbone.blocks.1.", "backbone.final_layer")) for name in names)
    assert " M trained, " in plan_training(run)
    assert run_fingerprint(run.spec, run.cache)["train.trainable"] == [r"^blocks\.1\.", "final_layer"]


def test_patterns_that_match_nothing_and_adapters_on_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"train.trainable = blocs: found in no name, such as .*correct it"):
        prepare("finetune", tiny_settings(folder, "--train.trainable=[blocs]"))
    with pytest.raises(UserError, match=r"train.lora.targets = no_such: found in no name"):
        prepare("finetune", settings_of("latte", folder, "--train.lora.targets=[no_such]"))
    with pytest.raises(UserError, match=r"train.lora.rank = 2 trains adapters .* train.init is null"):
        tiny_settings(folder, *LORA)
