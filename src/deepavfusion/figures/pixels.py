"""Colours and masks drawn on images, alike in TensorBoard and in predicted videos."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import hsv_to_rgb, to_rgb
from numpy.typing import NDArray

from deepavfusion.figures.style import BLUE, ORANGE, PURPLE, SKY, VERMILLION, YELLOW

Pixels = NDArray[np.uint8]

# Of 256, as integer arithmetic is several times faster than floating point.
DIMMED = 115  # brightness of unmarked pixels
COLOURED = 141  # opacity of the colour of marked pixels
EDGE_SHARE = 1 / 160  # of the shorter side: thickness of the outline of marked pixels
CHECKS = 28  # squares of a checkerboard along an image
LIGHT, DARK = 250, 190  # its two greys

_HUES = (SKY, ORANGE, PURPLE, YELLOW, VERMILLION, BLUE)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(colour))


CORRECT, TOO_MUCH, MISSED = _rgb(BLUE), _rgb(ORANGE), _rgb(YELLOW)  # in `errors`


def colour_of(number: int) -> NDArray[np.float64]:
    """RGB in 0…1, bright: the palette's colours, then (nobody tells more apart) hues that differ from their neighbours'
    in lightness, too."""
    if number < len(_HUES):
        return np.array(to_rgb(_HUES[number]))
    return hsv_to_rgb(((0.48 + 0.618 * number) % 1, 0.75, (1.0, 0.65)[number % 2]))


def palette(classes: int) -> Pixels:
    """The colours of classes, uint8 [classes, 3]; class 0, the background, is black."""
    colours = np.array([np.zeros(3), *(colour_of(n) for n in range(max(classes, 2) - 1))])
    return (255 * colours).round().astype(np.uint8)


def highlight(image: Pixels, classes: NDArray[np.integer], colours: Pixels) -> Pixels:
    """An image with its marked pixels in colour and outlined, and the rest dimmed.

    Args:
        image: RGB, uint8 [H, W, 3].
        classes: [H, W], a position in `colours` for each pixel; 0 is not marked.
        colours: uint8 [classes, 3].
    """
    marked = image.astype(np.uint16) * (256 - COLOURED) + (colours.astype(np.uint16) * COLOURED)[classes]
    dimmed = image.astype(np.uint16) * DIMMED
    out = (np.where((classes > 0)[..., None], marked, dimmed) >> 8).astype(np.uint8)
    edges = outline(classes)
    out[edges] = colours[classes[edges]]
    return out


def outline(classes: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The marked pixels of [H, W] next to pixels of another class: a line inside each marked region."""
    thick = max(1, round(EDGE_SHARE * min(classes.shape)))
    edges = np.zeros(classes.shape, bool)
    down, across = classes[thick:] != classes[:-thick], classes[:, thick:] != classes[:, :-thick]
    edges[thick:] |= down
    edges[:-thick] |= down
    edges[:, thick:] |= across
    edges[:, :-thick] |= across
    return edges & (classes > 0)


def errors(image: Pixels, predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> Pixels:
    """The image in grey, with pixels marked correctly in blue, wrongly or with the wrong class in orange, and missed
    ones in yellow."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.6
    out = grey.astype(np.uint8)
    correct, wrong = (predicted == truth) & (truth > 0), (predicted != truth) & (predicted > 0)
    for pixels, colour in ((correct, CORRECT), (wrong, TOO_MUCH), ((predicted == 0) & (truth > 0), MISSED)):
        out[pixels] = (0.25 * grey[pixels] + 0.75 * np.array(colour)).astype(np.uint8)
    return out


def checkered(hidden: NDArray[np.bool_]) -> Pixels:
    """A layer to draw above an image: RGBA, uint8 [H, W, 4], a checkerboard of two light greys where [H, W] is hidden,
    as image editors show that there is nothing; it is seen on light and on dark images."""
    square = max(2, min(hidden.shape) // CHECKS)
    row, column = np.indices(hidden.shape) // square
    grey = np.where((row + column) % 2 == 0, LIGHT, DARK)
    return np.stack([grey, grey, grey, 255 * hidden], axis=-1).astype(np.uint8)
