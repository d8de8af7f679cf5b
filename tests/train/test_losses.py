"""Each kind of training asks its network for the right thing, under the right conditions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_cache import CLASSES, tiny_settings
from helpers.tiny_networks import randomise
from torch import Tensor

from pipeline.bridge.alignment import aligned_timesteps
from pipeline.bridge.bridge import Bridge
from pipeline.bridge.leakage import time_noise_level
from pipeline.bridge.schedule import bridge_grid, ddpm_alphas_cumprod, gmax, vp
from pipeline.bridge.targets import eps_psi, q_sample
from pipeline.data.load.batches import TrainingBatch
from pipeline.models.build import build_image_to_video, build_prior
from pipeline.models.image_to_video import VideoNetwork
from pipeline.models.prior import replicate
from pipeline.schema import LatentBatch
from pipeline.settings import BridgeSettings
from pipeline.train.losses import Loss, class_map, finetune_loss, prior_loss, replicated_error

SHAPE = [4, 4, 4, 4]
SETTINGS = tiny_settings(Path("/tmp"))


@pytest.fixture
def batch() -> TrainingBatch:
    random = torch.Generator().manual_seed(0)
    z0, noise = torch.randn((2, 3, *SHAPE), generator=random)
    latents = LatentBatch(["a", "b", "c"], z0, torch.tensor([0, 1, 2]), torch.full((3,), 3.0), torch.ones(3).bool())
    image_noise, level = torch.randn((3, *SHAPE[1:]), generator=random), torch.randn(3, generator=random)
    seeds = torch.tensor([7, 8, 9])
    return TrainingBatch(latents, noise, image_noise, level, seeds, torch.tensor([10, 500, 990]), torch.ones(3))


class Spy:
    """A network that notes what it is asked, and answers zero."""

    def __call__(self, z: Tensor, t: Tensor, y: Tensor, **conditions: Tensor | None) -> Tensor:
        self.z, self.t, self.y, self.conditions = z, t, y, conditions
        return torch.zeros_like(z)


def model_and_loss(frozen: Any = None, **bridge: Any) -> tuple[VideoNetwork, Loss]:
    model_settings = SETTINGS.model.model_copy(
        update={name: bridge.pop(name) for name in ("image_condition", "prior_condition") if name in bridge}
    )
    chosen = BridgeSettings(**{**SETTINGS.bridge.model_dump(), **bridge})
    model = build_image_to_video(model_settings, SHAPE, len(CLASSES))
    return model, finetune_loss(model.conditions, chosen, frozen, class_map(CLASSES, CLASSES[::-1]))


def loss_of(frozen: Any = None, **bridge: Any) -> Loss:
    return model_and_loss(frozen, **bridge)[1]


@pytest.mark.parametrize("saf", [False, True])
def test_bridge_from_the_replicated_image(batch: TrainingBatch, saf: bool) -> None:
    spy, z0 = Spy(), batch.latents.z0
    losses = loss_of(saf=saf)(spy, batch)
    table = bridge_grid(gmax())
    prior = replicate(z0[:, 0], 4)
    z_t = q_sample(z0, prior, batch.noise, table, batch.index)
    aligned = aligned_timesteps(table, ddpm_alphas_cumprod()) if saf else None
    z, t = Bridge(table, aligned).network_input(z_t, prior, batch.index)
    torch.testing.assert_close((spy.z, spy.t), (z, t))
    torch.testing.assert_close(losses, eps_psi(z_t, z0, table, batch.index).square().flatten(1).mean(1))
    assert set(spy.conditions) == {"image_latent"}
    torch.testing.assert_close(spy.conditions["image_latent"], z0[:, 0])


def test_bridge_from_the_neural_prior_which_stays_as_it_is(batch: TrainingBatch) -> None:
    prior = build_prior(SETTINGS.prior.model, SHAPE, len(CLASSES))
    randomise(prior)
    spy = Spy()
    model, loss = model_and_loss(prior, prior="neural", prior_condition=True)
    loss(spy, batch)
    # the prior knows the classes in the reverse order
    expected = prior(batch.latents.image_latent, torch.tensor([1, 0, 2]))
    torch.testing.assert_close(spy.conditions["prior"], expected)
    loss(model, batch).mean().backward()
    assert all(parameter.grad is None for parameter in prior.parameters())


@pytest.mark.parametrize("prior", ["replicated", "neural"])
@pytest.mark.parametrize("process", ["bridge", "diffusion"])
def test_network_is_shown_f_eta_wherever_the_process_starts(batch: TrainingBatch, process: str, prior: str) -> None:
    """The configurations of Table 5: the prior of the process and the network's condition are two settings."""
    f_eta = build_prior(SETTINGS.prior.model, SHAPE, len(CLASSES))
    randomise(f_eta)
    spy = Spy()
    loss_of(f_eta, process=process, prior=prior, prior_condition=True)(spy, batch)
    shown = f_eta(batch.latents.image_latent, torch.tensor([1, 0, 2])).detach()
    torch.testing.assert_close(spy.conditions["prior"], shown)
    if process == "bridge":
        start = shown if prior == "neural" else replicate(batch.latents.image_latent, 4)
        torch.testing.assert_close(
            spy.z, q_sample(batch.latents.z0, start, batch.noise, bridge_grid(gmax()), batch.index), check_dtype=False
        )


