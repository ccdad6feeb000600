"""A media file, opened once for header, pictures and sound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import av
import numpy as np
import torch
from numpy.typing import NDArray

from deepavfusion.media import audio as audio_reader
from deepavfusion.media import frames as frame_reader
from deepavfusion.media.container import Container, failures


@dataclass(frozen=True)
class MediaInfo:
    """What the header says.

    Times are seconds on the file's clock. Values are 0 where the header is silent or there is no such stream;
    `frames` is 0 for containers that do not count them; `width` and `height` are before rotation.
    """

    duration: float
    has_video: bool
    video_start: float
    video_duration: float
    frames: int
    fps: float
    width: int
    height: int
    has_audio: bool
    audio_start: float
    audio_duration: float
    sample_rate: int
    channels: int

    @property
    def audio_end(self) -> float:
        """Where the sound ends, s; where the file does if the header gives the sound no length."""
        return self.audio_start + self.audio_duration or self.duration

    @property
    def video_end(self) -> float:
        """Where the last picture leaves the screen, s."""
        return self.video_start + self.video_duration


class Media:
    """An open media file; a context manager that closes it.

    Every failure of the file is a `DecodeError`, whichever method meets it.

    Args:
        path: the file.

    Raises:
        DecodeError: missing, truncated, undecodable.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.container = Container(path)

    def __enter__(self) -> Media:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @cached_property
    def info(self) -> MediaInfo:
        """What the header says."""
        container = self.container
        with failures(container.path):
            video, audio = container.stream("video"), container.stream("audio")
            duration = (container.av.duration or 0) / av.time_base
            start, length = container.span(video) if video else (0.0, 0.0)
            sound_start, sound_length = container.span(audio) if audio else (0.0, 0.0)
            # Matroska gives the length of the whole file only.
            length = length or (max(0.0, duration - start) if video else 0.0)
            sound_length = sound_length or (max(0.0, duration - sound_start) if audio else 0.0)
            return MediaInfo(
                duration=max(duration, start + length, sound_start + sound_length),
                has_video=video is not None,
                video_start=start,
                video_duration=length,
                frames=video.frames if video else 0,
                fps=float(video.average_rate or 0) if video else 0.0,
                width=video.codec_context.width if video else 0,
                height=video.codec_context.height if video else 0,
                has_audio=audio is not None,
                audio_start=sound_start,
                audio_duration=sound_length,
                sample_rate=audio.codec_context.sample_rate if audio else 0,
                channels=audio.codec_context.channels if audio else 0,
            )

    def require(self, *kinds: str) -> None:
        """Check that the file has a "video" or an "audio" stream.

        Raises:
            DecodeError: no_video, no_audio.
        """
        for kind in kinds:
            self.container.require(kind)

    def frames(self, times: Sequence[float]) -> NDArray[np.uint8]:
        """The frames on screen at `times`.

        Args:
            times: seconds on the file's clock, at least one, in any order. Before the first frame the first
                is taken, after the last the last.

        Returns:
            uint8 [N, H, W, 3], RGB, upright, in the order of `times`.

        Raises:
            DecodeError: no_video, too_short (a stream without frames), truncated, undecodable.
        """
        with failures(self.container.path, "video"):
            return frame_reader.frames_at(self.container, times)

    def audio(self, start: float, seconds: float, sample_rate: int = 16_000) -> torch.Tensor:
        """A window of sound, mono.

        Sample k lies at `start + k / sample_rate` on the file's clock. Before the audio stream's first sample,
        and in gaps inside it, there is silence. Surround sound is mixed as `audio._mono_weights` says. Windows that
        overlap agree sample for sample where their starts lie a whole number of samples apart.

        Args:
            start: seconds; may be negative.
            seconds: length of the window, more than 0.
            sample_rate: of the result, Hz.

        Returns:
            float32 [T] in [−1, 1]; T = round(seconds · sample_rate), fewer (even 0) where the sound ends earlier.

        Raises:
            DecodeError: no_audio, too_short (a stream without samples), truncated, undecodable.
        """
        with failures(self.container.path, "audio"):
            return audio_reader.window(self.container, start, seconds, sample_rate)


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """The header of a file; see `Media`."""
    with Media(path) as media:
        return media.info


def read_frames(path: str | os.PathLike[str], times: Sequence[float]) -> NDArray[np.uint8]:
    """Frames of a file; see `Media.frames`."""
    with Media(path) as media:
        return media.frames(times)


def read_audio(path: str | os.PathLike[str], start: float, seconds: float, sample_rate: int = 16_000) -> torch.Tensor:
    """A window of a file's sound; see `Media.audio`."""
    with Media(path) as media:
        return media.audio(start, seconds, sample_rate)
