"""Settings: what each may be, where values come from, and which combinations are refused.

    load            from the command line to one checked tree; every mistake explained in one line
    layers          read ray_config.yaml and recipes under present names, and merge them
    tree            Settings, the whole tree, and the checks that look at several sections
    run, data, model, bridge, train, sample, evaluate, bivdiff
                    the fields of one or more sections, with the checks of a section
    without_effect  settings that do nothing beside the others
    section         the base class of sections

Whatever a user can get wrong raises UserError: one line with the key, the value, what was expected and the remedy.
There are no defaults here: ray_config.yaml has them. A function takes the section that it reads, not the whole tree.
"""

from .bivdiff import BivdiffSettings
from .bridge import BridgeSettings
from .data import LATENT_CHANNELS, VAE_DOWNSAMPLING, CacheSettings, DataSettings, MixedCache, TextSettings, VaeSettings
from .layers import RECIPES, ROOT, read_yaml, recipes, without_removed
from .load import build, load, load_settings, parse_overrides
from .model import Backbone, CogVideoXSettings, ModelSettings, UNet3DSettings, VideoModelSettings
from .run import ActorResources, ClusterSettings, DecodeResources, Labels, RunSettings, TrainResources
from .sample import AblateSettings, EvaluateSettings, SampleSettings
from .section import Section
from .train import LoraSettings, PriorSettings, TrainSettings
from .tree import Settings
