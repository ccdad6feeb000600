"""A media file, opened once for header, frames and audio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, TypeVar

import av
import numpy as np
import torch
from numpy.typing import NDArray

from deepavfusion.media import audio, frames
from deepavfusion.media.audio import ENDS_EARLY
from deepavfusion.media.container import Container
from deepavfusion.media.files import failures

Part = TypeVar("Part")  # of a stream
HEADER_BEHIND = 1.0  # s; a header that ends earlier or later than the packets by more is wrong


@dataclass(frozen=True)
class MediaInfo:
    """What the header says; where streams end, also what their packets say.

    Times are seconds on the file's clock. Values are 0 where the header is silent or there is no such stream;
    `frames` is 0 for containers that do not count them; `width` and `height` are on square pixels, before rotation.
    """

    duration: float
    video_start: float
    video_duration: float
    frames: int
    fps: float
    width: int
    height: int
    audio_start: float
    audio_duration: float
    sample_rate: int
    channels: int

    @property
    def audio_end(self) -> float:
        """Where the audio ends, s; where the file does if the header gives the audio no length."""
        return self.audio_start + self.audio_duration or self.duration

    @property
    def video_end(self) -> float:
        """Where the last frame leaves the screen, s."""
        return self.video_start + self.video_duration


class Media(Container):
    """An open media file; a context manager that closes it.

    Every failure of the file is a `DecodeError`, whichever method meets it.

    Args:
        path: the file.

    Raises:
        DecodeError: missing, truncated, undecodable.
    """

    def __enter__(self) -> Media:
        return self

    def __exit__(self, *_: object) -> None:
        self.av.close()

    @cached_property
    def info(self) -> MediaInfo:
        """The header, corrected by the packets.

        Raises:
            DecodeError: truncated, undecodable (also if it is beyond the bounds of bounds.py).
        """
        with failures(self.path):
            video, sound = self.stream("video"), self.stream("audio")
            latest = max((extent.end for extent in self.extents.values()), default=0.0)
            duration = (self.av.duration or 0) / av.time_base
            duration = duration if duration <= latest + HEADER_BEHIND else latest
            video_start, video_length = self._lasts(video, duration, latest + HEADER_BEHIND)
            audio_start, audio_length = self._lasts(sound, duration, None)
            return MediaInfo(
                duration=max(duration, video_start + video_length, audio_start + audio_length),
                video_start=video_start,
                video_duration=video_length,
                frames=video.frames if video else 0,
                fps=float(video.average_rate or 0) if video else 0.0,
                width=self.size[0],
                height=self.size[1],
                audio_start=audio_start,
                audio_duration=audio_length,
                sample_rate=sound.codec_context.sample_rate if sound else 0,
                channels=sound.codec_context.channels if sound else 0,
            )

    def _lasts(self, stream: Any | None, duration: float, latest: float | None) -> tuple[float, float]:
        """Start and length of a stream, s: by its header, or the file's, unless the packets say something else.

        Args:
            stream: one of the file's, or None.
            duration: of the whole file, s; Matroska gives no other.
            latest: up to which a last frame may stay on screen; None: this is audio.
        """
        if stream is None:
            return 0.0, 0.0
        start, length = self.span(stream)
        length = length or max(0.0, duration - start)
        if extent := self.extents.get(stream.type):
            most = extent.end + ENDS_EARLY if latest is None else latest
            if not extent.end - HEADER_BEHIND <= start + length <= most:
                length = max(0.0, extent.end - start)
        return start, length

    def frames(self, times: Sequence[float]) -> NDArray[np.uint8]:
        """The frames on screen at `times`.

        Args:
            times: seconds on the file's clock, at least one, in any order. Before the first frame the first
                is taken, after the last the last.

        Returns:
            uint8 [N, H, W, 3], RGB, upright, in the order of `times`; frames of another size than the first are scaled.

        Raises:
            DecodeError: no_video, too_short (a stream without frames), truncated, undecodable.
        """
        with failures(self.path, "video"):
            return frames.frames_at(self, times)

    def frames_in_turn(self, times: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
        """As `frames`, [H, W, 3] each, without holding them; nothing else may be read from this file meanwhile.

        Args:
            times: seconds on the file's clock, rising.
        """
        yield from self._in_turn(frames.frames_in_turn(self, times), "video")

    def audio(self, start: float, seconds: float, sample_rate: int = 16_000) -> torch.Tensor:
        """A window of the audio, mono.

        Sample k lies at `start + k / sample_rate` on the file's clock. Before the audio stream's first sample,
        and in gaps inside it, there is silence. Surround sound is mixed as `audio._mono_weights` says. Windows that
        overlap agree sample for sample where their starts lie a whole number of samples apart; where timestamps are
        rounded to 1 ms (Matroska, FLV, ASF), up to 0.5 ms apart.

        Args:
            start: seconds; may be negative.
            seconds: length of the window, more than 0.
            sample_rate: of the result, Hz.

        Returns:
            float32 [T] in [−1, 1]; T = round(seconds · sample_rate), fewer (even 0) where the audio ends earlier.

        Raises:
            DecodeError: no_audio, too_short (a stream without samples), truncated, undecodable.
        """
        with failures(self.path, "audio"):
            return audio.window(self, start, seconds, sample_rate)

    def audio_blocks(self, seconds: float, sample_rate: int = 16_000) -> Iterator[torch.Tensor]:
        """All of the audio from 0 s, as `audio` gives it, in blocks of `seconds` that join without a seam.

        The last block is shorter, possibly empty. Nothing else may be read from this `Media` meanwhile.

        Raises:
            DecodeError: as `audio`.
        """
        yield from self._in_turn(audio.windows(self, 0.0, repeat(seconds), sample_rate), "audio")

    def _in_turn(self, parts: Iterator[Part], stream: str) -> Iterator[Part]:
        """Parts of a stream; what the caller does between them is no failure of the file."""
        while True:
            with failures(self.path, stream):
                part = next(parts, None)
            if part is None:
                return
            yield part
