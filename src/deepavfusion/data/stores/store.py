"""Where clips are opened: a store opens a clip, and an open clip gives frames, audio and masks by time.

The rest of the data path is the same for raw files (raw.py) and packed chunks (packed.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Clip

FRAME_GRID = 0.5  # s: frames are taken at multiples of this, in raw and in packed data alike
MASK_CENTRE = 0.5  # s: the annotated frame n lies at n + 0.5 s


@dataclass(frozen=True)
class Frame:
    """A frame: RGB pixels, and the height and width it was filmed in (packed frames are smaller)."""

    pixels: Image.Image
    height: int
    width: int


class OpenClip(Protocol):
    """A clip that is being read. Times are seconds on its clock; every failure is a `DecodeError`."""

    @property
    def audio_end(self) -> float:
        """Where the audio ends, s."""

    @property
    def video_end(self) -> float:
        """Where the last frame ends, s."""

    @property
    def frames_at_once(self) -> int:
        """How many frames of this size there is memory for."""

    def frames(self, times: Sequence[float]) -> list[Frame]:
        """The frames on screen at `times`, s."""

    def frame_times(self) -> list[float]:
        """Times of the frames that packed data keeps, s."""

    def audio(self, start: float, seconds: float) -> Tensor:
        """float32 [T], mono, 16 kHz, in [−1, 1]; shorter than requested where the audio ends earlier."""

    def mask(self, second: int) -> Image.Image:
        """The annotation of the frame at `second` + 0.5 s, uint8, one value per pixel."""


class Store(Protocol):
    """Opens the clips of a list."""

    @contextmanager
    def open(self, clip: Clip) -> Iterator[OpenClip]:
        """The clip, until the `with` block ends."""

    def blocks(self, clips: Sequence[Clip]) -> list[list[int]] | None:
        """Positions of the clips that lie together, in the order of storage; None where any order costs the same."""

    @property
    def room(self) -> int:
        """How many blocks, of those that are fetched, can be kept; 0 if none is fetched."""

    def prefetch(self, clip: Clip) -> None:
        """Begin to fetch what holds the clip, which will be opened later."""

    def again(self, path: str) -> bool:
        """Whether a clip that could not be read, for what lies at `path`, should be tried once more."""


def frames_of(clip: OpenClip, times: Sequence[float]) -> Iterable[Frame]:
    """The frames on screen at `times`, s; no more of them in memory than `frames_at_once`."""
    step = clip.frames_at_once
    if len(times) <= step:
        return clip.frames(times)
    return (frame for n in range(0, len(times), step) for frame in clip.frames(times[n : n + step]))


def on_grid(time: float, earliest: float, latest: float) -> float:
    """The multiple of `FRAME_GRID` nearest to a time that still lies in [earliest, latest], seconds.

    Where no multiple does, the one before `latest`: there is always a frame on screen then.
    """
    first = -int(-earliest // FRAME_GRID)  # round up
    last = int(max(latest, 0.0) / FRAME_GRID)
    return min(max(round(time / FRAME_GRID), first), last) * FRAME_GRID


def whole_sample(time: float) -> float:
    """The time of the nearest audio sample, s, so that raw and packed data are cut at the same one."""
    return round(time * SAMPLE_RATE) / SAMPLE_RATE
