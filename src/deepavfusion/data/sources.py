"""Where clips are read from. A source opens a clip; an open clip gives pictures, sound and masks by time.

All else in the data path is the same for every source: raw files (here) and packed chunks (packed.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from deepavfusion.data.decode import Media
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Clip
from deepavfusion.utils.errors import DecodeError

FRAME_GRID = 0.5  # s: pictures are taken at multiples of this, in raw and in packed data alike
MASK_CENTRE = 0.5  # s: the annotated picture n lies at n + 0.5 s
FORMATS = ("JPEG", "PNG", "MPO", "WEBP", "BMP", "GIF")  # of Pillow's, those that start no other program
MAX_PIXELS = 8192 * 8192  # a larger picture is a damaged header


@dataclass(frozen=True)
class Picture:
    """A frame: RGB pixels, and the height and width it was filmed in (packed pictures are smaller)."""

    pixels: Image.Image
    height: int
    width: int


class OpenClip(Protocol):
    """A clip that is being read. Times are seconds on its clock; every failure is a `DecodeError`."""

    @property
    def sound_end(self) -> float:
        """Where the sound ends, s."""

    @property
    def picture_end(self) -> float:
        """Where the last picture leaves the screen, s."""

    def pictures(self, times: Sequence[float]) -> list[Picture]:
        """The frames on screen at `times`, s."""

    def grid(self) -> list[float]:
        """The moments whose pictures packed data keep, s."""

    def sound(self, start: float, seconds: float) -> Tensor:
        """float32 [T], mono, 16 kHz, in [−1, 1]; shorter than asked for where the sound ends earlier."""

    def mask(self, second: int) -> Image.Image:
        """The annotation of the picture at `second` + 0.5 s, uint8, one value a pixel."""


class Source(Protocol):
    """Opens the clips of a list."""

    @contextmanager
    def open(self, clip: Clip) -> Iterator[OpenClip]:
        """The clip, until the `with` block ends."""

    def blocks(self, clips: Sequence[Clip]) -> list[list[int]] | None:
        """Positions of the clips that lie together, in the order of storage; None where any order costs the same."""


class RawSource:
    """The files as they were published: mp4 (or any other media file), or AVSBench's folders."""

    @contextmanager
    def open(self, clip: Clip) -> Iterator[OpenClip]:
        if clip.frames:
            with Media(Path(clip.path, "audio.wav")) as sound:
                yield FolderClip(clip, sound)
            return
        with Media(clip.path) as media:
            yield MediaClip(media, clip.path)

    def blocks(self, clips: Sequence[Clip]) -> None:
        return None


class MediaClip:
    """One media file with picture and sound."""

    def __init__(self, media: Media, path: str) -> None:
        self.media, self.path = media, path
        if not media.info.has_audio:
            raise DecodeError(path, "no_audio", "the file has no audio stream")

    @property
    def sound_end(self) -> float:
        return self.media.info.sound_end

    @property
    def picture_end(self) -> float:
        return self.media.info.picture_end

    def pictures(self, times: Sequence[float]) -> list[Picture]:
        frames = self.media.frames(times)
        return [Picture(Image.fromarray(frame), *frame.shape[:2]) for frame in frames]

    def grid(self) -> list[float]:
        return [n * FRAME_GRID for n in range(int(self.picture_end / FRAME_GRID) + 1)]

    def sound(self, start: float, seconds: float) -> Tensor:
        return self.media.audio(start, seconds, SAMPLE_RATE)

    def mask(self, second: int) -> Image.Image:
        raise DecodeError(self.path, "bad_mask", "a media file has no masks")


class FolderClip:
    """A clip of AVSBench: frames/<n>.jpg at n + 0.5 s, labels_semantic/<n>.png, audio.wav."""

    def __init__(self, clip: Clip, sound: Media) -> None:
        self.folder, self.media = Path(clip.path), sound
        self.sound_end = sound.info.sound_end
        try:
            self.numbers = sorted(int(file.stem) for file in (self.folder / "frames").glob("[0-9]*.jpg"))
        except ValueError as error:
            raise DecodeError(clip.path, "undecodable", f"a frame's name is no number ({error})") from None
        if not self.numbers:
            raise DecodeError(clip.path, "no_video", "there are no frames/<n>.jpg")
        self.picture_end = self.numbers[-1] + 1.0

    def pictures(self, times: Sequence[float]) -> list[Picture]:
        moments = np.array(self.grid())
        nearest = [self.numbers[int(np.abs(moments - time).argmin())] for time in times]
        pixels = {n: read_picture(self.folder / "frames" / f"{n}.jpg") for n in set(nearest)}
        return [Picture(pixels[n], pixels[n].height, pixels[n].width) for n in nearest]

    def grid(self) -> list[float]:
        return [number + MASK_CENTRE for number in self.numbers]

    def sound(self, start: float, seconds: float) -> Tensor:
        return self.media.audio(start, seconds, SAMPLE_RATE)

    def mask(self, second: int) -> Image.Image:
        file = self.folder / "labels_semantic" / f"{second}.png"
        mask = read_mask(file)
        size = read_size(self.folder / "frames" / f"{second}.jpg")
        if mask.size != size:
            raise DecodeError(
                str(file),
                "bad_mask",
                f"labels_semantic/{second}.png has {mask.width} × {mask.height} pixels, frames/{second}.jpg has "
                f"{size[0]} × {size[1]}",
            )
        return mask


def read_picture(file: Path | IO[bytes], name: str = "") -> Image.Image:
    """A JPEG file, or the bytes of one, as RGB; `name` stands for bytes in messages.

    Raises:
        DecodeError: missing, undecodable (too large a picture, too).
    """
    return _opened(file, name, "undecodable").convert("RGB")


def read_mask(file: Path | IO[bytes], name: str = "") -> Image.Image:
    """A PNG file, or the bytes of one, with one value a pixel (grey or palette), as mode L.

    Raises:
        DecodeError: missing, bad_mask.
    """
    mask = _opened(file, name, "bad_mask")
    if mask.mode not in ("L", "P", "1"):
        raise DecodeError(name or str(file), "bad_mask", f"it has {mask.mode} pixels, expected one value each")
    return Image.fromarray(np.asarray(mask).astype(np.uint8))


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file, from its header."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return picture.size
    except FileNotFoundError:
        raise DecodeError(str(path), "missing", "there is no such file") from None
    except Exception as error:  # Pillow's readers raise nearly anything: OSError, SyntaxError, struct.error, …
        raise DecodeError(str(path), "undecodable", " ".join(str(error).split())) from None


def _opened(file: Path | IO[bytes], name: str, reason: str) -> Image.Image:
    name = name or str(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file, formats=FORMATS)
            if picture.width * picture.height > MAX_PIXELS:
                raise DecodeError(name, reason, f"the header gives {picture.width} × {picture.height} pixels")
            picture.load()
            return picture
    except FileNotFoundError:
        raise DecodeError(name, "missing", "there is no such file") from None
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything: OSError, SyntaxError, struct.error, …
        raise DecodeError(name, reason, " ".join(str(error).split())) from None
