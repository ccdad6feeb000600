"""The file that a model came from."""

from __future__ import annotations

import os
from pathlib import Path

from deepavfusion.inference.search.index import hash_of


class WeightsFile:
    """Knows the hash of a file as it was when this object was made.

    Args:
        source: its path, or the name of something else.
    """

    def __init__(self, source: str) -> None:
        self.source, self._state, self._sha256 = source, _state(source), ""

    @property
    def sha256(self) -> str:
        """In hexadecimal digits; empty if it is no file, or another one by now."""
        if self._state and not self._sha256 and _state(self.source) == self._state:
            self._sha256 = hash_of(Path(self.source))
        return self._sha256


def _state(source: str) -> tuple[int, int] | None:
    """Size and time of a file; None if it is none."""
    if not os.path.isfile(source):
        return None
    status = os.stat(source)
    return status.st_size, status.st_mtime_ns
