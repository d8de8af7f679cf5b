"""FrameBridge image-to-video models on Ray: from videos to a latent cache, training, sampling and reports.

Installed, this package is called `framebridge`; in a checkout, `pipeline`.
"""

import sys

FRAMEBRIDGE = True  # tells this package from another one that is called `pipeline`

_OTHER = "framebridge" if __name__ == "pipeline" else "pipeline"
if getattr(sys.modules.get(_OTHER), "FRAMEBRIDGE", False):
    raise ImportError(
        f"{__name__}: this process has imported the same package as {_OTHER}; import it under one name only "
        "(framebridge where it is installed, pipeline in a checkout)"
    )
