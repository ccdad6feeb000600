"""Reads a video for a network: frames and windows of audio, prepared as in training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deepavfusion.data.stores.store import on_grid
from deepavfusion.inference.growing import GrowingArray
from deepavfusion.media import Media
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.audio import HOP_LENGTH, SAMPLE_RATE, LogMel, extend_by_mirror
from deepavfusion.transforms.image import Normalise, View
from deepavfusion.utils.errors import DecodeError, UserError
from deepavfusion.utils.files import almost_there

SILENT = 1e-4  # −80 dB of full scale; the last bit of 16-bit audio is −90 dB
BLOCK = 10  # s of audio decoded at a time


@contextmanager
def open_video(path: str | Path, purpose: str) -> Iterator[Media]:
    """Open a file with frames and audio.

    Args:
        path: the file.
        purpose: a past participle for the message: "video … cannot be <purpose>".

    Raises:
        UserError: no frames, no audio, or the file does not decode, now or while the block reads it.
    """
    try:
        with Media(path) as media:
            media.require("video")
            media.require("audio")
            yield media
    except DecodeError as error:
        almost = almost_there(error.path) if error.reason == "missing" else ""
        raise UserError(
            f"video {error.path} cannot be {purpose}, {error.reason.replace('_', ' ')}: {error.detail}{almost}; "
            "expected a complete video with frames and audio."
        ) from error


def whole_waveform(media: Media, scratch: str | Path | None = None) -> GrowingArray:
    """All of a video's audio from 0 s, mono at 16 kHz, [T]: in a file, 64 kB per second.

    Args:
        media: the open video.
        scratch: folder for the file; None: the system's for temporary files.

    Raises:
        DecodeError: no audio, or it does not decode.
        UserError: it is silent.
    """
    waveform, peak = GrowingArray((), scratch), 0.0
    for block in audio_blocks(media, SAMPLE_RATE):
        waveform.add(block)
        peak = max(peak, block.abs().max().item() if len(block) else 0.0)
    if peak < SILENT:
        found = f"peaks at {20 * math.log10(peak):.0f} dB" if peak > 0 else "is all zero"
        raise UserError(
            f"video {media.path} is silent: its {len(waveform) / SAMPLE_RATE:.2f} s of audio {found}, "
            f"expected a peak above {20 * math.log10(SILENT):.0f} dB of full scale; choose a video with audible sound."
        )
    return waveform


def audio_blocks(media: Media, rate: int) -> Iterator[Tensor]:
    """All of a file's audio from 0 s, mono, in blocks of `BLOCK` seconds; the last is shorter, possibly empty."""
    yield from media.audio_blocks(BLOCK, rate)


class VideoReader:
    """Gives a network its inputs from one video.

    Args:
        task: whose network reads, in evaluation mode; inputs are made on its device.
        media: the open video.
        waveform: [T], all of its audio, see `whole_waveform`; None: the caller reads the audio itself.

    Attributes:
        image_size: side of the images that the network takes, pixels.
        window: length of the audio that it takes, samples.
    """

    def __init__(self, task: Task, media: Media, waveform: GrowingArray | None = None) -> None:
        assert not task.training, "call task.eval() first: in training mode the batch norms would adapt to the video"
        patches = {stream: getattr(task.net.encoder, stream).patch_embed for stream in ("image", "audio")}
        self.image_size: int = patches["image"].input_size[0]
        self.window: int = patches["audio"].input_size[1] * HOP_LENGTH
        self.media, self.waveform, self.device = media, waveform, task.device
        self.normalise, self.log_mel = Normalise().to(task.device), LogMel().to(task.device)

    def frames(self, starts: Sequence[int]) -> NDArray[np.uint8]:
        """The frame in the middle of each window, on the time grid of training and evaluation.

        Args:
            starts: of the windows, samples.

        Returns:
            uint8 [windows, H, W, 3]
        """
        seconds, info, end = self.window / SAMPLE_RATE, self.media.info, math.inf
        if info.video_duration:
            end = info.video_end
        elif self.waveform is not None:  # recordings that were cut off give no duration
            end = len(self.waveform) / SAMPLE_RATE
        times = [start / SAMPLE_RATE for start in starts]
        return self.media.frames([on_grid(t + seconds / 2, t, min(t + seconds, end)) for t in times])

    def windows(self, starts: Sequence[int]) -> Tensor:
        """Windows [windows, T] of the waveform from `starts` (samples) on, mirrored where the audio is shorter."""
        assert self.waveform is not None
        parts = [self.waveform[start : start + self.window] for start in starts]
        return torch.stack([extend_by_mirror(part, self.window) for part in parts]).to(self.device)

    def images(self, crops: Iterable[tuple[NDArray[np.uint8], View]]) -> Tensor:
        """Views of frames (uint8 [H, W, 3] each) as the network takes them, [crops, 3, size, size], normalised."""
        images = [view.of(Image.fromarray(frame), self.image_size) for frame, view in crops]
        return self.normalise(torch.stack(images).to(self.device))
