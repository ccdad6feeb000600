"""Marks the sounding pixels in a video of any length: several times a second, each time with the audio around it.

Memory does not grow with the video: its waveform is in a temporary file, 64 kB per second.
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

from deepavfusion.inference.growing import GrowingArray
from deepavfusion.inference.tasks import recorded_classes
from deepavfusion.inference.tiles import cover, decide_enlarged
from deepavfusion.inference.video import VideoReader, open_video, whole_waveform
from deepavfusion.media import Source
from deepavfusion.models.segmenter import probabilities
from deepavfusion.tasks.segment import Segment
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.utils.errors import UserError

MAX_PER_SECOND = 1000  # masks: their files are named by the millisecond
MAX_CLASSES = 256  # that a mask of bytes can hold


@dataclass
class Segmentation:
    """The masks of a video, made while they are read, so that none has to be kept.

    `classes` names their values, the background first; None: 1 is sounding, 0 is not. `seconds` is the length of the
    video or of its audio, whichever is longer. `masks` yields the mask of each of `times` (s) once, in order, uint8
    [height, width], and raises a UserError where the video does not decode. `source` is what is read, which `video`
    names.
    """

    video: str
    seconds: float
    height: int
    width: int
    classes: list[str] | None
    masks_per_second: float
    times: list[float]
    masks: Iterator[NDArray[np.uint8]]
    source: Source = ""


def segment_video(
    task: Segment,
    video: Source,
    masks_per_second: float = 5,
    batch_size: int = 8,
    on_progress: Callable[[int, int], Any] | None = None,
    scratch: str | Path | None = None,
) -> Segmentation:
    """The pixels of a video that show the source of its audio, or the class of what sounds there.

    Args:
        task: trained, in evaluation mode; see `load_task`. It runs on the device it is on.
        video: a file or recording with frames and audio.
        masks_per_second: above 0, at most `MAX_PER_SECOND`; the first mask is at 0 s.
        batch_size: masks at a time, each with all the squares that cover the frame.
        on_progress: called with the masks done and their number.
        scratch: folder for temporary files; None: the system's.

    Raises:
        UserError: the video has no frames or no audio, is silent, or does not decode.
    """
    if not 0 < masks_per_second <= MAX_PER_SECOND:
        raise UserError(
            f"masks_per_second is {masks_per_second!r}, expected a number above 0 and at most {MAX_PER_SECOND}, e.g. 5."
        )
    classes = class_names(task)
    with open_video(video, "segmented") as media:
        waveform, end = whole_waveform(media, scratch), media.info.video_end
        height, width = media.frames([0.0]).shape[1:3]
    seconds = max(end, len(waveform) / SAMPLE_RATE)
    times = [n / masks_per_second for n in range(max(1, math.ceil(seconds * masks_per_second - 1e-6)))]
    masks = _masks(task, video, waveform, times, batch_size, on_progress)
    return Segmentation(media.path, seconds, height, width, classes, masks_per_second, times, masks, video)


def class_names(task: Segment) -> list[str] | None:
    """The names of a mask's values, the background first; None where they are sounding or not."""
    return None if task.net.num_classes == 1 else recorded_classes(task, MAX_CLASSES)


@torch.inference_mode()
def _masks(
    task: Segment,
    video: Source,
    waveform: GrowingArray,
    times: Sequence[float],
    batch_size: int,
    on_progress: Callable[[int, int], Any] | None,
) -> Iterator[NDArray[np.uint8]]:
    with open_video(video, "segmented") as media:
        reader = VideoReader(task, media, waveform)
        for first in range(0, len(times), batch_size):
            batch = times[first : first + batch_size]
            frames = media.frames(batch)
            tiling = cover(frames.shape[1], frames.shape[2], reader.image_size)
            # Windows are centred on the times, and moved inside the audio at its ends.
            latest = max(len(waveform) - reader.window, 0)
            starts = [min(max(round(time * SAMPLE_RATE) - reader.window // 2, 0), latest) for time in batch]
            log_mel = reader.log_mel(reader.windows(starts)).repeat_interleave(len(tiling.views), dim=0)
            logits = task.net(reader.images((frame, view) for frame in frames for view in tiling.views), log_mel)
            for frame, parts in zip(frames, logits.split(len(tiling.views)), strict=True):
                found = tiling.merge(probabilities(parts.float()))
                yield decide_enlarged(found, *frame.shape[:2]).cpu().numpy()
            if on_progress:
                on_progress(first + len(batch), len(times))
