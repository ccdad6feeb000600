"""Collects results that come in batches into one array on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class GrowingArray:
    """A float32 array [N, *shape] that grows by rows in a file, not in memory.

    Args:
        shape: of a row.
        folder: for the file; None: the system's folder for temporary files.
    """

    def __init__(self, shape: Sequence[int], folder: str | Path | None = None) -> None:
        self.shape, self.count = tuple(shape), 0
        # The file has no name, so nothing is left of it, however the process ends.
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def add(self, rows: Tensor) -> None:
        """Append rows [n, *shape]; raises OSError where the disk is full."""
        assert tuple(rows.shape[1:]) == self.shape, (rows.shape, self.shape)
        self.file.write(rows.float().cpu().contiguous().numpy().tobytes())
        self.count += len(rows)

    def array(self) -> NDArray[np.float32]:
        """All rows, memory-mapped."""
        shape = (self.count, *self.shape)
        self.file.flush()
        return np.memmap(self.file, np.float32, mode="r+", shape=shape) if self.count else np.empty(shape, np.float32)
