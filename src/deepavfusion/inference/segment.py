"""Marks what sounds in a video of any length: at some moments a second, each with the sound around it.

Memory does not grow with the video but for its sound, of which 64 kB a second are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.inference.tasks import recorded_classes
from deepavfusion.inference.video import told, whole_sound
from deepavfusion.media import Media
from deepavfusion.models.segmenter import probabilities
from deepavfusion.tasks.segment import Segment
from deepavfusion.transforms.audio import HOP_LENGTH, SAMPLE_RATE, LogMel, extend_by_mirror
from deepavfusion.transforms.image import Normalise, View
from deepavfusion.utils.errors import UserError

MOST_A_SECOND = 1000  # masks: their files are named by the millisecond
MOST_CLASSES = 256  # that a mask of bytes can hold
SQUEEZED = (4, 3)  # longest picture that is seen as one square: training squeezes views as much as that
LEAST_OVERLAP = 1 / 8  # of the side of a square


@dataclass
class Segmentation:
    """The masks of a video. They are made while they are asked for, so that none has to be held.

    `classes` names their values, the background first; None: 1 sounds and 0 does not. `seconds` is the length of what
    is longer, picture or sound. `times` (s) are the moments; `masks` gives the mask of each once, in their order, uint8
    [height, width], and raises a UserError where the video does not decode.
    """

    video: str
    seconds: float
    height: int
    width: int
    classes: list[str] | None
    masks_per_second: float
    times: list[float]
    masks: Iterator[NDArray[np.uint8]]


def segment_video(
    task: Segment,
    video: str | Path,
    masks_per_second: float = 5,
    batch_size: int = 8,
    on_progress: Callable[[int, int], Any] | None = None,
) -> Segmentation:
    """The pixels of a video that show what is heard, or the class of what is heard there.

    Args:
        task: trained, in evaluation mode; see `load_task`. It is used on the device where it is.
        video: a file with picture and sound.
        masks_per_second: moments a second, the first at 0 s.
        batch_size: moments at a time, each with all the squares that cover the picture.
        on_progress: called with the moments done and their number.

    Raises:
        UserError: the video has no picture or no sound, is silent, or does not decode.
    """
    assert not task.training, "the batch norms of a task in training would learn from the video: task.eval() first"
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}, expected a whole number of at least 1.")
    if type(masks_per_second) not in (int, float) or not 0 < masks_per_second <= MOST_A_SECOND:
        raise UserError(
            f"masks_per_second is {masks_per_second!r}, expected a number above 0 and at most {MOST_A_SECOND}, e.g. 5."
        )
    path, classes = str(video), class_names(task)
    with told("segmented"), Media(path) as media:
        mixture, end = whole_sound(media, "mark"), media.info.video_end
        height, width = media.frames([0.0]).shape[1:3]
    seconds = max(end, len(mixture) / SAMPLE_RATE)
    times = [n / masks_per_second for n in range(max(1, math.ceil(seconds * masks_per_second - 1e-6)))]
    segmenter = _VideoSegmenter(task, mixture, cover(height, width, task.net.encoder.image.patch_embed.input_size[0]))
    masks = segmenter.run(path, times, batch_size, on_progress)
    return Segmentation(path, seconds, height, width, classes, masks_per_second, times, masks)


def class_names(task: Segment) -> list[str] | None:
    """What a mask's values mean, the background first; None where they say sounding or not."""
    return None if task.net.num_classes == 1 else recorded_classes(task, MOST_CLASSES)


