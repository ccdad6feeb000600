"""The Debian package tuxpaint-stamps-default: where it is, and what of it the set `stamps` takes.

Whoever unpacked the files is not trusted: no link leads out of them, and sizes are bounded. A file that cannot be used
is an error that names it, since the set would silently be another without it.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from deepavfusion.demo.kinds import KINDS, Part, pictures, recordings
from deepavfusion.demo.sounds import SAMPLE_RATE, Signal
from deepavfusion.media.media import Media
from deepavfusion.media.stills import read_cutout
from deepavfusion.utils.errors import DecodeError, UserError
from deepavfusion.utils.files import regular_file
from deepavfusion.utils.names import to_cell

NAME = "tuxpaint-stamps-default"
INSTALLED = Path("/usr/share/tuxpaint/stamps")
BELOW = "usr/share/tuxpaint/stamps"  # an unpacked package's root
GET = (
    f"install it (apt-get install --no-install-recommends {NAME}), or unpack it without root (apt-get download {NAME} "
    f"&& dpkg -x {NAME}_*.deb stamps) and add package=stamps"
)
MOST_PIXELS = 2048  # of a side
LEAST_PIXELS = 24
MOST_BYTES = 2**24  # of a file
MOST_TEXT = 2**20  # bytes of a text that is copied
QUIET = 1e-3  # root mean square, of full scale


@dataclass(frozen=True)
class Package:
    """What the set uses: photographs by path, RGBA, and parts of recordings [T] at 16 kHz, of unit root mean square."""

    pictures: dict[str, Image.Image]
    sounds: dict[Part, Signal]


def stamps_of(package: str | None) -> Path:
    """The folder of the stamps, of the installed package or of `package`: it, or where it was unpacked.

    Raises:
        UserError: there is none.
    """
    if package is None:
        if INSTALLED.is_dir():
            return INSTALLED
        raise UserError(f"The demo set stamps needs the Debian package {NAME}, which is not installed: {GET}.")
    for folder in (Path(package) / BELOW, Path(package)):
        if (folder / "animals").is_dir():
            return folder.absolute()
    raise UserError(
        f"package={package} holds no stamps; expected the folder where {NAME} was unpacked, with {BELOW} in it: {GET}."
    )


@lru_cache(maxsize=1)
def read_package(stamps: Path) -> Package:
    """Read all that the set uses.

    Raises:
        UserError: a file that is missing, leads elsewhere, or does not hold what is expected.
    """
    parts = {part for kind in KINDS.values() for split in ("train", "test", "other") for part in kind.heard(split)}
    return Package(
        {path: _picture(stamps, path) for path in pictures()}, {part: _sound(stamps, part) for part in sorted(parts)}
    )


def licence(stamps: Path) -> str:
    """The package's own statement of its licence, and who contributed what, as far as it says so.

    Raises:
        UserError: there is none.
    """
    place = stamps.parent.parent / "doc" / NAME
    found = [place / name for name in ("copyright", "changelog.gz") if (place / name).exists()]
    if not found or found[0].name != "copyright":
        raise UserError(
            f"{place / 'copyright'} does not exist; expected the stamps' licence, where the package has it: {GET}."
        )
    text = (
        f"The clips beside this file are made from photographs and recordings of the Debian package {NAME}, whose "
        "licence and credits follow. sources.csv names each file. As derived works, clips are under the same licence.\n"
    )
    return "\n".join([text, *(f"==== {path.name.removesuffix('.gz')}\n\n{_text(place, path.name)}" for path in found)])


def sources(stamps: Path) -> list[tuple[str, str, str, str]]:
    """Of each file: path below the stamps, what it is used as, SHA-256, and the package's description."""
    rows = [("file", "used as", "sha256", "description")]
    for path, used in sorted({**pictures(), **recordings()}.items()):
        told = Path(path).with_suffix(".txt")
        lines = _text(stamps, str(told)).splitlines() if (stamps / told).exists() else []
        digest = hashlib.sha256(_checked(stamps, path).read_bytes()).hexdigest()
        rows.append((path, used, digest, str(to_cell(lines[0].strip())) if lines else ""))
    return rows


def _checked(folder: Path, path: str) -> Path:
    """A file of the package that may be opened."""
    file = folder / path
    try:
        size = regular_file(file).st_size
    except FileNotFoundError:
        raise _unusable(file, "it does not exist") from None
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from None
    if not file.resolve().is_relative_to(folder.resolve()):
        raise _unusable(file, f"it is a link that leads out of the package, to {os.path.realpath(file)}")
    if not 0 < size <= MOST_BYTES:
        raise _unusable(file, "it is empty" if not size else f"it has {size} bytes, expected {MOST_BYTES} at most")
    return file


def _picture(stamps: Path, path: str) -> Image.Image:
    file = _checked(stamps, path)
    try:
        image = read_cutout(file, MOST_PIXELS)
    except DecodeError as error:
        raise _unusable(file, error.detail) from None
    covered = Image.fromarray((np.asarray(image.getchannel("A")) > 127).astype(np.uint8)).getbbox()
    if covered is None:
        raise _unusable(file, "it is transparent all over")
    if min(covered[2] - covered[0], covered[3] - covered[1]) < LEAST_PIXELS:
        raise _unusable(file, f"what is not transparent is less than {LEAST_PIXELS} pixels wide or high")
    return image.crop(covered)


def _sound(stamps: Path, part: Part) -> Signal:
    path, start, end = part
    file = _checked(stamps, path)
    try:
        with Media(file) as media:
            signal = media.audio(start, end - start, SAMPLE_RATE).numpy()
    except DecodeError as error:
        raise _unusable(file, error.detail) from None
    if len(signal) < 0.9 * (end - start) * SAMPLE_RATE:
        raise _unusable(file, f"it ends at {start + len(signal) / SAMPLE_RATE:.2f} s, expected sound up to {end:.2f} s")
    level = float(np.sqrt(np.mean(np.square(signal))))
    if level < QUIET:
        raise _unusable(file, f"nothing is heard from {start:.2f} to {end:.2f} s")
    return signal / np.float32(level)


def _text(folder: Path, path: str) -> str:
    """A text of the package, which may be compressed."""
    file = _checked(folder, path)
    data = file.read_bytes()
    if path.endswith(".gz"):
        data = _unzipped(file, data)
    return data[:MOST_TEXT].decode("utf-8", "replace")


def _unzipped(file: Path, data: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(data, MOST_TEXT)
    except zlib.error:
        raise _unusable(file, "it is no gzip file") from None


def _unusable(file: Path, why: str) -> UserError:
    return UserError(
        f"{file} cannot be used: {why}; expected the file of {NAME}: install the package again (apt-get install "
        f"--reinstall {NAME}), or give another copy with package=<folder>."
    )
