"""Convert published checkpoints of VideoCrafter1 and DynamiCrafter to names and shapes of models/videocrafter.py."""

from collections.abc import Mapping

from torch import Tensor

from ..videocrafter import VideoCrafter
from .weights import State, WeightsMismatch, first_few, widen_inputs

UNET, RESAMPLER = "model.diffusion_model.", "image_proj_model."
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
RENAMED = {"framestride_embed.": "fps_embedding."}  # DynamiCrafter's checkpoint for 256 x 256 has the first
# Parts that a text-to-video model lacks; a checkpoint has all names with such a part, or none of them
NEW = ("fps_embedding.", ".to_k_ip.", ".to_v_ip.", ".alpha", RESAMPLER)


def state_from_published(state: Mapping[str, Tensor], target: VideoCrafter) -> State:
    """Turn a checkpoint of VideoCrafter/Text2Video-256 or DynamiCrafter into the weights that `target` starts from.

    Leaves out other parts of the checkpoint. Widens the first convolution by zeros for the image's channels (4 -> 8),
    which change nothing at first. Parts that a text-to-video model lacks (NEW) keep the target's initial weights, which
    change nothing either. `load_strict` reports all other missing or unexpected names. Raises WeightsMismatch if the
    file holds no U-Net.
    """
    found: State = {}
    for name, value in state.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if name.startswith((UNET, RESAMPLER)):
            found[name] = value
    if FIRST not in found:
        raise WeightsMismatch(f"{FIRST} is missing: not a checkpoint of VideoCrafter (it has {first_few(list(state))})")
    own = target.state_dict()
    found[FIRST] = widen_inputs(found[FIRST], own[FIRST].shape[1])
    for part in NEW:
        if not any(part in name for name in found):
            found |= {name: value for name, value in own.items() if part in name}
    return found
