"""FrameBridge image-to-video models on Ray: from videos to a latent cache, training, sampling and reports.

    settings  ray_config.yaml, recipes and the command line, checked
    data      video file -> planned clip -> frames -> latent shard (cache/) -> training batch (load/)
    bridge    training batch -> bridge loss; prior -> clip by a sampler
    models    networks, their files, and checkpoints of others
    train     loop, DeepSpeed, checkpoints, exports
    sampling  export -> generated clips;  metrics, report: their measurement, and the page that shows them

Four names serve a program of your own; each is imported when it is first used:

    load_settings(recipe, overrides)   settings of a recipe
    open_cache(path)                   a committed cache
    LatentDataset(cache, split)        its clips as a torch Dataset
    load_model(path)                   the network of an export

Installed, this package is called `framebridge`; in a checkout, `pipeline`.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.cache.manifest import open_cache
    from .data.load.dataset import LatentDataset
    from .models.build import load_model
    from .settings import load_settings

__all__ = ["LatentDataset", "load_model", "load_settings", "open_cache"]

FRAMEBRIDGE = True  # tells this package from another one that is called `pipeline`

_HOMES = {
    "LatentDataset": "data.load.dataset",
    "load_model": "models.build",
    "load_settings": "settings",
    "open_cache": "data.cache.manifest",
}
_OTHER = "framebridge" if __name__ == "pipeline" else "pipeline"
if getattr(sys.modules.get(_OTHER), "FRAMEBRIDGE", False):
    raise ImportError(
        f"{__name__}: this process has imported the same package as {_OTHER}; import it under one name only "
        "(framebridge where it is installed, pipeline in a checkout)"
    )


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import pipeline` loads neither PyTorch nor Ray."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
