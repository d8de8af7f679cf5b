"""Synthetic videos with known motion: the data set of `make demo` and of the shipped models.

Textured objects move over varied backgrounds; other objects and posts in front partly hide them. The class names the
motion, so an image and a class determine most of the clip. The videos are H.264 files in UCF-101's layout:

    FOLDER/CLASS/v_CLASS_g01_c01.mp4
    FOLDER/ucfTrainTestlist/{classInd.txt, trainlist01.txt, testlist01.txt}
    FOLDER/captions.json     {"CLASS/FILE": "a red striped disc slides to the right over ..."}
    FOLDER/motion.json       {"CLASS/FILE": {"velocity": [x, y], "spin": ..., ...}}, the true motion

The same seed gives the same pixels.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..media import write_h264

FPS = 25
# 4:3 as in UCF-101. In world units the frame has height 1, its origin is in the centre, and y points down.
HEIGHT, WIDTH = 96, 128

COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 140, 6),
    "yellow": (255, 215, 20),
    "green": (40, 160, 70),
    "cyan": (30, 190, 200),
    "blue": (35, 80, 210),
    "purple": (130, 50, 190),
    "pink": (240, 110, 170),
    "white": (240, 240, 240),
}
BACKGROUNDS = {
    "sky": ((110, 165, 215), (205, 225, 240)),
    "sand": ((190, 165, 120), (225, 205, 165)),
    "meadow": ((95, 130, 75), (150, 175, 110)),
    "dusk": ((70, 60, 95), (150, 105, 115)),
    "stone": ((105, 105, 110), (165, 165, 165)),
    "night": ((18, 24, 48), (45, 55, 90)),
}
SHAPES = ("disc", "square", "triangle", "star", "ring")
TEXTURES = ("plain", "striped", "checked", "spotted")
GROUNDS = ("smooth", "wavy", "tiled", "hazy")


@dataclass(frozen=True)
class Body:
    """An object: its looks, and its motion in world units and seconds."""

    shape: str
    texture: str
    colour: str
    second: str
    radius: float
    position: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    spin: float = 0.0  # radians per second
    growth: float = 0.0  # e-folds per second
    bounce: float = 0.0  # height
    bounce_rate: float = 0.0  # bounces per second
    bounce_phase: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A video: bodies from back to front, a background, a camera that pans and zooms, an optional post in front."""

    bodies: tuple[Body, ...]
    background: str
    ground: str
    ground_seed: int
    pan: tuple[float, float] = (0.0, 0.0)  # world units per second
    zoom: float = 0.0  # e-folds per second
    post: float | None = None  # x of a post in front, or None


def _slide(scene: Scene, random: np.random.Generator, sign: int) -> Scene:
    speed = random.uniform(0.26, 0.36)
    start = (-sign * random.uniform(0.2, 0.36), random.uniform(-0.2, 0.2))
    return _alone(scene, position=start, velocity=(sign * speed, 0.0))


def _bounce(scene: Scene, random: np.random.Generator) -> Scene:
    return _alone(
        scene,
        position=(random.uniform(-0.2, 0.2), 0.26),
        bounce=random.uniform(0.38, 0.5),
        bounce_rate=random.uniform(0.75, 0.95),
        bounce_phase=random.uniform(0, 0.25),
    )


def _spin(scene: Scene, random: np.random.Generator) -> Scene:
    shape = scene.bodies[0].shape
    return _alone(
        scene,
        shape=("square", "triangle", "star")[random.integers(3)] if shape in ("disc", "ring") else shape,
        radius=random.uniform(0.28, 0.36),
        position=(random.uniform(-0.08, 0.08), random.uniform(-0.08, 0.08)),
        angle=random.uniform(0, 2 * np.pi),
        spin=random.uniform(1.3, 1.7),
    )


def _grow(scene: Scene, random: np.random.Generator) -> Scene:
    radius = random.uniform(0.14, 0.17)
    return _alone(scene, radius=radius, position=_near_centre(random), growth=random.uniform(0.4, 0.5))


def _camera_pan(scene: Scene, random: np.random.Generator) -> Scene:
    scene = _alone(scene, position=(random.uniform(0.2, 0.36), random.uniform(-0.15, 0.15)))
    return replace(scene, pan=(random.uniform(0.24, 0.32), 0.0))


def _camera_zoom(scene: Scene, random: np.random.Generator) -> Scene:
    scene = _alone(scene, radius=random.uniform(0.17, 0.21), position=_near_centre(random))
    return replace(scene, zoom=random.uniform(0.28, 0.36))


