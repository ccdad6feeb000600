"""Separates the sound of a video of any length: windows through the model, and their sounds back into one.

Memory does not grow with the video but for the waveforms: that of the mixture and one for each source are held, 64 kB a
second each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchaudio.functional import resample

from deepavfusion.data.stores.store import on_grid
from deepavfusion.inference.boxes import Box, alone, read_boxes, split_picture, views_of
from deepavfusion.inference.sliding import Overview, overlap_add, window_starts
from deepavfusion.inference.video import BLOCK, told, whole_sound
from deepavfusion.media import Media
from deepavfusion.tasks.separate import Separate
from deepavfusion.transforms.audio import HOP_LENGTH, SAMPLE_RATE, LogMel, MelMask, extend_by_mirror
from deepavfusion.transforms.image import Normalise, View
from deepavfusion.utils.errors import UserError

LOOKS = 16  # moments at which the model looks for the sources


@dataclass
class Separation:
    """The sources of a video.

    Shapes: waveforms float32 [sources, T] at `sample_rate`, that of the video, which hold what lies below 8 kHz;
    frame uint8 [H, W, 3], the picture in the middle; mixture_mel [M, F] and source_mel [sources, M, F], power, and mask
    [sources, M, F] in 0…1, over the whole length of `seconds`, in as many columns as can be looked at.
    """

    video: str
    boxes: list[Box]
    chosen_by: Literal["user", "model"]
    waveforms: Tensor
    sample_rate: int
    seconds: float
    mixture_level: float
    frame: NDArray[np.uint8]
    mixture_mel: Tensor
    source_mel: Tensor
    mask: Tensor

    @property
    def levels(self) -> list[float]:
        """Root mean square of each source, dB of full scale; −inf for silence."""
        return [level(waveform) for waveform in self.waveforms]


@torch.inference_mode()
def separate_video(
    task: Separate,
    video: str | Path,
    boxes: Sequence[Sequence[float]] | None = None,
    sources: int | None = None,
    batch_size: int = 8,
    spread: Literal["transposed", "normalised"] = "normalised",
    on_progress: Callable[[int, int], Any] | None = None,
) -> Separation:
    """The sound of each source in a video.

    Args:
        task: trained, in evaluation mode; see `load_task`. It is used on the device where it is.
        video: a file with picture and sound.
        boxes: where the sources are: [x0, y0, x1, y1] each, in pixels, or in fractions if no value exceeds 1. None:
            the model splits the picture, see `split_picture`.
        sources: how many; None: as many as there are boxes, or two.
        batch_size: windows at a time, each with all its sources.
        spread: from mel bands to frequencies, see `MelMask`.
        on_progress: called with the windows done and their number.

    Raises:
        UserError: the video has no picture or no sound, is silent, or does not decode; or the boxes are wrong.
    """
    assert not task.training, "the batch norms of a task in training would learn from the video: task.eval() first"
    for name, count in (("sources", sources), ("batch_size", batch_size)):
        if count is not None and (type(count) is not int or count < 1):
            raise UserError(f"{name} is {count!r}, expected a whole number of at least 1.")
    with told("separated"), Media(video) as media:
        return _Separator(task, media, spread).run(boxes, sources, batch_size, on_progress)


def source_mask(logits: Tensor, kind: str) -> Tensor:
    """Mask logits as the part of the mixture that is the source's.

    The ratio that is learned is m = s / (s + mix), with the source counted twice. The part is r = s / mix =
    m / (1 − m), which is the exponential of the logit, at most 1; so the estimates are as loud as they should be.
    """
    return logits.clamp(max=0).exp() if kind == "ratio" else logits.sigmoid()


def level(waveform: Tensor) -> float:
    """Root mean square, dB of full scale; −inf for silence."""
    rms = waveform.square().mean().sqrt().item()
    return 20 * math.log10(rms) if rms > 0 else -math.inf


class _Separator:
    """One video and one model."""

    def __init__(self, task: Separate, media: Media, spread: Literal["transposed", "normalised"]) -> None:
        self.task, self.media, self.device = task, media, task.device
        encoder = task.net.encoder
        self.image_size = encoder.image.patch_embed.input_size[0]
        self.window = encoder.audio.patch_embed.input_size[1] * HOP_LENGTH
        self.normalise, self.log_mel = Normalise().to(self.device), LogMel().to(self.device)
        self.mel_mask = MelMask(spread).to(self.device)
        self.mixture = whole_sound(media, "separate")
        self.length = own_length(media, self.mixture)
        self.starts = window_starts(len(self.mixture), self.window)

    def run(
        self,
        boxes: Sequence[Sequence[float]] | None,
        sources: int | None,
        batch_size: int,
        on_progress: Callable[[int, int], Any] | None,
    ) -> Separation:
        frame = self.frames([self.starts[len(self.starts) // 2]])[0]
        height, width = frame.shape[:2]
        found = self.choose_boxes(sources or 2, width, height) if boxes is None else read_boxes(boxes, width, height)
        if len(found) != (sources or len(found)):
            raise UserError(f"boxes holds {len(found)} boxes, sources is {sources}: give one box for each source.")
        overview = Overview(math.ceil(len(self.mixture) / HOP_LENGTH))

        def pieces() -> Iterator[tuple[int, Tensor]]:
            for first in range(0, len(self.starts), batch_size):
                starts = self.starts[first : first + batch_size]
                estimates, maps = self.batch(starts, found)
                for start, estimate, window_maps in zip(starts, estimates, maps, strict=True):
                    overview.add(start / HOP_LENGTH, window_maps)
                    yield start, estimate
                if on_progress:
                    on_progress(first + len(starts), len(self.starts))

        estimates = overlap_add(pieces(), len(self.mixture))
        mixture_mel, source_mel, mask = overview.maps.split([1, len(found), len(found)])
        rate = self.media.info.sample_rate
        return Separation(
            video=self.media.path,
            boxes=found,
            chosen_by="model" if boxes is None else "user",
            waveforms=at_rate(estimates, rate, self.length),
            sample_rate=rate,
            seconds=len(self.mixture) / SAMPLE_RATE,
            mixture_level=level(self.mixture),
            frame=frame,
            mixture_mel=mixture_mel[0],
            source_mel=source_mel,
            mask=mask,
        )

    def batch(self, starts: Sequence[int], boxes: Sequence[Box]) -> tuple[Tensor, Tensor]:
        """Windows to the sources' sounds [B, sources, T] and the maps [B, 1 + 2 · sources, M, F] to look at."""
        mixture = self.sound(starts)
        log_mel = self.log_mel(mixture)
        logits = self.task.net(self.images(starts, boxes), log_mel)
        mask = source_mask(logits, self.task.hparams["mask"])
        estimate = self.mel_mask(mask, mixture.repeat_interleave(len(boxes), dim=0))
        power = torch.cat(
            [10 ** x.unflatten(0, (len(starts), -1)).squeeze(2) for x in (log_mel, self.log_mel(estimate))], dim=1
        )
        parted = mask.unflatten(0, (len(starts), -1)).squeeze(2)
        return estimate.unflatten(0, (len(starts), -1)).cpu(), torch.cat([power, parted], dim=1).cpu()

    def choose_boxes(self, sources: int, width: int, height: int) -> list[Box]:
        """Where the model's condition differs most, in whole pictures squeezed to its square, over the whole length."""
        step = max(1, math.ceil(len(self.starts) / LOOKS))
        grid = self.task.net.encoder.image.grid
        tokens = []
        for start in self.starts[step // 2 :: step]:
            encoded = self.task.net.encode(self.images([start]), self.log_mel(self.sound([start])))
            tokens.append(self.task.net.head.image_tokens(encoded).unflatten(1, grid).float().cpu())
        return split_picture(torch.cat(tokens), sources, width, height)

    def sound(self, starts: Sequence[int]) -> Tensor:
        """Windows of the mixture [B, T], extended by their mirror image where the sound is shorter."""
        windows = [extend_by_mirror(self.mixture[start : start + self.window], self.window) for start in starts]
        return torch.stack(windows).to(self.device)

    def images(self, starts: Sequence[int], boxes: Sequence[Box] = ()) -> Tensor:
        """The pictures in the windows' middles with each box alone, [B · boxes, 3, H, W], normalised.

        Without boxes: as they are, squeezed to a square.
        """
        crops = []
        for frame in self.frames(starts):
            shown = [Image.fromarray(alone(frame, box, boxes)) for box in boxes] or [Image.fromarray(frame)]
            views = views_of(boxes, frame.shape[1], frame.shape[0]) or [View()]
            crops += [view.of(picture, self.image_size) for view, picture in zip(views, shown, strict=True)]
        return self.normalise(torch.stack(crops).to(self.device))

    def frames(self, starts: Sequence[int]) -> NDArray[np.uint8]:
        """The pictures in the windows' middles, on the grid that training and evaluation use; [B, H, W, 3]."""
        seconds, moments = self.window / SAMPLE_RATE, []
        info = self.media.info
        end = info.video_end if info.video_duration else len(self.mixture) / SAMPLE_RATE  # recordings without a length
        for start in (start / SAMPLE_RATE for start in starts):
            moments.append(on_grid(start + seconds / 2, start, min(start + seconds, end)))
        return self.media.frames(moments)


def own_length(media: Media, mixture: Tensor) -> int:
    """Of a file's sound, of which `mixture` [T] is all at 16 kHz, in samples of its own rate."""
    rate, last = media.info.sample_rate, len(mixture) // (BLOCK * SAMPLE_RATE) * BLOCK
    return last * rate + len(media.audio(last, BLOCK, rate))


def at_rate(waveforms: Tensor, rate: int, length: int) -> Tensor:
    """Waveforms [..., T] at 16 kHz, at another rate and of exactly that many samples; silence fills up."""
    resampled = resample(waveforms, SAMPLE_RATE, rate)[..., :length]
    return torch.nn.functional.pad(resampled, (0, length - resampled.shape[-1]))
