"""Addresses in object storage, in place of local folders."""

from __future__ import annotations

import os

REMOTE = ("s3://", "gs://", "r2://", "azure://", "hf://", "local:")  # that litdata can read; `local:` is for trials


def is_remote(root: str | os.PathLike[str]) -> bool:
    """Whether a data root is an address, from which data is downloaded into a cache."""
    return str(root).startswith(REMOTE)