def _cross(scene: Scene, random: np.random.Generator) -> Scene:
    behind, front = scene.bodies
    speed = random.uniform(0.24, 0.32)
    height = random.uniform(-0.15, 0.05)
    behind = replace(behind, position=(random.uniform(0.26, 0.34), height), velocity=(-speed, 0.0))
    front = replace(front, position=(-random.uniform(0.26, 0.34), height + 0.12), velocity=(speed, 0.0))
    return replace(scene, bodies=(behind, front))


def _alone(scene: Scene, **changes: Any) -> Scene:
    """The scene with its first body only, changed."""
    return replace(scene, bodies=(replace(scene.bodies[0], **changes),))


def _near_centre(random: np.random.Generator) -> tuple[float, float]:
    return random.uniform(-0.15, 0.15), random.uniform(-0.12, 0.12)


MOTIONS: dict[str, tuple[Callable[[Scene, np.random.Generator], Scene], str]] = {
    "Bounce": (_bounce, "bounces up and down"),
    "CameraPan": (_camera_pan, "stands still while the camera pans to the right"),
    "CameraZoom": (_camera_zoom, "stands still while the camera zooms in"),
    "Cross": (_cross, "passes in front of another object"),
    "Grow": (_grow, "comes closer"),
    "SlideLeft": (partial(_slide, sign=-1), "slides to the left"),
    "SlideRight": (partial(_slide, sign=+1), "slides to the right"),
    "Spin": (_spin, "spins clockwise"),
}
CLASSES = tuple(MOTIONS)


def random_scene(motion: str, random: np.random.Generator) -> Scene:
    """Draw a scene of class `motion` with random looks."""

    def body() -> Body:
        first, second = random.choice(len(COLOURS), 2, replace=False)
        return Body(
            shape=SHAPES[random.integers(len(SHAPES))],
            texture=TEXTURES[random.integers(len(TEXTURES))],
            colour=list(COLOURS)[first],
            second=list(COLOURS)[second],
            radius=random.uniform(0.21, 0.27),
            position=(0.0, 0.0),
            angle=random.uniform(-0.3, 0.3),
        )

    post = random.uniform(-0.45, 0.45) if random.random() < 0.25 else None
    scene = Scene(
        bodies=(body(), body()),
        background=list(BACKGROUNDS)[random.integers(len(BACKGROUNDS))],
        ground=GROUNDS[random.integers(len(GROUNDS))],
        ground_seed=int(random.integers(2**31)),
        post=post if motion != "Spin" else None,
    )
    return MOTIONS[motion][0](scene, random)


def caption(motion: str, scene: Scene) -> str:
    """Describe the scene as a person would."""
    body = scene.bodies[-1]
    texture = "" if body.texture == "plain" else f"{body.texture} "
    return f"a {body.colour} {texture}{body.shape} {MOTIONS[motion][1]}, {scene.background} background"


