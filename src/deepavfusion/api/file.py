"""The file or folder that a model came from."""

from __future__ import annotations

import os

from deepavfusion.inference.search.index import hash_of
from deepavfusion.weights.hub import CONFIG, MODEL, local


class WeightsFile:
    """Knows the hash of a checkpoint as it was when this object was made, see `hash_of`.

    Args:
        source: its path, or an address.
    """

    def __init__(self, source: str) -> None:
        self.source, self._state, self._sha256 = source, _state(source), ""

    @property
    def sha256(self) -> str:
        """In hexadecimal digits; empty if it is gone, or another one by now."""
        if self._state and not self._sha256 and _state(self.source) == self._state:
            self._sha256 = hash_of(self.source)
        return self._sha256


def _state(source: str) -> list[tuple[int, int]]:
    """Size and time of the file, or of both files of a folder; none if there is none."""
    place = local(source)
    files = [place / CONFIG, place / MODEL] if place.is_dir() else [place]
    if not all(map(os.path.isfile, files)):
        return []
    return [(status.st_size, status.st_mtime_ns) for status in map(os.stat, files)]
