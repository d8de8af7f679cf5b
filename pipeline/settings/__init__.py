"""Settings: what each may be, where values come from, and which combinations are refused.

    load            ray_config.yaml < recipes < command line, to one checked tree; `load` and `build`
    recipe          the files of jobs/recipes, and which builds on which
    layers          the order of the layers, and where a value comes from
    names           names of earlier versions that are still accepted
    tree            Settings, the whole tree
    run, data, encoders, model, bridge, train, sample, evaluate, ablate, bivdiff, cluster
                    a section's fields and its checks, one file each
    cross_checks    checks that look at several sections
    section         the base class of sections

Whatever a user can get wrong raises UserError: one line with the key, the value, what was expected and the remedy.
There are no defaults here: ray_config.yaml has them. A function takes the section that it reads, not the whole tree.
"""

from .ablate import AblateSettings
from .bivdiff import BivdiffSettings
from .bridge import BridgeSettings
from .cluster import ActorResources, ClusterSettings, DecodeResources, Labels, TrainResources
from .data import CacheSettings, DataSettings, MixedCache
from .encoders import LATENT_CHANNELS, VAE_DOWNSAMPLING, TextSettings, VaeSettings
from .evaluate import EvaluateSettings
from .load import build, load, load_settings, parse_overrides, to_yaml
from .model import Backbone, CogVideoXSettings, ModelSettings, UNet3DSettings, VideoModelSettings
from .names import without_removed
from .recipe import RECIPES, ROOT, read_yaml, recipes
from .run import RunSettings
from .sample import SampleSettings
from .section import Section
from .train import LoraSettings, PriorSettings, TrainSettings
from .tree import Settings

__all__ = [
    "LATENT_CHANNELS",
    "RECIPES",
    "ROOT",
    "VAE_DOWNSAMPLING",
    "AblateSettings",
    "ActorResources",
    "Backbone",
    "BivdiffSettings",
    "BridgeSettings",
    "CacheSettings",
    "ClusterSettings",
    "CogVideoXSettings",
    "DataSettings",
    "DecodeResources",
    "EvaluateSettings",
    "Labels",
    "LoraSettings",
    "MixedCache",
    "ModelSettings",
    "PriorSettings",
    "RunSettings",
    "SampleSettings",
    "Section",
    "Settings",
    "TextSettings",
    "TrainResources",
    "TrainSettings",
    "UNet3DSettings",
    "VaeSettings",
    "VideoModelSettings",
    "build",
    "load",
    "load_settings",
    "parse_overrides",
    "read_yaml",
    "recipes",
    "to_yaml",
    "without_removed",
]
