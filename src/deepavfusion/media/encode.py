"""Writes media: mp4 (H.264 + AAC) and 16-bit WAV.

The bytes depend on the input and the library versions only: one encoder thread, no creation time, no encoder name.
"""

from __future__ import annotations

import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import ArrayLike, NDArray

AAC_FRAME = 1024  # samples in one AAC packet
VIDEO_TICKS = 90_000  # ticks per second of the video track
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}  # channels -> FFmpeg's name


def write_mp4(
    path: str | Path,
    frames: NDArray[np.uint8] | Iterable[NDArray[np.uint8]],
    fps: float,
    waveform: ArrayLike | Iterator[NDArray[np.float32]] | None = None,
    sample_rate: int = 16_000,
    *,
    keyframe_interval: int = 16,
    crf: int = 23,
    audio_bit_rate: int = 64_000,
) -> None:
    """Write an mp4 file, over any that is there.

    Args:
        path: in a folder that exists.
        frames: uint8 [N, H, W, 3], RGB, or an iterable of [H, W, 3]; H and W even.
        fps: frames per second.
        waveform: [T] or [C, T] with C of `LAYOUTS`, in [−1, 1] (clipped outside), or an iterator over parts of it; None
            writes no audio stream.
        sample_rate: of the waveform, Hz; one that AAC supports (8 000 … 96 000).
        keyframe_interval: most frames from one key frame to the next.
        crf: x264's constant rate factor, 0 (lossless) … 51.
        audio_bit_rate: bits per second.

    Raises:
        ValueError: odd frame size, no frames, or frames of different sizes.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: no frames to write")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 with 4:2:0 colour needs even sizes, got {height} × {width}")

    with av.open(f"file:{path}", "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, VIDEO_TICKS)
        video.gop_size = keyframe_interval
        video.thread_count = 1
        # x264's macroblock tree reads memory it has not set, so with it the bytes differ from run to run
        video.options = {"crf": str(crf), "preset": "veryfast", "flags": "+bitexact", "x264-params": "mbtree=0"}
        audio = None if waveform is None else _AudioTrack(container, waveform, sample_rate, audio_bit_rate)
        durations: dict[int, int] = {}  # pts -> duration, both in ticks; x264 does not pass durations on

        def mux_video(frame: av.VideoFrame | None) -> None:
            for packet in video.encode(frame):
                packet.duration = durations.pop(packet.pts)
                container.mux(packet)

        for index, pixels in enumerate(chain([first], frames)):
            if pixels.shape != (height, width, 3):
                raise ValueError(f"{path}: frame {index} is {pixels.shape}, expected {(height, width, 3)}")
            start, end = (round(n / fps * VIDEO_TICKS) for n in (index, index + 1))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = start, Fraction(1, VIDEO_TICKS)
            durations[start] = end - start
            mux_video(frame)
            if audio is not None:
                audio.write_until(end / VIDEO_TICKS)
        mux_video(None)
        if audio is not None:
            audio.write_until(None)


def write_wav(path: str | Path, waveform: ArrayLike | Iterator[NDArray[np.float32]], sample_rate: int) -> None:
    """Write a 16-bit PCM WAV file; `waveform` [T] or [C, T] in [−1, 1], clipped outside, or an iterator over parts."""
    with wave.open(str(path), "wb") as file:
        for n, samples in enumerate(_parts(waveform)):
            if n == 0:
                file.setparams((len(samples), 2, sample_rate, 0, "NONE", ""))  # channels, bytes, Hz; the length follows
            pcm = np.round(samples * 32767.0).astype("<i2")
            file.writeframesraw(np.ascontiguousarray(pcm.T).tobytes())


def _parts(waveform: ArrayLike | Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """A waveform as [C, T] in [−1, 1], in one part or in those given."""
    for part in waveform if isinstance(waveform, Iterator) else [waveform]:
        yield np.clip(np.atleast_2d(np.asarray(part, np.float32)), -1.0, 1.0)


class _AudioTrack:
    """The audio track of a file being written; it is fed step by step, so that audio and video interleave."""

    def __init__(
        self, container: Any, waveform: ArrayLike | Iterator[NDArray[np.float32]], rate: int, bit_rate: int
    ) -> None:
        self.parts = _parts(waveform)
        self.samples = next(self.parts)  # that are not encoded yet
        assert self.samples.shape[0] in LAYOUTS, f"{' or '.join(map(str, LAYOUTS))} channels, got {self.samples.shape}"
        self.container, self.rate = container, rate
        self.layout = LAYOUTS[self.samples.shape[0]]
        self.position = 0
        self.stream = container.add_stream("aac", rate=rate, layout=self.layout)
        self.stream.bit_rate = bit_rate
        self.stream.thread_count = 1
        self.stream.options = {"flags": "+bitexact", "aac_coder": "fast"}

    def write_until(self, time: float | None) -> None:
        """Encode up to `time`, seconds; None: all that remains, and close the track."""
        while time is None or self.position < round(time * self.rate):
            chunk = self._next()
            if not chunk.shape[1]:
                break
            frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=self.layout)
            frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
            frame.pts = self.position
            self.position += chunk.shape[1]
            self.container.mux(self.stream.encode(frame))
        if time is None:
            self.container.mux(self.stream.encode(None))

    def _next(self) -> NDArray[np.float32]:
        """The samples of the next packet; fewer at the end."""
        while self.samples.shape[1] < AAC_FRAME and (part := next(self.parts, None)) is not None:
            self.samples = np.concatenate([self.samples, part], axis=1)
        chunk, self.samples = self.samples[:, :AAC_FRAME], self.samples[:, AAC_FRAME:]
        return np.ascontiguousarray(chunk)
