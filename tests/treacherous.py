"""A decoder that fails in the ways in which decoders fail; child processes import it."""

import ctypes
import os
import signal
import time
from typing import Any

from pipeline.data.decode import DecodeFailure, decode_clip
from pipeline.schema import PlannedClip
from pipeline.settings import DataSettings


def decode(planned: PlannedClip, data: DataSettings) -> Any:
    """A decoder that does what the video's name says."""
    name = planned["video"]
    if name == "segfault":
        ctypes.string_at(0)
    elif name == "exit":
        os._exit(0)
    elif name == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
        time.sleep(1000)
    elif name == "bug":
        raise ZeroDivisionError("a bug of ours")
    elif name == "memory":
        raise DecodeFailure("too_large", "on purpose")
    return decode_clip(planned, data)
