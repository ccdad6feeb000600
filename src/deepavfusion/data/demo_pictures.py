"""Drawn instruments for the demo data: eight shapes in random colours, sizes, places and angles.

Colour, size, place, angle, background, brightness and contrast have the same distributions for every class,
so raw pixels do not tell the instrument; its shape and parts do. Whoever sounds jumps when a note starts.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

# How hard it is to see the class: wider ranges hide it better. Change VERSION in demo.py with them.
SHORT_SIDES = (216, 224, 232, 240, 248)  # pixels
ASPECTS = (1.0, 1.2, 4 / 3, 1.5)  # long side / short side
SIZE = {1: (0.70, 0.90), 2: (0.56, 0.68), 3: (0.38, 0.48)}  # of the short side, by the number of instruments
STRETCH = 1.4  # long thin instruments are this much longer
ANGLE = 12.0  # ± degrees
BRIGHTNESS = 15.0  # ± of 255
CONTRAST = (0.85, 1.1)
BACKDROP_SATURATION = (0.05, 0.45)
TEXTURE = (0.05, 0.35)  # how far the backdrop's second colour is from its first
GRAIN = 3.0  # at most this standard deviation of pixel noise, of 255
JUMP = (0.06, 0.12)  # height of the jump at a note's start, of the short side
SWING = 12.0  # ± degrees of the swing at a note's start
CALM = 0.16  # seconds after which both have fallen to 1/e

CANVAS = 512  # pixels of the square on which a sprite is drawn, before it is reduced
LONG = ("guitar", "violin", "flute", "trumpet", "banjo")

Colour = tuple[int, int, int]
Pose = tuple[int, int]  # height of the jump in pixels, swing in degrees


class Pen:
    """Draws in units of the canvas, 0…1 from the top left, with the four colours of one instrument."""

    def __init__(self, rng: Generator) -> None:
        self.image = Image.new("RGBA", (CANVAS, CANVAS))
        self.draw = ImageDraw.Draw(self.image)
        dark, light = _colour(rng, (0.05, 0.25)), _colour(rng, (0.85, 1.0), (0.0, 0.25))
        self.body, self.second = _colour(rng), _colour(rng)
        self.ink, self.shine = (dark, light) if rng.random() < 0.7 else (light, dark)
        self.edge = rng.uniform(0.006, 0.014)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        box = [v * CANVAS for v in (x - rx, y - ry, x + rx, y + ry)]
        self.draw.ellipse(box, fill, self.ink, self._width(self.edge))

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, radius: float = 0.0) -> None:
        box = [v * CANVAS for v in (x0, y0, x1, y1)]
        self.draw.rounded_rectangle(box, radius * CANVAS, fill, self.ink, self._width(self.edge))

    def shape(self, points: list[tuple[float, float]], fill: Colour) -> None:
        pixels = [(x * CANVAS, y * CANVAS) for x, y in points]
        self.draw.polygon(pixels, fill)
        self.draw.line([*pixels, pixels[0]], self.ink, self._width(self.edge), "curve")

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float) -> None:
        self.draw.line([(x * CANVAS, y * CANVAS) for x, y in points], fill, self._width(width), "curve")

    def _width(self, width: float) -> int:
        return max(1, round(width * CANVAS))


def _colour(
    rng: Generator, value: tuple[float, float] = (0.35, 1.0), saturation: tuple[float, float] = (0.25, 0.95)
) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return round(r * 255), round(g * 255), round(b * 255)


# ---- the instruments


def _guitar(pen: Pen, rng: Generator) -> None:
    bout = rng.uniform(0.16, 0.19)
    pen.box(0.45, 0.475, 0.9, 0.525, pen.second)
    pen.box(0.88, 0.455, 0.99, 0.545, pen.second, 0.01)
    pen.oval(0.2, 0.5, bout, 0.2, pen.body)
    pen.oval(0.41, 0.5, 0.12, 0.15, pen.body)
    pen.draw.rectangle([v * CANVAS for v in (0.22, 0.39, 0.37, 0.61)], pen.body)
    pen.oval(0.36, 0.5, 0.065, 0.065, pen.ink)
    pen.box(0.13, 0.42, 0.155, 0.58, pen.ink)
    for x in np.arange(0.52, 0.88, 0.05):
        pen.line([(x, 0.475), (x, 0.525)], pen.ink, 0.006)
    for y in (0.485, 0.5, 0.515):
        pen.line([(0.14, y), (0.9, y)], pen.shine, 0.004)


def _violin(pen: Pen, rng: Generator) -> None:
    pen.oval(0.17, 0.5, 0.13, 0.16, pen.body)
    pen.oval(0.43, 0.5, 0.11, 0.13, pen.body)
    pen.draw.rectangle([v * CANVAS for v in (0.2, 0.425, 0.42, 0.575)], pen.body)
    for side in (-1, 1):  # the waist's corners and the f-holes
        pen.line([(0.25, 0.5 + side * 0.13), (0.3, 0.5 + side * 0.08), (0.36, 0.5 + side * 0.12)], pen.ink, 0.012)
        y = 0.5 + side * 0.06
        pen.line([(0.24, y + side * 0.02), (0.27, y), (0.33, y), (0.36, y - side * 0.02)], pen.ink, 0.014)
    pen.shape([(0.1, 0.47), (0.1, 0.53), (0.2, 0.515), (0.2, 0.485)], pen.ink)
    pen.shape([(0.34, 0.47), (0.34, 0.53), (0.84, 0.512), (0.84, 0.488)], pen.ink)
    pen.oval(0.88, 0.5, 0.045, 0.04, pen.second)
    pen.line([(0.12, 0.5), (0.85, 0.5)], pen.shine, 0.006)
    tip, lean = rng.uniform(0.2, 0.32), rng.uniform(-0.15, 0.15)
    pen.line([(tip - lean, 0.14), (tip + lean, 0.86)], pen.second, 0.03)  # the bow
    pen.line([(tip - lean + 0.03, 0.15), (tip + lean + 0.03, 0.85)], pen.shine, 0.012)


def _flute(pen: Pen, rng: Generator) -> None:
    pen.box(0.0, 0.455, 1.0, 0.545, pen.body, 0.02)
    for x in (0.25, 0.8):
        pen.box(x, 0.445, x + 0.03, 0.555, pen.second)
    pen.oval(0.13, 0.49, 0.06, 0.055, pen.second)
    pen.oval(0.13, 0.485, 0.025, 0.018, pen.ink)
    for x in np.linspace(0.34, 0.74, 6 + int(rng.integers(2))):
        pen.oval(x, 0.49, 0.026, 0.04, pen.shine)
    pen.line([(0.34, 0.555), (0.76, 0.555)], pen.ink, 0.012)
    pen.oval(0.87, 0.49, 0.022, 0.035, pen.shine)


def _trumpet(pen: Pen, rng: Generator) -> None:
    tube = 0.035
    for y in (0.42, 0.62):  # the loop
        pen.line([(0.28, y), (0.72, y)], pen.ink, tube + 0.02)
        pen.line([(0.28, y), (0.72, y)], pen.body, tube)
    for x, side in ((0.28, 90), (0.72, -90)):
        for width, fill in ((tube + 0.02, pen.ink), (tube, pen.body)):
            r = 0.1 + width / 2
            box = [v * CANVAS for v in (x - r, 0.52 - r, x + r, 0.52 + r)]
            pen.draw.arc(box, side, side + 180, fill, round(width * CANVAS))
    pen.line([(0.04, 0.42), (0.6, 0.42)], pen.ink, tube + 0.02)
    pen.line([(0.04, 0.42), (0.6, 0.42)], pen.body, tube)
    pen.box(0.0, 0.385, 0.05, 0.455, pen.second, 0.01)
    flare = rng.uniform(0.17, 0.21)
    bell = [(0.6, 0.4), (0.75, 0.385), (0.88, 0.42 - flare * 0.5), (0.96, 0.42 - flare)]
    pen.shape([*bell, (0.96, 0.42 + flare), (0.88, 0.42 + flare * 0.5), (0.75, 0.455), (0.6, 0.44)], pen.body)
    pen.oval(0.96, 0.42, 0.035, flare, pen.second)
    for x in (0.39, 0.48, 0.57):
        pen.box(x, 0.36, x + 0.06, 0.68, pen.second, 0.01)
        pen.box(x + 0.02, 0.29, x + 0.04, 0.36, pen.shine)
        pen.oval(x + 0.03, 0.28, 0.03, 0.018, pen.shine)


def _piano(pen: Pen, rng: Generator) -> None:
    pen.box(0.04, 0.14, 0.96, 0.56, pen.body, 0.015)
    pen.box(0.1, 0.19, 0.47, 0.42, pen.second)
    pen.box(0.53, 0.19, 0.9, 0.42, pen.second)
    pen.box(0.08, 0.68, 0.16, 0.92, pen.body)
    pen.box(0.84, 0.68, 0.92, 0.92, pen.body)
    pen.box(0.22, 0.7, 0.78, 0.86, pen.second)
    ivory, ebony = (pen.shine, pen.ink) if sum(pen.shine) > sum(pen.ink) else (pen.ink, pen.shine)
    pen.box(0.0, 0.5, 1.0, 0.7, ebony, 0.01)
    keys = int(rng.integers(11, 15))
    width = 0.96 / keys
    for key in range(keys):
        x = 0.02 + key * width
        pen.draw.rectangle([v * CANVAS for v in (x, 0.52, x + width * 0.88, 0.68)], ivory)
    for key in range(1, keys):
        if key % 7 not in (3, 0):
            x = 0.02 + key * width
            box = [v * CANVAS for v in (x - width * 0.33, 0.52, x + width * 0.22, 0.61)]
            pen.draw.rectangle(box, ebony)


def _drum(pen: Pen, rng: Generator) -> None:
    for x, lean in ((0.17, -0.04), (0.83, 0.04)):
        pen.line([(x, 0.2), (x + lean, 0.93)], pen.ink, 0.02)
    high = rng.uniform(0.13, 0.2)
    pen.oval(0.17, high, 0.17, 0.045, pen.second)
    pen.oval(0.83, 0.33 - high, 0.17, 0.045, pen.second)
    for x in (0.35, 0.65):
        pen.box(x - 0.13, 0.26, x + 0.13, 0.46, pen.body, 0.03)
        pen.oval(x, 0.27, 0.13, 0.045, pen.shine)
    pen.box(0.01, 0.55, 0.27, 0.75, pen.body, 0.03)
    pen.oval(0.14, 0.56, 0.13, 0.045, pen.shine)
    pen.box(0.76, 0.55, 0.99, 0.85, pen.body, 0.03)
    pen.oval(0.875, 0.56, 0.115, 0.045, pen.shine)
    pen.oval(0.5, 0.68, 0.25, 0.25, pen.body)
    pen.oval(0.5, 0.68, 0.2, 0.2, pen.shine)
    pen.oval(0.5, 0.68, 0.07, 0.07, pen.second)


def _banjo(pen: Pen, rng: Generator) -> None:
    pen.box(0.35, 0.48, 0.9, 0.52, pen.second)
    pen.box(0.87, 0.46, 0.99, 0.54, pen.second, 0.02)
    pen.oval(0.73, 0.465, 0.02, 0.014, pen.shine)
    radius = rng.uniform(0.2, 0.23)
    pen.oval(0.23, 0.5, radius, radius, pen.body)
    pen.oval(0.23, 0.5, radius - 0.04, radius - 0.04, pen.shine)
    for turn in np.arange(0, 2 * np.pi, np.pi / 8):  # the brackets around the rim
        x, y = 0.23 + (radius - 0.01) * np.cos(turn), 0.5 + (radius - 0.01) * np.sin(turn)
        pen.oval(x, y, 0.014, 0.014, pen.ink)
    pen.box(0.13, 0.44, 0.15, 0.56, pen.ink)
    for y in (0.487, 0.5, 0.513):
        pen.line([(0.05, y), (0.9, y)], pen.ink, 0.005)


def _accordion(pen: Pen, rng: Generator) -> None:
    folds, top, bottom = int(rng.integers(6, 9)), 0.14, 0.86
    for fold in range(folds):
        x0, x1 = 0.27 + 0.46 * fold / folds, 0.27 + 0.46 * (fold + 1) / folds
        fill = pen.second if fold % 2 else pen.ink
        middle = (x0 + x1) / 2
        pen.shape(
            [(x0, top), (middle, top - 0.05), (x1, top), (x1, bottom), (middle, bottom + 0.05), (x0, bottom)],
            fill,
        )
    pen.box(0.0, 0.1, 0.28, 0.9, pen.body, 0.04)
    pen.box(0.72, 0.1, 1.0, 0.9, pen.body, 0.04)
    pen.box(0.05, 0.16, 0.16, 0.84, pen.shine)
    for y in np.linspace(0.16, 0.84, 11)[1:-1]:
        pen.line([(0.05, y), (0.16, y)], pen.ink, 0.012)
        pen.line([(0.05, y + 0.02), (0.1, y + 0.02)], pen.ink, 0.03)
    for y in np.linspace(0.22, 0.78, 6):
        for x in (0.8, 0.87, 0.94):
            pen.oval(x, y, 0.022, 0.022, pen.shine)


DRAWINGS: dict[str, Callable[[Pen, Generator], None]] = {
    "guitar": _guitar,
    "violin": _violin,
    "flute": _flute,
    "trumpet": _trumpet,
    "piano": _piano,
    "drum": _drum,
    "banjo": _banjo,
    "accordion": _accordion,
}


# ---- the picture they stand in


@dataclass
class Sprite:
    """One instrument in its place. `x`, `y`: its centre at rest in pixels; `turned`: the image by swing."""

    image: Image.Image
    x: float
    y: float
    angle: float
    turned: dict[int, Image.Image] = field(default_factory=dict)

    def posed(self, pose: Pose) -> tuple[Image.Image, tuple[int, int]]:
        """The turned picture and its top left corner."""
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
    """A picture of some instruments, the first `len(onsets)` of which move at the given note starts.

    Args:
        rng: decides everything else.
        instruments: keys of `DRAWINGS`, all different.
        onsets: seconds at which each sounding instrument starts a note.
    """

    def __init__(self, rng: Generator, instruments: list[str], onsets: list[list[float]]) -> None:
        short = int(rng.choice(SHORT_SIDES))
        long = 2 * round(short * rng.choice(ASPECTS) / 2)
        self.width: int
        self.height: int
        self.width, self.height = (long, short) if rng.random() < 0.8 else (short, long)
        self.onsets = onsets
        low, high = SIZE[len(instruments)]
        self.sprites = [
            _sprite(name, short * rng.uniform(low, high), rng.uniform(-ANGLE, ANGLE), rng) for name in instruments
        ]
        _place(self.sprites, self.width, self.height, rng)
        self.jump, self.swing = rng.uniform(*JUMP) * short, rng.choice([-1, 1]) * SWING
        gain, offset = rng.uniform(*CONTRAST), rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        levels = [round((value - 128) * gain + 128 + offset) for value in range(256)] * 3
        for sprite in self.sprites:
            sprite.image = sprite.image.point([*levels, *range(256)])
            sprite.turned.clear()
        self.backdrop = _backdrop(rng, self.width, self.height).point(levels)
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
        """The picture at `time`, uint8 [H, W, 3]."""
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


def _sprite(name: str, size: float, angle: float, rng: Generator) -> Sprite:
    pen = Pen(rng)
    DRAWINGS[name](pen, rng)
    image = pen.image.crop(pen.image.getbbox())
    scale = size * (STRETCH if name in LONG else 1.0) / max(image.size)
    width, height = (max(2, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Sprite(image, 0.0, 0.0, angle)


def _place(sprites: list[Sprite], width: int, height: int, rng: Generator) -> None:
    """Random places inside the picture: of 30 tries the first without overlap, else the one with least."""
    best, places = width * height, [(0.0, 0.0)] * len(sprites)
    small = width // 4, height // 4
    stamps = []  # size, and what it covers at a quarter of the size
    for sprite in sprites:
        image = sprite.posed((0, 0))[0]
        stamps.append((image.size, image.getchannel("A").reduce(4)))
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


def _backdrop(rng: Generator, width: int, height: int) -> Image.Image:
    """Two to four colours mixed by a smooth noise, a gradient, stripes or blobs."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / min(width, height)
    kind = rng.choice(["noise", "gradient", "stripes", "blobs"])
    turn = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    rough = _smooth_noise(rng, width, height, int(rng.integers(4, 24)))
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
    first, second = (np.array(_colour(rng, (0.1, 0.95), BACKDROP_SATURATION), np.float32) for _ in range(2))
    mixed = first + rng.uniform(*TEXTURE) * np.clip(field_, 0, 1)[..., None] * (second - first)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _smooth_noise(rng: Generator, width: int, height: int, cells: int) -> NDArray[np.float32]:
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / np.float32(255)
