"""Where the sources are in the frame: boxes from the user, or parts that the model distinguishes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepavfusion.transforms.image import View
from deepavfusion.utils.errors import UserError

MIN_PART = 0.25  # least share of what is split, on each side of the line


class Box(NamedTuple):
    """Edges in pixels of the upright frame."""

    left: float
    top: float
    right: float
    bottom: float


def read_boxes(boxes: Any, width: int, height: int) -> list[Box]:
    """Boxes as a user gives them.

    Args:
        boxes: a list of [x0, y0, x1, y1], in pixels, or in fractions of the frame if no value exceeds 1.
        width, height: of the frame, pixels.

    Raises:
        UserError: another form, an empty box, or one that is not inside the frame.
    """
    expected = (
        f"expected [x0, y0, x1, y1] with 0 ≤ x0 < x1 ≤ {width} and 0 ≤ y0 < y1 ≤ {height} for this video of "
        f"{width} × {height} pixels, or fractions of it from 0 to 1, e.g. "
        f"[[0,0,{width // 2},{height}],[{width // 2},0,{width},{height}]]."
    )
    if not isinstance(boxes, (list, tuple)) or not boxes:
        raise UserError(f"boxes is {boxes!r}, not a list of boxes; {expected}")
    for n, box in enumerate(boxes, 1):
        listed = isinstance(box, (list, tuple)) and len(box) == 4
        if not listed or not all(type(x) in (int, float) and math.isfinite(x) for x in box):
            raise UserError(f"box {n} is {box!r}, not four numbers; {expected}")
    scale = (width, height) if max(max(box) for box in boxes) <= 1 else (1, 1)
    found = [Box(b[0] * scale[0], b[1] * scale[1], b[2] * scale[0], b[3] * scale[1]) for b in boxes]
    for n, (given, box) in enumerate(zip(boxes, found, strict=True), 1):
        if box.right - box.left < 1 or box.bottom - box.top < 1:
            raise UserError(f"box {n} is {list(given)}, which holds no pixel; {expected}")
        if box.left < 0 or box.top < 0 or box.right > width or box.bottom > height:
            raise UserError(f"box {n} is {list(given)}, which is not inside the frame; {expected}")
    return found


def view_of(box: Box, width: int, height: int) -> View:
    """The part of the frame that the model sees for a box: a square around it, as wide as the frame's shorter side.

    Training shows whole frames, so sources keep the size that they have there. See also `alone`.
    """
    side = max(min(width, height), box.right - box.left, box.bottom - box.top)
    across, down = min(side, width), min(side, height)
    left = min(max((box.left + box.right - across) / 2, 0), width - across)
    top = min(max((box.top + box.bottom - down) / 2, 0), height - down)
    return View(left / width, top / height, (left + across) / width, (top + down) / height)


def alone(frame: NDArray[np.uint8], box: Box, boxes: Sequence[Box]) -> NDArray[np.uint8]:
    """A frame [H, W, 3] with the other boxes, where they lie outside `box`, painted over in its mean colour."""
    shown = frame.copy()
    for other in boxes:
        if other is not box:
            _part(shown, other)[:] = frame.mean(axis=(0, 1)).round().astype(np.uint8)
    _part(shown, box)[:] = _part(frame, box)
    return shown


def _part(frame: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    return frame[round(box.top) : round(box.bottom), round(box.left) : round(box.right)]


def split_frame(tokens: Tensor, parts: int, width: int, height: int) -> list[Box]:
    """Split the frame by straight lines where the tokens of the two sides differ most.

    Otsu's threshold on vectors: a line is as good as the variance between its sides, n1·n2/n²·‖μ1 − μ2‖², averaged
    over time and weighted by the share of the frame that it splits. The part that gains most is split next.

    Args:
        tokens: [times, rows, columns, D] of whole frames.
        parts: how many boxes.
        width, height: of the frame, pixels.

    Returns:
        The boxes, from left to right and from top to bottom.

    Raises:
        UserError: more parts than the tokens can distinguish.
    """
    rows, columns = tokens.shape[1:3]
    found = [(0, 0, columns, rows)]  # left, top, right, bottom, in tokens
    while len(found) < parts:
        splits = [(*_best_line(tokens[:, t:b, l:r]), n) for n, (l, t, r, b) in enumerate(found)]  # noqa: E741
        gain, axis, line, n = max(splits)
        if gain < 0:
            raise UserError(
                f"sources={parts} is more than this model can distinguish in a frame that it sees as {rows} × "
                f"{columns} patches: ask for fewer, or give boxes."
            )
        left, top, right, bottom = found.pop(n)
        if axis == 1:
            found += [(left, top, right, top + line), (left, top + line, right, bottom)]
        else:
            found += [(left, top, left + line, bottom), (left + line, top, right, bottom)]
    x, y = width / columns, height / rows
    return [Box(left * x, top * y, right * x, bottom * y) for left, top, right, bottom in sorted(found)]


def _best_line(tokens: Tensor) -> tuple[float, int, int]:
    """Gain (times the number of tokens; −1: no line fits), axis (1: rows above and below, 2: columns) and line."""
    best = (-1.0, 1, 0)
    for axis in (1, 2):
        lines = tokens.mean(dim=3 - axis)  # [times, lines, D]
        n = lines.shape[1]
        margin = max(1, math.ceil(n * MIN_PART))
        for line in range(margin, n - margin + 1):
            between = (lines[:, :line].mean(dim=1) - lines[:, line:].mean(dim=1)).square().sum(dim=1).mean().item()
            share = line * (n - line) / n**2
            best = max(best, (between * share * tokens.shape[1] * tokens.shape[2], axis, line))
    return best
