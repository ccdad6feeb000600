"""What every film has that is written: which pictures, how many a second, how large, and the rates of its sound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from deepavfusion.media import Media, MediaInfo

MOST_FPS = 30.0
MOST_PIXELS = 720  # of the shorter side
CHUNK_BYTES = 64 * 2**20  # of frames decoded at a time
AAC_BIT_RATE = 128_000
AAC_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)


def film_times(info: MediaInfo, seconds: float, least_fps: float = 0.0) -> tuple[list[float], float]:
    """The moments (s) of a video's pictures that a film of it shows, and how many there are a second.

    Args:
        info: of the video.
        seconds: of its sound; the last picture stays while there is sound.
        least_fps: a slower video is shown as often as this, at most `MOST_FPS`, by repeating its pictures.
    """
    fps = info.fps or MOST_FPS
    fps /= max(1, math.ceil(fps / MOST_FPS - 1e-3))  # 50 -> 25, and no picture twice
    fps *= max(1, min(math.ceil(least_fps / fps - 1e-3), math.floor(MOST_FPS / fps + 1e-3)))
    count = max(1, round(max(info.video_end, seconds) * fps))
    return [n / fps for n in range(count)], fps


def film_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a film of a video: the shorter side at most `MOST_PIXELS`, both even, as H.264 wants them."""
    scale = min(1.0, MOST_PIXELS / min(height, width))
    rows, columns = (max(2, 2 * round(side * scale / 2)) for side in (height, width))
    return rows, columns


def film_frames(media: Media, times: Sequence[float], rows: int, columns: int) -> Iterator[NDArray[np.uint8]]:
    """The pictures at `times` (s), uint8 [rows, columns, 3]; a part of them is decoded at a time."""
    step = max(1, CHUNK_BYTES // (3 * media.info.height * media.info.width))
    for first in range(0, len(times), step):
        for frame in media.frames(times[first : first + step]):
            yield resized(frame, rows, columns)


def resized(frame: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3] as [rows, columns, 3], antialiased."""
    if frame.shape[:2] == (rows, columns):
        return frame
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, size=(rows, columns), mode="bilinear", antialias=True)
    return pixels[0].permute(1, 2, 0).numpy()
