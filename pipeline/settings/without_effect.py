"""Settings that do nothing beside the others: refused where they were typed, logged where they come from a recipe."""

import fnmatch
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import UserError
from .bivdiff import CONTROLLED
from .layers import ABSENT, Layer, lookup, shown
from .section import dotted_names
from .tree import Settings

log = logging.getLogger(__name__)

READ_ONLY_WITH = {  # names -> the setting that must not be null, or must have this value, for them to be read
    "cache.local_gb": "cache.local_path",
    "text.*": "text.path",
    "model.unet3d.*": "model.backbone unet3d",
    "model.cogvideox.*": "model.backbone cogvideox",
    "model.unet3d.image_width model.unet3d.resampler_*": "model.unet3d.image_encoder",
    "bridge.schedule bridge.beta? bridge.saf_edge": "bridge.process bridge",
    "bridge.saf_edge": "bridge.saf true",
    "bridge.time_noise_power": "bridge.time_noise",
    "train.lora.*": "train.lora.rank",
    "prior.train.lora.*": "prior.train.lora.rank",
    "sample.while_training_count": "sample.while_training",
}
READ_BY_TASKS = {
    CONTROLLED: "bivdiff.control bivdiff.canny bivdiff.control_scale",
    ("outpainting",): "bivdiff.outpaint",
    ("prompt_to_prompt",): "bivdiff.edit bivdiff.cross_replace bivdiff.self_replace",
    ("instruct_pix2pix",): "bivdiff.image_guidance",
}


def without_effect(settings: Settings) -> dict[str, tuple[str, str]]:
    """Dotted names of settings that do nothing, each with its value, and with the cause and the remedy.

    Null says that a setting is not used, so a setting that is null is never among them.
    """
    tree, names = settings.model_dump(mode="json"), list(dotted_names(Settings))
    found: dict[str, tuple[str, str]] = {}
    for patterns, causes, remedy in _rules(settings, tree):
        cause = " and ".join(f"{key} = {shown(lookup(tree, key))}" for key in causes.split())
        for key in (name for pattern in patterns.split() for name in fnmatch.filter(names, pattern)):
            if (value := lookup(tree, key)) not in (None, ABSENT):
                found.setdefault(key, (shown(value), f"with {cause}{remedy}"))
    return found


def report(found: Mapping[str, tuple[str, str]], layers: Sequence[Layer], dry_run: bool) -> None:
    """Refuse what `found` names and the last layer, the command line, sets; log what the layers below it set.

    Settings of the lowest layer, ray_config.yaml or the file in its place, are logged with --dry-run only. What `prior`
    inherits is in no layer. Raises UserError.
    """
    typed, recipe, file = [], [], []
    for key, (value, cause) in found.items():
        layer = next((layer for layer in reversed(layers) if lookup(layer.tree, key) is not ABSENT), None)
        if layer is layers[-1]:
            typed.append(f"{key} = {value}: has no effect {cause}")
        elif layer is layers[0]:
            file.append(key)
        elif layer:
            recipe.append(f"{key} = {value} ({layer.source}), {cause.partition(';')[0]}")
    if typed:
        raise UserError(typed[0] + (f" (and {len(typed) - 1} more)" if typed[1:] else ""))
    if recipe:
        log.info("without effect: %s", "; ".join(recipe))
    if file:
        log.log(logging.INFO if dry_run else logging.DEBUG, "defaults without effect here: %s", ", ".join(file))


def _rules(s: Settings, tree: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield patterns of names that do nothing, names of the settings that cause it, and the reason and the remedy."""
    source, model, bridge, bivdiff = s.data.source, s.model, s.bridge, s.bivdiff
    if source != "ucf101":
        yield "data.split_list", "data.source", ", which has no list to choose; leave it out"
    if source in ("ucf101", "msrvtt"):
        yield "data.holdout_fraction", "data.source", ", which has a split of its own; leave it out"
    if source in ("folder", "webdataset"):
        yield "data.annotations", "data.source", ", which reads no annotations; leave it out"
    if isinstance(s.data.stride, int) and s.data.clip_starts == "even":
        remedy = "leave it out, or set data.clip_starts random"
        yield "data.clip_seed", "data.stride data.clip_starts", f", which draw nothing; {remedy}"
    if model.backbone != "latte":
        sizes = "model.size model.hidden_size model.depth model.num_heads"
        yield sizes, "model.backbone", f", whose sizes are in model.{model.backbone}; leave it out"
    if model.backbone == "unet3d":
        yield "model.patch_size", "model.backbone", ", which has no patches; leave it out"
    if bridge.process == "bridge" and not bridge.saf:
        yield "bridge.pretrained_*", "bridge.process bridge.saf", "; leave it out, or set bridge.saf true"
    if bridge.target == "noise" and bridge.loss_weight == "noise":
        yield "bridge.loss_weight", "bridge.target", ", which implies it; set it uniform, or bridge.target v or z0"
    if bridge.prior == "neural" and not s.uses_neural_prior:
        remedy = "set it replicated, or model.prior_condition true"
        yield "bridge.prior", "bridge.process model.prior_condition", f"; {remedy}"
    if bridge.cached_prior and not s.uses_neural_prior:
        remedy = "set it false, or bridge.prior neural, or model.prior_condition true"
        yield "bridge.cached_prior", "bridge.process bridge.prior", f"; {remedy}"
    if s.sample.model_path is None and bivdiff.items is None and model.backbone != "unet3d":
        yield "sample.stride", "model.backbone", ", which does not read the stride; leave it out"
    for patterns, needed in READ_ONLY_WITH.items():
        key, _, wanted = needed.partition(" ")
        if (value := lookup(tree, key)) is None or (wanted and shown(value) != wanted):
            yield patterns, key, f"; leave it out, or set {needed}"
    if bivdiff.items is None:
        return
    for tasks, patterns in READ_BY_TASKS.items():
        if bivdiff.task not in tasks:
            yield patterns, "bivdiff.task", f"; it applies to {' and '.join(tasks)} only; leave it out"
    if bivdiff.control == "files":
        yield "bivdiff.canny", "bivdiff.control", "; leave it out, or set bivdiff.control canny"
    if bivdiff.framework != "bivdiff":
        yield "bivdiff.alpha", "bivdiff.framework", ", which mixes no inversions; leave it out"