class _VideoSegmenter:
    """The sound of one video, what covers its picture, and one model."""

    def __init__(self, task: Segment, mixture: Tensor, tiling: Tiling) -> None:
        self.task, self.mixture, self.tiling = task, mixture, tiling
        self.window = task.net.encoder.audio.patch_embed.input_size[1] * HOP_LENGTH
        self.normalise, self.log_mel = Normalise().to(task.device), LogMel().to(task.device)

    @torch.inference_mode()
    def run(
        self, path: str, times: Sequence[float], batch_size: int, on_progress: Callable[[int, int], Any] | None
    ) -> Iterator[NDArray[np.uint8]]:
        views = len(self.tiling.views)
        with told("segmented"), Media(path) as media:
            for first in range(0, len(times), batch_size):
                moments = times[first : first + batch_size]
                frames = media.frames(moments)
                sound = self.log_mel(self.sound(moments)).repeat_interleave(views, dim=0)
                logits = self.task.net(self.images(frames), sound)
                for frame, parts in zip(frames, logits.split(views), strict=True):
                    found = self.tiling.merge(probabilities(parts.float()))
                    yield decide_enlarged(found, *frame.shape[:2]).cpu().numpy()
                if on_progress:
                    on_progress(first + len(moments), len(times))

    def images(self, frames: NDArray[np.uint8]) -> Tensor:
        """[moments, H, W, 3] -> what the model sees, [moments · views, 3, size, size]"""
        pictures = [Image.fromarray(frame) for frame in frames]
        seen = [view.of(picture, self.tiling.size) for picture in pictures for view in self.tiling.views]
        return self.normalise(torch.stack(seen).to(self.task.device))

    def sound(self, moments: Sequence[float]) -> Tensor:
        """Windows [moments, T] centred on them, moved into the sound; its mirror image extends one that is shorter."""
        latest = max(len(self.mixture) - self.window, 0)
        starts = [min(max(round(moment * SAMPLE_RATE) - self.window // 2, 0), latest) for moment in moments]
        windows = [extend_by_mirror(self.mixture[start : start + self.window], self.window) for start in starts]
        return torch.stack(windows).to(self.task.device)


# ---------------------------------------------------------------- squares over a picture


@dataclass(frozen=True)
class Tiling:
    """Squares that cover a picture, on a grid of rows × columns on which each has the model's resolution.

    `corners` are the top and left of each on the grid, `weights` [squares, 1, size, size] what each counts where.
    """

    size: int
    rows: int
    columns: int
    corners: list[tuple[int, int]]
    weights: Tensor

    @property
    def views(self) -> list[View]:
        """The squares as parts of the picture."""
        x, y, size = self.columns, self.rows, self.size
        return [View(left / x, top / y, (left + size) / x, (top + size) / y) for top, left in self.corners]

    def merge(self, maps: Tensor) -> Tensor:
        """Their weighted mean: maps [squares, C, size, size] -> [C, rows, columns]"""
        merged = maps.new_zeros(maps.shape[1], self.rows, self.columns)
        for (top, left), part, weight in zip(self.corners, maps, self.weights.to(maps), strict=True):
            merged[:, top : top + self.size, left : left + self.size] += weight * part
        return merged


def cover(height: int, width: int, size: int) -> Tiling:
    """The fewest squares that cover a picture, each of its shorter side; up to 4:3 all of it squeezed to one.

    They are spread evenly and share no less than `LEAST_OVERLAP` of their side. Their weights fade linearly where they
    overlap and sum to 1 everywhere, so that no seam is seen.

    Args:
        height, width: of the picture; only their ratio matters.
        size: side of a square on the grid, as the model sees it, pixels.
    """
    short, long = min(height, width), max(height, width)
    if long * SQUEEZED[1] <= short * SQUEEZED[0]:
        return Tiling(size, size, size, [(0, 0)], torch.ones(1, 1, size, size))
    length, least = max(round(size * long / short), size + 1), size * LEAST_OVERLAP
    count = max(2, math.ceil((length - least) / (size - least)))
    starts = [round(n * (length - size) / (count - 1)) for n in range(count)]
    position, sums, fades = torch.arange(size) + 0.5, torch.zeros(length), []
    for n, start in enumerate(starts):
        fade = torch.ones(size)
        if n > 0:
            fade = fade * (position / (starts[n - 1] + size - start)).clamp(max=1)
        if n + 1 < count:
            fade = fade * ((size - position) / (start + size - starts[n + 1])).clamp(max=1)
        sums[start : start + size] += fade
        fades.append(fade)
    weights = torch.stack([fade / sums[start : start + size] for start, fade in zip(starts, fades, strict=True)])
    weights = weights[:, None, None].expand(-1, 1, size, -1)  # along the columns
    if width >= height:
        return Tiling(size, size, length, [(0, start) for start in starts], weights)
    return Tiling(size, length, size, [(start, 0) for start in starts], weights.transpose(2, 3))


def decide_enlarged(found: Tensor, height: int, width: int) -> Tensor:
    """Probabilities, brought to the size of the picture bilinearly, to classes.

    One class at a time, since all of them at the size of the picture would take much memory.

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
    least = 0.999 / len(found)  # the greatest of C numbers that sum to 1 is no less than 1/C
    for n in (found.amax(dim=(1, 2)) >= least).nonzero()[:, 0].tolist():
        probability = enlarged(n)
        classes.masked_fill_(probability > best, n)
        best = torch.maximum(best, probability)
    return classes
