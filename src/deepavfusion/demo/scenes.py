"""The frames of the demo data: drawn instruments in random sizes, places and angles before a random backdrop.

Size, place, angle, background, brightness and contrast have the same distributions for every class; shape, parts and,
most of the time, colour tell the instrument. A sounding instrument jumps when a note starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from deepavfusion.demo.drawings import DRAWINGS, USUAL, Pen, colour

# How hard it is to see the class: wider ranges hide it better. Change VERSION in demo.py with them.
SHORT_SIDES = (216, 224, 232, 240, 248)  # pixels
ASPECTS = (1.0, 1.2, 4 / 3, 1.5)  # long side / short side
SIZE = {1: (0.70, 0.90), 2: (0.56, 0.68), 3: (0.38, 0.48)}  # of the short side, by the number of instruments
STRETCH = 1.4  # long thin instruments are this much longer
COVER, LONGEST = 0.8, 1.55  # of that size, for equal areas: the side of a square of this area; the most of a side
ANGLE = 12.0  # ± degrees
BRIGHTNESS = 15.0  # ± of 255
CONTRAST = (0.85, 1.1)
BACKDROP_VALUE, BACKDROP_SATURATION = (0.1, 0.95), (0.05, 0.45)
STAGE_VALUE, STAGE_SATURATION = (0.3, 0.5), (0.0, 0.08)
TEXTURE = (0.05, 0.35)  # how far the backdrop's second colour is from its first
GRAIN = 3.0  # at most this standard deviation of pixel noise, of 255
JUMP = (0.06, 0.12)  # height of the jump at a note's start, of the short side
SWING = 12.0  # ± degrees of the swing at a note's start
CALM = 0.16  # seconds after which both have fallen to 1/e

LONG = ("guitar", "violin", "flute", "trumpet", "banjo")

Pose = tuple[int, int]  # height of the jump in pixels, swing in degrees
Draw = Callable[[str, Generator], Image.Image]  # the picture of a name, RGBA
Paint = Callable[[Generator, int, int], Image.Image]  # what lies behind all, RGB, of a width and height


@dataclass
class Sprite:
    """One instrument in its place. `x`, `y`: its centre at rest in pixels; `turned`: the image by swing."""

    image: Image.Image
    angle: float
    x: float = 0.0
    y: float = 0.0
    turned: dict[int, Image.Image] = field(default_factory=dict)

    def posed(self, pose: Pose) -> tuple[Image.Image, tuple[int, int]]:
        """The rotated drawing and its top left corner."""
        jump, swing = pose
        if swing not in self.turned:
            self.turned[swing] = self.image.rotate(self.angle + swing, Image.Resampling.BICUBIC, expand=True)
        image = self.turned[swing]
        return image, (round(self.x - image.width / 2), round(self.y - image.height / 2) - jump)

    def alpha(self, pose: Pose, width: int, height: int) -> Image.Image:
        """How much of each pixel it covers, 0…255."""
        out = Image.new("L", (width, height))
        image, corner = self.posed(pose)
        out.paste(image.getchannel("A"), corner)
        return out


class Scene:
    """A scene of some instruments, the first `len(onsets)` of which move at the given note starts.

    Args:
        rng: decides everything else.
        instruments: keys of `DRAWINGS`, or whatever `draw` takes; all different.
        onsets: seconds at which each sounding instrument starts a note.
        stage: instruments have their usual colours and stand before something grey.
        draw: gives the pictures of the instruments; None: as drawn.
        even: pictures cover equal areas, however long and thin; otherwise their longest sides are equal.
        paint: gives the backdrop; None: mixed colours.
    """

    def __init__(
        self,
        rng: Generator,
        instruments: list[str],
        onsets: list[list[float]],
        stage: bool = False,
        draw: Draw | None = None,
        paint: Paint | None = None,
        even: bool = False,
    ) -> None:
        short = int(rng.choice(SHORT_SIDES))
        long = 2 * round(short * rng.choice(ASPECTS) / 2)
        size: tuple[int, int] = (long, short) if rng.random() < 0.8 else (short, long)
        self.width, self.height = size
        self.onsets = onsets
        low, high = SIZE[len(instruments)]
        draw = draw or partial(_drawn, stage)
        self.sprites = [
            _sprite(name, short * rng.uniform(low, high), rng.uniform(-ANGLE, ANGLE), rng, draw, even)
            for name in instruments
        ]
        _place(self.sprites, self.width, self.height, rng)
        self.jump, self.swing = rng.uniform(*JUMP) * short, rng.choice([-1, 1]) * SWING
        gain, offset = rng.uniform(*CONTRAST), rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        levels = [round((value - 128) * gain + 128 + offset) for value in range(256)] * 3
        for sprite in self.sprites:
            sprite.image = sprite.image.point([*levels, *range(256)])
            sprite.turned.clear()
        self.backdrop = (paint or partial(backdrop, stage))(rng, self.width, self.height).point(levels)
        for sprite in self.sprites[len(onsets) :]:
            image, corner = sprite.posed((0, 0))
            self.backdrop.paste(image, corner, image)
        deviation = rng.uniform(0, GRAIN)
        grain = rng.standard_normal((self.height, self.width), np.float32) * np.float32(deviation)
        self.grain_mean = round(2.5 * deviation)  # pixels of an image are not negative
        self.grain = Image.fromarray(np.maximum(grain + self.grain_mean, 0).astype(np.uint8)).convert("RGB")
        self._last: tuple[tuple[Pose, ...], NDArray[np.uint8]] | None = None

    def poses(self, time: float) -> tuple[Pose, ...]:
        """Where the sounding instruments are at `time`, seconds: thrown up by a note, then at rest."""
        out = []
        for onsets in self.onsets:
            since = min((time - onset for onset in onsets if onset <= time), default=np.inf)
            calm = np.exp(-since / CALM)
            out.append((round(self.jump * calm), 3 * round(self.swing * calm / 3)))
        return tuple(out)

    def frame(self, time: float) -> NDArray[np.uint8]:
        """The frame at `time`, uint8 [H, W, 3]."""
        poses = self.poses(time)
        if self._last is None or self._last[0] != poses:
            image = self.backdrop.copy()
            for sprite, pose in zip(self.sprites, poses, strict=False):
                turned, corner = sprite.posed(pose)
                image.paste(turned, corner, turned)
            image = ImageChops.add(image, self.grain, 1.0, -self.grain_mean)
            self._last = poses, np.array(image)
        return self._last[1]

    def masks(self, time: float) -> list[NDArray[np.bool_]]:
        """Of each sounding instrument, where it is seen at `time`: bool [H, W]; later ones lie on top."""
        alphas = [
            np.asarray(sprite.alpha(pose, self.width, self.height)) > 127
            for sprite, pose in zip(self.sprites, self.poses(time), strict=False)
        ]
        for index, lower in enumerate(alphas):
            for upper in alphas[index + 1 :]:
                alphas[index] = lower = lower & ~upper
        return alphas


def _drawn(stage: bool, name: str, rng: Generator) -> Image.Image:
    pen = Pen(name, rng, 1.0 if stage else USUAL)
    DRAWINGS[name](pen, rng)
    return pen.image


def _sprite(name: str, size: float, angle: float, rng: Generator, draw: Draw, even: bool) -> Sprite:
    drawn = draw(name, rng)
    image = drawn.crop(drawn.getbbox())
    scale = size * (STRETCH if name in LONG else 1.0) / max(image.size)
    if even:
        covered = float(np.asarray(image.getchannel("A"), np.float64).sum()) / 255  # pixels
        scale = size * min(COVER / covered**0.5, LONGEST / max(image.size))
    width, height = (max(2, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Sprite(image, angle)


def _place(sprites: list[Sprite], width: int, height: int, rng: Generator) -> None:
    """Random places inside the frame: of 30 tries the first without overlap, else the one with least."""
    best, places = width * height, [(0.0, 0.0)] * len(sprites)
    small = width // 4, height // 4
    images = [sprite.posed((0, 0))[0] for sprite in sprites]
    stamps = [(image.size, image.getchannel("A").reduce(4)) for image in images]  # and coverage at a quarter of it
    for _ in range(30):
        cover, tried = np.zeros(small[::-1], np.int64), []
        for (w, h), stamp in stamps:
            x = rng.uniform(min(w, width) / 2, width - min(w, width) / 2)
            y = rng.uniform(min(h, height) / 2, height - min(h, height) / 2)
            layer = Image.new("L", small)
            layer.paste(stamp, (round((x - w / 2) / 4), round((y - h / 2) / 4)))
            cover += np.asarray(layer) > 127
            tried.append((x, y))
        overlap = int((cover > 1).sum())
        if overlap < best:
            best, places = overlap, tried
        if not overlap:
            break
    for sprite, place in zip(sprites, places, strict=True):
        sprite.x, sprite.y = place


def backdrop(stage: bool, rng: Generator, width: int, height: int) -> Image.Image:
    """Two to four colours mixed by a smooth noise, a gradient, stripes or blobs."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / min(width, height)
    kind = rng.choice(["noise", "gradient", "stripes", "blobs"])
    turn = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    cells = int(rng.integers(4, 24))
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    rough = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / np.float32(255)
    field_: NDArray[np.floating]
    if kind == "noise":
        field_ = rough
    elif kind == "gradient":
        field_ = along - along.min()
        field_ = field_ / field_.max() + 0.2 * rough
    elif kind == "stripes":
        field_ = 0.5 + 0.5 * np.sin(along * 2 * np.pi * rng.uniform(2, 12)) + 0.3 * rough
    else:
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(6, 25))):
            cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(6, 50)
            draw.ellipse([cx - r, cy - r * rng.uniform(0.4, 1), cx + r, cy + r], int(rng.integers(60, 256)))
        field_ = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 5))), np.float32) / 255
    value, saturation = (STAGE_VALUE, STAGE_SATURATION) if stage else (BACKDROP_VALUE, BACKDROP_SATURATION)
    first, second = (np.array(colour(rng, value, saturation), np.float32) for _ in range(2))
    mixed = first + rng.uniform(*TEXTURE) * np.clip(field_, 0, 1)[..., None] * (second - first)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
