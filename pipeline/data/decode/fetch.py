"""URI -> LOCAL FILE: the bytes of one video, wherever they lie, at a path that every decoder can open.

A video in a tar has the URI TAR#MEMBER@OFFSET+SIZE, so that only its own bytes are read.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ...storage.files import download, is_remote, read_range
from ...storage.s3 import StorageRefused
from ..plan.members import Member, parse_member

CHUNK = 8 << 20


class DecodeFailure(ValueError):
    """A clip that cannot be made: `reason`, a word by which rejected clips are counted, and `detail`, one line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it survives pickling
        self.reason = reason
        self.detail = " ".join(detail.split())[:300]

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """A path to the video's bytes; those on s3:// or in a tar are copied, and the copy is deleted afterwards.

    Raises DecodeFailure: missing, refused, truncated (a tar that ends too early); StorageUnavailable.
    """
    member = parse_member(uri)
    if member is None and not is_remote(uri):
        if not Path(uri).is_file():
            raise DecodeFailure("missing", f"{uri}: no such file")
        yield Path(uri)
        return
    with tempfile.NamedTemporaryFile(suffix=Path(member.name if member else uri).suffix) as copy:
        try:
            if member is None:
                download(uri, copy)
            else:
                _extract(member, copy)
        except FileNotFoundError as error:
            raise DecodeFailure("missing", one_line(error)) from error
        except StorageRefused as error:  # this object only: planning has read the bucket
            raise DecodeFailure("refused", str(error)) from error
        copy.flush()
        yield Path(copy.name)


def _extract(member: Member, stream: IO[bytes]) -> None:
    for start in range(0, member.size, CHUNK):
        length = min(CHUNK, member.size - start)
        part = read_range(member.tar, member.offset + start, length)
        stream.write(part)
        if len(part) != length:
            raise DecodeFailure("truncated", f"the tar ends after {start + len(part)} of its {member.size} bytes")


def one_line(error: BaseException) -> str:
    """The error's type and message, on one line."""
    return " ".join(f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}".split())
