"""Which data roots are addresses rather than folders."""

from __future__ import annotations

import os

REMOTE = ("s3://", "gs://", "r2://", "azure://", "hf://", "local:")  # what litdata reads from; the last for trying it


def is_remote(root: str | os.PathLike[str]) -> bool:
    """Whether a data root is an address, whose content is fetched into a cache."""
    return str(root).startswith(REMOTE)
