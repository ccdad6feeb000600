"""Colours and masks drawn on images, alike in TensorBoard and in predicted videos."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

# Of 256, as integer arithmetic is several times faster than floating point.
DIMMED = 115  # brightness of unmarked pixels
COLOURED = 141  # opacity of the colour of marked pixels
RIGHT, TOO_MUCH, TOO_LITTLE = (40, 200, 90), (235, 60, 50), (60, 120, 255)  # RGB, in `errors`


def colour_of(number: int) -> NDArray[np.float64]:
    """RGB in 0…1; consecutive numbers have clearly different hues."""
    return hsv_to_rgb(((0.48 + 0.618 * number) % 1, 0.75, 1.0))


def palette(classes: int) -> Pixels:
    """The colours of classes, uint8 [classes, 3]; class 0, the background, is black."""
    colours = np.array([colour_of(n) for n in range(max(classes, 2))])
    colours[0] = 0
    return (255 * colours).round().astype(np.uint8)


def highlight(image: Pixels, classes: NDArray[np.integer], colours: Pixels) -> Pixels:
    """An image with its marked pixels in colour and the rest dimmed.

    Args:
        image: RGB, uint8 [H, W, 3].
        classes: [H, W], a position in `colours` for each pixel; 0 is not marked.
        colours: uint8 [classes, 3].
    """
    marked = image.astype(np.uint16) * (256 - COLOURED) + (colours.astype(np.uint16) * COLOURED)[classes]
    dimmed = image.astype(np.uint16) * DIMMED
    return (np.where((classes > 0)[..., None], marked, dimmed) >> 8).astype(np.uint8)


def errors(image: Pixels, predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> Pixels:
    """The image in grey, with pixels marked correctly green, wrongly or with the wrong class red, and missed blue."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.6
    out = grey.astype(np.uint8)
    right, wrong = (predicted == truth) & (truth > 0), (predicted != truth) & (predicted > 0)
    for pixels, colour in ((right, RIGHT), (wrong, TOO_MUCH), ((predicted == 0) & (truth > 0), TOO_LITTLE)):
        out[pixels] = (0.35 * grey[pixels] + 0.65 * np.array(colour)).astype(np.uint8)
    return out
