"""Reading still images: JPEG frames and PNG masks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from deepavfusion.media.container import MAX_PIXELS
from deepavfusion.utils.errors import DecodeError

FORMATS = ("JPEG", "PNG", "MPO", "WEBP", "BMP", "GIF")  # Pillow reads others (EPS) by running a program


def read_image(file: Path | IO[bytes], name: str = "") -> Image.Image:
    """A JPEG file, or the bytes of one, as RGB; `name` stands for bytes in messages.

    Raises:
        DecodeError: missing, undecodable (also if it is too large).
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
    """Width and height of an image file, from its header.

    Raises:
        DecodeError: missing, undecodable.
    """
    with _opened(path, "", "undecodable", load=False) as image:
        return image.size


def _opened(file: Path | IO[bytes], name: str, reason: str, load: bool = True) -> Image.Image:
    name = name or str(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise DecodeError(name, reason, f"the header gives {image.width} × {image.height} pixels")
            if load:
                image.load()
            return image
    except FileNotFoundError:
        raise DecodeError(name, "missing", "there is no such file") from None
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything: OSError, SyntaxError, struct.error, …
        raise DecodeError(name, reason, " ".join(str(error).split())) from None
