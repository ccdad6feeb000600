"""What all films (written videos) share: their frames, frame rate, size and audio."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.media import Media, MediaInfo, Recording, Still
from deepavfusion.media.encode import write_mp4
from deepavfusion.utils.files import whole

MAX_FPS = 30.0
MAX_PIXELS = 720  # of the shorter side
AAC_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)


def film_times(info: MediaInfo, seconds: float, min_fps: float = 0.0) -> tuple[list[float], float]:
    """The times (s) of a video's frames that its film shows, and the film's frame rate.

    Args:
        info: of the video.
        seconds: length of its audio; the last frame is repeated to the end of it.
        min_fps: a slower video gets this frame rate, at most `MAX_FPS`, by repeating its frames.
    """
    fps = info.fps or MAX_FPS
    fps /= max(1, math.ceil(fps / MAX_FPS - 1e-3))  # 50 -> 25, and no frame twice
    fps *= max(1, min(math.ceil(min_fps / fps - 1e-3), math.floor(MAX_FPS / fps + 1e-3)))
    count = max(1, round(max(info.video_end, seconds) * fps))
    return [n / fps for n in range(count)], fps


def film_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a video's film: the shorter side at most `MAX_PIXELS`, both even, as H.264 needs them."""
    scale = min(1.0, MAX_PIXELS / min(height, width))
    rows, columns = (max(2, 2 * round(side * scale / 2)) for side in (height, width))
    return rows, columns


def film_rate(sample_rate: int) -> int:
    """The sample rate (Hz) of a film's audio: the video's own, if AAC supports it."""
    return sample_rate if sample_rate in AAC_RATES else 48_000


def film_frames(
    media: Media | Still | Recording, times: Sequence[float], rows: int, columns: int
) -> Iterator[NDArray[np.uint8]]:
    """The frames at `times` (s, rising), resized to uint8 [rows, columns, 3]."""
    for frame in media.frames_in_turn(times):
        if frame.shape[:2] != (rows, columns):
            resized = F.interpolate(
                torch.from_numpy(frame).permute(2, 0, 1)[None], size=(rows, columns), mode="bilinear", antialias=True
            )
            frame = resized[0].permute(1, 2, 0).numpy()
        yield frame


def write_film(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float, audio: Iterable[Tensor], rate: int) -> None:
    """Write an mp4 atomically, with a waveform in parts [1, T] at `rate` (Hz), see `film_rate`."""
    with whole(path) as partial:
        write_mp4(partial, frames, fps, (part.numpy() for part in audio), rate, audio_bit_rate=128_000)
