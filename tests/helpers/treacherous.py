"""A decoder that fails in the ways in which decoders fail; child processes import it."""

import ctypes
import os
import signal
import time
from typing import Any

from pipeline.data.decode.decoders import decode_clip
from pipeline.data.decode.fetch import DecodeFailure
from pipeline.schema import PlannedClip
from pipeline.settings import DataSettings

hoard: list[Any] = []


def decode(planned: PlannedClip, data: DataSettings, decoder: str | None = None) -> Any:
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
    elif name == "too_large":
        raise DecodeFailure("too_large", "on purpose")
    elif name == "eats":
        hoard.extend(b"x" * 2**20 for _ in range(100_000))
    elif name == "eats_in_a_library":
        try:
            hoard.append(bytearray(2**40))
        except MemoryError as error:
            raise DecodeFailure("unreadable", "what a library said") from error
    elif name.startswith("leaks"):
        hoard.append(b"x" * (160 * 2**20))
    elif name.startswith("killed "):  # "killed 2": the first two times
        with open(f"{planned['uri']}.tries", "a+b") as tries:
            tries.write(b"x")
            times = tries.tell()
        if times <= int(name.split()[1]):
            os.kill(os.getpid(), signal.SIGKILL)
    return decode_clip(planned, data, decoder)
