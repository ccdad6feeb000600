"""Separates the audio of a video of any length: windows through the model, and their sources joined without seams.

Memory does not grow with the video: the waveforms, of the mixture and of each source, are in temporary files, 64 kB per
second each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from deepavfusion.inference.boxes import Box, alone, read_boxes, split_frame, view_of
from deepavfusion.inference.growing import GrowingArray
from deepavfusion.inference.sliding import Overview, overlap_add, window_starts
from deepavfusion.inference.video import BLOCK, VideoReader, open_video, whole_waveform
from deepavfusion.media import Media, Recording, Source
from deepavfusion.tasks.separate import Separate
from deepavfusion.transforms.audio import HOP_LENGTH, SAMPLE_RATE, MelMask
from deepavfusion.transforms.image import View
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.processes import give_memory_back

PART = 10  # s that are resampled at a time
LOOKS = 16  # frames in which the model looks for the sources, at most about


@dataclass
class Separation:
    """The sources of a video.

    Shapes: estimates [T, sources] at 16 kHz, in a file; frame uint8 [H, W, 3], from the middle of the video;
    mixture_mel [M, F] and source_mel [sources, M, F], power, and mask [sources, M, F] in 0…1, over the whole length of
    `seconds`, averaged to at most `sliding.COLUMNS` columns. `length` is that of the audio at `sample_rate`, the
    video's own. `source` is what was read, which `video` names.
    """

    video: str
    boxes: list[Box]
    chosen_by: Literal["user", "model"]
    estimates: GrowingArray
    sample_rate: int
    length: int
    seconds: float
    mixture_level: float
    frame: NDArray[np.uint8]
    mixture_mel: Tensor
    source_mel: Tensor
    mask: Tensor
    source: Source = ""

    def audio(self, rate: int, source: int | None = None) -> Iterator[Tensor]:
        """The sources, or one of them, at any rate (Hz), in parts: float32 [sources, T], with content below 8 kHz.

        Raises:
            IndexError: there is no source of that number.
        """
        length = self.length if rate == self.sample_rate else math.ceil(self.length * rate / self.sample_rate)
        number = None if source is None else range(len(self.boxes))[source]
        columns = slice(None) if number is None else slice(number, number + 1)
        done = 0
        for begin in range(0, len(self.estimates), PART * SAMPLE_RATE):
            end = begin + PART * SAMPLE_RATE
            first = max(0, begin - SAMPLE_RATE)  # a second on both sides, in which the filter begins and ends
            known = self.estimates[first : end + SAMPLE_RATE][:, columns].T.contiguous()
            part = resample(known, SAMPLE_RATE, rate)[:, (begin - first) // SAMPLE_RATE * rate :]
            part = part[:, : length - done if end >= len(self.estimates) else PART * rate]
            done += part.shape[1]
            yield part
        yield part.new_zeros(len(part), length - done)

    @property
    def waveforms(self) -> Tensor:
        """All sources [sources, T] at `sample_rate`, in memory."""
        return torch.cat(list(self.audio(self.sample_rate)), dim=1)

    @cached_property
    def levels(self) -> list[float]:
        """Root mean square of each source, dB of full scale; −inf for silence."""
        return levels(self.audio(self.sample_rate))


@torch.inference_mode()
def separate_video(
    task: Separate,
    video: Source,
    boxes: Sequence[Sequence[float]] | None = None,
    sources: int | None = None,
    batch_size: int = 8,
    on_progress: Callable[[int, int], Any] | None = None,
    scratch: str | Path | None = None,
) -> Separation:
    """The audio of each source in a video.

    Args:
        task: trained, in evaluation mode; see `load_task`. It runs on the device it is on.
        video: a file or recording with frames and audio.
        boxes: where the sources are: [x0, y0, x1, y1] each, in pixels, or in fractions if no value exceeds 1. None:
            the model splits the frame, see `split_frame`.
        sources: how many; None: as many as there are boxes, or two.
        batch_size: windows at a time, each with all its sources.
        on_progress: called with the windows done and their number.
        scratch: folder for temporary files; None: the system's.

    Raises:
        UserError: the video has no frames or no audio, is silent, or does not decode; or the boxes are wrong.
    """
    with open_video(video, "separated") as media:
        separator = _Separator(task, media, scratch)
        starts, mixture = separator.starts, separator.mixture
        frame = separator.reader.frames([starts[len(starts) // 2]])[0]
        height, width = frame.shape[:2]
        if boxes is None:
            found = separator.choose_boxes(2 if sources is None else sources, width, height)
        else:
            found = read_boxes(boxes, width, height)
        if sources not in (None, len(found)):
            raise UserError(f"boxes holds {len(found)} boxes, sources is {sources}: give one box for each source.")
        overview = Overview(math.ceil(len(mixture) / HOP_LENGTH))

        def pieces() -> Iterator[tuple[int, Tensor]]:
            for first in range(0, len(starts), batch_size):
                batch = starts[first : first + batch_size]
                for start, estimate, maps in zip(batch, *separator.batch(batch, found), strict=True):
                    overview.add(start / HOP_LENGTH, maps)
                    yield start, estimate
                if on_progress:
                    on_progress(first + len(batch), len(starts))

        estimates = GrowingArray((len(found),), scratch)
        for part in overlap_add(pieces(), len(mixture)):
            estimates.add(part.T)
        give_memory_back()
        mixture_mel, source_mel, mask = overview.maps.split([1, len(found), len(found)])
        return Separation(
            video=media.path,
            boxes=found,
            chosen_by="model" if boxes is None else "user",
            estimates=estimates,
            sample_rate=media.info.sample_rate,
            length=own_length(media, len(mixture)),
            seconds=len(mixture) / SAMPLE_RATE,
            mixture_level=levels(mixture[n : n + SAMPLE_RATE][None] for n in range(0, len(mixture), SAMPLE_RATE))[0],
            frame=frame,
            mixture_mel=mixture_mel[0],
            source_mel=source_mel,
            mask=mask,
            source=video,
        )


def source_mask(logits: Tensor, kind: str) -> Tensor:
    """Mask logits to the share of the mixture that belongs to the source, 0…1.

    The ratio that is learned is m = s / (s + mix), which counts the source twice. The share is r = s / mix =
    m / (1 − m), the exponential of the logit, at most 1; so the estimates have the loudness of the sources.
    """
    return logits.clamp(max=0).exp() if kind == "ratio" else logits.sigmoid()


def levels(parts: Iterable[Tensor]) -> list[float]:
    """Root mean square of waveforms [N, T] in parts, dB of full scale; −inf for silence."""
    energy, length = torch.zeros((), dtype=torch.float64), 0
    for part in parts:
        energy, length = energy + part.square().sum(dim=1, dtype=torch.float64), length + part.shape[1]
    return [10 * math.log10(mean) if mean > 0 else -math.inf for mean in (energy / max(length, 1)).tolist()]


class _Separator:
    """One video and one model."""

    def __init__(self, task: Separate, media: Media | Recording, scratch: str | Path | None) -> None:
        self.task, self.mixture = task, whole_waveform(media, scratch)
        self.reader = VideoReader(task, media, self.mixture)
        self.mel_mask = MelMask().to(task.device)
        self.starts = window_starts(len(self.mixture), self.reader.window)

    def batch(self, starts: Sequence[int], boxes: Sequence[Box]) -> tuple[Tensor, Tensor]:
        """Windows to estimates [B, sources, T] and maps [B, 1 + 2 · sources, M, F]: mixture, sources, masks."""

        def by_source(x: Tensor) -> Tensor:
            return x.unflatten(0, (len(starts), -1))

        mixture = self.reader.windows(starts)
        log_mel = self.reader.log_mel(mixture)
        crops = [
            (alone(frame, box, boxes), view_of(box, frame.shape[1], frame.shape[0]))
            for frame in self.reader.frames(starts)
            for box in boxes
        ]
        mask = source_mask(self.task.net(self.reader.images(crops), log_mel), self.task.hparams["mask"])
        estimate = self.mel_mask(mask, mixture.repeat_interleave(len(boxes), dim=0))
        power = [10 ** by_source(x).squeeze(2) for x in (log_mel, self.reader.log_mel(estimate))]
        return by_source(estimate).cpu(), torch.cat([*power, by_source(mask).squeeze(2)], dim=1).cpu()

    def choose_boxes(self, sources: int, width: int, height: int) -> list[Box]:
        """Where the model's conditioning differs most, in whole frames squeezed to a square, over the whole length."""
        step = max(1, math.ceil(len(self.starts) / LOOKS))
        grid = self.task.net.encoder.image.grid
        tokens = []
        for start in self.starts[step // 2 :: step]:
            images = self.reader.images((frame, View()) for frame in self.reader.frames([start]))
            encoded = self.task.net.encode(images, self.reader.log_mel(self.reader.windows([start])))
            tokens.append(self.task.net.head.image_tokens(encoded).unflatten(1, grid).float().cpu())
        return split_frame(torch.cat(tokens), sources, width, height)


def own_length(media: Media | Recording, length: int) -> int:
    """Length of a file's audio at its own rate; `length` is that at 16 kHz."""
    rate, last = media.info.sample_rate, length // (BLOCK * SAMPLE_RATE) * BLOCK
    found, scaled = last * rate + len(media.audio(last, BLOCK, rate)), length * rate / SAMPLE_RATE
    return found if abs(found - scaled) <= max(1.0, rate / SAMPLE_RATE) else round(scaled)  # see `Media.audio_blocks`
