"""Reading still images and masks, of any common format, whatever their names end in."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from deepavfusion.media.bounds import check_size
from deepavfusion.media.files import EXHAUSTED
from deepavfusion.media.media import Media, MediaInfo
from deepavfusion.media.recording import Recording
from deepavfusion.utils.errors import DecodeError
from deepavfusion.utils.files import regular_file

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # Pillow reads others (EPS) by running a program
STILLS = (".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # names of images among other media
ORIENTATION = 0x0112  # EXIF tag
TURNS = {  # its values -> how the stored pixels have to be turned
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)


class Still:
    """An image file that is read as a `Media` of frames alone, all of which are the image; `STILLS` are named so.

    Raises:
        DecodeError: see `read_image`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.pixels = np.array(read_image(Path(path)))
        height, width = self.pixels.shape[:2]
        self.info = MediaInfo(
            duration=0.0, video_start=0.0, video_duration=0.0, frames=1, fps=0.0, width=width, height=height,
            audio_start=0.0, audio_duration=0.0, sample_rate=0, channels=0,
        )  # fmt: skip

    def __enter__(self) -> Still:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def has(self, kind: str) -> bool:
        return kind == "video"

    def require(self, kind: str) -> None:
        if not self.has(kind):
            raise DecodeError(self.path, f"no_{kind}", "the file is an image", kind)

    def frames(self, times: Sequence[float]) -> NDArray[np.uint8]:
        return np.broadcast_to(self.pixels, (len(times), *self.pixels.shape))

    def frames_in_turn(self, times: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
        return repeat(self.pixels, len(times))

    def audio(self, start: float, seconds: float, sample_rate: int = 16_000) -> Tensor:
        raise DecodeError(self.path, "no_audio", "the file is an image", "audio")


Source: TypeAlias = str | os.PathLike[str] | Recording


def open_media(source: Source) -> Media | Still | Recording:
    """A media file or an image, by its name; a recording is open."""
    if isinstance(source, Recording):
        return source
    return Still(source) if os.fspath(source).lower().endswith(STILLS) else Media(source)


def read_image(file: Path | IO[bytes], name: str = "") -> Image.Image:
    """An image file, or the bytes of one, as RGB, upright, without transparency; of an animation the first frame.

    Args:
        file: JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF.
        name: stands for bytes in messages.

    Raises:
        DecodeError: missing, undecodable (also if it is too large).
    """
    with _opened(file, name, "undecodable") as image:
        image.load()
        turn = TURNS.get(_orientation(image))
        pixels = _eight_bits(image).convert("RGB")
    return pixels if turn is None else pixels.transpose(turn)


def read_cutout(file: Path, most: int) -> Image.Image:
    """An image file as RGBA, what it does not cover being transparent; each side has `most` pixels at most.

    Raises:
        DecodeError: missing, undecodable (also if it is too large).
    """
    with _opened(file, "", "undecodable") as image:
        if max(image.size) > most:
            raise ValueError(f"it has {image.width} × {image.height} pixels, expected {most} at most on each side")
        image.load()
        return image.convert("RGBA")


def read_mask(file: Path | IO[bytes], name: str = "") -> Image.Image:
    """A PNG file (or another format that keeps values), or the bytes of one, as mode L, as it is stored.

    It has one value a pixel (grey or palette).

    Raises:
        DecodeError: missing, bad_mask.
    """
    with _opened(file, name, "bad_mask") as mask:
        mask.load()
        if mask.mode not in ("L", "P", "1"):
            detail = f"it has {mask.mode} pixels, expected one value of 8 bits each"
            raise DecodeError(name or str(file), "bad_mask", detail)
        if "jpeg" in (str(mask.format).lower(), mask.info.get("compression")):
            raise DecodeError(name or str(file), "bad_mask", "it is a JPEG, which changes values: save it as PNG")
        return Image.fromarray(np.asarray(mask).astype(np.uint8))


def read_mask_of(image: Path, mask: Path) -> Image.Image:
    """The mask of an image, on the grid of `read_image`.

    EXIF may say that an image has to be turned. On which of the two grids its mask was drawn follows from their sizes,
    or from the mask's own EXIF data.

    Raises:
        DecodeError: missing, undecodable (the image), bad_mask (also if it cannot be known how the mask lies).
    """
    pixels, name = read_mask(mask), f"{mask.parent.name}/{mask.name}"
    with _opened(mask, "", "bad_mask") as opened:
        own = _orientation(opened)
    with _opened(image, "", "undecodable") as opened:
        size, orientation = opened.size, _orientation(opened)
    turn = TURNS.get(orientation)
    upright = size[::-1] if orientation in SIDEWAYS else size
    if own in TURNS:
        pixels = pixels.transpose(TURNS[own])
    elif turn is not None and size == upright == pixels.size:
        raise DecodeError(
            str(mask),
            "bad_mask",
            f"its image has the EXIF orientation {orientation}, and {name} may be drawn on the turned or on the stored "
            "image: save the image turned, without EXIF data",
        )
    elif turn is not None and pixels.size == size:
        pixels = pixels.transpose(turn)
    if pixels.size != upright:
        other = f"{image.parent.name}/{image.name} has {upright[0]} × {upright[1]}"
        raise DecodeError(str(mask), "bad_mask", f"{name} has {pixels.width} × {pixels.height} pixels, {other}")
    return pixels


def check_sums(mask: Path) -> None:
    """Compare the checksums of a PNG file, which `read_mask` skips where the pixels can be unpacked without them.

    What lies behind the last chunk is no part of the file.

    Raises:
        DecodeError: missing, bad_mask.
    """
    with _opened(mask, "", "bad_mask") as opened:
        opened.verify()


def is_named_like(path: Path) -> bool:
    """Whether a file's name ends as its format says: FFmpeg goes by the name."""
    with _opened(path, "", "undecodable") as image:
        return path.suffix.lower() in {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}.get(image.format or "", ())


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data, of which Pillow raises nearly anything
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits a pixel as one of 8; `convert` would make it white."""
    if image.mode.startswith("I"):
        values = np.asarray(image.convert("I"))
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError("its pixels have 32 bits, expected 8 or 16")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are no whole numbers, expected 8 or 16 bits")
    return image


@contextmanager
def _opened(file: Path | IO[bytes], name: str, reason: str) -> Iterator[Image.Image]:
    """The image, its pixels not yet read; whatever fails within the block becomes a `DecodeError`."""
    name = name or str(file)
    try:
        if isinstance(file, Path):
            regular_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of sizes, which are checked here
            with Image.open(file, formats=FORMATS) as image:
                check_size(name, image.width, image.height, reason)
                yield image
    except FileNotFoundError:
        raise DecodeError(name, "missing", "there is no such file") from None
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(name, reason, _what_it_is(file)) from None
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        raise DecodeError(name, reason, error.strerror or " ".join(str(error).split())) from None
    except Exception as error:  # Pillow's readers raise nearly anything: SyntaxError, struct.error, …
        raise DecodeError(name, reason, " ".join(str(error).split())) from None


def _what_it_is(file: Path | IO[bytes]) -> str:
    """A clause on a file that is no image."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            head = opened.read(24)
    else:
        file.seek(0)
        head = file.read(24)
    return f"it is no image, it begins with {head.decode('latin-1')!a}" if head else "the file is empty"
