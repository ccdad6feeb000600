"""The eight instruments of the demo data as drawings: a shape and parts of its own each, mostly in usual colours.

`scenes.py` sizes, turns and places them.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

CANVAS = 512  # pixels of the square on which a sprite is drawn, before it is reduced
USUAL = 0.75  # chance that an instrument has its usual colours; otherwise it has any
HUE_SPREAD = 0.03  # ± around the usual hue

Range = tuple[float, float]
# Usual colours of body and second part: hue, saturation, value.
COLOURS: dict[str, tuple[tuple[float, Range, Range], tuple[float, Range, Range]]] = {
    "accordion": ((0.98, (0.7, 0.95), (0.5, 0.85)), (0.98, (0.3, 0.7), (0.7, 1.0))),
    "banjo": ((0.36, (0.5, 0.8), (0.4, 0.7)), (0.36, (0.4, 0.7), (0.3, 0.6))),
    "drum": ((0.62, (0.6, 0.9), (0.5, 0.9)), (0.62, (0.2, 0.5), (0.7, 0.95))),
    "flute": ((0.52, (0.3, 0.6), (0.75, 0.95)), (0.52, (0.2, 0.5), (0.7, 0.9))),
    "guitar": ((0.08, (0.6, 0.9), (0.75, 1.0)), (0.07, (0.5, 0.8), (0.4, 0.7))),
    "piano": ((0.60, (0.0, 0.3), (0.06, 0.18)), (0.07, (0.2, 0.5), (0.12, 0.25))),
    "trumpet": ((0.15, (0.7, 0.95), (0.8, 1.0)), (0.15, (0.6, 0.9), (0.7, 0.9))),
    "violin": ((0.85, (0.5, 0.8), (0.4, 0.75)), (0.85, (0.4, 0.7), (0.3, 0.5))),
}

Colour = tuple[int, int, int]


class Pen:
    """Draws in units of the canvas, 0…1 from the top left, in the four colours of an instrument: usual ones or any."""

    def __init__(self, name: str, rng: Generator, usual: float = USUAL) -> None:
        self.image = Image.new("RGBA", (CANVAS, CANVAS))
        self.draw = ImageDraw.Draw(self.image)
        dark, light = colour(rng, (0.05, 0.25)), colour(rng, (0.85, 1.0), (0.0, 0.25))
        self.body, self.second = (colour(rng, value, saturation, hue) for hue, saturation, value in COLOURS[name])
        if rng.random() >= usual:
            self.body, self.second = colour(rng), colour(rng)
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


def colour(
    rng: Generator, value: Range = (0.35, 1.0), saturation: Range = (0.25, 0.95), hue: float | None = None
) -> Colour:
    """A random colour with value and saturation in these ranges, near `hue`, or of any hue."""
    turn = rng.random() if hue is None else (hue + rng.uniform(-HUE_SPREAD, HUE_SPREAD)) % 1.0
    r, g, b = colorsys.hsv_to_rgb(turn, rng.uniform(*saturation), rng.uniform(*value))
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
    for x in 0.02 + width * np.arange(keys):
        pen.draw.rectangle([v * CANVAS for v in (x, 0.52, x + width * 0.88, 0.68)], ivory)
    for x in [0.02 + key * width for key in range(1, keys) if key % 7 not in (3, 0)]:
        pen.draw.rectangle([v * CANVAS for v in (x - width * 0.33, 0.52, x + width * 0.22, 0.61)], ebony)


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
        middle = (x0 + x1) / 2
        outline = [(x0, top), (middle, top - 0.05), (x1, top), (x1, bottom), (middle, bottom + 0.05), (x0, bottom)]
        pen.shape(outline, pen.second if fold % 2 else pen.ink)
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
    draw.__name__[1:]: draw for draw in (_guitar, _violin, _flute, _trumpet, _piano, _drum, _banjo, _accordion)
}
