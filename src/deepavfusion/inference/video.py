"""Reads a file for a network: frames and windows of audio, prepared as in training; either may be absent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deepavfusion.data.samples import SampleGroup, WindowDataset
from deepavfusion.data.stores.raw import MediaClip, RawStore
from deepavfusion.data.stores.store import OpenClip, frames_of, on_grid
from deepavfusion.inference.growing import GrowingArray
from deepavfusion.media import Media, Recording, Source, Still, open_media
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.audio import HOP_LENGTH, SAMPLE_RATE, LogMel, extend_by_mirror
from deepavfusion.transforms.image import Normalise, View
from deepavfusion.types import Clip, Sample
from deepavfusion.utils.errors import DecodeError, UserError
from deepavfusion.utils.files import almost_there

MODALITIES = ("image", "audio")
SILENT = 1e-4  # −80 dB of full scale; the last bit of 16-bit audio is −90 dB
BLOCK = 10  # s of audio decoded at a time


@contextmanager
def open_video(source: Source, purpose: str) -> Iterator[Media | Recording]:
    """Open a file or recording with frames and audio.

    Args:
        source: the file.
        purpose: a past participle for the message: "video … cannot be <purpose>".

    Raises:
        UserError: no frames, no audio, or the file does not decode, now or while the block reads it.
    """
    with _usable(purpose, "video with frames and audio"), open_media(source) as media:
        for kind in ("video", "audio"):
            media.require(kind)
        assert not isinstance(media, Still)  # no image has audio
        yield media


@contextmanager
def open_partial(source: Source, purpose: str) -> Iterator[Media | Still | Recording]:
    """As `open_video`, also of a file with one of both, see `modalities`, or of an image."""
    with _usable(purpose, "file with frames, audio or both, or an image"), open_media(source) as media:
        if not modalities(media):
            media.require("video")
        yield media


@contextmanager
def _usable(purpose: str, expected: str) -> Iterator[None]:
    """Turn a `DecodeError` of the block into a `UserError`."""
    try:
        yield
    except DecodeError as error:
        almost = almost_there(error.path) if error.reason == "missing" else ""
        raise UserError(
            f"video {error.path} cannot be {purpose}, {error.reason.replace('_', ' ')}: {error.detail}{almost}; "
            f"expected a complete {expected}."
        ) from error


def modalities(media: Media | Still | Recording) -> tuple[str, ...]:
    """Those of `MODALITIES` that a file has: frames give the image."""
    return tuple(name for name, kind in zip(MODALITIES, ("video", "audio"), strict=True) if media.has(kind))


def whole_waveform(media: Media | Recording, scratch: str | Path | None = None) -> GrowingArray:
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


def audio_blocks(media: Media | Recording, rate: int) -> Iterator[Tensor]:
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

    def __init__(self, task: Task, media: Media | Still | Recording, waveform: GrowingArray | None = None) -> None:
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


class PartialStore(RawStore):
    """Files that may lack frames or audio, still images, and recordings.

    Args:
        recordings: by the paths of the clips that are read from memory.
    """

    def __init__(self, recordings: Mapping[str, Recording] | None = None) -> None:
        self.recordings = recordings or {}

    @contextmanager
    def open(self, clip: Clip) -> Iterator[OpenClip]:
        with open_media(self.recordings.get(clip.path, clip.path)) as media:
            found = modalities(media)
            if not found:
                media.require("audio")
            kind = MediaClip if len(found) == 2 else _ImageClip if "image" in found else _AudioClip
            yield kind(media)


class _ImageClip(MediaClip):
    """A video without audio, or an image: windows lie where they would if the audio lasted as long."""

    def __init__(self, media: Media | Still | Recording) -> None:
        super().__init__(media)
        self.audio_end = self.video_end


class _AudioClip(MediaClip):
    """Audio alone."""


class PartialDataset(WindowDataset):
    """Windows of clips of a `PartialStore`; what a clip does not have is an empty tensor in its samples."""

    def windows(self, clip: Clip, opened: OpenClip, starts: Sequence[float]) -> SampleGroup:
        if isinstance(opened, _ImageClip):
            times = [self.frame_time(opened, start) for start in starts]
            size, found = self.spec.image_size, zip(frames_of(opened, times), times, starts, strict=True)
            return [
                Sample(self.view(frame).of(frame.pixels, size), torch.empty(0), clip, time, start)
                for frame, time, start in found
            ]
        if isinstance(opened, _AudioClip):
            samples: SampleGroup = []
            for start in starts:
                waveform, problems = self.fitted(clip, opened.audio(start, self.spec.seconds), start)
                no_image = torch.empty(0, dtype=torch.uint8)
                samples.append(Sample(no_image, waveform, clip, start, start, problems=[] if samples else problems))
            return samples
        return super().windows(clip, opened, starts)
