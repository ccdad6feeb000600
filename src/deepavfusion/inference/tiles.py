"""Squares that cover an image of any shape, and the merging of their maps into one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.transforms.image import View

SQUEEZED = (4, 3)  # widest image that is squeezed into one square: training squeezes views by as much
MIN_OVERLAP = 1 / 8  # of the side of a square


@dataclass(frozen=True)
class Tiling:
    """Squares that cover an image, on a grid of rows × columns on which each has the model's resolution.

    `corners` are their top and left on the grid, `weights` [squares, 1, size, size] the share of each in each cell.
    """

    size: int
    rows: int
    columns: int
    corners: list[tuple[int, int]]
    weights: Tensor

    @property
    def views(self) -> list[View]:
        """The squares as parts of the image."""
        x, y, size = self.columns, self.rows, self.size
        return [View(left / x, top / y, (left + size) / x, (top + size) / y) for top, left in self.corners]

    def merge(self, maps: Tensor) -> Tensor:
        """The weighted mean of the squares' maps: [squares, C, size, size] -> [C, rows, columns]"""
        merged = maps.new_zeros(maps.shape[1], self.rows, self.columns)
        for (top, left), part, weight in zip(self.corners, maps, self.weights.to(maps), strict=True):
            merged[:, top : top + self.size, left : left + self.size] += weight * part
        return merged


def cover(height: int, width: int, size: int) -> Tiling:
    """The fewest squares that cover an image, each as wide as its shorter side; up to 4:3, one square for all of it.

    They are evenly spread and overlap by at least `MIN_OVERLAP` of their side. Their weights fade linearly where they
    overlap and sum to 1 everywhere, so that no seam shows.

    Args:
        height, width: of the image; only their ratio matters.
        size: side of a square on the grid, as the model sees it, pixels.
    """
    short, long = min(height, width), max(height, width)
    if long * SQUEEZED[1] <= short * SQUEEZED[0]:
        return Tiling(size, size, size, [(0, 0)], torch.ones(1, 1, size, size))
    length, overlap = max(round(size * long / short), size + 1), size * MIN_OVERLAP
    count = max(2, math.ceil((length - overlap) / (size - overlap)))
    starts = [round(n * (length - size) / (count - 1)) for n in range(count)]
    shared = [0.5, *(a + size - b for a, b in pairwise(starts)), 0.5]  # overlaps; 0.5: outer edges do not fade
    position, sums = torch.arange(size) + 0.5, torch.zeros(length)
    fades = [(position / a).clamp(max=1) * ((size - position) / b).clamp(max=1) for a, b in pairwise(shared)]
    for start, fade in zip(starts, fades, strict=True):
        sums[start : start + size] += fade
    weights = torch.stack([fade / sums[start : start + size] for start, fade in zip(starts, fades, strict=True)])
    weights = weights[:, None, None].expand(-1, 1, size, -1)  # along the columns
    if width >= height:
        return Tiling(size, size, length, [(0, start) for start in starts], weights)
    return Tiling(size, length, size, [(start, 0) for start in starts], weights.transpose(2, 3))


def decide_enlarged(found: Tensor, height: int, width: int) -> Tensor:
    """Enlarge probabilities to the size of the image bilinearly, and decide on classes.

    One class at a time: all of them at the size of the image would take much memory.

    Args:
        found: [C, rows, columns] in 0…1; for C > 1 they sum to 1.

    Returns:
        uint8 [height, width]: the class; for C = 1 whether it is above ½.
    """

    def enlarged(n: int) -> Tensor:
        return F.interpolate(found[None, n : n + 1], size=(height, width), mode="bilinear", antialias=True)[0, 0]

    if len(found) == 1:
        return (enlarged(0) > 0.5).byte()
    best, classes = found.new_zeros(height, width), found.new_zeros(height, width, dtype=torch.uint8)
    threshold = 0.999 / len(found)  # the largest of C numbers that sum to 1 is at least 1/C: lower classes never win
    for n in (found.amax(dim=(1, 2)) >= threshold).nonzero()[:, 0].tolist():
        probability = enlarged(n)
        classes.masked_fill_(probability > best, n)
        best = torch.maximum(best, probability)
    return classes
