"""One image to one clip, in this process: what a web page or a notebook calls. No Ray, no files."""

from typing import NamedTuple

import numpy as np
import torch

from ..errors import UserError
from ..media import encode_mp4
from ..settings import VAE_DOWNSAMPLING
from .generate import LoadedModel, decode_clips, encode_images, generate
from .items import InputRejected, check_image, class_of, image_key, open_image


class Animated(NamedTuple):
    mp4: bytes
    frames: np.ndarray  # uint8 (F, H, W, 3)


def animate(sampler: LoadedModel, content: bytes, asked: str, seed: int, max_pixels: int) -> Animated:
    """The clip that a model makes of an image file's bytes; `asked` is a class of the model, a caption, or "".

    Raises UserError, in one line, for bytes that are no image and for a class that a model of classes does not know.
    """
    config = sampler.exports.config
    label = class_of(asked, config["classes"])
    if asked and not label and sampler.text_encoder is None:
        raise UserError(f"{asked}: not a class of this model; choose one of {', '.join(config['classes']) or 'none'}")
    _, _, height, width = sampler.exports.latent_shape
    try:
        check_image(content, max_pixels)
        image = open_image(content, height * VAE_DOWNSAMPLING, width * VAE_DOWNSAMPLING)
    except InputRejected as problem:
        raise UserError(f"the image: {problem}") from problem
    image_latent = encode_images(sampler, torch.from_numpy(image.copy())[None])
    key = image_key("image", content)
    clip, _ = generate(sampler, image_latent, [label], [key], seed, [asked])
    frames = decode_clips(sampler, clip)[0].numpy()
    return Animated(encode_mp4(frames, sampler.how.fps), frames)
