"""Addresses in place of local folders, sizes of what is kept of them, and what an error may show of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|local:")  # `local:` is for trials; storage/remote.py knows some
SHORTEST = 6  # characters of a secret; shorter ones are those of trials, and parts of words
USER = re.compile(r"(?<=://)[^\s\"']*@")  # user:password@ in an address
SIGNED = re.compile(r"\?[^\s\"'>)]*")  # the query of an address may be a signature
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


def scrubbed(text: str, secrets: Iterable[str | None]) -> str:
    """The words of a library in one line, without keys, tokens, passwords and signatures; long ones without a middle,
    as the cause often stands at the end."""
    for secret in secrets:
        if secret and len(secret) >= SHORTEST:
            text = text.replace(secret, "…")
    text = " ".join(SIGNED.sub("?…", USER.sub("", text)).split())
    return text if len(text) <= 300 else f"{text[:200]} … {text[-97:]}"
