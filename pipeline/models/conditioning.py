"""Classifier-free guidance: dropped labels in training, two labels in sampling (Ho & Salimans 2022)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def dropout_masks(u: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Choose the samples to train without class or caption, and those without image tokens, from uniform u (B,).

    Returns two (B,) bool. Drops each with the given probability and both in half of these cases, as DynamiCrafter does.
    """
    return u < probability, (u >= probability / 2) & (u < 3 * probability / 2)


def guided(
    network: Callable[..., Tensor],
    y: Tensor,
    null: int,
    scale: float,
    without: Mapping[str, Tensor | None] | None = None,
    **conditions: Tensor | None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `denoise(z, t)` for a sampler: network(z, t, y=y, **conditions), guided away from the null label.

    Computes null + scale * (conditional - null) on every channel, as the authors do. Both halves go through one call
    of twice the batch, conditional half first; at scale 1 there is no null half. y: (B,). conditions: batched tensors
    such as image_latent and prior, or None. Both halves get the same, except that the null half gets the values in
    `without` instead (text of the empty caption, tokens of a grey image).
    """
    given = {"y": y, **{name: value for name, value in conditions.items() if value is not None}}
    others = {name: value for name, value in (without or {}).items() if name in given and value is not None}
    neither = {**given, "y": torch.full_like(y, null), **others}
    return guided_by_text_and_image(network, given, given, neither, scale, scale)


def guided_by_text_and_image(
    network: Callable[..., Tensor],
    both: Mapping[str, Tensor],
    image: Mapping[str, Tensor],
    neither: Mapping[str, Tensor],
    text_scale: float,
    image_scale: float,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `denoise(z, t)` for a sampler, guided by image and text, each with its scale (Brooks et al. 2023, eq. 3).

    Computes neither + image_scale * (image - neither) + text_scale * (both - image). `both`, `image` (with empty text)
    and `neither` hold the batched conditions that network(z, t, **conditions) takes, under the same names. The three
    evaluations go through one call. If both scales are 1, the plain network is evaluated once. If the scales are
    equal, `image` cancels out, and two evaluations suffice.
    """
    if text_scale == image_scale == 1.0:
        return lambda z, t: network(z, t, **both)
    parts = [both, neither] if text_scale == image_scale else [both, image, neither]
    joined = {name: torch.cat([part[name] for part in parts]) for name in both}

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        count = len(parts)
        answers = network(torch.cat([z] * count), torch.cat([t] * count), **joined).chunk(count)
        if count == 2:
            return torch.lerp(answers[1], answers[0], text_scale)
        with_both, with_image, without = answers
        return without + image_scale * (with_image - without) + text_scale * (with_both - with_image)

    return denoise
