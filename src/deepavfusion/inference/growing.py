"""Results that come a batch at a time and are wanted as one array."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class GrowingArray:
    """An array float32 [N, *shape] that grows by rows, in a file, so that memory does not grow with it.

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
        """All rows, mapped into memory as they are read."""
        shape = (self.count, *self.shape)
        self.file.flush()
        return np.memmap(self.file, np.float32, mode="r+", shape=shape) if self.count else np.empty(shape, np.float32)
