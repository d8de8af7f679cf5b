"""Turn a published Latte into the weights that a bridge starts from: input channels, image frame, class embeddings."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..latte import Latte
from .weights import State, WeightsError, WeightsMismatch, first_few, widen_inputs

CLASS_TABLE = "y_embedder.embedding_table.weight"


def bridge_state_from_diffusion(state: Mapping[str, Tensor], target: Latte) -> State:
    """Turn a pre-trained diffusion Latte into the weights that a bridge `target` starts from, as the authors do.

    Drops the learned-sigma half of final_layer.linear, repeats the first entry of temp_embed for the image's
    extra frame, widens x_embedder with zeros for new channels (so that they change nothing at first), and
    copies the rest by name. Raises WeightsMismatch if frames or channels do not fit.
    """
    own = target.state_dict()
    bridge = dict(state)
    output = ("final_layer.linear.weight", "final_layer.linear.bias")
    for name in ("temp_embed", "x_embedder.proj.weight", *output):
        if name not in state:
            raise WeightsMismatch(f"{name} is missing: not the weights of a Latte (it has {first_few(list(state))})")
    for name in output:
        if len(state[name]) == 2 * len(own[name]):
            # rows are (patch position, channel), and the second half of the channels is sigma
            rows = state[name].unflatten(0, (target.patch_size**2, 2, target.out_channels))
            bridge[name] = rows[:, 0].flatten(0, 1)
    frames = state["temp_embed"].shape[1]
    if frames == target.num_frames - 1:
        bridge["temp_embed"] = torch.cat([state["temp_embed"][:, :1], state["temp_embed"]], dim=1)
    elif frames != target.num_frames:
        raise WeightsMismatch(
            f"a diffusion model of {frames} frames cannot start a bridge of {target.num_frames} frames: "
            f"that needs {target.num_frames - 1} (the image adds one) or {target.num_frames}"
        )
    patches = state["x_embedder.proj.weight"]
    if patches.shape[1] > target.in_channels:
        raise WeightsMismatch(
            f"a model of {patches.shape[1]} input channels cannot start a bridge of {target.in_channels}: "
            f"give one with at most {target.in_channels}"
        )
    bridge["x_embedder.proj.weight"] = widen_inputs(patches, target.in_channels)
    return bridge


def remap_classes(
    state: Mapping[str, Tensor], old_classes: Iterable[str], new_classes: Iterable[str]
) -> tuple[State, int]:
    """Reorder class embeddings by name; return the state and the number of classes kept.

    A class that the pre-trained model did not know starts as its null class, the table's last row.
    Raises WeightsMismatch unless the table has one row per class and a null row, and WeightsError if a name occurs
    twice.
    """
    old, new = list(old_classes), list(new_classes)
    for names in (old, new):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise WeightsError(f"class names must differ, but these occur twice: {first_few(twice)}")
    if CLASS_TABLE not in state:
        raise WeightsMismatch(f"{CLASS_TABLE} is missing: this model has no classes")
    table = state[CLASS_TABLE]
    if len(table) != len(old) + 1:
        raise WeightsMismatch(
            f"{CLASS_TABLE} has {len(table)} rows, but {len(old)} classes and the null class need {len(old) + 1}: "
            "give the class names that these weights were trained with"
        )
    row = {name: i for i, name in enumerate(old)}
    rows = torch.tensor([row.get(name, len(old)) for name in new] + [len(old)])
    return {**state, CLASS_TABLE: table[rows]}, sum(name in row for name in new)
