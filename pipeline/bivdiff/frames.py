"""FILES -> FRAMES: the source video, control maps and masks of a clip, cut and cropped alike."""

from typing import NamedTuple

import numpy as np

from ..data.decode.fetch import DecodeFailure
from ..data.decode.stage import isolated_decoder
from ..data.plan.windows import TooShort, place_window, window_indices
from ..errors import UserError
from ..sampling.items import InputRejected, check_image, open_image
from ..schema import PlannedClip
from ..settings import DataSettings
from ..settings.bivdiff import CONTROLLED, BivdiffSettings
from ..storage.files import read_bytes
from .items import BivdiffClip, pictures

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Sources(NamedTuple):
    """The frames that a clip is made from, uint8 or None."""

    video: np.ndarray | None  # (F, H, W, 3)
    control: np.ndarray | None  # (F, H, W, 3)
    mask: np.ndarray | None  # (F, H, W): 255 where the picture is to be made


class FileFrames(NamedTuple):
    """Frames of a clip, and the size of the file that they come from."""

    frames: np.ndarray  # uint8 (F, H, W, 3)
    total: int  # frames in the file
    height: int  # of the file's frames
    width: int


def read_sources(clip: BivdiffClip, bivdiff: BivdiffSettings, data: DataSettings) -> Sources:
    """Read the frames of a clip's files. Raises InputRejected if that fails, or if they do not belong together."""
    files = {"video": clip["video"], "control": clip["control"], "mask": clip["mask"]}
    found = {name: read_frames(address, name, data) for name, address in files.items() if address}
    check_alike(found)
    video, control, mask = (found[name].frames if name in found else None for name in files)
    if bivdiff.task in CONTROLLED and bivdiff.control == "canny" and video is not None:
        control = canny(video, *bivdiff.canny)
    if mask is not None:
        mask = np.where(mask.mean(-1) >= 128, 255, 0).astype(np.uint8)  # white is to be made
    if bivdiff.task == "outpainting":
        mask = outpainting_mask(data, bivdiff.outpaint)
    return Sources(video, control, mask)


def check_alike(found: dict[str, FileFrames]) -> None:
    """Raise InputRejected unless maps and masks have the video's size, and as many frames or a single one."""
    if "video" not in found:
        return
    video = found["video"]
    for name, read in found.items():
        if (read.height, read.width) != (video.height, video.width):
            raise InputRejected(
                f"{name} is {read.width} x {read.height}, the video {video.width} x {video.height}; give one size"
            )
        if read.total not in (1, video.total):
            raise InputRejected(f"{name} has {read.total} frames, the video {video.total}; give as many, or one")


def read_frames(address: str, column: str, data: DataSettings) -> FileFrames:
    """Read the clip in a video or folder of pictures; a single picture is every frame. Raises InputRejected."""
    try:
        if found := pictures(address):
            return read_pictures(found, data)
        if address.lower().endswith(PICTURES):
            return read_pictures([address], data)
        planned = PlannedClip(
            uri=address, video=column, size=-1, split="test", label="", caption="", ordinal=0, clips=1, flip=False
        )
        frames, span = isolated_decoder.decode(planned, data)
    except (DecodeFailure, InputRejected, TooShort) as problem:
        raise InputRejected(f"{column} {address}: {problem}") from problem
    return FileFrames(frames, span["source_frames"], span["source_height"], span["source_width"])


def read_pictures(addresses: list[str], data: DataSettings) -> FileFrames:
    """Read the pictures that a video of as many frames would give. Raises InputRejected, TooShort."""
    indices = [0] * data.frames
    if len(addresses) > 1:
        window = place_window(len(addresses), 0, 1, "", "", data)
        indices = window_indices(window.start, window.span, data.frames)
    contents = {index: read_bytes(addresses[index]) for index in set(indices)}
    sizes = {check_image(content, data.max_pixels) for content in contents.values()}
    if len(sizes) > 1:
        raise InputRejected(f"pictures of different sizes: {', '.join(f'{w} x {h}' for h, w in sorted(sizes))}")
    opened = {index: open_image(content, data.height, data.width) for index, content in contents.items()}
    return FileFrames(np.stack([opened[index] for index in indices]), len(addresses), *sizes.pop())


def outpainting_mask(data: DataSettings, outpaint: str) -> np.ndarray:
    """A mask (F, H, W) of the outer quarters, at the sides or at top and bottom."""
    mask = np.full((data.frames, data.height, data.width), 255, np.uint8)
    if outpaint == "sides":
        mask[:, :, data.width // 4 : data.width - data.width // 4] = 0
    else:
        mask[:, data.height // 4 : data.height - data.height // 4] = 0
    return mask


def check_canny(bivdiff: BivdiffSettings) -> None:
    """Raise UserError if edges are asked for and OpenCV is not installed."""
    if bivdiff.control != "canny":
        return
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"bivdiff.control = canny: OpenCV cannot be imported ({error}); pip install opencv-python-headless on "
            "every node (extra canny), or give the maps as files"
        ) from error


def canny(frames: np.ndarray, low: float, high: float) -> np.ndarray:
    """Canny's edges, white on black, of uint8 (F, H, W, 3), as ControlNet's canny model takes them."""
    import cv2

    return np.stack([cv2.Canny(frame, low, high) for frame in frames])[..., None].repeat(3, -1)
