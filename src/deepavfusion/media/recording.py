"""Pictures and sound in memory, read as a media file is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepavfusion.media.audio import window_of
from deepavfusion.media.bounds import LOUDEST, MAX_CHANNELS, MAX_RATE, MAX_SECONDS, check_request, check_size
from deepavfusion.media.frames import CLOCK_SLACK
from deepavfusion.media.media import MediaInfo
from deepavfusion.utils.errors import ArgumentError, DecodeError

MAX_FPS = 1000.0
MIN_RATE = 1000  # Hz
LONGEST_NAME = 255  # characters


class Recording:
    """A video, an image, a sound, or an image with a sound, as arrays (NumPy's, or PyTorch's).

    It takes the place of a file: `waveform` without pictures is an audio file, `image` alone an image file. The arrays
    are not copied where that is possible: do not change them while the recording is used.

    Args:
        image: uint8 [H, W, 3], RGB, 0…255: one picture, on screen as long as the sound lasts. Or `frames`.
        frames: uint8 [T, H, W, 3], RGB, 0…255; frame n is on screen from n / fps seconds on.
        fps: of the frames, 1/s.
        waveform: float [T] or [channels, T] in [−1, 1], from 0 s on; of several channels the mean is taken.
        sample_rate: of the waveform, Hz.
        name: stands for the name of a file in results, messages and the names of written files.

    Attributes:
        path: the name.
        info: size, rates and lengths.

    Raises:
        ArgumentError: another type, shape or range, or values that belong together and are not both given.
    """

    def __init__(
        self,
        image: Any = None,
        frames: Any = None,
        fps: float | None = None,
        waveform: Any = None,
        sample_rate: float | None = None,
        name: str = "recording",
    ) -> None:
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or "\0" in name:
            raise ArgumentError(f"name is {name!r:.80}, expected text of 1 to {LONGEST_NAME} characters.")
        self.path = name
        if image is not None and frames is not None:
            raise ArgumentError("image and frames are given, expected one of them: an image, or frames with fps.")
        if image is None and frames is None and waveform is None:
            raise ArgumentError("neither image, frames nor waveform is given, expected pictures, sound or both.")
        if (frames is None) != (fps is None):
            raise ArgumentError("frames and fps belong together: give both, or one picture as image.")
        if (waveform is None) != (sample_rate is None):
            raise ArgumentError("waveform and sample_rate (Hz) belong together: give both, or neither.")
        self.pixels = None if image is None else _pixels(image, "image", 3)[None]
        self.fps = 0.0
        if frames is not None:
            self.pixels, self.fps = _pixels(frames, "frames", 4), _rate("fps", fps, 0.0, MAX_FPS)
        self.samples: NDArray[np.float32] = np.zeros(0, np.float32)
        self.sample_rate = channels = 0
        if waveform is not None:
            self.sample_rate = int(_rate("sample_rate", sample_rate, MIN_RATE, MAX_RATE, whole=True))
            self.samples, channels = _mono(waveform, self.sample_rate)
        shown, heard = self._seconds(), len(self.samples) / self.sample_rate if self.sample_rate else 0.0
        for key, seconds in (("frames", shown), ("waveform", heard)):
            if seconds > MAX_SECONDS:
                raise ArgumentError(f"{key} last {seconds:.0f} s, expected at most {MAX_SECONDS:.0f} s: cut them.")
        number, height, width = (0, 0, 0) if self.pixels is None else self.pixels.shape[:3]
        self.info = MediaInfo(
            duration=max(shown, heard), video_start=0.0, video_duration=shown, frames=number, fps=self.fps,
            width=width, height=height, audio_start=0.0, audio_duration=heard, sample_rate=self.sample_rate,
            channels=channels,
        )  # fmt: skip

    def _seconds(self) -> float:
        """Length of the frames; an image has none."""
        return len(self.pixels) / self.fps if self.pixels is not None and self.fps else 0.0

    def __repr__(self) -> str:
        pictures = "" if self.pixels is None else f", pictures {list(self.pixels.shape)}"
        sound = f", {self.info.audio_duration:g} s of sound" if self.sample_rate else ""
        return f"Recording({self.path!r}{pictures}{sound})"

    # ---- as `Media`

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def has(self, kind: str) -> bool:
        """Whether there are pictures ("video") or sound ("audio")."""
        return self.pixels is not None if kind == "video" else self.sample_rate > 0

    def require(self, kind: str) -> None:
        if not self.has(kind):
            given = "waveform and sample_rate" if kind == "audio" else "image or frames"
            raise DecodeError(self.path, f"no_{kind}", f"the recording was made without {given}", kind)

    def frames(self, times: Sequence[float]) -> NDArray[np.uint8]:
        """The frames on screen at `times` (s), uint8 [N, H, W, 3]; before the first the first, after the last the last.

        Raises:
            DecodeError: no_video; too many for the memory.
        """
        pixels = self._shown()
        check_request(self.path, len(times), pixels.shape[2], pixels.shape[1])
        return pixels[[self._number(time) for time in times]]

    def frames_in_turn(self, times: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
        """As `frames`, one by one, [H, W, 3]."""
        pixels = self._shown()
        return (pixels[self._number(time)].copy() for time in times)

    def audio(self, start: float, seconds: float, sample_rate: int = 16_000) -> torch.Tensor:
        """See `Media.audio`."""
        self.require("audio")
        return window_of(self.samples, self.sample_rate, start, seconds, sample_rate)

    def audio_blocks(self, seconds: float, sample_rate: int = 16_000) -> Iterator[torch.Tensor]:
        """See `Media.audio_blocks`."""
        for n in count():
            block = self.audio(n * seconds, seconds, sample_rate)
            yield block
            if len(block) < round(seconds * sample_rate):
                return

    def _shown(self) -> NDArray[np.uint8]:
        self.require("video")
        assert self.pixels is not None
        return self.pixels

    def _number(self, time: float) -> int:
        """Of the frame on screen."""
        slack = min(CLOCK_SLACK, 0.25 / self.fps) if self.fps else 0.0
        return min(max(math.floor((time + slack) * self.fps), 0), len(self._shown()) - 1)


def _array(value: Any, key: str, expected: str) -> NDArray[Any]:
    try:
        value = value.detach().cpu() if isinstance(value, torch.Tensor) else value
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{key} cannot be read as an array ({error!s:.120}), expected {expected}.") from None


def _pixels(value: Any, key: str, dimensions: int) -> NDArray[np.uint8]:
    shape = "[height, width, 3]" if dimensions == 3 else "[frames, height, width, 3]"
    expected = f"uint8 {shape}, RGB, 0…255"
    array = _array(value, key, expected)
    if array.dtype != np.uint8 or array.ndim != dimensions or array.shape[-1] != 3 or not array.size:
        raise ArgumentError(f"{key} is {_shown(array)}, expected {expected}: convert it.")
    try:
        check_size(key, array.shape[-2], array.shape[-3])
    except DecodeError as error:
        raise ArgumentError(f"{key} cannot be used: {error.detail.replace('the header gives', 'it has')}.") from None
    return array


def _mono(value: Any, sample_rate: int) -> tuple[NDArray[np.float32], int]:
    """The mean of the channels [T], and how many they are."""
    expected = "float [samples] or [channels, samples], in [−1, 1]"
    array = _array(value, "waveform", expected)
    fix = "divide whole numbers by their range, e.g. 16-bit ones by 32768" if array.dtype.kind in "iu" else "convert it"
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or not array.size:
        raise ArgumentError(f"waveform is {_shown(array)}, expected {expected}: {fix}.")
    channels = 1 if array.ndim == 1 else len(array)
    if channels > MAX_CHANNELS:
        raise ArgumentError(
            f"waveform is {_shown(array)}, which would be {channels} channels, expected {expected}: transpose it."
        )
    with np.errstate(over="ignore", invalid="ignore"):  # the error below says it
        samples = array.astype(np.float32, copy=False).reshape(channels, -1)
        mono = np.full(channels, 1 / channels, np.float32) @ samples if channels > 1 else samples[0]
        peak = float(np.abs(mono).max())
    if not peak < LOUDEST:  # also where it is not a number
        what = f"peaks at {peak:g}" if math.isfinite(peak) else "has values that are no finite numbers"
        raise ArgumentError(f"waveform {what}, expected {expected}: scale it, 16-bit values by 1 / 32768.")
    return np.ascontiguousarray(mono), channels


def _rate(key: str, value: Any, least: float, most: float, whole: bool = False) -> float:
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (number > 0 and least <= number <= most) or (whole and number != round(number)):
        expected = f"a whole number of Hz from {least:g}" if whole else "frames a second above 0"
        raise ArgumentError(f"{key} is {value!r:.80}, expected {expected} to {most:g}.")
    return float(number)


def _shown(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