def test_cached_output_of_f_eta_replaces_its_network(batch: TrainingBatch) -> None:
    stored = torch.randn(batch.latents.z0.shape, generator=torch.Generator().manual_seed(2))
    spy = Spy()
    cached = replace(batch, latents=replace(batch.latents, prior=stored))
    loss_of(prior="neural", prior_condition=True, cached_prior=True)(spy, cached)  # without the network itself
    assert spy.conditions["prior"] is stored
    expected = q_sample(batch.latents.z0, stored, batch.noise, bridge_grid(gmax()), batch.index)
    torch.testing.assert_close(spy.z, expected)


@pytest.mark.parametrize("weight", ["uniform", "noise"])
@pytest.mark.parametrize("target", ["v", "z0"])
def test_other_targets_are_those_of_eps_psi(batch: TrainingBatch, target: str, weight: str) -> None:
    """A network that answers zero is as wrong as the target is large."""
    losses = loss_of(target=target, loss_weight=weight, schedule="vp", beta1=20.0)(Spy(), batch)
    table, z0 = bridge_grid(vp(0.01, 20.0)), batch.latents.z0
    z_t = q_sample(z0, replicate(batch.latents.image_latent, 4), batch.noise, table, batch.index)
    bridge = Bridge(table, target=target, weighting=weight)  # type: ignore[arg-type]
    wanted = bridge.target_of(z_t, z0, batch.noise, batch.index)
    torch.testing.assert_close(losses, wanted.square().flatten(1).mean(1) * bridge.loss_weight(batch.index).float())


@pytest.mark.parametrize("process", ["bridge", "diffusion"])
def test_time_noise_is_on_the_image_condition_alone(batch: TrainingBatch, process: str) -> None:
    spies = Spy(), Spy()
    clean, noisy = (
        loss_of(process=process, time_noise=level)(spy, batch) for spy, level in zip(spies, (None, 2.0), strict=True)
    )
    torch.testing.assert_close(spies[0].z, spies[1].z)
    torch.testing.assert_close(clean, noisy)  # the spy answers zero whatever it sees: the target is the same
    seen = spies[1].conditions["image_latent"]
    assert seen is not None
    level = time_noise_level(batch.image_level, (batch.index + 1) / 1000, 2.0)
    expected = batch.latents.image_latent + level.view(-1, 1, 1, 1) * batch.image_noise
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize("process", ["bridge", "diffusion"])
def test_time_noise_is_on_image_tokens_by_their_level(batch: TrainingBatch, process: str) -> None:
    """Tokens of the clean image get noise at the level of the sample's image latent, whatever its batch."""
    tokens = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(4))
    seen: list[Tensor] = []

    def encoder(image_latent: Tensor, shown: Tensor) -> Tensor:
        seen.append(image_latent)
        return tokens[: len(image_latent)]

    def shown_to(spy: Spy, of: TrainingBatch) -> Tensor:
        bridge = BridgeSettings(**{**SETTINGS.bridge.model_dump(), "process": process, "time_noise": 2.0})
        finetune_loss(("image_latent", "image_features"), bridge, image_encoder=encoder)(spy, of)  # type: ignore[arg-type]
        features = spy.conditions["image_features"]
        assert features is not None
        return features

    found = shown_to(Spy(), batch)
    assert torch.equal(seen[0], batch.latents.image_latent)
    level = time_noise_level(batch.image_level, (batch.index + 1) / 1000, 2.0)
    noise = (found - tokens) / level.view(3, 1, 1)
    for number, seed in enumerate(batch.seeds):
        drawn = torch.randn(5, 6, generator=torch.Generator().manual_seed(int(seed)))
        torch.testing.assert_close(noise[number], drawn, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("image_condition", ["frame", "none"])
def test_diffusion_predicts_the_noise(batch: TrainingBatch, image_condition: str) -> None:
    spy = Spy()
    losses = loss_of(process="diffusion", image_condition=image_condition)(spy, batch)
    torch.testing.assert_close(losses, batch.noise.square().flatten(1).mean(1))
    abar = ddpm_alphas_cumprod()[batch.index].float().view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(spy.z, abar.sqrt() * batch.latents.z0 + (1 - abar).sqrt() * batch.noise)
    assert set(spy.conditions) == ({"image_latent"} if image_condition == "frame" else set())


def test_prior_regresses_the_clip(batch: TrainingBatch) -> None:
    model = build_prior(SETTINGS.prior.model, SHAPE, len(CLASSES))  # untrained, it predicts zero
    losses = prior_loss(model, batch)
    torch.testing.assert_close(losses, batch.latents.z0.square().flatten(1).mean(1))


def test_replicated_error_is_zero_for_a_still_clip(batch: TrainingBatch) -> None:
    still = replicate(batch.latents.image_latent, 4)
    calm = replace(batch, latents=replace(batch.latents, z0=still))
    assert replicated_error(Spy(), calm).max() == 0 and replicated_error(Spy(), batch).min() > 0


def test_one_loss_a_sample_and_gradients_for_all_weights(batch: TrainingBatch) -> None:
    model, loss = model_and_loss()
    randomise(model)
    losses = loss(model, batch)
    losses.mean().backward()
    assert losses.shape == (3,) and all(p.grad is not None for p in model.parameters())