def render(scene: Scene, seconds: float, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Draw the frame at `seconds`, anti-aliased: uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5 - width / 2) / height, (y + 0.5 - height / 2) / height
    scale = float(np.exp(-scene.zoom * seconds))
    world_x, world_y = x * scale + scene.pan[0] * seconds, y * scale + scene.pan[1] * seconds
    pixel = scale / height
    image = _background(scene, world_x, world_y)
    for body in scene.bodies:
        colour, mask = _draw(body, seconds, world_x, world_y, pixel)
        image += mask[..., None] * (colour - image)
    if scene.post is not None:
        mask = np.clip((0.045 - np.abs(world_x - scene.post)) / pixel + 0.5, 0, 1)
        shade = 70 + 60 * (world_x - scene.post)[..., None] / 0.045 * np.array([0.5, 0.45, 0.4], np.float32)
        image += mask[..., None] * (shade - image)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _background(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    low, high = (np.array(colour, np.float32) for colour in BACKGROUNDS[scene.background])
    random = np.random.default_rng(scene.ground_seed)
    phase = random.uniform(0, 2 * np.pi, 4)
    angle = random.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if scene.ground == "smooth":
        level = 0.5 + 0.8 * y
    elif scene.ground == "wavy":
        level = 0.5 + 0.35 * np.sin(10 * along + phase[0] + 0.8 * np.sin(6 * across + phase[1]))
    elif scene.ground == "tiled":
        level = 0.5 + 0.3 * np.tanh(6 * np.sin(9 * along + phase[0]) * np.sin(9 * across + phase[1]))
    else:
        level = 0.5 + 0.2 * sum(
            np.sin((4 + 3 * k) * (x if k % 2 else y) + (k + 2) * along + phase[k]) for k in range(3)
        )
    return low + np.clip(level, 0, 1)[..., None] * (high - low)


def _draw(body: Body, seconds: float, x: np.ndarray, y: np.ndarray, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the colour (H, W, 3) and the coverage (H, W) of a body."""
    lift = body.bounce * abs(np.sin(np.pi * (body.bounce_rate * seconds + body.bounce_phase)))
    radius = body.radius * float(np.exp(body.growth * seconds))
    angle = body.angle + body.spin * seconds
    dx = (x - body.position[0] - body.velocity[0] * seconds) / radius
    dy = (y - body.position[1] - body.velocity[1] * seconds + lift) / radius
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    mask = np.clip(-_signed_distance(body.shape, u, v) * radius / pixel + 0.5, 0, 1)
    blend = _texture(body.texture, u, v, pixel / radius)[..., None]
    first, second = np.array(COLOURS[body.colour], np.float32), np.array(COLOURS[body.second], np.float32)
    light = (1.0 - 0.22 * (dx + dy))[..., None]  # comes from the upper left, whatever the spin
    return np.clip((first + blend * (second - first)) * light, 0, 255), mask


def _signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a value that is negative inside and, near the edge, about the distance to it in radii."""
    r = np.hypot(u, v)
    if shape == "disc":
        return r - 1
    if shape == "ring":
        return np.abs(r - 0.72) - 0.28
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.86
    if shape == "triangle":
        return np.maximum(np.maximum(v - 0.55, 0.866 * u - 0.5 * v - 0.55), -0.866 * u - 0.5 * v - 0.55)
    turn = np.arctan2(v, u) * 5 / 2  # star
    return r - (0.72 + 0.3 * np.cos(turn * 2))


def _texture(texture: str, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
    """Return 0 for the first colour and 1 for the second.

    Textures are coarse: at 64 pixels a latent cell covers a third of a radius or more.
    """
    soft = max(pixel * 4, 0.15)
    if texture == "striped":
        return np.clip((0.33 - np.abs(u)) / soft + 0.5, 0, 1)
    if texture == "checked":
        return np.clip(np.sin(3 * u) * np.sin(3 * v) / soft + 0.5, 0, 1)
    if texture == "spotted":
        return np.clip((0.42 - np.hypot(u, v)) / soft + 0.5, 0, 1)
    return np.zeros_like(u)


def make_dataset(folder: str, videos: int, seed: int, frames: int = 52, test_share: float = 0.1) -> int:
    """Write `videos` videos, spread over the classes, unless the folder holds them already.

    Returns how many it wrote: all or none. Raises UserError if the folder holds anything else, such as videos made
    with other arguments.
    """
    root = Path(folder).expanduser()
    stamp = {"videos": videos, "seed": seed, "frames": frames, "test_share": test_share, "version": 2}
    mark = root / "synthetic.json"
    if mark.is_file():
        if json.loads(mark.read_text()) == stamp:
            return 0
        raise UserError(f"{root}: holds synthetic videos made with other settings; give another folder, or delete it")
    if root.is_dir() and any(child.name not in CLASSES for child in root.iterdir()):
        raise UserError(f"{root}: is not empty and not a synthetic data set; give another folder")
    captions: dict[str, str] = {}
    motions: dict[str, Any] = {}
    train, test = [], []
    # hold out groups, as UCF-101 does: every class has the same share of test videos
    groups = range(-(-videos // len(CLASSES)))
    shuffled = sorted(groups, key=lambda group: zlib.crc32(f"{seed}/{group}".encode()) % 1000)
    held_out = shuffled[: round(test_share * len(groups))]
    for number in range(videos):
        group, index = divmod(number, len(CLASSES))
        motion = CLASSES[index]
        scene = random_scene(motion, np.random.default_rng([seed, number]))
        name = f"{motion}/v_{motion}_g{group // 10 + 1:02d}_c{group % 10 + 1:02d}.mp4"
        write_video(root / name, (render(scene, frame / FPS) for frame in range(frames)))
        captions[name] = caption(motion, scene)
        motions[name] = asdict(scene)
        if group in held_out:
            test.append(f"{name}\n")
        else:
            train.append(f"{name} {index + 1}\n")
    lists = root / "ucfTrainTestlist"
    lists.mkdir(exist_ok=True)
    (lists / "classInd.txt").write_text("".join(f"{index} {name}\n" for index, name in enumerate(CLASSES, 1)))
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text("".join(test))
    (root / "captions.json").write_text(json.dumps(captions, indent=1))
    (root / "motion.json").write_text(json.dumps(motions, indent=1))
    mark.write_text(json.dumps(stamp))
    return videos


def write_video(path: Path, frames: Iterator[np.ndarray], fps: int = FPS) -> None:
    """Write uint8 (H, W, 3) frames as an H.264 MP4, and rename it into place when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    write_h264(str(beside), frames, fps, crf=16, preset="veryfast")
    beside.replace(path)
