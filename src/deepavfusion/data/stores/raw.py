"""The files as published, opened as clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepavfusion.data.stores.store import FRAME_GRID, MASK_CENTRE, Frame, OpenClip, whole_sample
from deepavfusion.media import Media, Recording, Still
from deepavfusion.media.stills import read_image, read_mask_of
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Clip
from deepavfusion.utils.errors import DecodeError

FRAMES_BYTES = 2**28  # of frames in memory at once, where many are read


class RawStore:
    """The files as they were published: mp4 (or any other media file), or AVSBench's folders."""

    room = 0

    @contextmanager
    def open(self, clip: Clip) -> Iterator[OpenClip]:
        with Media(Path(clip.path, "audio.wav") if clip.frames else clip.path) as media:
            media.require("audio")
            yield FolderClip(clip, media) if clip.frames else MediaClip(media, clip.start, clip.end)

    def blocks(self, clips: Sequence[Clip]) -> None:
        return None

    def prefetch(self, clip: Clip) -> None:
        pass

    def again(self, path: str) -> bool:
        return False


class MediaClip:
    """One media file with video and audio, or a part of it, whose clock begins with it.

    Args:
        media: the open file.
        start, end: of the part, s; None: to the end of the file.
    """

    def __init__(self, media: Media | Still | Recording, start: float = 0.0, end: float | None = None) -> None:
        self.media = media
        self.start = whole_sample(start)
        self.longest = math.inf if end is None else max(0.0, whole_sample(end) - self.start)  # s
        self.audio_end, self.video_end = (
            min(max(min(last, 0.0), last - self.start), self.longest)
            for last in (media.info.audio_end, media.info.video_end)
        )
        self.frames_at_once = max(1, FRAMES_BYTES // max(1, 3 * media.info.width * media.info.height))

    def frames(self, times: Sequence[float]) -> list[Frame]:
        frames = self.media.frames([self.start + time for time in times])
        return [Frame(Image.fromarray(frame), *frame.shape[:2]) for frame in frames]

    def frame_times(self) -> list[float]:
        return [n * FRAME_GRID for n in range(int(self.video_end / FRAME_GRID) + 1)]

    def audio(self, start: float, seconds: float) -> Tensor:
        seconds = min(seconds, self.longest - start)
        if round(seconds * SAMPLE_RATE) <= 0:
            return torch.zeros(0)
        return self.media.audio(self.start + start, seconds, SAMPLE_RATE)

    def mask(self, second: int) -> Image.Image:
        raise DecodeError(self.media.path, "bad_mask", "a media file has no masks")


class FolderClip(MediaClip):
    """A clip of AVSBench: frames/<n>.jpg at n + 0.5 s, labels_semantic/<n>.png, audio.wav."""

    def __init__(self, clip: Clip, media: Media) -> None:
        super().__init__(media)
        self.folder = Path(clip.path)
        try:
            self.numbers = sorted(int(file.stem) for file in (self.folder / "frames").glob("[0-9]*.jpg"))
        except ValueError as error:
            raise DecodeError(clip.path, "undecodable", f"the name of a frame is not a number ({error})") from None
        if not self.numbers:
            raise DecodeError(clip.path, "no_video", "there are no frames/<n>.jpg")
        self.video_end = self.numbers[-1] + 1.0
        self.frames_at_once = 1  # each is a file

    def frames(self, times: Sequence[float]) -> list[Frame]:
        frame_times = np.array(self.frame_times())
        nearest = [self.numbers[int(np.abs(frame_times - time).argmin())] for time in times]
        pixels = {n: read_image(self.folder / "frames" / f"{n}.jpg") for n in set(nearest)}
        return [Frame(pixels[n], pixels[n].height, pixels[n].width) for n in nearest]

    def frame_times(self) -> list[float]:
        return [number + MASK_CENTRE for number in self.numbers]

    def mask(self, second: int) -> Image.Image:
        return read_mask_of(self.folder / "frames" / f"{second}.jpg", self.folder / "labels_semantic" / f"{second}.png")
