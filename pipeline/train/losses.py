"""The losses: one number a sample. Plain PyTorch on any device.

bridge      eq. 17, from the replicated image or the neural prior; with SAF, eq. 24
diffusion   its plain counterpart, conditioned on the image, or on the class alone (the teacher)
prior       eq. 8: the neural prior regresses the clip from its first frame
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ..bridge.leakage import add_time_noise, seeded_noise, time_noise_level
from ..bridge.loss import bridge_loss, diffusion_loss, per_sample_mse
from ..data.load.batches import TrainingBatch
from ..models.build import build_bridge, class_indices, pretrained_schedule
from ..models.image_encoder import ImageEncoder
from ..models.prior import NeuralPrior, replicate
from ..settings import BridgeSettings

Network = Callable[..., Tensor]  # the model, or an engine around it
Loss = Callable[[Network, TrainingBatch], Tensor]  # one number a sample, (B,)


def finetune_loss(
    conditions: Collection[str],
    bridge: BridgeSettings,
    frozen: NeuralPrior | None = None,
    same_classes: Tensor | None = None,
    image_encoder: ImageEncoder | None = None,
) -> Loss:
    """The loss of bridge.process, for a network that takes `conditions` (models/image_to_video.py).

    `frozen` is the neural prior F_eta: the bridge's end point (bridge.prior neural), an input of the network
    (model.prior_condition), or both. `same_classes` maps the model's classes to its own (class_map). A batch that holds
    F_eta's output (bridge.cached_prior) needs neither. `image_encoder` makes the tokens of image_features.
    """
    process, alphas_cumprod = build_bridge(bridge), pretrained_schedule(bridge)

    def loss(network: Network, batch: TrainingBatch) -> Tensor:
        latents = batch.latents
        z0, image_latent, neural = latents.z0, latents.image_latent, latents.prior
        if neural is None and frozen is not None:
            assert same_classes is not None
            with torch.no_grad():
                neural = frozen(image_latent, same_classes.to(z0.device)[latents.label]).float()
        shown, tokens = image_latent, None
        if image_encoder is not None:
            tokens = image_encoder(image_latent, latents.image_shown)
        if bridge.time_noise is not None:
            time = (batch.index.to(z0.device) + 1) / len(alphas_cumprod)
            level = time_noise_level(batch.image_level, time, bridge.time_noise, bridge.time_noise_power)
            shown = add_time_noise(image_latent, batch.image_noise, level)
            if tokens is not None:
                tokens = add_time_noise(tokens, seeded_noise(tokens, batch.seeds), level)
        inputs = {"image_latent": shown, "prior": neural, "text": latents.text, "stride": latents.stride}
        inputs["image_features"] = tokens
        given = {name: inputs[name] for name in conditions}

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            return network(z, t, latents.label, **given)

        if bridge.process == "diffusion":
            return diffusion_loss(denoise, alphas_cumprod, z0, batch.index, batch.noise, bridge.target)
        prior = neural if bridge.prior == "neural" else replicate(image_latent, z0.shape[1])
        assert prior is not None
        return bridge_loss(denoise, process, z0, prior, batch.index, batch.noise)

    return loss


def prior_loss(network: Network, batch: TrainingBatch) -> Tensor:
    """Eq. 8: mean squared error between the prior's output and the clip."""
    return per_sample_mse(network(batch.latents.image_latent, batch.latents.label).float(), batch.latents.z0)


def replicated_error(network: Network, batch: TrainingBatch) -> Tensor:
    """Eq. 8 of the replicated image, the prior that needs no training; the network is not called."""
    z0 = batch.latents.z0
    return per_sample_mse(replicate(batch.latents.image_latent, z0.shape[1]), z0)


def class_map(model_classes: list[str], prior_classes: list[str]) -> Tensor:
    """(len(model_classes) + 1,) int64: the prior's index of each of the model's classes, and of its null class."""
    return class_indices([*model_classes, ""], prior_classes)
