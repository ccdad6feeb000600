"""Addresses in object storage, in place of local folders, and sizes of what is kept of them."""

from __future__ import annotations

import os
import re

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|local:")  # `local:` is for trials; storage/remote.py knows some
UNITS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def is_remote(root: str | os.PathLike[str]) -> bool:
    """Whether a data root is an address, from which data is downloaded into a cache."""
    return bool(REMOTE.match(str(root)))


def bytes_of(text: str) -> int | None:
    """Bytes of a size such as 100GB, 1.5 TB or 512MiB; None if it is none, or less than a byte."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kKMGTP]?)(i?)B?", text)
    if not found:
        return None
    number, unit, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** UNITS["k" if unit == "K" else unit])
    return size or None
